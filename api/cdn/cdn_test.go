package cdn

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	"github.com/leapcell/leapcell/test/bucket"
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

// kept is an empty store, and where on the disk it keeps a content.
type kept struct {
	Store

	file func(sum string) string
}

// onEach runs a test on each kind of store; fresh gives an empty one.
func onEach(t *testing.T, test func(t *testing.T, fresh func() kept)) {
	t.Run("local", func(t *testing.T) {
		test(t, func() kept {
			dir := t.TempDir()
			s, err := NewLocal(dir)
			if err != nil {
				t.Fatal(err)
			}
			return kept{s, func(sum string) string { return filepath.Join(dir, service, sum[:2], sum) }}
		})
	})
	t.Run("s3", func(t *testing.T) {
		server, n := bucket.Start(t), 0
		test(t, func() kept {
			n++
			prefix := "store/" + strconv.Itoa(n)
			return kept{s3(t, server, func(c *S3Config) { c.Prefix = prefix }), func(sum string) string { return filepath.Join(server.Dir, prefix, service, sum) }}
		})
	})
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
	if c.URL != "" {
		return follow(t, c.URL)
	}
	defer c.Body.Close()
	b, err := io.ReadAll(c.Body)
	if err != nil || int64(len(b)) != c.Size {
		t.Errorf("%d bytes of %d, %v", len(b), c.Size, err)
	}
	return string(b)
}

// follow fetches as an edge does: without any credentials.
func follow(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return ""
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the link answered %s, %v", resp.Status, err)
	}
	return string(b)
}

func TestPublish(t *testing.T) { onEach(t, testPublish) }

