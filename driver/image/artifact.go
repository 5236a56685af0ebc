package image

import (
	"context"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/leapcell/leapcell"
)

// Push writes an image, or another artifact that has the form of one, to a registry.
func (s *Store) Push(ctx context.Context, artifact v1.Image, output string) error {
	to, err := name.NewTag(output, s.nameOptions(output)...)
	if err != nil {
		return leapcell.Errorf(leapcell.CodeInvalid, "image %q: registry/repository:tag is needed", output)
	}
	there, err := s.link(to.RegistryStr())
	if err != nil {
		return err
	}
	defer there.Close()
	if err := s.patiently(ctx, func() error { return remote.Write(to, artifact, there.options(ctx)...) }); err != nil {
		return s.explain(err, output)
	}
	return nil
}
