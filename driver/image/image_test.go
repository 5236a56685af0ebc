package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// file is an entry of a test layer.
type file struct {
	name, text string
	kind       byte // 0 is a regular file
	mode       int64
	uid        int
	link       string
	pax        map[string]string
}

func archive(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Mode: f.mode, Uid: f.uid, Gid: f.uid, Linkname: f.link, PAXRecords: f.pax}
		if f.kind == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f.text))
		}
		if f.mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dir(name string) file { return file{name: name, kind: tar.TypeDir, mode: 0o755} }

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and mounts")
	}
}

// testRegistry counts what is asked of it.
type testRegistry struct {
	host  string
	blobs atomic.Int64 // downloads of blobs
	seen  atomic.Int64 // requests
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.seen.Add(1)
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		inner.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// push makes an image of the layers and gives its reference by digest.
func (r *testRegistry) push(t testing.TB, layers ...v1.Layer) string {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{Env: []string{"PATH=/bin"}, WorkingDir: "/app", Cmd: []string{"/bin/sh"}})
	if err != nil {
		t.Fatal(err)
	}
	return r.pushImage(t, img)
}

func (r *testRegistry) pushImage(t testing.TB, img v1.Image) string {
	t.Helper()
	tag, err := name.NewTag(r.host + "/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return r.host + "/app@" + digest.String()
}

func gzipped(t testing.TB, files ...file) v1.Layer {
	return packed(t, compression.GZip, files...)
}

func packed(t testing.TB, how compression.Compression, files ...file) v1.Layer {
	t.Helper()
	b := archive(t, files...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, tarball.WithCompression(how))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func newStore(t testing.TB) *Store {
	t.Helper()
	needRoot(t)
	return openStore(t, Config{Dir: filepath.Join(t.TempDir(), "store"), Patience: 30 * time.Second})
}

// shortly is a patience that tests wait out. Where something has to be done within it, it is no
// good: machines may be slow.
const shortly = 300 * time.Millisecond

// openStore opens a store that speaks plain HTTP to the test's registries, unless told otherwise.
func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Registries == nil {
		cfg.Registries = func(string) Registry { return Registry{Insecure: true} }
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func pull(t testing.TB, s *Store, ref string) *Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// tree is what a folder holds: names with kind, mode, owner and content.
func tree(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	if err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		text := fmt.Sprintf("%o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Rdev)
		switch {
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += " " + string(b)
		case d.Type()&fs.ModeSymlink != 0:
			link, _ := os.Readlink(p)
			text += " -> " + link
		}
		rel, err := filepath.Rel(root, p)
		out[rel] = text
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPullAndMount(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	plain := static.NewLayer(archive(t, dir("gone"), file{name: "gone/x", text: "1"}, file{name: "kept", text: "low"}, dir("d"), file{name: "d/low", text: "1"}), types.OCIUncompressedLayer)
	ref := r.push(t, plain,
		gzipped(t, file{name: ".wh.gone"}, file{name: "kept", text: "high"}, dir("d"), file{name: "d/.wh..wh..opq"}, file{name: "d/high", text: "2"}),
		packed(t, compression.ZStd, dir("etc"), file{name: "etc/passwd", text: "root"}))
	img := pull(t, s, ref)
	if img.WorkDir != "/app" || !slices.Equal(img.Cmd, []string{"/bin/sh"}) || !slices.Equal(img.Env, []string{"PATH=/bin"}) || img.Ref != ref {
		t.Errorf("image is %+v", img)
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := s.Mount(img, root); err != nil {
		t.Fatal(err)
	}
	defer s.Unmount(root)
	got := slices.Sorted(maps.Keys(tree(t, root)))
	want := []string{".", "d", "d/high", "dev", "etc", "etc/hostname", "etc/hosts", "etc/passwd", "etc/resolv.conf", "kept", "proc", "sys", "tmp"}
	if !slices.Equal(got, want) {
		t.Errorf("the image holds %v, want %v", got, want)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "kept")); string(b) != "high" {
		t.Errorf("kept holds %q, want that of the higher layer", b)
	}
	if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing gives %v, want read-only file system", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("mounted with flags %x (%v): setuid bits and devices must have no effect", st.Flags, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+root+" ") && strings.Contains(line, s.cfg.Dir) {
			t.Errorf("the mount's options tell where the store is: %s", line)
		}
	}
	for range 2 {
		if err := s.Unmount(root); err != nil {
			t.Error(err)
		}
	}
}

func TestPullOnce(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	ref := r.push(t, gzipped(t, file{name: "a", text: "1"}), gzipped(t, file{name: "b", text: "2"}))
	var callers sync.WaitGroup
	for range 10 {
		callers.Go(func() { pull(t, s, ref) })
	}
	callers.Wait()
	if n := r.blobs.Load(); n != 3 {
		t.Errorf("%d blobs were fetched, want the config and two layers once", n)
	}
	before := r.seen.Load()
	pull(t, s, ref)
	s.Close()
	img := pull(t, openStore(t, s.cfg), ref)
	if r.seen.Load() != before {
		t.Error("an image that is there was asked for")
	}
	if len(img.Layers) != 2 || img.WorkDir != "/app" {
		t.Errorf("after a restart the image is %+v", img)
	}
}

func TestNewCleansUp(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	img := pull(t, s, r.push(t, gzipped(t, file{name: "a", text: "1"})))
	s.Close()
	half, unknown := s.path("tmp", "layer123"), s.path("layers", strings.Repeat("0", 64))
	for _, d := range []string{half, unknown} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	openStore(t, s.cfg).Close()
	for _, d := range []string{half, unknown} {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is left", d)
		}
	}
	if _, err := os.Stat(img.Layers[0]); err != nil {
		t.Errorf("a layer in use was removed: %v", err)
	}
}

// lying is a layer whose registry serves other content than the config names.
type lying struct{ v1.Layer }

func (l lying) DiffID() (v1.Hash, error) {
	return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}, nil
}

func TestPullErrors(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	good := r.push(t, gzipped(t, file{name: "a", text: "1"}))
	host, _, _ := strings.Cut(good, "@")
	tests := map[string]struct {
		ref  string
		want leapcell.Code
	}{
		"bad name":      {r.host + "/App", leapcell.CodeInvalid},
		"bad digest":    {r.host + "/app@sha256:12", leapcell.CodeInvalid},
		"not there":     {host + "@sha256:" + strings.Repeat("b", 64), leapcell.CodeNotFound},
		"other content": {r.push(t, lying{gzipped(t, file{name: "a", text: "2"})}), leapcell.CodeUnprocessable},
		"hostile":       {r.push(t, gzipped(t, file{name: "../a", text: "2"})), leapcell.CodeUnprocessable},
	}
	for what, tt := range tests {
		if _, err := s.Pull(t.Context(), tt.ref); leapcell.ErrorCode(err) != tt.want {
			t.Errorf("%s: error is %v, want %s", what, err, tt.want)
		}
	}
	s.cfg.Patience = shortly
	if _, err := s.Pull(t.Context(), "127.0.0.1:1/app@sha256:"+strings.Repeat("b", 64)); leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
		t.Errorf("no registry: %v", err)
	}
	if left, _ := os.ReadDir(s.path("tmp")); len(left) > 0 {
		t.Errorf("failed pulls left %v", left)
	}
}

