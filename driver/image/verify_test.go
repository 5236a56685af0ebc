package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/signature"
)

func newSigner(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// keysFile writes the public halves as operators do, all into one file.
func keysFile(t testing.TB, file string, keys ...*ecdsa.PrivateKey) {
	t.Helper()
	var text []byte
	for _, k := range keys {
		der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})...)
	}
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func payloadOf(t testing.TB, ref string) []byte {
	t.Helper()
	repository, digest, _ := strings.Cut(ref, "@")
	text, err := signature.Payload(repository, digest)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func signed(t testing.TB, key *ecdsa.PrivateKey, text []byte) string {
	t.Helper()
	sum := sha256.Sum256(text)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signature.Encode(sig)
}

// attach puts text, with what is said to be its signature, where signatures of ref are.
func attach(t testing.TB, ref string, text []byte, sig string) {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img, err := mutate.Append(img, mutate.Addendum{
		Layer:       static.NewLayer(text, signature.MediaType),
		Annotations: map[string]string{signature.Annotation: sig},
	})
	if err != nil {
		t.Fatal(err)
	}
	attachImage(t, ref, img)
}

func attachImage(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	repository, digest, _ := strings.Cut(ref, "@")
	tag, err := name.NewTag(repository + ":" + signature.Tag(digest))
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
}

// strict opens a store that takes signed images only, and gives its folder and keys' file.
func strict(t testing.TB, mode string, keys ...*ecdsa.PrivateKey) (s *Store, cfg Config) {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	cfg = Config{Dir: filepath.Join(dir, "store"), Patience: shortly, Verify: Verify{Mode: mode, KeysFile: filepath.Join(dir, "keys.pem")}}
	keysFile(t, cfg.Verify.KeysFile, keys...)
	return openStore(t, cfg), cfg
}

func TestUnsignedImagesAreRefused(t *testing.T) {
	ours, theirs := newSigner(t), newSigner(t)
	r := newRegistry(t)
	other := r.push(t, gzipped(t, file{name: "other", text: "1"}))
	for name, tt := range map[string]struct {
		sign func(t *testing.T, ref string)
		want string
	}{
		"unsigned": {func(*testing.T, string) {}, "it has no signature"},
		"wrong key": {func(t *testing.T, ref string) {
			attach(t, ref, payloadOf(t, ref), signed(t, theirs, payloadOf(t, ref)))
		}, "by another key"},
		"another image": {func(t *testing.T, ref string) {
			attach(t, ref, payloadOf(t, other), signed(t, ours, payloadOf(t, other)))
		}, "another image, sha256:"},
		"cut payload": {func(t *testing.T, ref string) {
			attach(t, ref, payloadOf(t, ref)[:50], signed(t, ours, payloadOf(t, ref)))
		}, "or broken"},
		"no base64": {func(t *testing.T, ref string) { attach(t, ref, payloadOf(t, ref), "!") }, "it has no signature"},
		"huge payload": {func(t *testing.T, ref string) {
			huge := append(payloadOf(t, ref), strings.Repeat(" ", 8<<20)...)
			attach(t, ref, huge, signed(t, ours, huge))
		}, "it has no signature"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			s, _ := strict(t, VerifyRequire, ours)
			ref := r.push(t, gzipped(t, file{name: name, text: "1"}))
			tt.sign(t, ref)
			_, err := s.Pull(t.Context(), ref)
			if leapcell.ErrorCode(err) != leapcell.CodeForbidden || !strings.Contains(leapcell.ErrorMessage(err), "image not signed by ") || !strings.Contains(leapcell.ErrorMessage(err), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
			for _, folder := range []string{"layers", "images", "pending", "signed", "tmp"} {
				left, err := os.ReadDir(s.path(folder))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range left {
					if f.Name() != mountPoints {
						t.Errorf("it left %s/%s", folder, f.Name())
					}
				}
			}
		})
	}
}

// The digest that was signed is that of what is run, whatever the registry sends for it.
func TestTamperedManifestIsRefused(t *testing.T) {
	ours := newSigner(t)
	r := newRegistry(t)
	ref := r.push(t, gzipped(t, file{name: "good", text: "1"}))
	attach(t, ref, payloadOf(t, ref), signed(t, ours, payloadOf(t, ref)))
	evil := r.push(t, gzipped(t, file{name: "evil", text: "1"}))
	lying := redirect(t, r.host, "/manifests/"+digestPart(ref), "/manifests/"+digestPart(evil))
	s, _ := strict(t, VerifyRequire, ours)
	if _, err := s.Pull(t.Context(), at(lying, ref)); err == nil {
		t.Error("a manifest was taken that is not the one that was signed")
	}
	if left, err := os.ReadDir(s.path("images")); err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
}

func TestSignedImageIsAskedAboutOnce(t *testing.T) {
	ours, next := newSigner(t), newSigner(t)
	r := newRegistry(t)
	ref := r.push(t, gzipped(t, file{name: "app", text: "1"}))
	attach(t, ref, payloadOf(t, ref), signed(t, ours, payloadOf(t, ref)))
	s, cfg := strict(t, VerifyRequire, ours)
	pull(t, s, ref)
	quiet := func(s *Store, when string) {
		t.Helper()
		before := r.seen.Load()
		pull(t, s, ref)
		if n := r.seen.Load() - before; n != 0 {
			t.Errorf("%s the registry was asked %d times", when, n)
		}
	}
	quiet(s, "at the second start")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, cfg)
	quiet(s, "after a restart")

	keysFile(t, cfg.Verify.KeysFile, next, ours)
	quiet(s, "with another key beside ours")
	keysFile(t, cfg.Verify.KeysFile, next)
	if _, err := s.Pull(t.Context(), ref); leapcell.ErrorCode(err) != leapcell.CodeForbidden {
		t.Errorf("a key that is not accepted any more: %v", err)
	}
	attach(t, ref, payloadOf(t, ref), signed(t, next, payloadOf(t, ref)))
	pull(t, s, ref)
	quiet(s, "after it was signed anew")
}

