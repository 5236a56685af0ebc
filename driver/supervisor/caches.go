package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/disk"
)

// caches are what builds keep for the next one of their service: one disk of fixed size each, in
// a file, so that none takes another's room and nothing leads from one to another.
//
//	<name>.disk            not in use
//	<name>.disk-<boot>     mounted, or was when a supervisor died; after a power cut it is not to be trusted
type caches struct {
	dir    string // of the files
	mounts string // folder of the mounts
	boot   string // names this run of the machine
	high   int    // percent of the node's disk in use from which the least recently used go
	log    *slog.Logger

	mu   sync.Mutex
	used map[string]*cache
}

// cache is one in use.
type cache struct {
	users int
	ready chan struct{} // closed when it is mounted, or err says why not
	err   error
	said  string // what its user should know
}

const (
	cacheFile = ".disk"
	// cacheFull is the percentage in use from which a cache begins anew: a build that fills it
	// would fail.
	cacheFull = 80
	// cacheWait is how long the kernel may take to let go of a cache.
	cacheWait = 2 * time.Second
)

func newCaches(dir, mounts string, high int, log *slog.Logger) *caches {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without one, none is trusted after a crash
	if high == 0 {
		high = 85
	}
	return &caches{dir: dir, mounts: mounts, boot: "-" + strings.TrimSpace(string(boot)), high: high, log: log, used: map[string]*cache{}}
}

// Recover puts in order what a former supervisor had in use. Its builds must be gone.
func (c *caches) Recover() {
	entries, _ := os.ReadDir(c.dir)
	for _, e := range entries {
		name, mark, ok := strings.Cut(e.Name(), cacheFile)
		if !ok {
			// From before caches were disks of their own.
			c.note(e.Name(), os.RemoveAll(filepath.Join(c.dir, e.Name())))
			continue
		}
		if mark == "" {
			continue
		}
		err := disk.Unmount(filepath.Join(c.mounts, name))
		if mark == c.boot && err == nil {
			err = os.Rename(filepath.Join(c.dir, e.Name()), c.file(name))
		} else {
			err = errors.Join(err, os.Remove(filepath.Join(c.dir, e.Name())))
		}
		c.note(name, err)
	}
}

func (c *caches) note(name string, err error) {
	if err != nil {
		c.log.Error("build cache not put in order", "cache", name, "error", err)
	}
}

func (c *caches) file(name string) string   { return filepath.Join(c.dir, name+cacheFile) }
func (c *caches) inUse(name string) string  { return c.file(name) + c.boot }
func (c *caches) folder(name string) string { return filepath.Join(c.mounts, name) }

// Take implements [Caches]: it gives the folder of a cache until release is called. said is for the log of its user.
func (c *caches) Take(ctx context.Context, name string, megabytes int) (folder, said string, release func(), err error) {
	if name != filepath.Base(name) || strings.HasPrefix(name, ".") || strings.Contains(name, cacheFile) {
		return "", "", nil, leapcell.Errorf(leapcell.CodeInvalid, "cache %q: a plain name is needed", name)
	}
	c.mu.Lock()
	one, ok := c.used[name]
	if !ok {
		one = &cache{ready: make(chan struct{})}
		c.used[name] = one
	}
	one.users++
	c.mu.Unlock()
	if ok {
		<-one.ready
	} else {
		one.said, one.err = c.open(ctx, name, int64(megabytes)<<20)
		close(one.ready)
	}
	release = sync.OnceFunc(func() { c.release(name, one) })
	if one.err != nil {
		release()
		return "", "", nil, one.err
	}
	return c.folder(name), one.said, release, nil
}

func (c *caches) open(ctx context.Context, name string, bytes int64) (said string, err error) {
	if err := os.MkdirAll(c.mounts, 0o700); err != nil {
		return "", err
	}
	if err := c.free(ctx, c.file(name)); err != nil {
		return "", err
	}
	if info, err := os.Stat(c.file(name)); err == nil && info.Size() != bytes {
		c.note(name, os.Remove(c.file(name))) // the plan changed
	}
	c.makeRoom()
	for attempt := range 2 {
		if err := os.Rename(c.file(name), c.inUse(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return said, err
		}
		if err = disk.Keep(ctx, c.inUse(name), c.folder(name), bytes); err != nil {
			// Damaged, perhaps: a cache can be done without.
			if err := errors.Join(os.Remove(c.inUse(name)), ctx.Err()); err != nil || attempt > 0 {
				return said, err
			}
			continue
		}
		percent, full := usedPercent(c.folder(name))
		if full != nil || percent < cacheFull {
			return said, nil
		}
		said = fmt.Sprintf("the build cache was %d %% full and begins anew", percent)
		if err := disk.Unmount(c.folder(name)); err != nil {
			return said, err
		}
		if err := os.Remove(c.inUse(name)); err != nil {
			return said, err
		}
	}
	return said, err
}

// free waits until the kernel has let go of a file.
func (c *caches) free(ctx context.Context, file string) error {
	ctx, cancel := context.WithTimeout(ctx, cacheWait)
	defer cancel()
	for {
		attached, err := disk.Attached(file)
		if err != nil || !attached {
			return err
		}
		select {
		case <-ctx.Done():
			return leapcell.Errorf(leapcell.CodeUnavailable, "the build cache is still in use")
		case <-time.After(5 * time.Millisecond): // the kernel tells nobody
		}
	}
}

func (c *caches) release(name string, one *cache) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one.users--; one.users > 0 {
		return
	}
	delete(c.used, name)
	if one.err != nil {
		return
	}
	err := disk.Unmount(c.folder(name))
	if err == nil {
		err = os.Rename(c.inUse(name), c.file(name))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // forgotten meanwhile
		}
		now := time.Now()
		_ = os.Chtimes(c.file(name), now, now) // when it was used last
	}
	c.note(name, errors.Join(err, ignoreMissing(os.Remove(c.folder(name)))))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Forget removes the caches of these names. One in use goes when it is released: its room is given
// back then.
func (c *caches) Forget(names ...string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, name := range names {
		errs = append(errs, ignoreMissing(os.Remove(c.file(name))), ignoreMissing(os.Remove(c.inUse(name))))
	}
	return errors.Join(errs...)
}

// makeRoom removes caches that are not in use, the least recently used first, while the node's disk
// is too full.
func (c *caches) makeRoom() {
	for {
		if percent, err := usedPercent(c.dir); err != nil || percent < c.high {
			return
		}
		oldest, at := "", time.Time{}
		entries, _ := os.ReadDir(c.dir)
		for _, e := range entries {
			info, err := e.Info()
			if err == nil && strings.HasSuffix(e.Name(), cacheFile) && (oldest == "" || info.ModTime().Before(at)) {
				oldest, at = e.Name(), info.ModTime()
			}
		}
		if oldest == "" || os.Remove(filepath.Join(c.dir, oldest)) != nil {
			return
		}
		c.log.Info("build cache removed: the disk is full", "cache", strings.TrimSuffix(oldest, cacheFile))
	}
}

// usedPercent is how much of the file system of dir is in use, of what everybody may use: some keep a
// part for themselves.
func usedPercent(dir string) (int, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	used := st.Blocks - st.Bfree
	if used+st.Bavail == 0 {
		return 0, nil
	}
	percent := int(used * 100 / (used + st.Bavail))
	if st.Files > 0 {
		percent = max(percent, 100-int(st.Ffree*100/st.Files))
	}
	return percent, nil
}
