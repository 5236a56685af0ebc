package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPoints is the folder of a layer that lies on top of every image: the folders and files
// that a cell mounts something over. A read-only image cannot be given them later, and with
// it there are always the two layers that overlay asks for.
const mountPoints = "mount-points"

func (s *Store) makeMountPoints() error {
	final := s.path("layers", mountPoints)
	if err := os.RemoveAll(s.path("tmp", mountPoints)); err != nil {
		return err
	}
	if _, err := os.Stat(final); err == nil {
		return nil
	}
	temp := s.path("tmp", mountPoints)
	for _, dir := range []struct {
		name string
		mode fs.FileMode
	}{{"", 0o755}, {"dev", 0o755}, {"etc", 0o755}, {"proc", 0o555}, {"sys", 0o555}, {"tmp", 0o777 | fs.ModeSticky}} {
		name := filepath.Join(temp, dir.name)
		if err := os.MkdirAll(name, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(name, dir.mode); err != nil { // past the umask
			return err
		}
	}
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		if err := os.WriteFile(filepath.Join(temp, "etc", name), nil, 0o644); err != nil {
			return err
		}
	}
	return os.Rename(temp, final)
}

// Mount mounts img read-only at dir, which is made when missing.
func (s *Store) Mount(img *Image, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s.plain(err)
	}
	return s.overlay(img, dir, nil, "", unix.MS_RDONLY)
}

// MountWritable mounts img at dir; what is written goes to folders made in scratch, which must be
// new: the mount skips all syncing, so what is there after a crash of the machine is not to be used.
func (s *Store) MountWritable(img *Image, dir, scratch string) error {
	upper, work := Upper(scratch), filepath.Join(scratch, "work")
	for _, d := range []string{dir, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return s.plain(err)
		}
	}
	// The upper folder must be a plain difference, since it becomes a layer.
	above := []string{upper, work}
	err := s.overlay(img, dir, above, ",index=off,metacopy=off,redirect_dir=off,volatile", 0)
	if errors.Is(err, unix.EINVAL) { // volatile came with Linux 5.10
		err = s.overlay(img, dir, above, ",index=off,metacopy=off,redirect_dir=off", 0)
	}
	return err
}

// Upper is the folder in scratch that holds what was written to a [Store.MountWritable].
func Upper(scratch string) string { return filepath.Join(scratch, "upper") }

// overlay mounts img; above are the upper and the work folder, if any. Folders are named by open
// descriptors: a cell sees the mount's options, which must not tell paths of the host [FS5], and
// mount(2) takes 4096 bytes of them, which is room for more than 200 short names.
func (s *Store) overlay(img *Image, dir string, above []string, options string, flags uintptr) error {
	layers := []string{s.path("layers", mountPoints)} // the highest first
	for i := len(img.Layers) - 1; i >= 0; i-- {
		layers = append(layers, img.Layers[i])
	}
	names, done, err := open(append(layers, above...))
	if err != nil {
		return s.plain(err)
	}
	defer done()
	options = "lowerdir=" + strings.Join(names[:len(layers)], ":") + options
	if len(above) == 2 {
		options += ",upperdir=" + names[len(layers)] + ",workdir=" + names[len(layers)+1]
	}
	if err := unix.Mount("overlay", dir, "overlay", flags|unix.MS_NODEV, options); err != nil {
		return s.plain(fmt.Errorf("mount %s on %s: %w", img.Ref, dir, err))
	}
	return nil
}

// open opens folders and gives names for them that hold until done.
func open(dirs []string) (names []string, done func(), err error) {
	var files []*os.File
	done = func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, d := range dirs {
		f, err := os.Open(d)
		if err != nil {
			done()
			return nil, nil, err
		}
		files = append(files, f)
		names = append(names, fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	}
	return names, done, nil
}

// Unmount undoes [Store.Mount] and [Store.MountWritable]; a dir that is not mounted or not there is no error.
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