// Starts of an image that is here already are checked each by itself when the keys change.
func TestOneImageIsCheckedSideBySide(t *testing.T) {
	ours, next := newSigner(t), newSigner(t)
	r := newRegistry(t)
	ref := r.push(t, gzipped(t, file{name: "app", text: "1"}))
	attach(t, ref, payloadOf(t, ref), signed(t, ours, payloadOf(t, ref)))
	s, cfg := strict(t, VerifyRequire, ours)
	pull(t, s, ref)
	attach(t, ref, payloadOf(t, ref), signed(t, next, payloadOf(t, ref)))
	for range 20 {
		keysFile(t, cfg.Verify.KeysFile, next)
		var starts sync.WaitGroup
		for range 20 {
			starts.Go(func() {
				if _, err := s.Pull(t.Context(), ref); err != nil {
					t.Error(err)
				}
			})
		}
		starts.Wait()
		s.forgetChecked(strings.Split(ref, "@")[1])
	}
}

// Images that came before anybody looked at signatures are looked at when they are next used.
func TestVerifyingIsSwitchedOn(t *testing.T) {
	ours := newSigner(t)
	r := newRegistry(t)
	ref := r.push(t, gzipped(t, file{name: "app", text: "1"}))
	s, cfg := strict(t, VerifyOff)
	if err := os.Remove(cfg.Verify.KeysFile); err != nil {
		t.Fatal(err)
	}
	pull(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Verify.Mode = VerifyRequire
	s = openStore(t, cfg)
	if _, err := s.Pull(t.Context(), ref); leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(err.Error(), cfg.Verify.KeysFile) {
		t.Errorf("without a file of keys: %v", err)
	}
	keysFile(t, cfg.Verify.KeysFile, ours)
	if _, err := s.Pull(t.Context(), ref); leapcell.ErrorCode(err) != leapcell.CodeForbidden {
		t.Errorf("without a signature: %v", err)
	}
	attach(t, ref, payloadOf(t, ref), signed(t, ours, payloadOf(t, ref)))
	pull(t, s, ref)
}

func TestUnsignedImageWithAWarning(t *testing.T) {
	r := newRegistry(t)
	ref := r.push(t, gzipped(t, file{name: "app", text: "1"}))
	s, _ := strict(t, VerifyWarn, newSigner(t))
	for _, when := range []string{"first", "second"} {
		if img := pull(t, s, ref); !strings.Contains(img.Warning, "image not signed by ") {
			t.Errorf("%s start: warning %q", when, img.Warning)
		}
	}
}

func TestRegistryIsAwayWhileItIsAskedForASignature(t *testing.T) {
	s, _ := strict(t, VerifyRequire, newSigner(t))
	_, err := s.Pull(t.Context(), "127.0.0.1:1/app@sha256:"+strings.Repeat("b", 64))
	if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(leapcell.ErrorMessage(err), "signature of the image could not be read") {
		t.Errorf("%v", err)
	}
}

func TestSignatureIsForgottenWithItsImage(t *testing.T) {
	ours := newSigner(t)
	r := newRegistry(t)
	ref := r.push(t, gzipped(t, file{name: "app", text: "1"}))
	attach(t, ref, payloadOf(t, ref), signed(t, ours, payloadOf(t, ref)))
	s, _ := strict(t, VerifyRequire, ours)
	pull(t, s, ref)
	s.mu.Lock()
	used := s.known[digestPart(ref)].used
	s.mu.Unlock()
	if !s.forget(digestPart(ref), used) {
		t.Fatal("not forgotten")
	}
	if left, err := os.ReadDir(s.path("signed")); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// BenchmarkStartOfAnImageThatIsHere is what each start pays.
func BenchmarkStartOfAnImageThatIsHere(b *testing.B) {
	ours := newSigner(b)
	r := newRegistry(b)
	ref := r.push(b, gzipped(b, file{name: "app", text: "1"}))
	attach(b, ref, payloadOf(b, ref), signed(b, ours, payloadOf(b, ref)))
	for _, mode := range []string{VerifyOff, VerifyRequire} {
		b.Run(mode, func(b *testing.B) {
			s, _ := strict(b, mode, ours)
			pull(b, s, ref)
			for b.Loop() {
				pull(b, s, ref)
			}
		})
	}
}

func digestPart(ref string) string {
	digest, _ := digestOf(ref)
	return digest
}

// redirect is a registry in front of another that gives one thing for another.
func redirect(t testing.TB, host, asked, given string) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		req.URL.Path = strings.Replace(req.URL.Path, asked, given, 1)
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}
