package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.uber.org/goleak"

	"github.com/leapcell/leapcell"
)

// before is a registry in front of r: handle may answer a request itself by returning true.
func before(t testing.TB, r *testRegistry, handle func(w http.ResponseWriter, req *http.Request) bool) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.host})
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !handle(w, req) {
			proxy.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func at(host, ref string) string {
	_, rest, _ := strings.Cut(ref, "/")
	return host + "/" + rest
}

// noise does not compress, so that a cut at a byte is one in the middle of a file.
func noise(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		sum := sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		b.Write(sum[:])
	}
	return b.String()[:n]
}

func isBlob(req *http.Request) bool {
	return req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/")
}

func fetch(t testing.TB, address string) []byte {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return b
}

// A connection that is cut goes on where it ended, with registries that know ranges and
// with those that do not, and when nothing comes any more.
func TestPullGoesOn(t *testing.T) {
	for what, lose := range map[string]struct{ ranges, stall bool }{
		"with ranges": {ranges: true}, "without ranges": {}, "stalled": {ranges: true, stall: true},
	} {
		t.Run(what, func(t *testing.T) {
			r, s := newRegistry(t), newStore(t)
			s.cfg.Patience = 3 * time.Second
			text := noise(300_000)
			ref := r.push(t, gzipped(t, file{name: "a", text: text}))
			var cuts, resumed atomic.Int32
			host := before(t, r, func(w http.ResponseWriter, req *http.Request) bool {
				if !isBlob(req) {
					return false
				}
				body := fetch(t, "http://"+r.host+req.URL.Path)
				from := 0
				if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from); err == nil && lose.ranges {
					resumed.Add(1)
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
					w.Header().Set("Content-Length", fmt.Sprint(len(body)-from))
					w.WriteHeader(http.StatusPartialContent)
				} else {
					from = 0
					w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				}
				if n := int(cuts.Add(1)); len(body) > 100_000 && n <= 3 {
					w.Write(body[from:min(len(body), n*70_000)])
					w.(http.Flusher).Flush()
					if lose.stall {
						<-req.Context().Done()
					}
					panic(http.ErrAbortHandler)
				}
				w.Write(body[from:])
				return true
			})
			img := pull(t, s, at(host, ref))
			if b, err := os.ReadFile(filepath.Join(img.Layers[0], "a")); err != nil || string(b) != text {
				t.Errorf("the file is not what was pushed: %d bytes (%v)", len(b), err)
			}
			if lose.ranges && resumed.Load() == 0 {
				t.Error("all was read again")
			}
		})
	}
}

// A registry that begins to answer and then says nothing is away; it is not the caller who gave up.
func TestPullFromASilentRegistry(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	s.cfg.Patience = shortly
	ref := r.push(t, static.NewLayer(archive(t, file{name: "a", text: "1"}), types.OCIUncompressedLayer))
	host := before(t, r, func(w http.ResponseWriter, req *http.Request) bool {
		if !isBlob(req) || json.Valid(fetch(t, "http://"+r.host+req.URL.Path)) { // the configuration
			return false
		}
		w.Write([]byte{0})
		w.(http.Flusher).Flush()
		<-req.Context().Done()
		panic(http.ErrAbortHandler)
	})
	if _, err := s.Pull(t.Context(), at(host, ref)); leapcell.ErrorCode(err) != leapcell.CodeUnavailable || errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	nothingHalf(t, s)
}

// What a registry sends is checked before anything of it can be used.
func TestPullDamaged(t *testing.T) {
	tests := map[string]struct {
		change func(b []byte) []byte
		want   string
	}{
		"other bytes": {func(b []byte) []byte { b[len(b)-20] ^= 1; return b }, "was transferred damaged"},
		"more bytes":  {func(b []byte) []byte { return append(b, 0) }, "has more than the"},
		"other file":  {func(b []byte) []byte { return bytes.Repeat([]byte{0}, len(b)) }, "was transferred damaged"},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			r, s := newRegistry(t), newStore(t)
			ref := r.push(t, static.NewLayer(archive(t, file{name: "a", text: "1"}), types.OCIUncompressedLayer))
			host := before(t, r, func(w http.ResponseWriter, req *http.Request) bool {
				if !isBlob(req) {
					return false
				}
				body := fetch(t, "http://"+r.host+req.URL.Path)
				if !json.Valid(body) { // not the configuration
					body = tt.change(body)
				}
				w.Write(body)
				return true
			})
			_, err := s.Pull(t.Context(), at(host, ref))
			if leapcell.ErrorCode(err) != leapcell.CodeUnprocessable || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
			nothingHalf(t, s)
		})
	}
}

