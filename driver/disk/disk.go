// Package disk gives what a persistent instance writes a file system of a fixed size, so that
// an instance that fills its root meets its own limit and not the node's disk. [FS1]
//
// The file system is ext4 in a file that has no name any more and takes only the room that is
// written to; it is gone with its mount, also after a crash or a power cut. Where there are no
// loop devices it is a tmpfs, which counts as the instance's memory.
package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Config says which disk to make.
type Config struct {
	Dir         string // mounted there; made when missing. Its parent holds the data
	Bytes       int64
	MemoryBytes int64 // size of a tmpfs, where it has to be one
}

// smallest is below what mkfs takes without complaint.
const smallest = 16 << 20

// Mount makes the disk and mounts it. fallback says why it is in memory, when it is.
func Mount(ctx context.Context, c Config) (fallback, err error) {
	if !filepath.IsAbs(c.Dir) || c.Bytes < smallest || c.MemoryBytes <= 0 {
		return nil, fmt.Errorf("disk of %d bytes at %q: an absolute path and at least %d MB are needed", c.Bytes, c.Dir, smallest>>20)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	fallback = onDisk(ctx, c)
	if fallback == nil {
		return nil, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	options := fmt.Sprintf("mode=0700,size=%d,nr_inodes=%d", c.MemoryBytes, max(1024, c.MemoryBytes>>14))
	if err := unix.Mount("tmpfs", c.Dir, "tmpfs", unix.MS_NODEV, options); err != nil {
		return nil, errors.Join(fallback, fmt.Errorf("mount a tmpfs on %s: %w", c.Dir, err))
	}
	return fallback, nil
}

// onDisk makes an ext4 in a nameless file and mounts it.
func onDisk(ctx context.Context, c Config) error {
	file, err := os.CreateTemp(filepath.Dir(c.Dir), ".disk-")
	if err != nil {
		return err
	}
	defer file.Close() // the loop device has it open as well
	if err := os.Remove(file.Name()); err != nil {
		return err
	}
	if err := file.Truncate(c.Bytes); err != nil {
		return err
	}
	if err := format(ctx, file); err != nil {
		return err
	}
	device, err := attach(file)
	if err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	defer device.Close() // from here on the mount alone holds it
	// Nothing in it outlives the instance: no barrier has to be waited for. What the
	// instance deletes is given back to the node.
	err = unix.Mount(device.Name(), c.Dir, "ext4", unix.MS_NODEV|unix.MS_NOATIME, "noinit_itable,barrier=0,discard")
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", device.Name(), c.Dir, err)
	}
	return nil
}

// format needs no journal, for the same reason, and leaves the tables of inodes to be written
// when they are used.
func format(ctx context.Context, file *os.File) error {
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal",
		"-E", "lazy_itable_init=1,nodiscard", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{file}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// attach connects the file to a free loop device, which is free again once nobody has it open.
func attach(file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 100 { // others may take the free one first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		device, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &config); err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
	}
	return nil, errors.New("all are taken")
}

// Unmount unmounts a dir; after [Mount] the data is gone with it. A dir that is not mounted or not
// there is no error.
func Unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY { // some process still looks: it goes when that does
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
