package cdn

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/front"
)

// Store keeps contents by service and SHA-256. Errors have [leapcell.CodeUnavailable] when
// another try may succeed.
type Store interface {
	// List gives the contents of a service that are there, whole, with their sizes.
	List(ctx context.Context, service string) (map[string]int64, error)
	// Put stores a content, whole or not at all; one that is there already is replaced.
	Put(ctx context.Context, service, sum string, size int64, content io.ReadSeeker) error
	// Flush makes what was put outlive a power cut.
	Flush(ctx context.Context) error
	// Open gives a content with its size, else [leapcell.CodeNotFound]. Close it.
	Open(ctx context.Context, service, sum string) (io.ReadCloser, int64, error)
	// Delete removes contents; those that are not there are no error. Without any, it removes
	// all of the service.
	Delete(ctx context.Context, service string, sums ...string) error
}

// Linker is a store from which edges can fetch without us between: Link gives an address that
// is good for some minutes.
type Linker interface {
	Link(ctx context.Context, service, sum string) (url string, err error)
}

// Images are those in the registry.
type Images interface {
	// Image gives the image at repository:tag, else [leapcell.CodeNotFound].
	Image(ctx context.Context, repository, tag string) (v1.Image, error)
}

// Origin brings front ends from the registry to a store.
type Origin struct {
	store  Store
	images Images
	dir    string // for files on their way
}

// New makes an origin; dir is for temporary files.
func New(store Store, images Images, dir string) (*Origin, error) {
	if err := os.RemoveAll(dir); err != nil { // of a killed process
		return nil, fmt.Errorf("static files: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("static files: %w", err)
	}
	return &Origin{store: store, images: images, dir: dir}, nil
}

// Front is the front end of a deployment as its build pushed it.
type Front struct {
	leapcell.Static
	Digest string // of the artifact

	service  string
	list     []byte
	manifest *front.Manifest
	contents v1.Layer
}

// Look gives the front end of deployment number tag of a service, else [leapcell.CodeNotFound].
func (o *Origin) Look(ctx context.Context, service, tag string) (*Front, error) {
	img, err := o.images.Image(ctx, service+"/static", tag)
	if err != nil {
		return nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, away(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 2 {
		return nil, away(fmt.Errorf("%d layers, %w", len(layers), err))
	}
	list, err := read(layers[0])
	if err != nil {
		return nil, away(err)
	}
	m, err := front.ParseManifest(list)
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeInternal, err, "the list of the front end's files cannot be read")
	}
	sum := sha256.Sum256(list)
	f := &Front{Digest: digest.String(), service: service, list: list, manifest: m, contents: layers[1], Static: leapcell.Static{
		Manifest: hex.EncodeToString(sum[:]), Framework: m.Framework, Folder: m.Folder, Fallback: m.Fallback, Files: len(m.Files), Whole: m.Whole,
	}}
	for _, file := range m.Files {
		f.Bytes += file.Size
	}
	return f, nil
}

func away(err error) error {
	return leapcell.Wrap(leapcell.CodeUnavailable, err, "the front end could not be read from the registry")
}

func read(l v1.Layer) ([]byte, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, front.MaxManifestBytes+1))
}

// putters is how many contents are on their way to the store at once.
const putters = 8

// Publish makes sure that everything of f is in the store: the files, then their list.
func (o *Origin) Publish(ctx context.Context, f *Front) error {
	there, err := o.store.List(ctx, f.service)
	if err != nil {
		return err
	}
	missing := map[string]int64{}
	for sum, size := range f.manifest.Contents() {
		if have, ok := there[sum]; !ok || have != size {
			missing[sum] = size
		}
	}
	if _, ok := there[f.Manifest]; ok && len(missing) == 0 {
		return nil
	}
	if len(missing) > 0 {
		if err := o.unpack(ctx, f, missing); err != nil {
			return err
		}
		if err := o.store.Flush(ctx); err != nil {
			return err
		}
	}
	if err := o.putBytes(ctx, f.service, f.Manifest, f.list); err != nil {
		return err
	}
	return o.store.Flush(ctx)
}