// nothingHalf checks that the store holds whole images and nothing else.
func nothingHalf(t testing.TB, s *Store) {
	t.Helper()
	if left, _ := os.ReadDir(s.path("tmp")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	known := s.digests()
	for _, digest := range known {
		img, _ := s.find(digest)
		for _, l := range img.Layers {
			if _, err := os.Stat(l); err != nil {
				t.Errorf("image %s: %v", digest, err)
			}
		}
	}
}

// Of an image for several platforms this node's is taken.
func TestPullIndex(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	ours, err := mutate.AppendLayers(empty.Image, gzipped(t, file{name: "ours", text: "1"}))
	if err != nil {
		t.Fatal(err)
	}
	other, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: ours, Descriptor: v1.Descriptor{Platform: &platform}})
	tag, err := name.NewTag(r.host + "/many:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, index); err != nil {
		t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	img := pull(t, s, r.host+"/many@"+digest.String())
	if len(img.Layers) != 1 {
		t.Fatalf("image is %+v", img)
	}
	if _, err := os.Stat(filepath.Join(img.Layers[0], "ours")); err != nil {
		t.Error(err)
	}
}

// A tag is looked up each time, and taken for what it was while the registry is away.
func TestPullTag(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	var away atomic.Bool
	host := before(t, r, func(w http.ResponseWriter, _ *http.Request) bool {
		if away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return away.Load()
	})
	first := r.push(t, gzipped(t, file{name: "a", text: "1"}))
	if img := pull(t, s, host+"/app:1"); img.Ref != at(host, first) {
		t.Errorf("the tag is %s, want %s", img.Ref, first)
	}
	second := r.push(t, gzipped(t, file{name: "a", text: "2"}))
	if img := pull(t, s, host+"/app:1"); img.Ref != at(host, second) {
		t.Errorf("the tag is %s, want %s", img.Ref, second)
	}
	away.Store(true)
	s.Close()
	s.cfg.Patience = shortly
	again := openStore(t, s.cfg)
	if img := pull(t, again, host+"/app:1"); img.Ref != at(host, second) && img.Ref != at(host, first) {
		t.Errorf("while the registry is away the tag is %s", img.Ref)
	}
	if _, err := again.Pull(t.Context(), host+"/app:2"); leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
		t.Errorf("a tag that was never seen: %v", err)
	}
}

// Two images with a layer in common transfer it once, also when both come at a time.
func TestPullSharedLayer(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	base := gzipped(t, file{name: "base", text: noise(100_000)})
	refs := []string{r.push(t, base, gzipped(t, file{name: "a", text: "1"})), r.push(t, base, gzipped(t, file{name: "b", text: "2"}))}
	var all sync.WaitGroup
	for range 5 {
		for _, ref := range refs {
			all.Go(func() { pull(t, s, ref) })
		}
	}
	all.Wait()
	if n := r.blobs.Load(); n != 5 {
		t.Errorf("%d blobs were fetched, want two configs and three layers", n)
	}
	if layers, _ := os.ReadDir(s.path("layers")); len(layers) != 4 {
		t.Errorf("%d layers, want three and the mount points", len(layers))
	}
}

