package image

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	ggcrlayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/leapcell/leapcell"
)

func quiet(leapcell.State, string) {}

// written is an image in a folder, and the digest of its first layer.
func written(t *testing.T) (dir, digest, layer string) {
	t.Helper()
	img, err := random.Image(2048, 2)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	path, err := ggcrlayout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	hash, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	first, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return dir, hash.String(), filepath.Join(dir, "blobs/sha256", first.Hex)
}

func TestPushLayout(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	dir, want, _ := written(t)
	digest, size, err := s.PushLayout(t.Context(), dir, r.host+"/shop/app:1", 1<<20, quiet)
	if err != nil || digest != want || size < 4096 {
		t.Errorf("%s, %d bytes, %v; want %s", digest, size, err, want)
	}
	if _, _, err := s.PushLayout(t.Context(), dir, r.host+"/shop/app:2", 1000, quiet); leapcell.ErrorCode(err) != leapcell.CodeTooLarge {
		t.Errorf("too large: %v", err)
	}
}

// The folder is a build's: what it must not lead to is a file of the node.
func TestPushLayoutIsNotTrusted(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	for name, spoil := range map[string]func(dir, layer string) error{
		"layer is a link out": func(_, layer string) error {
			_ = os.Remove(layer)
			return os.Symlink("/etc/passwd", layer)
		},
		"layer is another": func(_, layer string) error {
			_ = os.Chmod(layer, 0o600)
			return os.WriteFile(layer, []byte("x"), 0o600)
		},
		"layer is missing": func(_, layer string) error { return os.Remove(layer) },
		"folder leads out": func(dir, _ string) error { return linkInstead(filepath.Join(dir, "blobs"), "/etc") },
		"index is no image": func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"manifests":[]}`), 0o600)
		},
		"index is a link": func(dir, _ string) error { return linkInstead(filepath.Join(dir, "index.json"), "/etc/passwd") },
	} {
		dir, _, layer := written(t)
		if err := spoil(dir, layer); err != nil {
			t.Fatal(err)
		}
		if digest, _, err := s.PushLayout(t.Context(), dir, r.host+"/shop/app:3", 0, quiet); leapcell.ErrorCode(err) != leapcell.CodeUnprocessable {
			t.Errorf("%s: %s, %v", name, digest, err)
		}
	}
}

func linkInstead(name, target string) error {
	if err := os.RemoveAll(name); err != nil {
		return err
	}
	return os.Symlink(target, name)
}

// A build reaches images to read below mirror/, and nothing else of the registry.
func TestMirrorIsOnlyToRead(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	handler, link, err := s.Mirror(r.host + "/shop/app:1")
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	ask := func(method, path string) int {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code
	}
	for _, path := range []string{"/v2/", "/v2/_catalog", "/v2/../shop/app/manifests/1", "/v2/docker.io/../../shop/app/manifests/1", "/v2/docker.io/x/blobs/uploads/", "/v2/docker.io/x/tags/list"} {
		if code := ask(http.MethodGet, path); code != http.StatusForbidden {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code := ask(http.MethodPut, "/v2/docker.io/library/x/manifests/1"); code != http.StatusForbidden {
		t.Errorf("writing: %d", code)
	}
	if code := ask(http.MethodGet, "/v2/docker.io/library/x/manifests/1"); code != http.StatusNotFound {
		t.Errorf("what is not there: %d", code)
	}
}
