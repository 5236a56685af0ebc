package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/leapcell/leapcell"
)

// images keeps images in a registry within the test.
type images struct{ host string }

func newImages(t *testing.T) images {
	t.Helper()
	server := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return images{strings.TrimPrefix(server.URL, "http://")}
}

func (i images) tag(repository, tag string) name.Tag {
	ref, err := name.NewTag(i.host+"/"+repository+":"+tag, name.Insecure)
	if err != nil {
		panic(err)
	}
	return ref
}

func (i images) Resolve(ctx context.Context, repository, tag string) (string, error) {
	d, err := remote.Head(i.tag(repository, tag), remote.WithContext(ctx))
	var missing *transport.Error
	if errors.As(err, &missing) && missing.StatusCode == 404 {
		return "", leapcell.Wrap(leapcell.CodeNotFound, err, "not there")
	}
	if err != nil {
		return "", err
	}
	return i.host + "/" + repository + "@" + d.Digest.String(), nil
}

func (i images) Image(ctx context.Context, repository, tag string) (v1.Image, error) {
	return remote.Image(i.tag(repository, tag), remote.WithContext(ctx))
}

func (i images) Push(ctx context.Context, repository, tag string, img v1.Image) (string, error) {
	if err := remote.Write(i.tag(repository, tag), img, remote.WithContext(ctx)); err != nil {
		return "", err
	}
	return i.Resolve(ctx, repository, tag)
}