// An image that is refused does not take another one with it that waits for a layer of both.
func TestPullSharedLayerOfABadImage(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	base := gzipped(t, file{name: "base", text: noise(200_000)})
	good := r.push(t, base, gzipped(t, file{name: "b", text: "2"}))
	wrong := gzipped(t, file{name: "../evil", text: "1"})
	bad := r.push(t, base, wrong)
	id, err := base.Digest()
	if err != nil {
		t.Fatal(err)
	}
	evil, err := wrong.Digest()
	if err != nil {
		t.Fatal(err)
	}
	begun, refused := make(chan struct{}), make(chan struct{})
	var once sync.Once
	host := before(t, r, func(w http.ResponseWriter, req *http.Request) bool {
		until := begun // the bad layer: not before the other one was asked for
		if strings.Contains(req.URL.Path, id.Hex) {
			once.Do(func() { close(begun) })
			until = refused
		} else if !isBlob(req) || !strings.Contains(req.URL.Path, evil.Hex) {
			return false
		}
		select {
		case <-until:
			return false
		case <-req.Context().Done():
			panic(http.ErrAbortHandler)
		}
	})
	badly := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), at(host, bad))
		badly <- err
	}()
	<-begun
	goodly := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), at(host, good))
		goodly <- err
	}()
	if err := <-badly; leapcell.ErrorCode(err) != leapcell.CodeUnprocessable {
		t.Errorf("the bad image: %v", err)
	}
	close(refused)
	if err := <-goodly; err != nil {
		t.Errorf("the good image: %v", err)
	}
}

// guarded is a registry with a login: by token if realm is set, else by password.
type guarded struct {
	inner  http.Handler
	realm  string
	tokens atomic.Int32
}

