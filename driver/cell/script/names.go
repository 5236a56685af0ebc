package script

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// names are those of the calls that sandboxes are made with, for reading.
var names = map[uintptr]string{
	unix.SYS_CAPSET: "capset", unix.SYS_CHDIR: "chdir", unix.SYS_CHROOT: "chroot", unix.SYS_FCHDIR: "fchdir", unix.SYS_CLOSE: "close", unix.SYS_CLOSE_RANGE: "close_range",
	unix.SYS_DUP3: "dup3", unix.SYS_EXECVE: "execve", unix.SYS_EXIT_GROUP: "exit_group", unix.SYS_IOCTL: "ioctl",
	unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHOWN: "fchown", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_MKNODAT: "mknodat", unix.SYS_MOUNT: "mount",
	unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPENAT: "openat", unix.SYS_OPEN_TREE: "open_tree",
	unix.SYS_PIVOT_ROOT: "pivot_root", unix.SYS_PRCTL: "prctl", unix.SYS_PRLIMIT64: "prlimit64", unix.SYS_READ: "read",
	unix.SYS_RT_SIGPROCMASK: "rt_sigprocmask", unix.SYS_SECCOMP: "seccomp", unix.SYS_SETGROUPS: "setgroups",
	unix.SYS_SETHOSTNAME: "sethostname", unix.SYS_SETNS: "setns", unix.SYS_SETRESGID: "setresgid",
	unix.SYS_SETRESUID: "setresuid", unix.SYS_SETSID: "setsid", unix.SYS_SOCKET: "socket", unix.SYS_SYMLINKAT: "symlinkat",
	unix.SYS_UMASK: "umask", unix.SYS_UMOUNT2: "umount2", unix.SYS_UNSHARE: "unshare", unix.SYS_WRITE: "write",
}

func callName(number uintptr) string {
	if name, ok := names[number]; ok {
		return name
	}
	return fmt.Sprintf("syscall_%d", number)
}