func testPublish(t *testing.T, fresh func() kept) {
	files := map[string]string{"/index.html": "<p>", "/a.js": "a", "/b.js": "b"}
	o := origin(t, fresh().Store, fakeImages{service + "/static:1": artifact(t, files)})
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
func TestPublishIsKilled(t *testing.T) { onEach(t, testPublishIsKilled) }

func testPublishIsKilled(t *testing.T, fresh func() kept) {
	files := map[string]string{"/index.html": "<p>", "/a.js": "a", "/b.js": "b"}
	images := fakeImages{service + "/static:1": artifact(t, files)}
	for n := range 4 {
		store := fresh().Store
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
func TestPublishMends(t *testing.T) { onEach(t, testPublishMends) }

func testPublishMends(t *testing.T, fresh func() kept) {
	store := fresh()
	o := origin(t, store.Store, fakeImages{service + "/static:1": artifact(t, map[string]string{"/a.js": "hello"})})
	f := publish(t, o, "1")
	if err := os.Truncate(store.file(sum("hello")), 2); err != nil {
		t.Fatal(err)
	}
	if there, err := o.Has(t.Context(), service, f.Manifest); there || err != nil {
		t.Errorf("of a content that was cut: %v, %v", there, err)
	}
	if lost, err := o.Collect(t.Context(), service, []string{f.Manifest}); err != nil || !slices.Equal(lost, []string{f.Manifest}) {
		t.Errorf("lost is %v, %v", lost, err)
	}
	publish(t, o, "1")
	if got := have(t, o, sum("hello")); got != "hello" {
		t.Errorf("got %q", got)
	}
}

func TestArtifactThatLies(t *testing.T) { onEach(t, testArtifactThatLies) }

func testArtifactThatLies(t *testing.T, fresh func() kept) {
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
			o := origin(t, fresh().Store, fakeImages{service + "/static:1": image(t, list, archive)})
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

func TestCollect(t *testing.T) { onEach(t, testCollect) }

func testCollect(t *testing.T, fresh func() kept) {
	o := origin(t, fresh().Store, fakeImages{
		service + "/static:1": artifact(t, map[string]string{"/index.html": "one", "/same.js": "same"}),
		service + "/static:2": artifact(t, map[string]string{"/index.html": "two", "/same.js": "same"}),
	})
	first, second := publish(t, o, "1"), publish(t, o, "2")
	if lost, err := o.Collect(t.Context(), service, []string{second.Manifest, sum("not published")}); err != nil || !slices.Equal(lost, []string{sum("not published")}) {
		t.Fatalf("lost is %v, %v", lost, err)
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
	if lost, err := o.Collect(t.Context(), "never-was", nil); err != nil || len(lost) > 0 {
		t.Errorf("%v, %v", lost, err)
	}
}

func TestStore(t *testing.T) { onEach(t, testStore) }

func testStore(t *testing.T, fresh func() kept) {
	s, ctx := fresh(), t.Context()
	put := func(service, content string) {
		t.Helper()
		if err := s.Put(ctx, service, sum(content), int64(len(content)), strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	list := func(service string) map[string]int64 {
		t.Helper()
		there, err := s.List(ctx, service)
		if err != nil {
			t.Fatal(err)
		}
		return there
	}
	for _, content := range []string{"", "a", "bb", "bb"} {
		put(service, content)
	}
	put(service+"x", "of another")
	if got := list(service); !maps.Equal(got, map[string]int64{sum(""): 0, sum("a"): 1, sum("bb"): 2}) {
		t.Errorf("there are %v", got)
	}
	if err := s.Flush(ctx); err != nil {
		t.Error(err)
	}
	for _, content := range []string{"", "bb"} {
		r, size, err := s.Open(ctx, service, sum(content))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if string(b) != content || size != int64(len(content)) || err != nil || r.Close() != nil {
			t.Errorf("%q with %d bytes, %v", b, size, err)
		}
	}
	for _, of := range []string{service, "never-was"} {
		if _, _, err := s.Open(ctx, of, sum("c")); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
			t.Errorf("what is not there: %v", err)
		}
	}
	if err := s.Put(ctx, "../"+service, sum("a"), 1, strings.NewReader("a")); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
		t.Errorf("into another folder: %v", err)
	}
	if err := s.Delete(ctx, service, sum("a"), sum("c")); err != nil {
		t.Error(err)
	}
	if got := list(service); !maps.Equal(got, map[string]int64{sum(""): 0, sum("bb"): 2}) {
		t.Errorf("there are %v", got)
	}
	if err := s.Delete(ctx, service); err != nil || s.Delete(ctx, service) != nil {
		t.Error(err)
	}
	if here, there := list(service), list(service+"x"); len(here) > 0 || len(there) != 1 {
		t.Errorf("left are %v, and of another service %v", here, there)
	}

	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, listed := s.List(ended, service)
	for what, err := range map[string]error{
		"list": listed, "put": s.Put(ended, service, sum("a"), 1, strings.NewReader("a")), "delete": s.Delete(ended, service+"x", sum("of another")),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s, without wanting to: %v", what, err)
		}
	}
}

// A change of the store loses nothing: what is needed is published once more, there and back.
func TestAnotherStore(t *testing.T) {
	onEach(t, func(t *testing.T, fresh func() kept) {
		images := fakeImages{
			service + "/static:1": artifact(t, map[string]string{"/index.html": "one"}),
			service + "/static:2": artifact(t, map[string]string{"/index.html": "two"}),
		}
		dir := t.TempDir()
		folder, err := NewLocal(dir)
		if err != nil {
			t.Fatal(err)
		}
		before := origin(t, folder, images)
		first, second := publish(t, before, "1"), publish(t, before, "2")

		after := origin(t, fresh().Store, images)
		want := []string{second.Manifest, first.Manifest}
		lost, err := after.Collect(t.Context(), service, want)
		if err != nil || !slices.Equal(lost, want) {
			t.Fatalf("the new store lacks %v, %v; want %v", lost, err, want)
		}
		publish(t, after, "1")
		publish(t, after, "2")
		if lost, err := after.Collect(t.Context(), service, want); err != nil || len(lost) > 0 || have(t, after, sum("one")) != "one" {
			t.Errorf("then it lacks %v, %v", lost, err)
		}
		if lost, err := before.Collect(t.Context(), service, want); err != nil || len(lost) > 0 {
			t.Errorf("the former one lacks %v, %v", lost, err)
		}
	})
}
