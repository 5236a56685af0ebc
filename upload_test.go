package leapcell

import (
	"strconv"
	"testing"
)

func FuzzParseUploadOffset(f *testing.F) {
	for _, text := range []string{"0", "17", "-1", "+1", " 1", "01", "9223372036854775807", "9223372036854775808", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseUploadOffset(text)
		if err == nil && (n < 0 || strconv.FormatInt(n, 10) != text) {
			t.Errorf("%q is %d", text, n)
		}
	})
}