func (g *guarded) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	user, password, basic := req.BasicAuth()
	known := basic && user == "node" && password == "secret"
	switch {
	case req.URL.Path == "/token":
		if !known || req.FormValue("scope") != "repository:app:pull" || req.FormValue("service") != "reg" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		g.tokens.Add(1)
		fmt.Fprint(w, `{"token":"t0ken"}`)
	case g.realm != "" && req.Header.Get("Authorization") == "Bearer t0ken", g.realm == "" && known:
		g.inner.ServeHTTP(w, req)
	case g.realm != "":
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="reg"`, g.realm+"/token"))
		w.WriteHeader(http.StatusUnauthorized)
	default:
		w.Header().Set("WWW-Authenticate", `Basic realm="reg"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// Logins by password and by token, over TLS of an authority of one's own, from a file.
func TestPullLogin(t *testing.T) {
	needRoot(t)
	for _, token := range []bool{false, true} {
		t.Run(fmt.Sprintf("token %v", token), func(t *testing.T) {
			inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
			open := httptest.NewServer(inner)
			defer open.Close()
			ref := (&testRegistry{host: strings.TrimPrefix(open.URL, "http://")}).push(t, gzipped(t, file{name: "a", text: "1"}))
			g := &guarded{inner: inner}
			server := httptest.NewUnstartedServer(g)
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			defer server.Close()
			if token {
				g.realm = server.URL
			}
			host := strings.TrimPrefix(server.URL, "https://")
			ca := filepath.Join(t.TempDir(), "ca.pem")
			cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
			if err := os.WriteFile(ca, cert, 0o600); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "registries.json")
			s := openStore(t, Config{Dir: filepath.Join(t.TempDir(), "store"), Patience: 300 * time.Millisecond, Registries: Registries(file, slog.New(slog.DiscardHandler))})
			tests := []struct {
				what, text string
				code       leapcell.Code
				want       string
			}{
				{"no file", "", leapcell.CodeUnavailable, "name it as ca_file"},
				{"no such ca", fmt.Sprintf(`{"address":%q,"ca_file":"/nowhere"}`, host), leapcell.CodeUnavailable, "/nowhere"},
				{"nobody", fmt.Sprintf(`{"address":%q,"ca_file":%q}`, host, ca), leapcell.CodeForbidden, "refuses this node's credentials"},
				{"wrong", fmt.Sprintf(`{"address":%q,"username":"node","password":"wrong","ca_file":%q}`, host, ca), leapcell.CodeForbidden, "refuses this node's credentials"},
				{"another's", fmt.Sprintf(`[{"address":"elsewhere","username":"node","password":"secret"},{"address":%q,"ca_file":%q}]`, host, ca), leapcell.CodeForbidden, "refuses this node's credentials"},
				{"right", fmt.Sprintf(`[{"address":"elsewhere"},{"address":%q,"username":"node","password":"secret","ca_file":%q}]`, host, ca), "", ""},
			}
			for _, tt := range tests {
				if tt.text != "" {
					if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				_, err := s.Pull(t.Context(), at(host, ref))
				if leapcell.ErrorCode(err) != tt.code || err != nil && !strings.Contains(leapcell.ErrorMessage(err), tt.want) {
					t.Errorf("%s: error is %v (%s), want %s with %q", tt.what, err, leapcell.ErrorCode(err), tt.code, tt.want)
				}
				if err != nil && strings.Contains(err.Error(), "secret") {
					t.Errorf("%s: the error tells a password: %v", tt.what, err)
				}
			}
			if token && g.tokens.Load() == 0 {
				t.Error("no token was asked for")
			}
		})
	}
}

// Without a word about it nobody is spoken to by plain HTTP, not on this machine either.
func TestPullPlainHTTP(t *testing.T) {
	r := newRegistry(t)
	ref := r.push(t, gzipped(t, file{name: "a", text: "1"}))
	before := r.seen.Load()
	needRoot(t)
	s := openStore(t, Config{Dir: filepath.Join(t.TempDir(), "store"), Patience: time.Millisecond, Registries: func(string) Registry { return Registry{} }})
	_, err := s.Pull(t.Context(), ref)
	if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(leapcell.ErrorMessage(err), "plain HTTP is not allowed") {
		t.Errorf("error is %v", err)
	}
	if r.seen.Load() != before {
		t.Error("the registry was asked by plain HTTP")
	}
}

// What cannot become an instance is refused before it is transferred.
func TestPullRefused(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	many := make([]v1.Layer, maxLayers+1)
	for i := range many {
		many[i] = static.NewLayer(archive(t, file{name: fmt.Sprint(i)}), types.OCIUncompressedLayer)
	}
	large := gzipped(t, file{name: "a", text: noise(2000)})
	elsewhere, err := mutate.Append(empty.Image, mutate.Addendum{Layer: large, URLs: []string{"http://169.254.169.254/x"}, MediaType: types.DockerForeignLayer})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ ref, want string }{
		"many layers": {r.push(t, many...), "it has 201 layers, more than 200"},
		"too large":   {r.push(t, large), "its layers have more than 0 MB"},
		"elsewhere":   {r.pushImage(t, elsewhere), "is not in the registry"},
	}
	s.limits.Bytes = 1000
	blobs := r.blobs.Load()
	for what, tt := range tests {
		_, err := s.Pull(t.Context(), tt.ref)
		if leapcell.ErrorCode(err) != leapcell.CodeUnprocessable || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want %q", what, err, tt.want)
		}
	}
	if n := r.blobs.Load() - blobs; n > 0 {
		t.Errorf("%d blobs were fetched", n)
	}
	s.limits = DefaultLimits
	s.limits.Bytes = 5000
	both := r.push(t, gzipped(t, file{name: "a", text: strings.Repeat("a", 3000)}), gzipped(t, file{name: "b", text: strings.Repeat("b", 3000)}))
	if _, err := s.Pull(t.Context(), both); leapcell.ErrorCode(err) != leapcell.CodeUnprocessable {
		t.Errorf("layers that are too large together: %v", err)
	}
	if _, err := s.Pull(t.Context(), r.push(t, gzipped(t, file{name: "../x", text: "1"}))); !strings.Contains(fmt.Sprint(err), `of the image is refused: entry "../x": its name leads out of the layer`) {
		t.Errorf("the error names neither layer nor entry: %v", err)
	}
}

