package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/driver/network"
)

// Destroy removes everything of a platform from this machine but its images and caches:
// processes, cgroups, mounts, network, run folder, records. Tasks that run are ended. It may
// be repeated, and goes on when one thing fails.
func Destroy(ctx context.Context, cfg Config) error {
	endSupervisor(ctx, cfg)
	errs := []error{killGroup(ctx, cfg.Group())}
	errs = append(errs, spoolPages(cfg), unmountBelow(cfg.RunDir()), unmountBelow(cfg.path("scratch")))
	errs = append(errs, network.Destroy(cfg.Name), removeGroup(cfg.Group()))
	for _, dir := range []string{cfg.RunDir(), cfg.path("scratch"), cfg.path("tasks"), cfg.Socket(), cfg.HandoverSocket(), cfg.path("supervisor.lock"), cfg.File()} {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// endSupervisor asks the supervisor to end; should it not, it dies with its cgroup.
func endSupervisor(ctx context.Context, cfg Config) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	c := NewClient(cfg.Socket())
	defer c.Close()
	if c.Shutdown(ctx, true) != nil {
		return
	}
	// It holds the lock until its last breath.
	for {
		held, err := lock(cfg.path("supervisor.lock"))
		if err == nil {
			_ = held.Close()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// killGroup ends every process in the platform's cgroups.
func killGroup(ctx context.Context, group string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids, err := groupProcesses(group)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of %s do not end", pids, group)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		thawGroup(group) // the v1 freezer keeps even the dead
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func walkGroup(group string, visit func(dir string)) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.kind != "cgroup" && m.kind != "cgroup2" {
			continue
		}
		err := filepath.WalkDir(filepath.Join(m.dir, group), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // gone meanwhile, or never there
			}
			if d.IsDir() {
				visit(path)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func groupProcesses(group string) ([]int, error) {
	var out []int
	err := walkGroup(group, func(dir string) {
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, field := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() && !slices.Contains(out, pid) {
				out = append(out, pid)
			}
		}
	})
	return out, err
}

func thawGroup(group string) {
	_ = walkGroup(group, func(dir string) {
		for file, value := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
			name := filepath.Join(dir, file)
			if _, err := os.Stat(name); err == nil {
				_ = os.WriteFile(name, []byte(value), 0)
			}
		}
	})
}

func removeGroup(group string) error {
	var dirs []string
	if err := walkGroup(group, func(dir string) { dirs = append(dirs, dir) }); err != nil {
		return err
	}
	var errs []error
	for _, dir := range slices.Backward(dirs) { // children first
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// unmountBelow unmounts dir and everything in it, the newest first.
func unmountBelow(dir string) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if m.dir != dir && !strings.HasPrefix(m.dir, dir+"/") {
			continue
		}
		if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.dir, err))
		}
	}
	return errors.Join(errs...)
}
