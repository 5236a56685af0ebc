package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
)

// tree makes files; a path ending in / is a folder, "->" in the content a symbolic link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func packedNames(t *testing.T, dir string) []string {
	t.Helper()
	var b bytes.Buffer
	if _, err := pack(dir, &b); err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(unpack(t, &b)))
}

func unpack(t *testing.T, r io.Reader) map[string]*tar.Header {
	t.Helper()
	gz, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*tar.Header{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h
	}
}

func TestPackLeavesOutWhatIsIgnored(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		sub   string
		want  []string
	}{
		"git": {
			files: map[string]string{
				".gitignore": "*.log\nnode_modules/\n/build\n!keep.log\n# a comment\n\n", "app.js": "", "a.log": "", "keep.log": "",
				"node_modules/x/y.js": "", "build/out": "", "src/build/in": "", ".git/HEAD": "",
			},
			want: []string{".gitignore", "app.js", "keep.log", "src/build/in"},
		},
		"nested git": {
			files: map[string]string{
				".gitignore": "*.tmp\n", "a.tmp": "", "web/.gitignore": "!b.tmp\ndist\n", "web/b.tmp": "", "web/dist/x": "", "dist/y": "",
			},
			want: []string{".gitignore", "dist/y", "web/.gitignore", "web/b.tmp"},
		},
		"docker": {
			files: map[string]string{
				".dockerignore": "**/*.pyc\ndata\n!data/seed.sql\n", "app.py": "", "a/b.pyc": "", "data/big.bin": "", "data/seed.sql": "",
			},
			want: []string{".dockerignore", "app.py", "data/seed.sql"},
		},
		"nested docker": {
			files: map[string]string{"api/.dockerignore": "tmp\n", "api/tmp/x": "", "tmp/y": "", "api/z": ""},
			want:  []string{"api/.dockerignore", "api/z", "tmp/y"},
		},
		"both": {
			files: map[string]string{".gitignore": "a\n", ".dockerignore": "b\n!a\n", "a": "", "b": "", "c": ""},
			want:  []string{".dockerignore", ".gitignore", "c"},
		},
		"rules of the repository above": {
			files: map[string]string{".git/HEAD": "", ".gitignore": "node_modules/\n/web/secret\n", "web/app.js": "", "web/node_modules/x": "", "web/secret": ""},
			sub:   "web", want: []string{"app.js"},
		},
		"an ignored folder, named": {
			files: map[string]string{".git/HEAD": "", ".gitignore": "dist\n", "dist/index.html": ""},
			sub:   "dist", want: []string{"index.html"},
		},
		"a platform's state": {
			files: map[string]string{".leapcell/config.json": "{}", ".leapcell/vault/init.json": "", "sub/.leapcell/notes": "", "x": ""},
			want:  []string{"sub/.leapcell/notes", "x"},
		},
		"links stay links": {
			files: map[string]string{"a": "x", "l": "->a", "outside": "->/etc/passwd"},
			want:  []string{"a", "l", "outside"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := packedNames(t, filepath.Join(tree(t, c.files), c.sub)); !slices.Equal(got, c.want) {
				t.Errorf("packed %q, want %q", got, c.want)
			}
		})
	}
}

func TestPackKeepsModeAndLinkButNotOwner(t *testing.T) {
	dir := tree(t, map[string]string{"run.sh": "#!/bin/sh\n", "l": "->run.sh"})
	if err := os.Chmod(filepath.Join(dir, "run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	sum, err := pack(dir, &b)
	if err != nil {
		t.Fatal(err)
	}
	if sum.Files != 2 || sum.Bytes != 10 {
		t.Errorf("counted %+v", sum)
	}
	headers := unpack(t, &b)
	if h := headers["run.sh"]; h.Mode != 0o755 || h.Uid != 0 || h.Uname != "" {
		t.Errorf("run.sh has mode %o, owner %d %q", h.Mode, h.Uid, h.Uname)
	}
	if h := headers["l"]; h.Typeflag != tar.TypeSymlink || h.Linkname != "run.sh" {
		t.Errorf("the link became %+v", h)
	}
}

func TestPackSaysWhyNot(t *testing.T) {
	for name, c := range map[string]struct{ dir, want string }{
		"missing":      {filepath.Join(t.TempDir(), "none"), "there is no folder"},
		"file":         {filepath.Join(tree(t, map[string]string{"f": ""}), "f"), "not a folder"},
		"empty":        {t.TempDir(), "nothing to deploy"},
		"all left out": {tree(t, map[string]string{".gitignore": "*\n", "a": ""}), "nothing to deploy"},
		"bad pattern":  {tree(t, map[string]string{".dockerignore": "a[\n", "a": ""}), ".dockerignore"},
	} {
		_, err := pack(c.dir, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
		if leapcell.ErrorCode(err) != leapcell.CodeInvalid {
			t.Errorf("%s: code %s", name, leapcell.ErrorCode(err))
		}
	}
}

func TestServiceNameOfFolder(t *testing.T) {
	for in, want := range map[string]string{
		"examples/go": "go", "/srv/My App_2/": "my-app-2", "https://git.example.com/team/shop.git": "shop",
		"42-answers": "answers", "a--b": "a-b", strings.Repeat("x", 31) + "-yy": strings.Repeat("x", 31), "__": "",
	} {
		got := serviceNameOf(in)
		if got != want {
			t.Errorf("serviceNameOf(%q) = %q, want %q", in, got, want)
		}
		if got != "" && leapcell.ValidateName(got) != nil {
			t.Errorf("serviceNameOf(%q) = %q, which no service may have", in, got)
		}
	}
}
