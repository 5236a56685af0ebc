package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// all is a collection in which nobody pushes and everything is old enough.
var all = Collection{Settled: func(string) bool { return true }}

// aged makes everything in the registry a day old. What a collection removes meanwhile is gone.
func aged(t *testing.T, r *Registry) {
	t.Helper()
	at := time.Now().Add(-24 * time.Hour)
	err := filepath.WalkDir(r.root(), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Chtimes(path, at, at)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func push(t *testing.T, c *Client, repository, tag string, img v1.Image) v1.Image {
	t.Helper()
	if _, err := c.Push(t.Context(), repository, tag, img); err != nil {
		t.Fatal(err)
	}
	return img
}

// whole reads an image to its last byte.
func whole(t *testing.T, c *Client, repository, tag string) {
	t.Helper()
	img, err := c.Image(t.Context(), repository, tag)
	if err != nil {
		t.Errorf("%s:%s: %v", repository, tag, err)
		return
	}
	if _, err := img.RawConfigFile(); err != nil {
		t.Errorf("configuration of %s:%s: %v", repository, tag, err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		rc, err := l.Compressed()
		if err == nil {
			_, err = io.Copy(io.Discard, rc)
			rc.Close()
		}
		if err != nil {
			t.Errorf("a layer of %s:%s: %v", repository, tag, err)
		}
	}
}

func collect(t *testing.T, r *Registry, c Collection) Freed {
	t.Helper()
	freed, err := r.Collect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return freed
}

func untag(t *testing.T, r *Registry, repository, tag string) {
	t.Helper()
	if gone, err := r.Untag(repository, tag, time.Now()); err != nil || !gone {
		t.Fatalf("untag %s:%s: %t, %v", repository, tag, gone, err)
	}
}

func TestCollectLeavesWhatIsTagged(t *testing.T) {
	r, c, _ := start(t, 1, io.Discard)
	base := image(t)
	shared, err := mutate.AppendLayers(base, layer(t))
	if err != nil {
		t.Fatal(err)
	}
	push(t, c, "base/go", "1", base)
	push(t, c, "shop-x/app", "1", image(t))
	push(t, c, "shop-x/app", "2", shared) // two of its layers are the base's
	push(t, c, "hub/other", "1", image(t))
	untag(t, r, "shop-x/app", "1")
	untag(t, r, "base/go", "1")
	aged(t, r)

	freed := collect(t, r, all)
	// The manifest of the base goes, its layers are another image's.
	if freed.Manifests != 2 || freed.Blobs != 7 || freed.Bytes < 3*64<<10 || freed.Kept == 0 {
		t.Errorf("freed %+v", freed)
	}
	whole(t, c, "shop-x/app", "2")
	whole(t, c, "hub/other", "1")
	if _, err := c.Resolve(t.Context(), "shop-x/app", "1"); err == nil {
		t.Error("what lost its tag can still be found")
	}
	if again := collect(t, r, all); again.Blobs != 0 || again.Manifests != 0 || again.Kept != freed.Kept {
		t.Errorf("again: %+v", again)
	}
	if tags, err := r.Tags("shop-x/app"); err != nil || !slices.Equal(tags, []string{"2"}) {
		t.Errorf("tags %q, %v", tags, err)
	}
	// The same image, once it is deployed again, is taken in as a whole.
	push(t, c, "base/go", "1", base)
	whole(t, c, "base/go", "1")
}

// A tag that names something else leaves what it named before to who has looked that up: a build
// reads the system that it began with, also when that was made anew meanwhile.
func TestCollectLeavesWhatWasJustReplaced(t *testing.T) {
	r, c, _ := start(t, 1, io.Discard)
	for _, renewed := range []bool{true, false} {
		first := push(t, c, "base/go", "1", image(t))
		aged(t, r)
		push(t, c, "base/go", "1", image(t))
		if !renewed {
			aged(t, r)
		}
		collect(t, r, Collection{Age: time.Hour, Settled: all.Settled})
		digest, err := first.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if r.has("base/go", digest.String()) != renewed {
			t.Errorf("replaced a moment ago: %t; it is there: %t", renewed, !renewed)
		}
	}
}

func layer(t *testing.T) v1.Layer {
	t.Helper()
	l, err := random.Layer(64<<10, types.OCILayer)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCollectLeavesWhatIsYoungOrNotSettled(t *testing.T) {
	r, c, _ := start(t, 1, io.Discard)
	for _, repository := range []string{"shop-x/app", "busy-x/app"} {
		push(t, c, repository, "1", image(t))
		untag(t, r, repository, "1")
	}
	young := Collection{Age: time.Hour, Settled: all.Settled}
	if freed := collect(t, r, young); freed.Blobs+freed.Manifests != 0 {
		t.Errorf("young: %+v", freed)
	}
	aged(t, r)
	busy := Collection{Age: time.Hour, Settled: func(name string) bool { return name != "busy-x/app" }}
	if freed := collect(t, r, busy); freed.Manifests != 1 || freed.Blobs != 5 {
		t.Errorf("one of two is busy: %+v", freed)
	}
	if gone, err := r.Untag("busy-x/app", "../../../x", time.Now()); err == nil || gone {
		t.Error("a tag that is a path was taken")
	}
}

// Somebody who asks whether a layer is there, and hears that it is, will not send it: it stays
// until the manifest came.
func TestCollectWhileSomebodyPushes(t *testing.T) {
	r, c, cred := start(t, 1, io.Discard)
	img := image(t)
	push(t, c, "shop-x/app", "1", img)
	untag(t, r, "shop-x/app", "1")
	aged(t, r)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	asked := []v1.Hash{config}
	for _, l := range layers {
		h, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		asked = append(asked, h)
	}
	call := func(method, path, kind string, body io.Reader) int {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+cred.Address+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(cred.Username, cred.Password)
		req.Header.Set("Content-Type", kind)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for _, h := range asked {
		if status := call(http.MethodHead, "/v2/shop-x/app/blobs/"+h.String(), "", nil); status != http.StatusOK {
			t.Fatalf("%s: status %d", h, status)
		}
	}
	// It dies here, and begins again: ages are on the disk.
	again, err := New(t.Context(), r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if freed := collect(t, again, Collection{Age: time.Hour, Settled: all.Settled}); freed.Manifests != 1 || freed.Blobs != 1 {
		t.Errorf("the manifest alone should go: %+v", freed)
	}
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	kind, err := img.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	if status := call(http.MethodPut, "/v2/shop-x/app/manifests/2", string(kind), strings.NewReader(string(raw))); status != http.StatusCreated {
		t.Fatalf("the manifest got status %d", status)
	}
	whole(t, c, "shop-x/app", "2")
	// Blobs of an upload that was given up on go, a young one stays.
	if status := call(http.MethodPost, "/v2/shop-x/app/blobs/uploads/", "", nil); status != http.StatusAccepted {
		t.Fatalf("an upload got status %d", status)
	}
	if freed := collect(t, r, Collection{Age: time.Hour, Settled: all.Settled}); freed.Uploads != 0 {
		t.Errorf("a young upload: %+v", freed)
	}
	aged(t, r)
	if freed := collect(t, r, Collection{Age: time.Hour, Settled: all.Settled}); freed.Uploads != 1 {
		t.Errorf("an old upload: %+v", freed)
	}
}

// Four push and untag the same layers in all orders while it is collected: whatever has a tag is
// whole, and no push fails.
func TestCollectAtTheSameTime(t *testing.T) {
	r, c, _ := start(t, 1, io.Discard)
	var shared []v1.Layer
	for range 3 {
		shared = append(shared, layer(t))
	}
	// Between pushes everything becomes a day old, so that what the next one renews is all that is
	// young. Days do not pass within one collection: what was pushed since it began would be old.
	var moment sync.RWMutex
	var collection sync.Mutex
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for ctx.Err() == nil {
			collection.Lock()
			_, err := r.Collect(ctx, Collection{Age: time.Hour, Settled: all.Settled})
			collection.Unlock()
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	var pushing sync.WaitGroup
	for i := range 4 {
		pushing.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 7))
			repository := fmt.Sprintf("shop-%d/app", i%2)
			for n := range 6 {
				tag := fmt.Sprintf("%d-%d", i, n)
				img, err := mutate.AppendLayers(small(t), shared[random.IntN(len(shared))], shared[random.IntN(len(shared))])
				if err != nil {
					t.Error(err)
					return
				}
				moment.RLock()
				_, err = c.Push(ctx, repository, tag, img)
				moment.RUnlock()
				if err != nil {
					t.Errorf("push of %s:%s: %v", repository, tag, err)
					return
				}
				moment.Lock()
				collection.Lock()
				aged(t, r)
				collection.Unlock()
				moment.Unlock()
				if n%3 != 0 {
					if _, err := r.Untag(repository, tag, time.Now()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	pushing.Wait()
	stop()
	collecting.Wait()
	collect(t, r, all)
	found := 0
	for _, repository := range []string{"shop-0/app", "shop-1/app"} {
		tags, err := r.Tags(repository)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range tags {
			found++
			whole(t, c, repository, tag)
		}
	}
	if found != 4*2 {
		t.Errorf("%d tags, want %d", found, 4*2)
	}
}

func small(t *testing.T) v1.Image {
	img, err := random.Image(1<<10, 1)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// A collection that was killed anywhere goes on the next time.
func TestCollectKilledAnywhere(t *testing.T) {
	for _, half := range []func(r *Registry, hex string) string{
		func(r *Registry, hex string) string { return filepath.Join(r.blob(hex), "data") },
		func(r *Registry, hex string) string { return r.blob(hex) },
		func(r *Registry, hex string) string {
			return filepath.Join(r.repository("shop-x/app"), "_manifests/revisions/sha256", hex, "link")
		},
		func(r *Registry, _ string) string {
			return filepath.Join(r.repository("shop-x/app"), "_manifests/tags/1/current")
		},
		func(r *Registry, _ string) string {
			return filepath.Join(r.repository("shop-x/app"), "_layers")
		},
	} {
		r, c, _ := start(t, 1, io.Discard)
		img := push(t, c, "shop-x/app", "1", image(t))
		push(t, c, "shop-x/app", "2", image(t))
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(half(r, digest.Hex)); err != nil {
			t.Fatal(err)
		}
		untag(t, r, "shop-x/app", "1")
		aged(t, r)
		collect(t, r, all)
		if left, _ := filepath.Glob(filepath.Join(r.root(), "blobs/sha256/*/*")); len(left) != 5 {
			t.Errorf("%d blobs are left, want 5", len(left))
		}
		push(t, c, "shop-x/app", "3", img)
		whole(t, c, "shop-x/app", "3")
	}
}

func TestMirroredImagesKeepYoungByUse(t *testing.T) {
	u, r, hub := outside(t)
	img := put(t, u, hub+"library/a:1", "amd64")
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	own := u.cfg.Own
	read := func() {
		t.Helper()
		if _, err := own.Resolve(t.Context(), "mirror/docker.io/library/a", "1"); err != nil {
			t.Fatal(err)
		}
	}
	read()
	tag := mirrorTag(digest.String())
	aged(t, r)
	read()
	hourAgo := time.Now().Add(-time.Hour)
	if gone, err := r.Untag("mirror/docker.io/library/a", tag, hourAgo); err != nil || gone {
		t.Errorf("it was just asked for: %t, %v", gone, err)
	}
	aged(t, r)
	if gone, err := r.Untag("mirror/docker.io/library/a", tag, hourAgo); err != nil || !gone {
		t.Errorf("nobody asked for it: %t, %v", gone, err)
	}
	names, err := r.Repositories()
	if err != nil || !slices.Equal(names, []string{"hub/library/a", "mirror/docker.io/library/a"}) {
		t.Errorf("repositories %q, %v", names, err)
	}
	collect(t, r, all)
	read() // it is brought again
}

func FuzzReferences(f *testing.F) {
	f.Add([]byte(`{"config":{"digest":"sha256:` + strings.Repeat("ab", 32) + `"},"layers":[{"digest":"md5:x"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, hex := range references(b) {
			if len(hex) != 64 || strings.ContainsAny(hex, "/.") {
				t.Errorf("%q is no blob", hex)
			}
		}
	})
}
