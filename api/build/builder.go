package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Images is where images are kept: the embedded registry.
type Images interface {
	// Resolve gives the reference with digest of repository:tag, else CodeNotFound.
	Resolve(ctx context.Context, repository, tag string) (string, error)
	// Image gives the image at repository:tag, else CodeNotFound.
	Image(ctx context.Context, repository, tag string) (v1.Image, error)
	// Push writes an image, without the layers that are there already, and gives its
	// reference with digest.
	Push(ctx context.Context, repository, tag string, img v1.Image) (string, error)
}

// Config is what [New] needs to know.
type Config struct {
	// Dir is where base images are assembled. It must allow devices and setuid files.
	Dir      string
	Images   Images
	Runtimes []Runtime // empty: the built-in table
	Suite    string    // of Debian; default trixie
	// AptConfigDir holds the operator's settings for assembling, in the layout of apt's
	// own folder: apt.conf, apt.conf.d, sources.list, sources.list.d, trusted.gpg.d; and
	// beside these "mirror", with the address of a Debian mirror a line, and
	// "ca-certificates.crt". All are optional.
	AptConfigDir string
	MaxAge       time.Duration // of base images, from which they are made anew; 0 is never
	Log          *slog.Logger
}

// DefaultSuite is the Debian release of base images.
const DefaultSuite = "trixie"

// Builder makes base and source images. It is safe for concurrent use.
type Builder struct {
	cfg    Config
	ctx    context.Context // of assemblies, which outlive the deployment that asked first
	cancel context.CancelFunc

	mu      sync.Mutex
	flights map[string]*flight   // by name and tag
	failed  map[string]error     // how the last try of each ended
	tried   map[string]time.Time // when an old one was made anew, by name
	running sync.WaitGroup
}

// New makes a builder. Close it.
func New(cfg Config) (*Builder, error) {
	if cfg.Dir == "" || cfg.Images == nil {
		return nil, errors.New("build: folder and images are needed")
	}
	if cfg.Runtimes = slices.Clone(cfg.Runtimes); len(cfg.Runtimes) == 0 {
		cfg.Runtimes = Runtimes()
	}
	if cfg.Suite == "" {
		cfg.Suite = DefaultSuite
	}
	for i, r := range cfg.Runtimes {
		cfg.Runtimes[i] = r.preferring(cfg.Suite)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// mmdebstrap changes its folder, so a relative one would be another.
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	cfg.Dir = dir
	old, err := setAside(dir)
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	go os.RemoveAll(old) // half a system: this may take half a minute, nobody should wait
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	b := &Builder{cfg: cfg, flights: map[string]*flight{}, failed: map[string]error{}, tried: map[string]time.Time{}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// Close ends running assemblies and waits for them.
func (b *Builder) Close() error {
	b.cancel()
	b.running.Wait()
	return nil
}