func newBuilder(t *testing.T, change func(*Config)) *Builder {
	t.Helper()
	cfg := Config{Dir: filepath.Join(t.TempDir(), "build"), Images: newImages(t)}
	if change != nil {
		change(&cfg)
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// fakeAssembler puts a script in the place of mmdebstrap; it counts its runs in the file
// that is returned.
func fakeAssembler(t *testing.T, script string) (runs string) {
	t.Helper()
	dir := t.TempDir()
	runs = filepath.Join(dir, "runs")
	content := "#!/bin/sh\necho run >> " + runs + "\n" + script
	if err := os.WriteFile(filepath.Join(dir, assembler), []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return runs
}

func writeTestTar(t *testing.T, path string, headers ...tar.Header) {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), os.WriteFile(path, out.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, in io.Reader) (out []string) {
	t.Helper()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

func TestBaseIsAssembledOnceForAll(t *testing.T) {
	system := filepath.Join(t.TempDir(), "system.tar")
	writeTestTar(t, system,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./dev/null", Typeflag: tar.TypeChar},
		tar.Header{Name: "./bin/sh", Typeflag: tar.TypeReg, Mode: 0o4755},
		tar.Header{Name: "./bin/bash", Typeflag: tar.TypeLink, Linkname: "./bin/sh"},
	)
	runs := fakeAssembler(t, "echo 'I: unpacking...' >&2; cat "+system)
	b := newBuilder(t, nil)
	goRuntime, err := b.Runtime("go")
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 5 {
		wait.Go(func() {
			if _, _, err := b.Base(t.Context(), goRuntime, func(string) {}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	// As after a restart: the registry remembers.
	b.flights = map[string]*flight{}
	var lines []string
	repository, tag, err := b.Base(t.Context(), goRuntime, func(s string) { lines = append(lines, s) })
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) > 0 {
		t.Errorf("something was done: %q", lines)
	}
	if n, _ := os.ReadFile(runs); string(n) != "run\n" {
		t.Errorf("the assembler ran %d times", strings.Count(string(n), "run"))
	}
	img, err := b.cfg.Images.Image(t.Context(), repository, tag)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, content); !slices.Equal(got, []string{"bin/sh", "bin/bash"}) {
		t.Errorf("the layer has %q", got)
	}
	if left, _ := os.ReadDir(b.cfg.Dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSourceImage(t *testing.T) {
	dir := t.TempDir()
	system, source := filepath.Join(dir, "system.tar"), filepath.Join(dir, "source.tar")
	writeTestTar(t, system, tar.Header{Name: "./bin/sh", Typeflag: tar.TypeReg})
	writeTestTar(t, source, tar.Header{Name: "app/main.go", Typeflag: tar.TypeReg})
	fakeAssembler(t, "cat "+system)
	b := newBuilder(t, nil)
	r, err := b.Runtime("go")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	make := func() string {
		ref, err := b.SourceImage(t.Context(), Source{Runtime: r, Layer: source, Repository: "shop-x/source", Tag: "3"},
			func(s string) { lines = append(lines, s) })
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	ref := make()
	if !strings.Contains(ref, "/shop-x/source@sha256:") {
		t.Errorf("reference %q", ref)
	}
	if again := make(); again != ref {
		t.Errorf("made again it is another: %s and %s", ref, again)
	}
	if !slices.ContainsFunc(lines, func(s string) bool { return strings.Contains(s, "assembling the go base image (once") }) {
		t.Errorf("progress: %q", lines)
	}
	img, err := b.cfg.Images.Image(t.Context(), "shop-x/source", "3")
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.WorkingDir != "/app" || len(config.RootFS.DiffIDs) != 2 || !slices.Contains(config.Config.Env, "LANG=C.UTF-8") {
		t.Errorf("config: %+v", config)
	}
}

func TestAssemblyFails(t *testing.T) {
	fakeAssembler(t, "echo 'E: no such suite' >&2; exit 25")
	b := newBuilder(t, nil)
	_, _, err := b.Base(t.Context(), b.cfg.Runtimes[0], func(string) {})
	if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(leapcell.ErrorMessage(err), "E: no such suite") {
		t.Errorf("error is %v", err)
	}
}

func TestAssemblyOutlivesWhoAsked(t *testing.T) {
	dir := t.TempDir()
	system, gate := filepath.Join(dir, "system.tar"), filepath.Join(dir, "gate")
	writeTestTar(t, system, tar.Header{Name: "./bin/sh", Typeflag: tar.TypeReg})
	if err := exec.Command("mkfifo", gate).Run(); err != nil {
		t.Skip("no mkfifo:", err)
	}
	runs := fakeAssembler(t, "read line < "+gate+"; cat "+system)
	b := newBuilder(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := b.Base(ctx, b.cfg.Runtimes[0], func(string) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error is %v", err)
	}
	done := make(chan error, 1)
	joined := make(chan struct{})
	go func() {
		_, _, err := b.Base(t.Context(), b.cfg.Runtimes[0], func(s string) {
			if strings.HasPrefix(s, "waiting") {
				close(joined)
			}
		})
		done <- err
	}()
	<-joined
	if err := os.WriteFile(gate, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n, _ := os.ReadFile(runs); string(n) != "run\n" {
		t.Errorf("the assembler ran %d times", strings.Count(string(n), "run"))
	}
}

func TestRuntimes(t *testing.T) {
	b := newBuilder(t, nil)
	if _, err := b.Runtime("cobol"); leapcell.ErrorMessage(err) != `the runtime "cobol" is not known; the known ones are python, node, go, rust, docker, static` {
		t.Errorf("error is %v", err)
	}
	for files, want := range map[string]Found{
		"requirements.txt": {"python", "requirements.txt"}, "pyproject.toml": {"python", "pyproject.toml"}, "Pipfile": {"python", "Pipfile"},
		"package.json": {"node", "package.json"}, "go.mod": {"go", "go.mod"}, "Cargo.toml": {"rust", "Cargo.toml"},
		"index.html": {"static", "index.html"}, "Dockerfile": {"docker", "Dockerfile"},
		// The first in the order counts: a page of an app is a part of it.
		"Dockerfile package.json": {"docker", "Dockerfile"}, "package.json requirements.txt": {"python", "requirements.txt"},
		"go.mod package.json": {"node", "package.json"}, "index.html package.json": {"node", "package.json"}, "index.html go.mod": {"go", "go.mod"},
	} {
		names := map[string]bool{"README": true}
		for file := range strings.FieldsSeq(files) {
			names[file] = true
		}
		if found, err := b.Detect(names); err != nil || found != want {
			t.Errorf("%s: %v, %v", files, found, err)
		}
	}
	if _, err := b.Detect(map[string]bool{"README": true}); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
		t.Errorf("error is %v", err)
	}
	seen := map[string]bool{}
	for _, r := range b.cfg.Runtimes {
		if tag := r.tag("trixie"); seen[tag] {
			t.Errorf("%s: the tag %s says too little", r.Name, tag)
		} else {
			seen[tag] = true
		}
	}
}

func TestReadRuntimes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "runtimes.yaml")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("- name: python\n  image: example.test/python:3\n- name: ruby\n  packages: [ruby]\n  startCommand: ruby app.rb\n")
	table, err := ReadRuntimes(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(table) != 5 || table[0].Image != "example.test/python:3" || table[0].Caches == nil || table[4].StartCommand != "ruby app.rb" {
		t.Errorf("table: %+v", table)
	}
	for content, want := range map[string]string{
		"- name: x":                          `the new runtime "x" needs an image or packages`,
		"- image: x":                         "line 1: a runtime needs a name",
		"- name: python\n  imag: y":          "imag",
		"name: python":                       "must be a list",
		"- name: python\n  packages: {a: b}": "cannot unmarshal",
	} {
		write(content)
		if _, err := ReadRuntimes(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
	}
}

func TestAptSettings(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"apt.conf.d/10proxy": "x", "mirror": "http://mirror.test/debian\n", "ca-certificates.crt": "x", "sources.list.d/a.sources": "x",
		"trusted.gpg.d/a.asc": "x",
	} {
		full := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	options, mirrors, err := aptSettings(dir)
	if err != nil {
		t.Fatal(err)
	}
	wantOptions := []string{
		"--aptopt=" + dir + "/apt.conf.d/10proxy",
		`--aptopt=Acquire::https::CAInfo "` + dir + `/ca-certificates.crt"`,
		"--keyring=" + dir + "/trusted.gpg.d",
	}
	if !slices.Equal(options, wantOptions) || !slices.Equal(mirrors, []string{"http://mirror.test/debian", dir + "/sources.list.d/a.sources"}) {
		t.Errorf("options %q, mirrors %q", options, mirrors)
	}
	if _, _, err := aptSettings(dir + "/none"); err == nil {
		t.Error("a missing folder is no error")
	}
}
