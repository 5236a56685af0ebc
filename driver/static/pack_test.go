package static

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/front"
)

// source is a folder of files, opened as the driver opens the tree of a build.
func source(t *testing.T, files map[string]string) (string, fs.FS) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(dir, name), content)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return dir, root.FS()
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func packed(t *testing.T, tree fs.FS, o front.Options, l limits) (*Packed, error) {
	t.Helper()
	site, err := front.Recognize(tree, o)
	if err != nil || site == nil {
		t.Fatalf("not recognised: %v", err)
	}
	return pack(t.Context(), tree, site, t.TempDir(), l)
}

func paths(p *Packed) string {
	var out []string
	for _, f := range p.Manifest.Files {
		out = append(out, f.Path)
	}
	return strings.Join(out, " ")
}

const vite = `{"devDependencies":{"vite":"8"}}`

func TestPack(t *testing.T) {
	script := strings.Repeat("console.log('hello');\n", 200)
	files := map[string]string{
		"package.json": vite, "dist/index.html": "<p>hello", "dist/assets/index-DiwrgTda.js": script,
		"dist/copy.js": script, "dist/logo.png": strings.Repeat("a", 4000), "dist/.well-known/security.txt": "x",
	}
	_, tree := source(t, files)
	p, err := packed(t, tree, front.Options{}, contract)
	if err != nil {
		t.Fatal(err)
	}
	if got := paths(p); got != "/.well-known/security.txt /assets/index-DiwrgTda.js /copy.js /index.html /logo.png" {
		t.Errorf("packed %s", got)
	}
	if p.Manifest.Framework != "Vite" || !p.Manifest.Whole || p.Manifest.Fallback != "/index.html" || p.Manifest.Folder != "dist" {
		t.Errorf("got %+v", p.Manifest)
	}
	for _, f := range p.Manifest.Files {
		want := files["dist"+f.Path]
		if got := content(t, p, f.SHA256); got != want || f.Size != int64(len(want)) {
			t.Errorf("%s: packed %d bytes, want %d", f.Path, len(got), len(want))
		}
		if (len(f.Encoded) == 3) != strings.HasSuffix(f.Path, ".js") || f.Immutable != strings.HasPrefix(f.Path, "/assets/") {
			t.Errorf("%+v", f)
		}
		for _, e := range f.Encoded {
			b := content(t, p, e.SHA256)
			if got := decode(t, e.Encoding, b); got != want || e.Size != int64(len(b)) || e.Size >= f.Size {
				t.Errorf("%s as %s: %d bytes become %d", f.Path, e.Encoding, len(b), len(got))
			}
		}
	}
	if m, err := front.ParseManifest(p.List); err != nil || len(m.Files) != 5 {
		t.Errorf("the list cannot be read: %v", err)
	}
}

func content(t *testing.T, p *Packed, sum string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.Dir, sum))
	if err != nil {
		t.Fatal(err)
	}
	if got := sha256.Sum256(b); hex.EncodeToString(got[:]) != sum {
		t.Errorf("%s has another content", sum)
	}
	return string(b)
}

func decode(t *testing.T, encoding, b string) string {
	t.Helper()
	var r io.Reader
	var err error
	switch in := strings.NewReader(b); encoding {
	case "br":
		r = brotli.NewReader(in)
	case "gzip":
		r, err = gzip.NewReader(in)
	case "zstd":
		r, err = zstd.NewReader(in)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("%s: %v", encoding, err)
	}
	return string(out)
}

func TestSameFilesGiveTheSameArtifact(t *testing.T) {
	digest := func() string {
		_, tree := source(t, map[string]string{"package.json": vite, "dist/index.html": strings.Repeat("<p>hello", 999), "dist/b/c.css": "a{}", "dist/a.js": "a"})
		p, err := packed(t, tree, front.Options{}, contract)
		if err != nil {
			t.Fatal(err)
		}
		img, err := p.Artifact()
		if err != nil {
			t.Fatal(err)
		}
		h, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 2 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		r, err := layers[1].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		names := map[string]bool{}
		for in := tar.NewReader(r); ; {
			h, err := in.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names[h.Name] = true
		}
		if len(names) != len(p.Manifest.Contents()) {
			t.Errorf("the archive has %d contents, the list %d", len(names), len(p.Manifest.Contents()))
		}
		return h.String()
	}
	if a, b := digest(), digest(); a != b {
		t.Errorf("%s, then %s", a, b)
	}
}

