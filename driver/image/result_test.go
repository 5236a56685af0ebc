package image

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// put writes files as a build would, at a time of its own.
func put(t *testing.T, root string, at time.Time, files map[string]string) {
	t.Helper()
	for name, text := range files {
		full := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(full, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// pyc is a compiled file of a source of that time.
func pyc(source time.Time) string {
	b := append([]byte("\xf3\r\r\n"), make([]byte, 12)...)
	binary.LittleEndian.PutUint32(b[8:], uint32(source.Unix()))
	return string(b) + "code"
}

// Two builds of the same input, at different times, give the same image.
func TestSameInputSameDigest(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	base := pull(t, s, r.push(t, gzipped(t, dir("app"), file{name: "app/source", text: "s"})))
	modified := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	build := func(at time.Time, name string) string {
		upper := t.TempDir()
		put(t, upper, at, map[string]string{
			"app/out": "x", "usr/lib/m.py": "y = 1", "usr/lib/__pycache__/m.cpython-313.pyc": pyc(at),
			"usr/lib/__pycache__/gone.cpython-313.pyc": pyc(time.Unix(1, 0)), "usr/lib/plain.pyc": "x",
			"var/log/dpkg.log": at.String(), "var/log/apt/history.log": at.String(), "var/cache/ldconfig/aux-cache": at.String(),
			"tmp/x": at.String(), "root/.npm/_logs/" + name: "x",
		})
		if err := os.Chmod(filepath.Join(upper, "root"), 0o700); err != nil {
			t.Fatal(err)
		}
		digest, _, err := s.Commit(t.Context(), base, Result{Upper: upper, WorkDir: "/app", Modified: modified}, r.host+"/app:"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	one, two := build(time.Unix(1_700_000_000, 0), "1"), build(time.Unix(1_800_000_000, 0), "2")
	if one != two {
		t.Errorf("digests %s and %s", one, two)
	}
	// Python finds the compiled files current, as it did at the build.
	img := pull(t, s, r.host+"/app@"+one)
	root := filepath.Join(t.TempDir(), "root")
	if err := s.Mount(img, root); err != nil {
		t.Fatal(err)
	}
	defer s.Unmount(root)
	for name, want := range map[string]time.Time{"m": modified, "gone": time.Unix(1, 0)} {
		code, err := os.ReadFile(filepath.Join(root, "usr/lib/__pycache__", name+".cpython-313.pyc"))
		if err != nil {
			t.Fatal(err)
		}
		if got := int64(binary.LittleEndian.Uint32(code[8:])); got != want.Unix() || !strings.HasSuffix(string(code), "code") {
			t.Errorf("%s: compiled from a source of %s, want %s", name, time.Unix(got, 0), want)
		}
	}
	info, err := os.Stat(filepath.Join(root, "usr/lib/m.py"))
	if err != nil || !info.ModTime().Equal(modified) {
		t.Errorf("the source is of %v, %v", info.ModTime(), err)
	}
	if _, err := os.Stat(filepath.Join(root, "root/.npm")); err == nil {
		t.Error("what instances cannot read is in the image")
	}
}

// The toolchain does not travel, unless the build left something beside it.
func TestRunImage(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	run := r.push(t, gzipped(t, file{name: "bin/bash", text: "b"}))
	base := pull(t, s, r.push(t, gzipped(t, file{name: "bin/bash", text: "b"}, file{name: "bin/cc", text: "c"}), gzipped(t, dir("app"), file{name: "app/source", text: "s"}, file{name: "app/old", text: "s"})))
	for name, test := range map[string]struct {
		files   map[string]string
		outside string
	}{
		"app alone":            {map[string]string{"app/app": "x"}, ""},
		"and what is left out": {map[string]string{"app/app": "x", "tmp/x": "", "var/cache/apt/x": "", "root/go/bin/x": "", "opt/cache/y": ""}, ""},
		"a package":            {map[string]string{"app/app": "x", "usr/bin/jq": "x", "var/lib/dpkg/status": "x"}, "/usr/bin/jq"},
		"a file beside it":     {map[string]string{"application": "x"}, "/application"},
	} {
		t.Run(name, func(t *testing.T) {
			upper := t.TempDir()
			put(t, upper, time.Now(), test.files)
			if _, ok := test.files["root/go/bin/x"]; ok {
				if err := os.Chmod(filepath.Join(upper, "root"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			var said []string
			result := Result{Upper: upper, WorkDir: "/app", Run: run, Exclude: []string{"/opt/cache"}}
			digest, _, err := s.Commit(t.Context(), base, result, r.host+"/app:1", func(_ leapcell.State, text string) { said = append(said, text) })
			if err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(t.TempDir(), "root")
			if err := s.Mount(pull(t, s, r.host+"/app@"+digest), root); err != nil {
				t.Fatal(err)
			}
			defer s.Unmount(root)
			_, missing := os.Stat(filepath.Join(root, "bin/cc"))
			if slim := missing != nil; slim != (test.outside == "") {
				t.Errorf("slim is %v; said %q", slim, said)
			}
			if test.outside != "" && !slices.Contains(said, "instances get the whole build system, since the build changed "+test.outside) {
				t.Errorf("said %q", said)
			}
			for _, name := range []string{"bin/bash", "app/source"} {
				if _, err := os.Stat(filepath.Join(root, name)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestImageLimit(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	base := pull(t, s, r.push(t, gzipped(t, file{name: "a", text: "1"})))
	upper := t.TempDir()
	put(t, upper, time.Now(), map[string]string{"big": strings.Repeat("x", 3<<20)})
	_, _, err := s.Commit(t.Context(), base, Result{Upper: upper, MaxBytes: 2 << 20}, r.host+"/big:1", nil)
	if leapcell.ErrorCode(err) != leapcell.CodeTooLarge || leapcell.ErrorMessage(err) != "the image has 3 MB with its base, over the limit of 2 MB" {
		t.Errorf("error is %v", err)
	}
	if _, err := s.Pull(t.Context(), r.host+"/big:1"); err == nil {
		t.Error("it was pushed all the same")
	}
}