func TestManyLayers(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	var layers []v1.Layer
	for i := range 120 {
		layers = append(layers, static.NewLayer(archive(t, file{name: fmt.Sprintf("f%d", i), text: "x"}), types.OCIUncompressedLayer))
	}
	img := pull(t, s, r.push(t, layers...))
	root := filepath.Join(t.TempDir(), "root")
	if err := s.Mount(img, root); err != nil {
		t.Fatal(err)
	}
	defer s.Unmount(root)
	if n := len(tree(t, root)); n != 120+9 {
		t.Errorf("the image holds %d names, want 129", n)
	}
}

// build changes a mounted image in every way that a layer can tell.
func build(t *testing.T, root string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(root, name) }
	must(os.WriteFile(in("app/new"), []byte("n"), 0o600))
	must(os.Link(in("app/new"), in("app/twin")))
	must(os.Symlink("/app/new", in("link")))
	must(os.Remove(in("removed")))
	must(os.RemoveAll(in("replaced")))
	must(os.Mkdir(in("replaced"), 0o711))
	must(os.WriteFile(in("replaced/fresh"), []byte("f"), 0o644))
	must(os.WriteFile(in("changed"), []byte("c"), 0o755))
	must(os.Lchown(in("changed"), 33, 33))
	must(unix.Setxattr(in("changed"), "user.note", []byte("v"), 0))
	must(os.WriteFile(in("tmp/rubbish"), []byte("x"), 0o644))
	must(os.MkdirAll(in("cache/x"), 0o755))
	must(os.WriteFile(in("etc/pip.conf"), nil, 0o644))
}

