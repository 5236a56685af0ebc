package registry

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/leapcell/leapcell"
)

// outside is a registry that plays docker.io, and an upstream that reads it.
func outside(t *testing.T) (u *Upstream, r *Registry, hub string) {
	t.Helper()
	server := func() (*Registry, Credentials) {
		cred := Credentials{Username: "node", Password: "secret", Insecure: true}
		one, err := New(t.Context(), Config{Dir: t.TempDir(), Credentials: cred})
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewServer(one)
		t.Cleanup(s.Close)
		cred.Address = strings.TrimPrefix(s.URL, "http://")
		return one, cred
	}
	r, own := server()
	u, err := NewUpstream(UpstreamConfig{Mirrors: map[string]string{"docker.io": "http://" + own.Address + "/hub"}, Own: NewClient(own)})
	if err != nil {
		t.Fatal(err)
	}
	r.Mirror(u)
	return u, r, own.Address + "/hub/"
}

func put(t *testing.T, u *Upstream, ref, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(1024, 2)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config.Cmd = "linux", arch, []string{"/run"}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	at, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(at, img, u.cfg.Own.Options(t.Context())...); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestCopyFromMirror(t *testing.T) {
	u, _, hub := outside(t)
	img := put(t, u, hub+"library/web:1", runtime.GOARCH)
	digest, _ := img.Digest()
	at, err := u.Copy(t.Context(), "web:1", "shop-x/app", "3", func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(at, "/shop-x/app@"+digest.String()) {
		t.Errorf("it is at %s", at)
	}
	config, size, err := u.Config(t.Context(), "shop-x/app", "3")
	if err != nil || size < 2048 || len(config.Cmd) != 1 {
		t.Errorf("%+v, %d bytes, %v", config, size, err)
	}
}

func TestCopyChoosesThePlatform(t *testing.T) {
	u, _, hub := outside(t)
	other, own := put(t, u, hub+"library/a:1", "s390x"), put(t, u, hub+"library/a:2", runtime.GOARCH)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: own, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	at, err := name.ParseReference(hub+"library/a:all", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(at, index, u.cfg.Own.Options(t.Context())...); err != nil {
		t.Fatal(err)
	}
	got, err := u.Copy(t.Context(), "a:all", "shop-x/app", "1", func(string) {})
	want, _ := own.Digest()
	if err != nil || !strings.HasSuffix(got, want.String()) {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
	_, err = u.Copy(t.Context(), "a:1", "shop-x/app", "2", func(string) {})
	if leapcell.ErrorCode(err) != leapcell.CodeUnprocessable || !strings.Contains(leapcell.ErrorMessage(err), "made for linux/s390x") {
		t.Errorf("another machine's image: %v", err)
	}
	// A build asks for the index first, then for the image in it.
	for _, identifier := range []string{"all", want.String()} {
		ref, err := name.ParseReference(strings.TrimSuffix(hub, "hub/")+"mirror/docker.io/library/a:"+identifier, name.Insecure)
		if strings.HasPrefix(identifier, "sha256:") {
			ref, err = name.ParseReference(strings.TrimSuffix(hub, "hub/")+"mirror/docker.io/library/a@"+identifier, name.Insecure)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Get(ref, u.cfg.Own.Options(t.Context())...); err != nil {
			t.Errorf("mirror of %s: %v", identifier, err)
		}
	}
}

// A registry that has the mirror's own tags, as another platform's has, is mirrored like others.
func TestMirrorOfAMirror(t *testing.T) {
	u, _, hub := outside(t)
	img := put(t, u, hub+"library/a:1", runtime.GOARCH)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{hub + "library/a:" + mirrorTag(digest.String()), strings.TrimSuffix(hub, "hub/") + "mirror/docker.io/library/a:1"} {
		ref, err := name.ParseReference(at, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(at, "hub/") {
			err = remote.Write(ref, img, u.cfg.Own.Options(t.Context())...)
		} else {
			_, err = remote.Get(ref, u.cfg.Own.Options(t.Context())...)
		}
		if err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
}

func TestUpstreamRefuses(t *testing.T) {
	u, _, hub := outside(t)
	for ref, want := range map[string]leapcell.Code{
		"nope:1":       leapcell.CodeUnprocessable,
		"Not An Image": leapcell.CodeInvalid,
		strings.TrimSuffix(hub, "hub/") + "other/app:1": leapcell.CodeForbidden, // another service's
		"10.1.2.3/x:1":               leapcell.CodeForbidden,
		"169.254.169.254/latest/x:1": leapcell.CodeForbidden,
	} {
		_, err := u.Copy(t.Context(), ref, "shop-x/app", "1", func(string) {})
		if leapcell.ErrorCode(err) != want {
			t.Errorf("%s: %v, want %s", ref, err, want)
		}
	}
	for ip, public := range map[string]bool{"192.0.2.1": true, "127.0.0.1": false, "100.64.1.1": false, "192.168.1.1": false, "fe80::1": false, "::1": false} {
		if err := refuseAddr(netip.MustParseAddr(ip)); (err == nil) != public {
			t.Errorf("%s: %v", ip, err)
		}
	}
}

func TestParseMirrors(t *testing.T) {
	got, err := ParseMirrors(" docker.io=r.example/hub/ ,quay.io=http://10.0.0.5:5000/q")
	if err != nil || got["docker.io"] != "r.example/hub" || got["quay.io"] != "http://10.0.0.5:5000/q" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"docker.io", "=x", "docker.io="} {
		if _, err := ParseMirrors(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, err := NewUpstream(UpstreamConfig{Mirrors: map[string]string{"docker.io": "not a host"}, Own: NewClient(Credentials{})}); err == nil {
		t.Error("a mirror without a host is taken")
	}
}

func TestMirrorWithoutUpstream(t *testing.T) {
	r, err := New(t.Context(), Config{Dir: t.TempDir(), Credentials: Credentials{Username: "a", Password: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodGet, "/v2/mirror/docker.io/library/x/manifests/1", nil)
	req.SetBasicAuth("a", "b")
	w := httptest.NewRecorder()
	r.ServeHTTP(w, req)
	if w.Code != http.StatusNotFound {
		t.Errorf("status %d", w.Code)
	}
}
