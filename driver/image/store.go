package image

import (
	"context"
	"errors"
	"log/slog"

	"github.com/leapcell/leapcell"
)

// Config is what a [Store] needs to know.
type Config struct {
	Dir         string
	Credentials func(registryHost string) (user, pass string, insecure bool)
	Log         *slog.Logger
}

// Store is the images of one node.
type Store struct{}

// Image is a pulled image, ready to be mounted.
type Image struct {
	Ref     string   // with digest
	Layers  []string // unpacked folders, lowest first
	Env     []string
	WorkDir string
	Cmd     []string
}

// Result is what a build left and how it is to be run.
type Result struct {
	Upper   string   // the upper folder of [Store.MountWritable]
	Exclude []string // absolute paths inside the image that do not go into the layer
	Cmd     []string
	WorkDir string
	Env     []string
}

// New opens the store in cfg.Dir.
func New(cfg Config) (*Store, error) { return nil, errors.ErrUnsupported }

// Pull makes the image ref, which carries a digest, ready on this node.
func (s *Store) Pull(ctx context.Context, ref string) (*Image, error) {
	return nil, errors.ErrUnsupported
}

// Mount mounts img read-only at dir.
func (s *Store) Mount(img *Image, dir string) error { return errors.ErrUnsupported }

// MountWritable mounts img at dir; what is written goes to folders made in scratch.
func (s *Store) MountWritable(img *Image, dir, scratch string) error { return errors.ErrUnsupported }

// Upper is the folder in scratch that holds what was written to a [Store.MountWritable].
func Upper(scratch string) string { return scratch + "/upper" }

// Unmount undoes [Store.Mount] and [Store.MountWritable]; a dir that is not mounted is no error.
func Unmount(dir string) error { return errors.ErrUnsupported }

// Commit makes r a layer on base and pushes the whole as output. progress is told the phases.
func (s *Store) Commit(ctx context.Context, base *Image, r Result, output string, progress func(phase leapcell.State, text string)) (digest string, size int64, err error) {
	return "", 0, errors.ErrUnsupported
}
