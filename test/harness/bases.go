package harness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/leapcell/leapcell/api/client"
)

// Base images take a minute of two cores each. What a run of tests assembled is kept in the user's
// cache folder, as the registry stores it, and lent to the platforms of the next runs, for a day:
// assembling is tested, too.
const keptFor = 24 * time.Hour

// registryStore is where a platform's registry has its files, below its state folder.
const registryStore = "control/registry/docker/registry/v2"

// bases is a store of base images in the layout of the registry.
type bases struct{ dir string }

func keptBases() bases {
	cache, err := os.UserCacheDir()
	if err != nil { // no home
		cache = os.TempDir()
	}
	return bases{filepath.Join(cache, "leapcell-test", "registry")}
}

// lend gives the platform in state, which is not up yet, what is kept.
func (kept bases) lend(state string) error {
	to := bases{filepath.Join(state, registryStore)}
	for _, name := range kept.names() {
		since, err := os.Stat(kept.repository(name))
		if err != nil {
			return err
		}
		if time.Since(since.ModTime()) > keptFor {
			continue
		}
		if err := kept.copyTo(to, name); err != nil {
			return err
		}
	}
	return nil
}

// keep keeps what the platform in state has, and forgets what it replaces.
func (kept bases) keep(state string) error {
	from := bases{filepath.Join(state, registryStore)}
	for _, name := range from.names() {
		if slices.Equal(from.blobs(name), kept.blobs(name)) {
			continue // it was lent
		}
		if err := from.copyTo(kept, name); err != nil {
			return err
		}
	}
	needed := map[string]bool{}
	for _, name := range kept.names() {
		for _, hex := range kept.blobs(name) {
			needed[hex] = true
		}
	}
	all, _ := filepath.Glob(filepath.Join(kept.dir, "blobs/sha256/??/*"))
	for _, blob := range all {
		if !needed[filepath.Base(blob)] {
			if err := os.RemoveAll(blob); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b bases) repository(name string) string {
	return filepath.Join(b.dir, "repositories", "base", name)
}

func (b bases) blob(hex string) string {
	return filepath.Join(b.dir, "blobs", "sha256", hex[:2], hex, "data")
}

func (b bases) names() (names []string) {
	entries, _ := os.ReadDir(filepath.Join(b.dir, "repositories", "base")) // none until there is one
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// blobs are the contents that a repository links to.
func (b bases) blobs(name string) (found []string) {
	for _, links := range []string{"_layers/sha256/*", "_manifests/revisions/sha256/*"} {
		all, _ := filepath.Glob(filepath.Join(b.repository(name), links))
		for _, one := range all {
			found = append(found, filepath.Base(one))
		}
	}
	return found
}

// copyTo makes a repository the other's: first what it links to, as links to the same files, then
// the repository in one step, so that a run that ends in between leaves nothing half.
func (b bases) copyTo(other bases, name string) error {
	for _, hex := range b.blobs(name) {
		to := other.blob(hex)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Link(b.blob(hex), to); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	to := other.repository(name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(other.dir, "copy-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	// Not as links: the registry writes into these.
	if err := os.CopyFS(filepath.Join(fresh, name), os.DirFS(b.repository(name))); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(to), os.Rename(filepath.Join(fresh, name), to))
}

// MakeBases begins to make the base images that were not lent, until stop is called. The first tests
// wait for most of their time: beside them the images are there sooner.
func (p *Platform) MakeBases(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.makeBases(ctx); ctx.Err() == nil {
			without("made", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// makeBases makes them one runtime after the other.
func (p *Platform) makeBases(ctx context.Context) error {
	var runtimes []client.Runtime
	if err := p.API.Call(ctx, http.MethodGet, "/v1/runtimes", nil, &runtimes); err != nil {
		return err
	}
	var failed error
	for _, r := range runtimes {
		if !slices.ContainsFunc(r.Systems, func(s client.System) bool { return s.Image == "" }) {
			continue
		}
		cmd := exec.CommandContext(ctx, filepath.Join(p.Root, "bin", "leapcell"), "runtimes", "update", r.Name, "--state-dir", p.Config.StateDir)
		// One may be interrupted by a test that ends the control plane: the next is made all the same.
		if out, err := cmd.CombinedOutput(); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w\n%s", r.Name, err, out))
		}
	}
	return failed
}

// without says on standard error that tests go on although base images are not lent, made or kept.
func without(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "harness: base images are not %s: %v\n", what, err)
	}
}
