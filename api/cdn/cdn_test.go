package cdn

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/front"
)

const service = "shop-default-a1b2c3d4"

func sum(content string) string {
	h := sha256.Sum256([]byte(content))
	return hex.EncodeToString(h[:])
}

// artifact is one as a node makes it, of files by path.
func artifact(t *testing.T, files map[string]string) v1.Image {
	t.Helper()
	m := &front.Manifest{Whole: true, Folder: "dist", Framework: "Vite"}
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	for path, content := range files {
		m.Files = append(m.Files, front.File{Path: path, Type: front.TypeOf(path), Content: front.Content{SHA256: sum(content), Size: int64(len(content))}})
		if err := out.WriteHeader(&tar.Header{Name: sum(content), Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	list, _, err := m.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return image(t, list, archive.Bytes())
}

func image(t *testing.T, list, archive []byte) v1.Image {
	t.Helper()
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1),
		mutate.Addendum{Layer: static.NewLayer(list, front.MediaType), MediaType: front.MediaType},
		mutate.Addendum{Layer: static.NewLayer(archive, types.OCIUncompressedLayer), MediaType: types.OCIUncompressedLayer})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// fakeImages are those in a registry, by "repository:tag".
type fakeImages map[string]v1.Image

func (f fakeImages) Image(_ context.Context, repository, tag string) (v1.Image, error) {
	if img, ok := f[repository+":"+tag]; ok {
		return img, nil
	}
	return nil, leapcell.Errorf(leapcell.CodeNotFound, "no such image")
}

// broken fails after some puts, as a process that is killed.
type broken struct {
	Store

	mu   sync.Mutex
	left int
	put  []string
}

func (b *broken) Put(ctx context.Context, service, sum string, size int64, content io.ReadSeeker) error {
	b.mu.Lock()
	b.left--
	if b.left < 0 {
		b.mu.Unlock()
		return errors.New("killed")
	}
	b.put = append(b.put, sum)
	b.mu.Unlock()
	return b.Store.Put(ctx, service, sum, size, content)
}

func origin(t *testing.T, store Store, images Images) *Origin {
	t.Helper()
	o, err := New(store, images, filepath.Join(t.TempDir(), "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func local(t *testing.T) Store {
	t.Helper()
	s, err := NewLocal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func publish(t *testing.T, o *Origin, tag string) *Front {
	t.Helper()
	f, err := o.Look(t.Context(), service, tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Publish(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	return f
}

func have(t *testing.T, o *Origin, sum string) string {
	t.Helper()
	c, err := o.Content(t.Context(), service, sum)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Body.Close()
	b, err := io.ReadAll(c.Body)
	if err != nil || int64(len(b)) != c.Size {
		t.Errorf("%d bytes of %d, %v", len(b), c.Size, err)
	}
	return string(b)
}

func TestPublish(t *testing.T) {
	files := map[string]string{"/index.html": "<p>", "/a.js": "a", "/b.js": "b"}
	o := origin(t, local(t), fakeImages{service + "/static:1": artifact(t, files)})
	f := publish(t, o, "1")
	if f.Files != 3 || f.Bytes != 5 || !f.Whole || f.Framework != "Vite" || f.Folder != "dist" || !strings.HasPrefix(f.Digest, "sha256:") {
		t.Errorf("got %+v", f.Static)
	}
	if m, err := front.ParseManifest([]byte(have(t, o, f.Manifest))); err != nil || len(m.Files) != 3 {
		t.Errorf("the list: %v", err)
	}
	for _, content := range files {
		if got := have(t, o, sum(content)); got != content {
			t.Errorf("got %q, want %q", got, content)
		}
	}
	if _, err := o.Look(t.Context(), service, "2"); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		t.Errorf("of a deployment without front end: %v", err)
	}
	for _, bad := range []string{"", "..", "../" + service, service + "/x"} {
		if _, err := o.Content(t.Context(), bad, f.Manifest); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
			t.Errorf("of the service %q: %v", bad, err)
		}
	}
	if left, _ := os.ReadDir(o.dir); len(left) != 0 {
		t.Errorf("%d temporary files are left", len(left))
	}
}

// Wherever a publishing ends, the next one completes it, and the list is never there before
// the files.
func TestPublishIsKilled(t *testing.T) {
	files := map[string]string{"/index.html": "<p>", "/a.js": "a", "/b.js": "b"}
	images := fakeImages{service + "/static:1": artifact(t, files)}
	for n := range 4 {
		store := local(t)
		dying := origin(t, &broken{Store: store, left: n}, images)
		f, err := dying.Look(t.Context(), service, "1")
		if err != nil {
			t.Fatal(err)
		}
		if err := dying.Publish(t.Context(), f); err == nil {
			t.Fatal("published")
		}
		if have(t, dying, f.Manifest) != "" {
			t.Errorf("after %d puts the list is there", n)
		}
		second := &broken{Store: store, left: 100}
		o := origin(t, second, images)
		publish(t, o, "1")
		if have(t, o, f.Manifest) == "" || second.put[len(second.put)-1] != f.Manifest {
			t.Errorf("after %d puts it was not completed, or not in order: %v", n, second.put)
		}
		done := len(second.put)
		publish(t, o, "1")
		if len(second.put) != done {
			t.Error("what is there was put again")
		}
	}
}

// A content that a full disk cut short is put again.
func TestPublishMends(t *testing.T) {
	dir := t.TempDir()
	store, err := NewLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := origin(t, store, fakeImages{service + "/static:1": artifact(t, map[string]string{"/a.js": "hello"})})
	publish(t, o, "1")
	name, err := store.path(service, sum("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 2); err != nil {
		t.Fatal(err)
	}
	publish(t, o, "1")
	if got := have(t, o, sum("hello")); got != "hello" {
		t.Errorf("got %q", got)
	}
}

func TestArtifactThatLies(t *testing.T) {
	m := &front.Manifest{Folder: "dist", Files: []front.File{{Path: "/a.js", Type: "text/javascript", Content: front.Content{SHA256: sum("right"), Size: 5}}}}
	list, _, err := m.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	pack := func(name, content string) []byte {
		var b bytes.Buffer
		out := tar.NewWriter(&b)
		_ = out.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Typeflag: tar.TypeReg})
		_, _ = out.Write([]byte(content))
		_ = out.Close()
		return b.Bytes()
	}
	for name, archive := range map[string][]byte{
		"another content": pack(sum("right"), "wrong"), "another size": pack(sum("right"), "right or wrong"),
		"another name": pack("../../"+sum("right"), "right"), "nothing": nil, "no archive": []byte("hello"),
	} {
		t.Run(name, func(t *testing.T) {
			o := origin(t, local(t), fakeImages{service + "/static:1": image(t, list, archive)})
			f, err := o.Look(t.Context(), service, "1")
			if err != nil {
				t.Fatal(err)
			}
			if err := o.Publish(t.Context(), f); err == nil {
				t.Error("published")
			}
			if got := have(t, o, f.Manifest) + have(t, o, sum("right")); got != "" {
				t.Errorf("%q is there", got)
			}
		})
	}
}

func TestCollect(t *testing.T) {
	o := origin(t, local(t), fakeImages{
		service + "/static:1": artifact(t, map[string]string{"/index.html": "one", "/same.js": "same"}),
		service + "/static:2": artifact(t, map[string]string{"/index.html": "two", "/same.js": "same"}),
	})
	first, second := publish(t, o, "1"), publish(t, o, "2")
	if err := o.Collect(t.Context(), service, []string{second.Manifest, sum("not published")}); err != nil {
		t.Fatal(err)
	}
	got := []bool{have(t, o, first.Manifest) != "", have(t, o, sum("one")) != "", have(t, o, second.Manifest) != "", have(t, o, sum("two")) != "", have(t, o, sum("same")) != ""}
	if !slices.Equal(got, []bool{false, false, true, true, true}) {
		t.Errorf("there are %v", got)
	}
	publish(t, o, "1")
	if have(t, o, sum("one")) != "one" {
		t.Error("what was collected cannot be published again")
	}
	if err := o.Forget(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	if there, err := o.store.List(t.Context(), service); err != nil || len(there) != 0 {
		t.Errorf("%d contents are left, %v", len(there), err)
	}
	if err := o.Collect(t.Context(), "never-was", nil); err != nil {
		t.Error(err)
	}
}