// unpack puts what is missing from the archive of f.
func (o *Origin) unpack(ctx context.Context, f *Front, missing map[string]int64) error {
	in, err := f.contents.Compressed()
	if err != nil {
		return away(err)
	}
	defer in.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(putters)
	err = o.each(ctx, tar.NewReader(in), func(sum string, size int64, r io.Reader) error {
		if want, ok := missing[sum]; !ok || want != size {
			return nil
		}
		delete(missing, sum)
		file, err := o.spool(sum, size, r)
		if err != nil {
			return err
		}
		group.Go(func() error {
			defer file.Close()
			return o.store.Put(ctx, f.service, sum, size, file)
		})
		return nil
	})
	if first := group.Wait(); first != nil {
		return first
	}
	if err == nil && len(missing) > 0 {
		err = leapcell.Errorf(leapcell.CodeInternal, "the front end's archive lacks %d of its files", len(missing))
	}
	return err
}

func (o *Origin) each(ctx context.Context, in *tar.Reader, see func(sum string, size int64, r io.Reader) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return away(err)
		}
		if err := see(h.Name, h.Size, in); err != nil {
			return err
		}
	}
}

// spool keeps a content in a file without a name until it is where it belongs, so that nothing
// gets a name that its content has not.
func (o *Origin) spool(sum string, size int64, r io.Reader) (*os.File, error) {
	f, err := os.CreateTemp(o.dir, "content-*")
	if err != nil {
		return nil, onDisk(err)
	}
	err = os.Remove(f.Name())
	hash := sha256.New()
	if err == nil {
		_, err = io.Copy(io.MultiWriter(f, hash), io.LimitReader(r, size))
	}
	if err == nil && hex.EncodeToString(hash.Sum(nil)) != sum {
		err = leapcell.Errorf(leapcell.CodeInternal, "a file of the front end has not the content that its list says")
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, onDisk(err)
	}
	return f, nil
}

// Content is a content for an edge: at another address, or here.
type Content struct {
	URL  string
	Body io.ReadCloser // nil with a URL
	Size int64
}

// Content gives one, else [leapcell.CodeNotFound].
func (o *Origin) Content(ctx context.Context, service, sum string) (Content, error) {
	if !goodService(service) || !front.IsSum(sum) {
		return Content{}, leapcell.Errorf(leapcell.CodeNotFound, "there is no such content")
	}
	if l, ok := o.store.(Linker); ok {
		url, err := l.Link(ctx, service, sum)
		return Content{URL: url}, err
	}
	body, size, err := o.store.Open(ctx, service, sum)
	return Content{Body: body, Size: size}, err
}

// Has reports whether a manifest and all that it names are there.
func (o *Origin) Has(ctx context.Context, service, digest string) (bool, error) {
	there, err := o.store.List(ctx, service)
	if err != nil {
		return false, err
	}
	lost, _, err := o.compare(ctx, service, there, []string{digest})
	return len(lost) == 0, err
}

// Collect removes what no manifest of keep needs, and gives those of which something is not
// there: they can be published once more. Nothing of the service may be published meanwhile.
func (o *Origin) Collect(ctx context.Context, service string, keep []string) (lost []string, err error) {
	there, err := o.store.List(ctx, service)
	if err != nil {
		return nil, err
	}
	lost, needed, err := o.compare(ctx, service, there, keep)
	if err != nil {
		return nil, err
	}
	var rest []string
	for sum := range there {
		if !needed[sum] {
			rest = append(rest, sum)
		}
	}
	if len(rest) == 0 {
		return lost, nil
	}
	slices.Sort(rest)
	return lost, o.store.Delete(ctx, service, rest...)
}

// compare gives the manifests of which something is not there, and what all of them need as far
// as it is known.
func (o *Origin) compare(ctx context.Context, service string, there map[string]int64, manifests []string) (lost []string, needed map[string]bool, err error) {
	needed = map[string]bool{}
	for _, digest := range manifests {
		if _, ok := there[digest]; !ok {
			lost = append(lost, digest)
			continue
		}
		m, err := o.manifest(ctx, service, digest)
		if err != nil {
			return nil, nil, err
		}
		needed[digest] = true
		whole := true
		for sum, size := range m.Contents() {
			needed[sum] = true
			have, ok := there[sum]
			whole = whole && ok && have == size
		}
		if !whole {
			lost = append(lost, digest)
		}
	}
	return lost, needed, nil
}

func (o *Origin) manifest(ctx context.Context, service, digest string) (*front.Manifest, error) {
	r, _, err := o.store.Open(ctx, service, digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, front.MaxManifestBytes+1))
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnavailable, err, "the list "+digest+" could not be read")
	}
	return front.ParseManifest(b)
}

// Forget removes all of a service.
func (o *Origin) Forget(ctx context.Context, service string) error {
	return o.store.Delete(ctx, service)
}
