package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func newStore(t *testing.T, change func(*Config)) *Store {
	t.Helper()
	cfg := Config{Dir: t.TempDir(), AllowFileURLs: true}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, h := range headers {
		content := h.Uname // borrowed for the content of test files
		h.Uname = ""
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func file(name, content string) tar.Header {
	return tar.Header{Name: name, Mode: 0o640, Uname: content, ModTime: time.Now()}
}

func link(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
}

func fetch(t *testing.T, s *Store, src leapcell.Source) (Tree, error) {
	t.Helper()
	return s.Fetch(t.Context(), src, filepath.Join(t.TempDir(), "layer.tar"), func(string) {})
}

func fetchUpload(t *testing.T, s *Store, root string, headers ...tar.Header) (Tree, error) {
	t.Helper()
	sum, err := s.Save(t.Context(), bytes.NewReader(archive(t, headers...)))
	if err != nil {
		t.Fatal(err)
	}
	return fetch(t, s, leapcell.Source{Upload: sum, RootDir: root})
}

// list is "name mode content" of each entry of a layer.
func list(t *testing.T, layer string) []string {
	t.Helper()
	f, err := os.Open(layer)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []string
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(modTime) {
			t.Errorf("%s: owner %d:%d, time %s", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		out = append(out, strings.TrimSpace(h.FileInfo().Mode().String()+" "+h.Name+" "+h.Linkname+string(content)))
	}
}

func TestUploadBecomesLayer(t *testing.T) {
	script := file("./bin/run.sh", "#!/bin/sh")
	script.Mode = 0o700
	tree, err := fetchUpload(t, newStore(t, nil), "",
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700},
		script,
		file("./app.py", "old"),
		file("app.py", "new"),
		link("./bin/app", "../app.py"),
		tar.Header{Name: "copy.py", Linkname: "app.py", Typeflag: tar.TypeLink},
		file(".git/config", "secret"),
		file("leapcell.yaml", "runtime: python\nport: 9000\n"),
	)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"drwxr-xr-x app/",
		"-rw-r--r-- app/app.py new",
		"drwxr-xr-x app/bin/",
		"Lrwxrwxrwx app/bin/app ../app.py",
		"-rwxr-xr-x app/bin/run.sh #!/bin/sh",
		"-rw-r--r-- app/copy.py new",
		"-rw-r--r-- app/leapcell.yaml runtime: python\nport: 9000",
	}
	if got := list(t, tree.Layer); !slices.Equal(got, want) {
		t.Errorf("layer:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if tree.Settings.Runtime != "python" || tree.Settings.Port != 9000 {
		t.Errorf("settings: %+v", tree.Settings)
	}
	if !tree.Names["app.py"] || !tree.Names["bin"] || tree.Names["run.sh"] {
		t.Errorf("names at the top: %v", tree.Names)
	}
}

func TestLayerIsDeterministic(t *testing.T) {
	s := newStore(t, nil)
	read := func(headers ...tar.Header) []byte {
		tree, err := fetchUpload(t, s, "", headers...)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(tree.Layer)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one := read(file("b/x", "1"), file("a", "2"))
	two := read(tar.Header{Name: "b/", Typeflag: tar.TypeDir}, file("a", "2"), file("b/x", "1"))
	if !bytes.Equal(one, two) {
		t.Error("the same tree made two layers")
	}
}

func TestRootDir(t *testing.T) {
	s := newStore(t, nil)
	tree, err := fetchUpload(t, s, "/services/web/", file("services/web/main.go", "x"), file("README", "y"))
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, tree.Layer); !slices.Equal(got, []string{"drwxr-xr-x app/", "-rw-r--r-- app/main.go x"}) {
		t.Errorf("layer: %v", got)
	}
	for root, want := range map[string]string{
		"nowhere": `the root directory "nowhere" is not in the source`,
		"README":  `the root directory "README" of the source is a file`,
		"../x":    `the root directory "../x" is not inside of the source`,
	} {
		_, err := fetchUpload(t, s, root, file("services/web/main.go", "x"), file("README", "y"))
		wantError(t, err, want)
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(leapcell.ErrorMessage(err), want) {
		t.Errorf("error is %v, want one with %q", err, want)
	}
}

func TestRefused(t *testing.T) {
	for name, test := range map[string]struct {
		headers []tar.Header
		want    string
	}{
		"climbs":         {[]tar.Header{file("../etc/passwd", "x")}, `"../etc/passwd" in the source is refused: its path climbs`},
		"climbs inside":  {[]tar.Header{file("a/../../x", "x")}, `climbs`},
		"absolute":       {[]tar.Header{file("/etc/passwd", "x")}, `"/etc/passwd" in the source is refused: its path is absolute`},
		"link out":       {[]tar.Header{link("a/b", "../../x")}, `"a/b" in the source is refused: it is a link to ../../x`},
		"absolute link":  {[]tar.Header{link("b", "/etc/shadow")}, `"b" in the source is refused: it is a link to /etc/shadow`},
		"below a link":   {[]tar.Header{link("a", "b"), file("a/x", "x"), file("b/y", "")}, `"a/x" in the source is refused: what it lies in, a, is not a folder`},
		"below a file":   {[]tar.Header{file("a", "b"), file("a/x", "x")}, `what it lies in, a, is not a folder`},
		"device":         {[]tar.Header{{Name: "sda", Typeflag: tar.TypeBlock}}, `"sda" in the source is refused: it is a device`},
		"pipe":           {[]tar.Header{{Name: "p", Typeflag: tar.TypeFifo}}, `named pipe`},
		"hard link out":  {[]tar.Header{{Name: "h", Linkname: "../x", Typeflag: tar.TypeLink}}, `"h" in the source is refused`},
		"hard link gone": {[]tar.Header{{Name: "h", Linkname: "x", Typeflag: tar.TypeLink}}, `which is no file in the source`},
		"empty":          {[]tar.Header{{Name: "./", Typeflag: tar.TypeDir}}, `the source is empty`},
		"bad settings":   {[]tar.Header{file("leapcell.yaml", "port: x")}, `leapcell.yaml line 1: port: "x" is not a whole number`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := fetchUpload(t, newStore(t, nil), "", test.headers...)
			wantError(t, err, test.want)
		})
	}
}

func TestLimits(t *testing.T) {
	noise := make([]byte, 4096)
	_, _ = rand.Read(noise)
	t.Run("upload", func(t *testing.T) {
		s := newStore(t, func(c *Config) { c.MaxUpload = 1000 })
		_, err := s.Save(t.Context(), bytes.NewReader(archive(t, file("a", string(noise)))))
		if leapcell.ErrorCode(err) != leapcell.CodeTooLarge {
			t.Errorf("error is %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "*", "*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("of the server", func(t *testing.T) {
		s := newStore(t, nil)
		body := io.NopCloser(bytes.NewReader(archive(t, file("a", string(noise)))))
		_, err := s.Save(t.Context(), http.MaxBytesReader(nil, body, 100))
		if leapcell.ErrorCode(err) != leapcell.CodeTooLarge {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("unpacked", func(t *testing.T) {
		s := newStore(t, func(c *Config) { c.MaxUnpacked = 1000 })
		_, err := fetchUpload(t, s, "", file("a", strings.Repeat("x", 1001)))
		if leapcell.ErrorCode(err) != leapcell.CodeTooLarge {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("bomb", func(t *testing.T) {
		s := newStore(t, func(c *Config) { c.MaxUnpacked = 1000; c.MaxFiles = 1 })
		_, err := fetchUpload(t, s, "", file("a", strings.Repeat("x", 10<<20)))
		if leapcell.ErrorCode(err) != leapcell.CodeTooLarge {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("files", func(t *testing.T) {
		s := newStore(t, func(c *Config) { c.MaxFiles = 2 })
		_, err := fetchUpload(t, s, "", file("a", ""), file("b", ""), file("c", ""))
		wantError(t, err, "more than 2 files")
	})
}

func TestNotAnArchive(t *testing.T) {
	s := newStore(t, nil)
	_, err := s.Save(t.Context(), strings.NewReader("PK something"))
	wantError(t, err, "not a tar.gz archive")

	whole := archive(t, file("a", strings.Repeat("x", 5000)))
	sum, err := s.Save(t.Context(), bytes.NewReader(whole[:len(whole)-12]))
	if err != nil {
		t.Fatal(err)
	}
	_, err = fetch(t, s, leapcell.Source{Upload: sum})
	wantError(t, err, "cut short or damaged")

	_, err = fetch(t, s, leapcell.Source{Upload: strings.Repeat("0", 64)})
	wantError(t, err, "deploy again")
}

func TestSweepKeepsWhatIsNeeded(t *testing.T) {
	s := newStore(t, nil)
	keep, err := s.Save(t.Context(), bytes.NewReader(archive(t, file("a", "1"))))
	if err != nil {
		t.Fatal(err)
	}
	drop, err := s.Save(t.Context(), bytes.NewReader(archive(t, file("a", "2"))))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(map[string]bool{keep: true}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.uploadPath(drop)); err != nil {
		t.Error("a young upload was removed")
	}
	if err := s.Sweep(map[string]bool{keep: true}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.uploadPath(drop)); err == nil {
		t.Error("an old upload was kept")
	}
	if _, err := os.Stat(s.uploadPath(keep)); err != nil {
		t.Error("an upload in use was removed")
	}
}

func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
			"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	write := func(name, content string, mode os.FileMode) {
		t.Helper()
		full := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(content), mode)); err != nil {
			t.Fatal(err)
		}
	}
	run("init", "-q", "-b", "main")
	write("web/app.py", "one", 0o644)
	write("web/run.sh", "#!/bin/sh", 0o755)
	if err := os.Symlink("app.py", filepath.Join(dir, "web/link")); err != nil {
		t.Fatal(err)
	}
	run("add", ".")
	run("commit", "-q", "-m", "first")
	run("checkout", "-q", "-b", "next")
	write("web/app.py", "two", 0o644)
	run("commit", "-q", "-a", "-m", "second\n\nmore")
	write("web/untracked", "x", 0o644)
	return "file://" + dir
}

func TestGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	url := repository(t)
	s := newStore(t, nil)
	tree, err := fetch(t, s, leapcell.Source{GitURL: url, Branch: "next", RootDir: "web"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"drwxr-xr-x app/", "-rw-r--r-- app/app.py two", "Lrwxrwxrwx app/link app.py", "-rwxr-xr-x app/run.sh #!/bin/sh",
	}
	if got := list(t, tree.Layer); !slices.Equal(got, want) {
		t.Errorf("layer: %q", got)
	}
	if len(tree.Commit) != 40 {
		t.Errorf("commit %q", tree.Commit)
	}
	main, err := fetch(t, s, leapcell.Source{GitURL: url, Branch: "main", RootDir: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, main.Layer); !slices.Contains(got, "-rw-r--r-- app/app.py one") {
		t.Errorf("layer of main: %q", got)
	}
	if left, _ := filepath.Glob(filepath.Join(s.workDir(), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	_, err = fetch(t, s, leapcell.Source{GitURL: url, Branch: "nope"})
	wantError(t, err, `has no branch "nope"`)
	_, err = fetch(t, s, leapcell.Source{GitURL: url + "-nope"})
	wantError(t, err, `there is no repository at `+url+`-nope`)
	_, err = fetch(t, newStore(t, func(c *Config) { c.AllowFileURLs = false }), leapcell.Source{GitURL: url})
	wantError(t, err, "switched off")
	_, err = fetch(t, s, leapcell.Source{GitURL: "http://user:secret@127.0.0.1:1/x.git"})
	wantError(t, err, "has a password in it")
	if err != nil && strings.Contains(leapcell.ErrorMessage(err), "secret") {
		t.Errorf("the password is shown: %v", leapcell.ErrorMessage(err))
	}
	_, err = fetch(t, newStore(t, func(c *Config) { c.GitTimeout = time.Nanosecond }), leapcell.Source{GitURL: url})
	wantError(t, err, "could not be read within 1ns")
}

func TestFetchEndsWithContext(t *testing.T) {
	s := newStore(t, nil)
	sum, err := s.Save(t.Context(), bytes.NewReader(archive(t, file("a", "1"))))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Fetch(ctx, leapcell.Source{Upload: sum}, filepath.Join(t.TempDir(), "l"), func(string) {})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// Whatever an archive holds, its layer has nothing outside of /app and no way out of it.
func FuzzArchive(f *testing.F) {
	f.Add(archive(f, file("a/b", "x"), link("c", "a/b")))
	f.Add(archive(f, link("a", ".."), file("a/x", "")))
	f.Add(archive(f, file("../x", ""), link("c", "/etc")))
	f.Fuzz(func(t *testing.T, b []byte) {
		var plain bytes.Buffer
		if err := gunzip(context.Background(), bytes.NewReader(b), &plain, 1<<20); err != nil {
			return
		}
		tree, err := readTar(bytes.NewReader(plain.Bytes()), Config{MaxFiles: 1000, MaxUnpacked: 1 << 20})
		if err != nil {
			return
		}
		entries, err := tree.below("")
		if err != nil {
			return
		}
		var layer bytes.Buffer
		if err := writeLayer(context.Background(), entries, &layer); err != nil {
			return
		}
		for r := tar.NewReader(&layer); ; {
			h, err := r.Next()
			if err != nil {
				return
			}
			if h.Name != "app/" && !strings.HasPrefix(h.Name, "app/") || strings.Contains(h.Name, "/../") {
				t.Errorf("%q is not below app", h.Name)
			}
			if h.Typeflag == tar.TypeSymlink {
				to := filepath.Join("/", filepath.Dir(h.Name), h.Linkname)
				if filepath.IsAbs(h.Linkname) || to != "/app" && !strings.HasPrefix(to, "/app/") {
					t.Errorf("%q leads to %q", h.Name, h.Linkname)
				}
			}
		}
	})
}
