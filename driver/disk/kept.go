package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Keep mounts at dir the file system in a file that stays: made with so many bytes when it is not
// there. Whoever mounts it again must have unmounted it before, or the machine must not have been
// down meanwhile: it has no journal.
func Keep(ctx context.Context, file, dir string, bytes int64) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // the loop device has it open as well
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		if err := errors.Join(f.Truncate(bytes), format(ctx, f)); err != nil {
			return errors.Join(err, os.Remove(file))
		}
	}
	device, err := attach(f)
	if err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	defer device.Close() // from here on the mount alone holds it
	if err := unix.Mount(device.Name(), dir, "ext4", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOATIME, "noinit_itable,barrier=0,discard"); err != nil {
		return fmt.Errorf("mount %s on %s: %w", device.Name(), dir, err)
	}
	return nil
}

// Attached reports whether a loop device has the file: while one has, some mount of it may go on
// somewhere, and another one would damage it.
func Attached(file string) (bool, error) {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return false, err
	}
	for _, name := range names {
		backing, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			continue // detached just now
		}
		if err != nil {
			return false, err
		}
		if strings.TrimSpace(string(backing)) == file {
			return true, nil
		}
	}
	return false, nil
}
