package routes

import (
	"fmt"
	"testing"

	"github.com/leapcell/leapcell"
)

func TestSites(t *testing.T) {
	s := sites{}
	for _, name := range []string{"a.test", "a.test/api", "a.test/api/v2/", "b.test/only"} {
		if other := s.claim(name, &leapcell.Route{ServiceID: name}); other != nil {
			t.Errorf("%s is taken by %s", name, other.ServiceID)
		}
	}
	for _, name := range []string{"a.test", "a.test/", "a.test/api/", "b.test/only"} {
		if s.claim(name, &leapcell.Route{ServiceID: "late"}) == nil {
			t.Errorf("%s was given twice", name)
		}
	}
	for request, want := range map[[2]string]string{
		{"a.test", "/"}:           "a.test",
		{"a.test", ""}:            "a.test",
		{"a.test", "/apis"}:       "a.test",
		{"a.test", "/api"}:        "a.test/api",
		{"a.test", "/api/"}:       "a.test/api",
		{"a.test", "/api/v1"}:     "a.test/api",
		{"a.test", "/api/v2"}:     "a.test/api/v2/",
		{"a.test", "/api/v2/x"}:   "a.test/api/v2/",
		{"a.test", "/api/v20"}:    "a.test/api",
		{"b.test", "/only/x"}:     "b.test/only",
		{"b.test", "/"}:           "",
		{"c.test", "/"}:           "",
		{"a.test.evil.test", "/"}: "",
		{"a.test", "/x/api/v2/x"}: "a.test",
		{"a.test", "/API"}:        "a.test",
	} {
		got := ""
		if r := s.route(request[0], request[1]); r != nil {
			got = r.ServiceID
		}
		if got != want {
			t.Errorf("%s%s leads to %q, want %q", request[0], request[1], got, want)
		}
	}
}

// To find a route costs the same among ten and ten thousand.
func BenchmarkRoute(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		s := sites{}
		for i := range n {
			s.claim(fmt.Sprintf("service-%d-default-abcdefgh.leapcell.localhost", i), &leapcell.Route{})
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if s.route("service-7-default-abcdefgh.leapcell.localhost", "/some/path") == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}
