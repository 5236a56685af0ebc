package build

import (
	"context"
	"fmt"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// contextImage pushes the source alone: what a Dockerfile is built in needs nothing else, since
// the program that does it is the node's.
func (b *Builder) contextImage(ctx context.Context, s Source) (string, error) {
	layer, err := newLayer(s.Layer)
	if err != nil {
		return "", err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{CreatedBy: "leapcell source"}}); err != nil {
		return "", fmt.Errorf("source image: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return "", fmt.Errorf("source image: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return "", fmt.Errorf("source image: %w", err)
	}
	return b.cfg.Images.Push(ctx, s.Repository, s.Tag, img)
}