func TestHostileTree(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "of the node")
	dir, tree := source(t, map[string]string{"index.html": "x", ".env": "PASSWORD=1", ".git/config": "x", "node_modules/a/a.js": "x", "leapcell.yaml": "x",
		"bad\nname.txt": "x", "sub/ok.txt": "x", "back\\slash.txt": "x"})
	for link, to := range map[string]string{"out.txt": secret, "up.txt": "../../../../../../../etc/passwd", "folder": filepath.Dir(secret), "in.txt": "index.html", "loop": "."} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := packed(t, tree, front.Options{}, contract)
	if err != nil {
		t.Fatal(err)
	}
	if got := paths(p); got != "/back\\slash.txt /index.html /sub/ok.txt" {
		t.Errorf("packed %q", got)
	}
	said := strings.Join(p.LeftOut, "; ")
	for _, want := range []string{"5 symbolic links", "1 entries that are no files", `4 hidden files and folders of tools, such as ".env"`, "1 files whose names"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not said in %q", want, said)
		}
	}
	list, err := os.ReadDir(p.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if b := content(t, p, e.Name()); strings.Contains(b, "of the node") || strings.Contains(b, "root:") {
			t.Errorf("%q was packed", b)
		}
	}
}

// The folder itself may be a link, too.
func TestFolderThatIsALink(t *testing.T) {
	dir, tree := source(t, map[string]string{"package.json": vite, "index.html": "x"})
	if err := os.Symlink("/etc", filepath.Join(dir, "dist")); err != nil {
		t.Fatal(err)
	}
	for _, o := range []front.Options{{StartCommand: "npm start"}, {Folder: "dist"}} {
		if site, err := front.Recognize(tree, o); site != nil {
			t.Errorf("%+v: recognised as %+v, %v", o, site, err)
		}
	}
}

func TestBounds(t *testing.T) {
	few := limits{files: 20, entries: 40, file: 1 << 20, all: 2 << 20}
	for _, c := range []struct {
		name string
		fill func(t *testing.T, dir string)
		want string
	}{
		{"files", func(t *testing.T, dir string) {
			for i := range 20 {
				write(t, filepath.Join(dir, fmt.Sprintf("a/%d.txt", i)), fmt.Sprint(i))
			}
		}, "more than 20 files"},
		{"folders", func(t *testing.T, dir string) {
			for i := range 40 {
				write(t, filepath.Join(dir, fmt.Sprint(i), "private/node_modules"), "")
			}
		}, "more than 20 files"},
		{"a file without end", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "big.bin"), "")
			if err := os.Truncate(filepath.Join(dir, "big.bin"), 1<<40); err != nil {
				t.Skip(err) // the file system has no such files
			}
		}, "big.bin has more than 1 MB"},
		{"all together", func(t *testing.T, dir string) {
			for i := range 3 {
				write(t, filepath.Join(dir, fmt.Sprint(i)), strings.Repeat("a", 1<<20))
			}
		}, "more than 2 MB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, tree := source(t, map[string]string{"index.html": "x"})
			c.fill(t, dir)
			_, err := packed(t, tree, front.Options{}, few)
			if leapcell.ErrorCode(err) != leapcell.CodeTooLarge || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		_, tree := source(t, map[string]string{"index.html": "x"})
		site, _ := front.Recognize(tree, front.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Pack(ctx, tree, site, t.TempDir()); err == nil {
			t.Error("packed")
		}
	})
}

// BenchmarkPress says what the levels cost.
func BenchmarkPress(b *testing.B) {
	text, err := os.ReadFile("pack_test.go")
	if err != nil {
		b.Fatal(err)
	}
	text = bytes.Repeat(text, 20)
	for i, l := range levels {
		for _, encoding := range front.Encodings {
			b.Run(fmt.Sprint(i, "/", encoding), func(b *testing.B) {
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					if _, err := l.encode(encoding, text); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