// A link of one layer and a file through it in the next meet in no place but the image.
func TestLinkAcrossLayers(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	outside := t.TempDir()
	img := pull(t, s, r.push(t,
		gzipped(t, file{name: "out", kind: tar.TypeSymlink, link: outside}, file{name: "up", kind: tar.TypeSymlink, link: "../.."}, file{name: "f", kind: tar.TypeSymlink, link: outside + "/f"}),
		gzipped(t, file{name: "out/evil", text: "1"}, file{name: "up/evil", text: "1"}, file{name: "f", text: "2"}, file{name: "up/.wh.x"})))
	root := filepath.Join(t.TempDir(), "root")
	if err := s.Mount(img, root); err != nil {
		t.Fatal(err)
	}
	defer s.Unmount(root)
	for name, want := range map[string]string{"out/evil": "1", "up/evil": "1", "f": "2"} {
		info, err := os.Lstat(filepath.Join(root, name))
		if b, _ := os.ReadFile(filepath.Join(root, name)); err != nil || !info.Mode().IsRegular() || string(b) != want {
			t.Errorf("%s is %v with %q (%v)", name, info, b, err)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("outside there is now %v", left)
	}
}

// A layer that deletes everything below it does so at the root too.
func TestOpaqueRoot(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	ref := r.push(t, gzipped(t, file{name: "old", text: "1"}), gzipped(t, file{name: ".wh..wh..opq"}, file{name: "new", text: "2"}))
	for _, from := range []string{"pulled", "read from disk"} {
		img := pull(t, s, ref)
		root := filepath.Join(t.TempDir(), "root")
		if err := s.Mount(img, root); err != nil {
			t.Fatal(err)
		}
		if got := tree(t, root); got["old"] != "" || got["new"] == "" {
			t.Errorf("%s, the image holds %v", from, got)
		}
		if err := s.Unmount(root); err != nil {
			t.Fatal(err)
		}
		s.Close()
		s = openStore(t, s.cfg)
	}
}

// TestMain lets this program be the process that is killed in TestKill.
func TestMain(m *testing.M) {
	if dir := os.Getenv("IMAGE_TEST_STORE"); dir != "" {
		s, err := New(Config{Dir: dir, Registries: func(string) Registry { return Registry{Insecure: true} }})
		if err == nil {
			_, err = s.Pull(context.Background(), os.Getenv("IMAGE_TEST_REF"))
		}
		fmt.Println("pulled", err)
		select {}
	}
	goleak.VerifyTestMain(m)
}

// Whenever a process is killed, the next one finds whole images and nothing else, and can pull.
func TestKill(t *testing.T) {
	r := newRegistry(t)
	needRoot(t)
	layers := []v1.Layer{gzipped(t, file{name: "a", text: noise(200_000)}), gzipped(t, file{name: "b", text: noise(200_000)}), gzipped(t, file{name: "c", text: "1"})}
	ref := r.push(t, layers...)
	for point := range 9 {
		t.Run(fmt.Sprint(point), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			due := make(chan struct{})
			var requests atomic.Int32
			host := before(t, r, func(w http.ResponseWriter, req *http.Request) bool {
				if int(requests.Add(1)) != point+1 || point == 8 {
					return false
				}
				if isBlob(req) { // in the middle of it
					body := fetch(t, "http://"+r.host+req.URL.Path)
					w.Header().Set("Content-Length", fmt.Sprint(len(body)))
					w.Write(body[:len(body)/2])
					w.(http.Flusher).Flush()
				}
				close(due)
				<-req.Context().Done()
				return true
			})
			done := startChild(t, dir, at(host, ref), due)
			s := openStore(t, Config{Dir: dir, Patience: time.Second})
			s.work.Wait()
			nothingHalf(t, s)
			if done != (len(s.digests()) == 1) {
				t.Errorf("pulled: %v, images after the kill: %v", done, s.digests())
			}
			img := pull(t, s, ref)
			if b, err := os.ReadFile(filepath.Join(img.Layers[0], "a")); err != nil || len(b) != 200_000 {
				t.Errorf("the file has %d bytes (%v)", len(b), err)
			}
		})
	}
}