func TestCommit(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	base := pull(t, s, r.push(t, gzipped(t, dir("app"), file{name: "app/source", text: "s"}, file{name: "removed", text: "x"},
		dir("replaced"), file{name: "replaced/old", text: "x"}, file{name: "changed", text: "x"})))
	scratch, root := t.TempDir(), filepath.Join(t.TempDir(), "root")
	if err := s.MountWritable(base, root, scratch); err != nil {
		t.Fatal(err)
	}
	defer s.Unmount(root)
	build(t, root)
	merged := tree(t, root)
	if err := s.Unmount(root); err != nil {
		t.Fatal(err)
	}
	result := Result{Upper: Upper(scratch), Exclude: []string{"/cache", "/etc/pip.conf"}, Cmd: []string{"bash", "-c", "./new"}, WorkDir: "/app", Env: []string{"A=b"}}
	var phases []leapcell.State
	digest, size, err := s.Commit(t.Context(), base, result, r.host+"/app:2", func(p leapcell.State, _ string) {
		if len(phases) == 0 || phases[len(phases)-1] != p {
			phases = append(phases, p)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if size <= 0 || !slices.Equal(phases, []leapcell.State{leapcell.Packaging, leapcell.Publishing}) {
		t.Errorf("size is %d, phases are %v", size, phases)
	}
	if again, _, err := s.Commit(t.Context(), base, result, r.host+"/app:3", nil); err != nil || again != digest {
		t.Errorf("the same build again gives %s (%v), want %s", again, err, digest)
	}

	img := pull(t, s, r.host+"/app@"+digest)
	if !slices.Equal(img.Cmd, result.Cmd) || img.WorkDir != "/app" || !slices.Equal(img.Env, result.Env) || len(img.Layers) != 2 {
		t.Errorf("image is %+v", img)
	}
	if err := s.Mount(img, root); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tmp/rubbish", "cache", "cache/x", "etc/pip.conf"} {
		delete(merged, name)
	}
	app := fmt.Sprintf(" %d:%d ", leapcell.InstanceUID, leapcell.InstanceGID)
	for _, name := range []string{"app", "app/new", "app/twin"} {
		merged[name] = strings.Replace(merged[name], " 0:0 ", app, 1)
	}
	got := tree(t, root)
	for _, name := range slices.Sorted(maps.Keys(merged)) {
		if got[name] != merged[name] {
			t.Errorf("%s is %q, want %q", name, got[name], merged[name])
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s should not be there", name)
	}
	buf := make([]byte, 8)
	if n, err := unix.Lgetxattr(filepath.Join(root, "changed"), "user.note", buf); err != nil || string(buf[:n]) != "v" {
		t.Errorf("the attribute is lost: %v", err)
	}
}

func TestCommitCancelled(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	base := pull(t, s, r.push(t, gzipped(t, file{name: "a", text: "1"})))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	upper := t.TempDir()
	if err := os.WriteFile(filepath.Join(upper, "x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Commit(ctx, base, Result{Upper: upper}, r.host+"/app:2", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want the context's", err)
	}
}

// The registry is killed while a layer is being pushed, and comes back.
func TestCommitWaitsForTheRegistry(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	ref := r.push(t, gzipped(t, file{name: "a", text: "1"}))
	_, rest, _ := strings.Cut(ref, "/")
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.host})
	var cut atomic.Int32
	away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPatch && cut.Add(1) == 1 {
			_, _ = io.CopyN(io.Discard, req.Body, 1<<20)
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_ = conn.(*net.TCPConn).SetLinger(0) // what is under way is answered with a reset, as by the kernel after a kill
			conn.Close()
			return
		}
		req.Host = req.URL.Host
		proxy.ServeHTTP(w, req)
	}))
	defer away.Close()
	host := strings.TrimPrefix(away.URL, "http://")
	base := pull(t, s, host+"/"+rest)
	upper := t.TempDir()
	if err := os.WriteFile(filepath.Join(upper, "x"), make([]byte, 32<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Commit(t.Context(), base, Result{Upper: upper}, host+"/app:2", nil); err != nil || cut.Load() < 2 {
		t.Errorf("%v, after %d attempts", err, cut.Load())
	}
}

// The registry is part of the control plane: it is away while that is restarted.
func TestPullWaitsForTheRegistry(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	ref := r.push(t, gzipped(t, file{name: "a", text: "1"}))
	_, rest, _ := strings.Cut(ref, "/")
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.host})
	var asked atomic.Int32
	away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch asked.Add(1) {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler) // breaks off
		default:
			proxy.ServeHTTP(w, req)
		}
	}))
	defer away.Close()
	s.cfg.Patience = 10 * time.Second
	if _, err := s.Pull(t.Context(), strings.TrimPrefix(away.URL, "http://")+"/"+rest); err != nil {
		t.Error(err)
	}
}
