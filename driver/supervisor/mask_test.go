package supervisor

import (
	"strings"
	"testing"
)

func masked(m *mask, parts ...string) string {
	var out strings.Builder
	for _, p := range parts {
		out.Write(m.pass([]byte(p)))
	}
	out.Write(m.rest())
	return out.String()
}

func TestMask(t *testing.T) {
	values := map[string]string{"A": "hunter2", "B": "hunter2-and-more", "PORT": "80", "KEY": "-----BEGIN KEY-----\nabcdef\n-----END KEY-----\n", "AA": "aaaa"}
	for in, want := range map[string]string{
		"the password is hunter2.\n":          "the password is ***.\n",
		"hunter2-and-more hunter2-and-m\n":    "*** ***-and-m\n",
		"hunter2hunter2":                      "******",
		"port 80":                             "port 80",
		"-----BEGIN KEY-----\nabcdef\n-----E": "***",
		"abcde\n":                             "abcde\n",
		"aaaaa aaa":                           "***a aaa",
		"hunt":                                "***",
		"hun":                                 "hun",
		"":                                    "",
	} {
		if got := masked(newMask(values), in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		// Wherever it is cut, the result is the same.
		for i := range in {
			for j := i; j < len(in); j++ {
				if got := masked(newMask(values), in[:i], in[i:j], in[j:]); got != want {
					t.Fatalf("%q cut at %d and %d: %q, want %q", in, i, j, got, want)
				}
			}
		}
	}
	if newMask(map[string]string{"PORT": "80", "EMPTY": ""}) != nil {
		t.Error("there is nothing to hide")
	}
}

func FuzzMask(f *testing.F) {
	f.Add("a secret is printed", "secret", 5)
	f.Add("xyxyxyz", "xyxyz", 3)
	f.Fuzz(func(t *testing.T, text, secret string, cut int) {
		m := newMask(map[string]string{"S": secret})
		if m == nil {
			return
		}
		cut = min(max(cut, 0), len(text))
		got := masked(m, text[:cut], text[cut:])
		if whole := masked(newMask(map[string]string{"S": secret}), text); got != whole {
			t.Fatalf("cut at %d it is %q, whole %q", cut, got, whole)
		}
		for part := range strings.SplitSeq(got, "***") {
			if strings.Contains(part, secret) {
				t.Fatalf("%q shows %q", got, secret)
			}
		}
	})
}
