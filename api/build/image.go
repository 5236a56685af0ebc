package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/leapcell/leapcell"
	"golang.org/x/sync/errgroup"
)

// imagePath is the PATH of builds and instances.
const imagePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// fileLayer is an uncompressed layer in a file. It is read from there each time: layers
// are too big to keep in memory, and loopback is cheaper than compressing.
type fileLayer struct {
	path string
	hash v1.Hash
	size int64
}

func newLayer(path string) (*fileLayer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", path, err)
	}
	return &fileLayer{path, v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, size}, nil
}

// Digest, DiffID, Compressed, Uncompressed, Size and MediaType make it a [v1.Layer].
func (l *fileLayer) Digest() (v1.Hash, error)             { return l.hash, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)             { return l.hash, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.path) }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.path) }
func (l *fileLayer) Size() (int64, error)                 { return l.size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }

// baseImage is the image of one assembled system, or without layers of none.
func baseImage(layers ...v1.Layer) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, l := range layers {
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: "leapcell base image"}}); err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Env: []string{"PATH=" + imagePath, "LANG=C.UTF-8"}, WorkingDir: "/app"}
	return mutate.ConfigFile(img, config)
}

// Source says what a source image is made of and where it goes.
type Source struct {
	Runtime    Runtime
	Layer      string // path of the source layer
	Repository string // "{service ID}/source"
	Tag        string
}

// SourceImage pushes the runtime's base with the source on it and gives the reference with
// digest. Making it again gives the same.
func (b *Builder) SourceImage(ctx context.Context, s Source, progress func(string)) (string, error) {
	if s.Runtime.Name == leapcell.RuntimeDocker {
		return b.contextImage(ctx, s)
	}
	var talking sync.Mutex
	say := func(line string) {
		talking.Lock()
		defer talking.Unlock()
		progress(line)
	}
	group, both := errgroup.WithContext(ctx)
	// The build asks for it at its end: both are made at the same time.
	group.Go(func() error { _, err := b.RunBase(both, s.Runtime, say); return err })
	var repository, tag string
	group.Go(func() (err error) { repository, tag, err = b.Base(both, s.Runtime, say); return err })
	if err := group.Wait(); err != nil {
		return "", err
	}
	base, err := b.cfg.Images.Image(ctx, repository, tag)
	if err != nil {
		return "", err
	}
	layer, err := newLayer(s.Layer)
	if err != nil {
		return "", err
	}
	img, err := mutate.Append(base, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: "leapcell source"}})
	if err != nil {
		return "", fmt.Errorf("source image: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return "", fmt.Errorf("source image: %w", err)
	}
	run := *config.Config.DeepCopy()
	// A ready image may start something of its own; here the service's commands decide.
	run.WorkingDir, run.Entrypoint, run.Cmd = "/app", nil, nil
	if img, err = mutate.Config(img, run); err != nil {
		return "", fmt.Errorf("source image: %w", err)
	}
	on, err := base.Digest()
	if err != nil {
		return "", fmt.Errorf("source image: %w", err)
	}
	img = mutate.Annotations(img, map[string]string{leapcell.BaseDigestAnnotation: on.String()}).(v1.Image)
	return b.cfg.Images.Push(ctx, s.Repository, s.Tag, img)
}
