package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilities are those of every build, here in the build's user namespace only.
var capabilities = []int{
	unix.CAP_AUDIT_WRITE, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_NET_BIND_SERVICE, unix.CAP_SETFCAP, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_SETUID, unix.CAP_SYS_CHROOT,
}

// step becomes the command of a RUN. It gives an exit code when it cannot.
func step() int {
	// What follows holds for one thread, and so for the program that it becomes.
	runtime.LockOSThread()
	var spec stepSpec
	pipe := os.NewFile(3, "spec")
	b, err := io.ReadAll(pipe)
	if err == nil {
		err = json.Unmarshal(b, &spec)
	}
	pipe.Close()
	if err == nil {
		err = spec.become()
	}
	fmt.Fprintln(os.Stderr, "leapcell: the command could not be started:", err)
	if errors.Is(err, unix.ENOENT) {
		return 127
	}
	return 126
}

// become returns only with an error.
func (s stepSpec) become() error {
	if err := s.enter(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	unix.Umask(0o022)
	if err := s.drop(); err != nil {
		return err
	}
	// As the command's user: what it may not enter is no place for it.
	if err := unix.Chdir(s.Cwd); err != nil {
		return fmt.Errorf("enter %s: %w", s.Cwd, err)
	}
	program, err := s.lookPath()
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", program, unix.Exec(program, s.Args, s.Env))
}

// enter makes the step's root the root.
func (s stepSpec) enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range s.Mounts {
		if err := m.mount(); err != nil {
			return fmt.Errorf("mount %s: %w", strings.TrimPrefix(m.Target, s.Root), err)
		}
	}
	if s.Readonly {
		if err := readonly(s.Root); err != nil {
			return err
		}
	}
	if err := unix.Chdir(s.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}

func (m stepMount) mount() error {
	if m.Mount != nil {
		return m.Mount.Mount(m.Target)
	}
	if err := unix.Mount(m.Source, m.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if m.Readonly {
		return readonly(m.Target)
	}
	return nil
}

// readonly keeps the flags that the mount has: those of the host cannot be taken off.
func readonly(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	flags := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME)
	return unix.Mount("", dir, "", flags|unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// drop gives up everything that a command of a build must not have. The filter comes first, while
// one may still be set without no_new_privs: commands call su and sudo.
func (s stepSpec) drop() error {
	if err := setFilter(s.Filter); err != nil {
		return fmt.Errorf("set the system call filter: %w", err)
	}
	keep := uint64(0)
	for _, c := range capabilities {
		keep |= 1 << c
	}
	for c := 0; ; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err == unix.EINVAL {
			break // there are no more
		} else if err != nil {
			return fmt.Errorf("drop a capability: %w", err)
		}
	}
	groups := s.Groups
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	// The raw calls are for this thread alone; those of package syscall ask every thread, of
	// which the others have no filter yet.
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first)},
		{unix.SYS_SETRESGID, uintptr(s.GID), uintptr(s.GID), uintptr(s.GID)},
		{unix.SYS_SETRESUID, uintptr(s.UID), uintptr(s.UID), uintptr(s.UID)},
	} {
		if _, _, e := unix.RawSyscall(call[0], call[1], call[2], call[3]); e != 0 {
			return fmt.Errorf("become user %d: %w", s.UID, e)
		}
	}
	runtime.KeepAlive(groups)
	if s.UID != 0 {
		keep = 0
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(keep), uint32(keep>>32)
	data := [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("set the capabilities: %w", err)
	}
	return nil
}

func setFilter(filter []byte) error {
	if len(filter) == 0 || len(filter)%8 != 0 {
		return errors.New("there is none")
	}
	code := make([]unix.SockFilter, len(filter)/8)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&code[0])), len(filter)), filter)
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); e != 0 {
		return e
	}
	return nil
}

// lookPath finds the program by the command's own PATH.
func (s stepSpec) lookPath() (string, error) {
	if len(s.Args) == 0 {
		return "", errors.New("there is no command")
	}
	name := s.Args[0]
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range s.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for dir := range strings.SplitSeq(path, ":") {
		full := filepath.Join(dir, name)
		if info, err := os.Stat(full); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, unix.ENOENT)
}
