package source

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/leapcell/leapcell"
)

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func code(t *testing.T, err error, want leapcell.Code) {
	t.Helper()
	if leapcell.ErrorCode(err) != want {
		t.Errorf("%v has the code %s, want %s", err, leapcell.ErrorCode(err), want)
	}
}

func TestPartialGoesOnAfterAKill(t *testing.T) {
	s := newStore(t, nil)
	b := archive(t, tar.Header{Name: "a", Uname: strings.Repeat("x", 5000)})
	sum := sumOf(b)
	if _, err := s.Begin(t.Context(), sum, int64(len(b))); err != nil {
		t.Fatal(err)
	}
	broken := io.MultiReader(bytes.NewReader(b[:20]), iotest.ErrReader(errors.New("reset")))
	up, err := s.Append(t.Context(), sum, 0, broken)
	if code(t, err, leapcell.CodeRequestTimeout); up.Offset != 20 {
		t.Fatalf("at %d after 20 bytes", up.Offset)
	}
	// A kill comes between the last byte and its place among the whole ones.
	if err := os.WriteFile(s.partialPath(sum, int64(len(b))), b, 0o600); err != nil {
		t.Fatal(err)
	}
	next, err := New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	up, err = next.Begin(t.Context(), sum, int64(len(b)))
	if err != nil || up.Offset != int64(len(b)) {
		t.Fatalf("%+v, %v", up, err)
	}
	tree, err := next.Fetch(t.Context(), leapcell.Source{Upload: sum}, t.TempDir()+"/layer", func(string) {})
	if err != nil || tree.Files != 1 {
		t.Errorf("%d files, %v", tree.Files, err)
	}
}

func TestPartialThatIsNotWhatItSays(t *testing.T) {
	s := newStore(t, func(c *Config) { c.MaxUpload = 1000 })
	sum := sumOf([]byte("right"))
	for size, want := range map[int64]leapcell.Code{0: leapcell.CodeInvalid, -5: leapcell.CodeInvalid, 1001: leapcell.CodeTooLarge} {
		_, err := s.Begin(t.Context(), sum, size)
		code(t, err, want)
	}
	for _, bad := range []string{"", "../" + sum[3:], strings.ToUpper(sum), sum + "0"} {
		_, err := s.Begin(t.Context(), bad, 5)
		code(t, err, leapcell.CodeInvalid)
		_, err = s.Append(t.Context(), bad, 0, strings.NewReader("x"))
		code(t, err, leapcell.CodeNotFound)
	}
	for _, content := range []string{"wrong", "right"} { // the second is no gzip
		if _, err := s.Begin(t.Context(), sum, 5); err != nil {
			t.Fatal(err)
		}
		_, err := s.Append(t.Context(), sum, 0, strings.NewReader(content))
		code(t, err, leapcell.CodeInvalid)
		_, err = s.Upload(t.Context(), sum)
		code(t, err, leapcell.CodeNotFound)
	}
	// Another size is another try.
	for _, size := range []int64{7, 5} {
		if up, err := s.Begin(t.Context(), sum, size); err != nil || up.Size != size || up.Offset != 0 {
			t.Errorf("%+v, %v", up, err)
		}
	}
}

func TestPartialFromTwoAtOnce(t *testing.T) {
	s := newStore(t, nil)
	b := archive(t, tar.Header{Name: "a", Uname: strings.Repeat("x", 5000)})
	sum := sumOf(b)
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			up, err := s.Begin(t.Context(), sum, int64(len(b)))
			for err == nil && !up.Complete() {
				end := min(up.Offset+7, up.Size)
				up, err = s.Append(t.Context(), sum, up.Offset, bytes.NewReader(b[up.Offset:end]))
				if leapcell.ErrorCode(err) == leapcell.CodeConflict {
					err = nil // the other one was faster, and up says where to go on
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	if kept, err := os.ReadFile(s.uploadPath(sum)); err != nil || !bytes.Equal(kept, b) {
		t.Errorf("%d bytes are kept of %d, %v", len(kept), len(b), err)
	}
}

func TestPartialsThatNobodyGoesOnWith(t *testing.T) {
	s := newStore(t, nil)
	var last string
	for i := range maxPartial {
		last = sumOf([]byte{byte(i)})
		if _, err := s.Begin(t.Context(), last, 5); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Begin(t.Context(), sumOf([]byte("more")), 5)
	code(t, err, leapcell.CodeRateLimited)
	old := time.Now().Add(-partialAge - time.Hour)
	if err := os.Chtimes(s.partialPath(last, 5), old, old); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(s.partialDir()); len(left) != maxPartial-1 {
		t.Errorf("%d are left", len(left))
	}
	_, err = s.Upload(t.Context(), last)
	code(t, err, leapcell.CodeNotFound)
}
