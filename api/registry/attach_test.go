package registry

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/signature"
)

func TestDocumentsOfAnImage(t *testing.T) {
	c, image := pushed(t)
	ctx := t.Context()
	if _, err := c.Attached(ctx, image, "a/bill", ""); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		t.Fatalf("before there is one: %v", err)
	}
	for _, d := range []Document{
		{Type: "a/bill", MediaType: "a/bill", Content: []byte("bill")},
		{Type: "a/story", MediaType: "a/story", Deployment: "shop-1", Content: []byte("one")},
		{Type: "a/story", MediaType: "a/story", Deployment: "shop-2", Content: []byte("two")},
		{Type: "a/bill", MediaType: "a/bill", Content: []byte("bill")}, // again
	} {
		if err := c.Attach(ctx, image, d); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range [][3]string{{"a/bill", "", "bill"}, {"a/story", "shop-1", "one"}, {"a/story", "shop-2", "two"}} {
		if got, err := c.Attached(ctx, image, tt[0], tt[1]); err != nil || string(got) != tt[2] {
			t.Errorf("%s of %q: %q, %v", tt[0], tt[1], got, err)
		}
	}
	// Any client finds them by the image, as OCI defines it.
	ref, err := c.digestRef(image)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(ref, c.Options(ctx)...)
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil || len(list.Manifests) != 3 {
		t.Errorf("referrers: %+v, %v", list, err)
	}
	if err := c.Attach(ctx, image[:len(image)-4]+"0000", Document{Type: "a/bill", MediaType: "a/bill"}); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		t.Errorf("to an image that is not there: %v", err)
	}
}

// The list of documents is read and written as a whole: none may get lost.
func TestDocumentsAtTheSameTime(t *testing.T) {
	c, image := pushed(t)
	const n = 8
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			d := Document{Type: "a/story", MediaType: "a/story", Deployment: fmt.Sprint(i), Content: fmt.Append(nil, i)}
			if err := c.Attach(context.Background(), image, d); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for i := range n {
		if got, err := c.Attached(t.Context(), image, "a/story", fmt.Sprint(i)); err != nil || string(got) != fmt.Sprint(i) {
			t.Errorf("%d: %q, %v", i, got, err)
		}
	}
}

func TestSignaturesOfAnImage(t *testing.T) {
	c, image := pushed(t)
	ctx := t.Context()
	if by, err := c.SignedBy(ctx, image); err != nil || len(by) != 0 {
		t.Fatalf("%v, %v", by, err)
	}
	for i := range signature.MaxSignatures + 2 {
		s := signature.Signed{Payload: []byte("the same"), Signature: []byte{byte(i)}, Key: fmt.Sprintf("k:v%d", i)}
		if err := c.AddSignature(ctx, image, s); err != nil {
			t.Fatal(err)
		}
	}
	by, err := c.SignedBy(ctx, image)
	if err != nil || len(by) != signature.MaxSignatures || by[0] != fmt.Sprintf("k:v%d", signature.MaxSignatures+1) {
		t.Errorf("%d: %v, %v", len(by), by, err)
	}
	if err := c.AddSignature(ctx, image[:len(image)-4]+"0000", signature.Signed{}); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		t.Errorf("of an image that is not there: %v", err)
	}
}

// pushed gives a client and an image that is in its registry.
func pushed(t *testing.T) (*Client, string) {
	t.Helper()
	_, c, _ := start(t, 1, io.Discard)
	ref, err := c.Push(t.Context(), "shop-x/app", "1", image(t))
	if err != nil {
		t.Fatal(err)
	}
	return c, ref
}

// What belongs to an image stays as long as the image does, and goes with it.
func TestCollectionKeepsWhatBelongsToAnImage(t *testing.T) {
	r, c, _ := start(t, 1, io.Discard)
	ctx := t.Context()
	ref, err := c.Push(ctx, "shop-x/app", "1", image(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Attach(ctx, ref, Document{Type: "a/bill", MediaType: "a/bill", Content: []byte("bill")}); err != nil {
		t.Fatal(err)
	}
	if err := c.AddSignature(ctx, ref, signature.Signed{Payload: []byte("payload"), Signature: []byte("x"), Key: "k:v1"}); err != nil {
		t.Fatal(err)
	}
	collect := func() {
		t.Helper()
		all := Collection{Age: -time.Minute, Settled: func(string) bool { return true }} // even what is new
		if _, err := r.Collect(ctx, all); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		collect()
		if got, err := c.Attached(ctx, ref, "a/bill", ""); err != nil || string(got) != "bill" {
			t.Errorf("the document is %q, %v", got, err)
		}
		if by, err := c.SignedBy(ctx, ref); err != nil || len(by) != 1 {
			t.Errorf("signed by %v, %v", by, err)
		}
	}
	if gone, err := r.Untag("shop-x/app", "1", time.Now().Add(time.Minute)); err != nil || !gone {
		t.Fatal(gone, err)
	}
	collect()
	if tags, err := r.Tags("shop-x/app"); err != nil || len(tags) != 0 {
		t.Errorf("left %v, %v", tags, err)
	}
	if _, err := c.At(ctx, ref); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		t.Errorf("the image: %v", err)
	}
	blobs, err := filepath.Glob(filepath.Join(r.root(), "blobs/sha256/*/*"))
	if err != nil || len(blobs) != 0 {
		t.Errorf("left %d blobs, %v", len(blobs), err)
	}
}
