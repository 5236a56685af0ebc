package cell

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const program = "/proc/self/exe"

// Seal sees to it that nobody can change this process's program through /proc: it executes it anew
// from a read-only mount that is in no namespace. It is to be called first of all, and returns
// when that is so already.
//
// A process that [Direct] makes has our program until it executes its own. An image whose program is
// a script for /proc/self/exe would be given ours, as root in builds (CVE-2019-5736 was of that kind).
func Seal() error {
	if sealed() == nil {
		// The new image is named after a descriptor.
		_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
		return nil
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, program, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV})
	}
	if err == nil {
		err = syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), os.Args, os.Environ())
	}
	return fmt.Errorf("execute our program from a read-only mount: %w", err)
}

// sealed says why Seal would have something to do.
func sealed() error {
	var st unix.Statfs_t
	if err := unix.Statfs(program, &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		name, _ := os.Readlink(program)
		return fmt.Errorf("our own program %s can be written through /proc", strings.TrimSpace(name))
	}
	return nil
}