// startChild pulls in another process and kills it when due, or when it is done, which is reported.
func startChild(t *testing.T, dir, ref string, due <-chan struct{}) (done bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "IMAGE_TEST_STORE="+dir, "IMAGE_TEST_REF="+ref)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	go func() {
		line := make([]byte, 200)
		n, _ := out.Read(line)
		said <- string(line[:n])
	}()
	select {
	case <-due:
	case line := <-said:
		if done = line == "pulled <nil>\n"; !done {
			t.Errorf("the other process says %q", line)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the other process is slow")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Error(err)
	}
	return done
}

// An image that had not reached the disk when the machine went down is pulled again.
func TestRebootBeforeSettled(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	ref := r.push(t, gzipped(t, file{name: "a", text: "1"}))
	img := pull(t, s, ref)
	s.Close()
	digest, _ := digestOf(ref)
	on, _, err := s.readImage("images", fileName(digest))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.path("images", fileName(digest))); err != nil {
		t.Fatal(err)
	}
	for want, boot := range []string{"of another time", bootID()} {
		on.Boot = boot
		if err := s.write("pending", digest, on); err != nil {
			t.Fatal(err)
		}
		again := openStore(t, s.cfg)
		if got := again.digests(); len(got) != want {
			t.Errorf("boot %q: images are %v, want %d", boot, got, want)
		}
		again.Close()
		if want == 0 {
			if _, err := os.Stat(img.Layers[0]); err == nil {
				t.Error("a layer that may be damaged is left")
			}
			once := openStore(t, s.cfg)
			pull(t, once, ref)
			once.Close() // settles it
		}
	}
	if files, _ := os.ReadDir(s.path("pending")); len(files) > 0 {
		t.Errorf("still pending: %v", files)
	}
}

// FuzzBlobRange looks for answers of a registry that bring a transfer down or through unchecked.
func FuzzBlobRange(f *testing.F) {
	text := []byte(noise(1000))
	sum := sha256.Sum256(text)
	f.Add(200, "", 1000, 0)
	f.Add(206, "bytes 500-999/1000", 500, 500)
	f.Add(206, "bytes 0-", 1000, 500)
	f.Fuzz(func(t *testing.T, status int, rangeHeader string, n, from int) {
		if status < 200 || status > 599 || strings.ContainsAny(rangeHeader, "\r\n\x00") || n < 0 || from < 0 || from > len(text) {
			t.Skip()
		}
		first := true
		b := &blob{
			ctx: t.Context(), url: "http://registry/x", size: int64(len(text)), digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}, patience: time.Nanosecond,
			client: &http.Client{Transport: answers(func(*http.Request) *http.Response {
				h := http.Header{"Content-Range": {rangeHeader}}
				body := text[from:min(len(text), from+n)]
				if first {
					first, body, h = false, text[:len(text)/2], nil
					return &http.Response{StatusCode: 200, Header: h, Body: io.NopCloser(bytes.NewReader(body))}
				}
				return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(bytes.NewReader(body))}
			})},
		}
		defer b.Close()
		if got, err := io.ReadAll(b); err == nil && !slices.Equal(got, text) {
			t.Errorf("%d bytes went through unchecked", len(got))
		}
	})
}

type answers func(*http.Request) *http.Response

func (a answers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp := a(req)
	resp.Request = req
	return resp, nil
}

// The Docker Hub goes by three names, and by none.
func TestRegistriesOfTheHub(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registries.json")
	if err := os.WriteFile(file, []byte(`{"address":"docker.io","username":"u"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	of := Registries(file, slog.New(slog.DiscardHandler))
	for ref, want := range map[string]string{
		"nginx": "u", "nginx:1@sha256:" + strings.Repeat("0", 64): "u", "docker.io/library/nginx": "u", "index.docker.io/library/nginx:1": "u",
		"registry.example.com/nginx": "", "localhost:5000/docker.io/nginx": "",
	} {
		if got := of(registryOf(ref)).Username; got != want {
			t.Errorf("%s is pulled as %q, want %q", ref, got, want)
		}
	}
	// A file that is being written, or gone, takes no login away.
	if err := os.WriteFile(file, []byte(`{"address":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if of("docker.io").Username != "u" {
		t.Error("a damaged file took the login away")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if of("docker.io").Username != "u" {
		t.Error("a missing file took the login away")
	}
}
