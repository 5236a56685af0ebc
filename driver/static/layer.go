package static

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"time"

	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ggcr "github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/leapcell/leapcell/internal/front"
)

// Artifact is the front end as an OCI image: its first layer is the list of files, the second
// one an archive of the contents.
func (p *Packed) Artifact() (v1.Image, error) {
	contents, err := newArchive(p.Dir, p.Manifest.Contents())
	if err != nil {
		return nil, err
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, front.MediaType)
	return mutate.Append(img,
		mutate.Addendum{Layer: ggcr.NewLayer(p.List, front.MediaType), MediaType: front.MediaType},
		mutate.Addendum{Layer: contents, MediaType: types.OCIUncompressedLayer})
}

// archive is a tar of the contents. It is read from the disk each time: for its digest, and to
// be sent.
type archive struct {
	dir   string
	names []string
	sizes map[string]int64
	hash  v1.Hash
	size  int64
}

func newArchive(dir string, sizes map[string]int64) (*archive, error) {
	a := &archive{dir: dir, names: slices.Sorted(maps.Keys(sizes)), sizes: sizes}
	sum := sha256.New()
	counted := &counter{w: sum}
	if err := a.write(counted); err != nil {
		return nil, err
	}
	a.hash, a.size = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, counted.n
	return a, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// write writes the archive, names in order, without anything that differs from build to build.
func (a *archive) write(w io.Writer) error {
	out := tar.NewWriter(w)
	for _, name := range a.names {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: a.sizes[name], Mode: 0o644, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
		f, err := os.Open(filepath.Join(a.dir, name))
		if err != nil {
			return err
		}
		_, err = io.Copy(out, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return out.Close()
}

// Digest, DiffID, Compressed, Uncompressed, Size and MediaType make it a [v1.Layer].
func (a *archive) Digest() (v1.Hash, error)             { return a.hash, nil }
func (a *archive) DiffID() (v1.Hash, error)             { return a.hash, nil }
func (a *archive) Size() (int64, error)                 { return a.size, nil }
func (a *archive) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (a *archive) Uncompressed() (io.ReadCloser, error) { return a.Compressed() }

// Compressed streams the archive. Closing early ends the reading.
func (a *archive) Compressed() (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(a.write(w)) }()
	return r, nil
}
