package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/leapcell/leapcell"
)

// PushLayout pushes the one image of a folder in OCI image layout as output. The folder is not
// trusted: a build wrote it. Files outside of it are not read, whatever links say, and the registry
// refuses what does not have the digest that it is named by. maxBytes bounds its layers; 0 does not.
func (s *Store) PushLayout(ctx context.Context, dir, output string, maxBytes int64, progress func(phase leapcell.State, text string)) (digest string, size int64, err error) {
	to, err := name.NewTag(output, s.nameOptions(output)...)
	if err != nil {
		return "", 0, leapcell.Errorf(leapcell.CodeInvalid, "image %q: registry/repository:tag is needed", output)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", 0, s.plain(err)
	}
	defer root.Close()
	progress(leapcell.Packaging, "reading the image")
	l, err := openLayout(root)
	if err != nil {
		return "", 0, leapcell.Wrap(leapcell.CodeUnprocessable, err, "the build left no image that can be read: "+err.Error())
	}
	for _, layer := range l.layers {
		size += layer.Size
	}
	if maxBytes > 0 && size > maxBytes {
		return "", 0, leapcell.Errorf(leapcell.CodeTooLarge, "the image has %d MB: at most %d MB are allowed", size>>20, maxBytes>>20)
	}
	img, err := partial.CompressedToImage(l)
	if err != nil {
		return "", 0, err
	}
	hash, err := img.Digest()
	if err != nil {
		return "", 0, err
	}
	progress(leapcell.Publishing, fmt.Sprintf("%d layers, %.1f MB, to %s", len(l.layers), float64(size)/1e6, to.Name()))
	there, err := s.link(to.RegistryStr())
	if err != nil {
		return "", 0, err
	}
	defer there.Close()
	if err := s.patiently(ctx, func() error { return remote.Write(to, img, there.options(ctx)...) }); err != nil {
		return "", 0, s.explain(err, output)
	}
	return hash.String(), size, nil
}

// layout is an image in a folder. It implements [partial.CompressedImageCore].
type layout struct {
	root     *os.Root
	kind     types.MediaType
	manifest []byte
	config   []byte
	layers   []v1.Descriptor
}

func openLayout(root *os.Root) (*layout, error) {
	b, err := readLimited(root, "index.json")
	if err != nil {
		return nil, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(b, &index); err != nil || len(index.Manifests) != 1 {
		return nil, errors.New("its index.json does not name one image")
	}
	l := &layout{root: root, kind: index.Manifests[0].MediaType}
	if !l.kind.IsImage() {
		return nil, fmt.Errorf("it has a %s instead of an image", l.kind)
	}
	if l.manifest, err = readBlob(root, index.Manifests[0].Digest); err != nil {
		return nil, err
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(l.manifest, &manifest); err != nil {
		return nil, fmt.Errorf("its manifest: %w", err)
	}
	if len(manifest.Layers) > maxLayers {
		return nil, fmt.Errorf("it has %d layers, more than %d", len(manifest.Layers), maxLayers)
	}
	for _, layer := range manifest.Layers {
		info, err := statBlob(root, layer.Digest)
		if err != nil {
			return nil, err
		}
		if info.Size() != layer.Size || !layer.MediaType.IsLayer() {
			return nil, fmt.Errorf("its layer %s is not what its manifest says", layer.Digest)
		}
	}
	l.layers = manifest.Layers
	l.config, err = readBlob(root, manifest.Config.Digest)
	return l, err
}

// MediaType, RawManifest, RawConfigFile and LayerByDigest make it an image.
func (l *layout) MediaType() (types.MediaType, error) { return l.kind, nil }
func (l *layout) RawManifest() ([]byte, error)        { return l.manifest, nil }
func (l *layout) RawConfigFile() ([]byte, error)      { return l.config, nil }
func (l *layout) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	i := slices.IndexFunc(l.layers, func(d v1.Descriptor) bool { return d.Digest == h })
	if i < 0 {
		return nil, fmt.Errorf("it has no layer %s", h)
	}
	return &layoutLayer{l.root, l.layers[i]}, nil
}

type layoutLayer struct {
	root *os.Root
	desc v1.Descriptor
}

// Digest, Size, MediaType and Compressed make it a layer.
func (l *layoutLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *layoutLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *layoutLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *layoutLayer) Compressed() (io.ReadCloser, error) {
	return l.root.Open(blobPath(l.desc.Digest))
}

func blobPath(h v1.Hash) string { return "blobs/sha256/" + h.Hex }

// statBlob finds regular files only: a pipe would hold us up.
func statBlob(root *os.Root, h v1.Hash) (os.FileInfo, error) {
	if h.Algorithm != "sha256" || len(h.Hex) != 64 {
		return nil, fmt.Errorf("%s is no sha256 digest", h)
	}
	info, err := root.Lstat(blobPath(h))
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", h)
	}
	return info, err
}

func readBlob(root *os.Root, h v1.Hash) ([]byte, error) {
	if _, err := statBlob(root, h); err != nil {
		return nil, err
	}
	return readLimited(root, blobPath(h))
}

func readLimited(root *os.Root, file string) ([]byte, error) {
	info, err := root.Lstat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > configLimit {
		return nil, fmt.Errorf("%s is no file of at most %d MB", file, configLimit>>20)
	}
	return root.ReadFile(file)
}
