package cell

import (
	"runtime"
	"slices"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell/filter"
)

// The system call filter: everything on the lists below is allowed, everything else fails
// with EPERM as if the kernel refused it. The lists are those that container engines
// document as their default, sorted here by what the calls are for. Left out on purpose:
// whatever changes namespaces, mounts, modules, the clock, keys, devices, BPF or io_uring,
// and whatever only debugs or reboots the machine. [ID1]
var allowedCalls = [][]string{
	{ // files: open, read, write, seek
		"open", "openat", "openat2", "creat", "close", "close_range", "read", "write", "readv", "writev",
		"pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek", "_llseek", "sendfile",
		"sendfile64", "splice", "tee", "vmsplice", "copy_file_range", "readahead", "fadvise64", "fadvise64_64",
		"fallocate", "truncate", "truncate64", "ftruncate", "ftruncate64", "fsync", "fdatasync", "sync",
		"syncfs", "sync_file_range", "flock", "fcntl", "fcntl64", "ioctl", "dup", "dup2", "dup3", "pipe", "pipe2",
		"memfd_create", "memfd_secret", "name_to_handle_at", "cachestat",
	},
	{ // files: names, attributes, folders
		"stat", "stat64", "fstat", "fstat64", "lstat", "lstat64", "fstatat64", "newfstatat", "statx", "statfs",
		"statfs64", "fstatfs", "fstatfs64", "ustat", "access", "faccessat", "faccessat2", "chmod", "fchmod", "fchmodat",
		"fchmodat2", "chown", "chown32", "fchown", "fchown32", "lchown", "lchown32", "fchownat", "umask", "link",
		"linkat", "symlink", "symlinkat", "readlink", "readlinkat", "unlink", "unlinkat", "rename", "renameat",
		"renameat2", "mkdir", "mkdirat", "rmdir", "mknod", "mknodat", "getcwd", "chdir", "fchdir", "getdents",
		"getdents64", "utime", "utimes", "utimensat", "utimensat_time64", "futimesat", "getxattr", "getxattrat", "lgetxattr",
		"fgetxattr", "setxattr", "setxattrat", "lsetxattr", "fsetxattr", "listxattr", "listxattrat", "llistxattr", "flistxattr",
		"removexattr", "removexattrat", "lremovexattr", "fremovexattr", "inotify_init", "inotify_init1", "inotify_add_watch",
		"inotify_rm_watch", "fanotify_mark",
	},
	{ // memory
		"brk", "mmap", "mmap2", "munmap", "mremap", "mprotect", "pkey_alloc", "pkey_free", "pkey_mprotect", "madvise",
		"process_madvise", "mincore", "msync", "mlock", "mlock2", "munlock", "mlockall", "munlockall", "mseal",
		"map_shadow_stack", "remap_file_pages", "membarrier",
	},
	{ // processes and threads
		"fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "waitpid", "kill", "tkill", "tgkill",
		"getpid", "getppid", "gettid", "getpgid", "getpgrp", "setpgid", "getsid", "setsid", "pidfd_open",
		"pidfd_send_signal", "pidfd_getfd", "process_mrelease", "set_tid_address", "set_robust_list", "get_robust_list",
		"set_thread_area", "get_thread_area", "rseq", "restart_syscall", "prctl", "arch_prctl", "modify_ldt", "seccomp",
		"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "ptrace", "process_vm_readv",
		"process_vm_writev", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules",
	},
	{ // scheduling, limits and what the machine is
		"sched_yield", "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_setparam", "sched_getscheduler",
		"sched_setscheduler", "sched_getattr", "sched_setattr", "sched_get_priority_max", "sched_get_priority_min",
		"sched_rr_get_interval", "sched_rr_get_interval_time64", "getpriority", "setpriority", "ioprio_get", "ioprio_set",
		"getrlimit", "setrlimit", "ugetrlimit", "prlimit64", "getrusage", "times", "sysinfo", "uname", "getcpu", "getrandom", "capget", "capset",
	},
	{ // users and groups
		"getuid", "getuid32", "geteuid", "geteuid32", "getgid", "getgid32", "getegid", "getegid32", "getresuid", "getresuid32",
		"getresgid", "getresgid32", "getgroups", "getgroups32", "setuid", "setuid32", "setgid", "setgid32", "setreuid",
		"setreuid32", "setregid", "setregid32", "setresuid", "setresuid32", "setresgid", "setresgid32", "setfsuid",
		"setfsuid32", "setfsgid", "setfsgid32", "setgroups", "setgroups32",
	},
	{ // signals
		"rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "rt_sigreturn", "rt_sigsuspend",
		"rt_sigtimedwait", "rt_sigtimedwait_time64", "sigaltstack", "sigprocmask", "sigreturn", "signal", "signalfd", "signalfd4", "pause",
	},
	{ // time
		"time", "gettimeofday", "clock_gettime", "clock_gettime64", "clock_getres", "clock_getres_time64", "clock_nanosleep",
		"clock_nanosleep_time64", "clock_adjtime", "clock_adjtime64", "adjtimex", "nanosleep", "alarm", "getitimer", "setitimer", "timer_create",
		"timer_settime", "timer_settime64", "timer_gettime", "timer_gettime64", "timer_getoverrun", "timer_delete",
		"timerfd_create", "timerfd_settime", "timerfd_settime64", "timerfd_gettime", "timerfd_gettime64",
	},
	{ // waiting
		"select", "_newselect", "pselect6", "pselect6_time64", "poll", "ppoll", "ppoll_time64", "epoll_create",
		"epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_wait", "epoll_wait_old", "epoll_pwait", "epoll_pwait2",
		"eventfd", "eventfd2", "futex", "futex_time64", "futex_wait", "futex_wake", "futex_waitv", "futex_requeue",
		"io_setup", "io_submit", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_cancel", "io_destroy",
	},
	{ // network (socket has rules of its own below)
		"socketcall", "socketpair", "bind", "listen", "accept", "accept4", "connect", "shutdown", "getsockname", "getpeername", "getsockopt",
		"setsockopt", "send", "sendto", "sendmsg", "sendmmsg", "recv", "recvfrom", "recvmsg", "recvmmsg", "recvmmsg_time64",
	},
	{ // System V and POSIX queues, semaphores, shared memory: of the cell's own ipc namespace
		"ipc", "semget", "semop", "semctl", "semtimedop", "semtimedop_time64", "msgget", "msgsnd", "msgrcv", "msgctl", "shmget",
		"shmat", "shmdt", "shmctl", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedsend_time64", "mq_timedreceive",
		"mq_timedreceive_time64", "mq_notify", "mq_getsetattr",
	},
}

// personalities are the execution domains an app may ask for: plain Linux, with and without
// the flags that 32-bit emulation and uname compatibility use, and the question for the current one.
var personalities = []uint64{0x0, 0x0008, 0x20000, 0x20008, 0xffffffff}

// newNamespaceFlags are the clone flags that make namespaces.
const newNamespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// nativeArch is the only system call table that is allowed: one table makes the filter small
// and quick to load, and a second one is attack surface that no app here needs.
var nativeArch = map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}

// socketFamilies are those that an app may use. Others are ways into parts of the kernel that no
// app here needs: its cryptography (AF_ALG), the hypervisor (AF_VSOCK), rare protocols.
var socketFamilies = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// policy is for whom a filter is.
type policy int

const (
	instancePolicy policy = iota
	buildPolicy
	nestedPolicy // of a build that makes sandboxes of its own
	policies
)

func policyOf(c Config) policy {
	switch {
	case c.Nested:
		return nestedPolicy
	case c.Mode == leapcell.TaskBuild:
		return buildPolicy
	}
	return instancePolicy
}

// nestedCalls are what a build needs to make sandboxes of its own. It may use them in a user namespace
// only, since it has no capability for them outside; there it is nobody on the host. Network
// namespaces are left out: in one of its own a build could reach most of the kernel's network code.
var nestedCalls = []string{"mount", "umount2", "pivot_root", "sethostname"}

const nestedFlags = unix.CLONE_NEWCGROUP | unix.CLONE_NEWNET

// BuildFilter is the compiled filter of builds, for the commands in the sandboxes that one makes.
func BuildFilter() ([]byte, error) { return compiled(buildPolicy) }

func compiled(p policy) ([]byte, error) {
	code, err := filter.Compile(seccomp(p))
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&code[0])), len(code)*int(unsafe.Sizeof(code[0]))), nil
}

func seccomp(p policy) *specs.LinuxSeccomp {
	eperm, enosys := uint(unix.EPERM), uint(unix.ENOSYS)
	allow := slices.Concat(allowedCalls...)
	if p != instancePolicy {
		allow = append(allow, "chroot") // goes with CAP_SYS_CHROOT
	}
	forbidden := uint64(newNamespaceFlags)
	if p == nestedPolicy {
		allow, forbidden = append(allow, nestedCalls...), nestedFlags
	}
	calls := []specs.LinuxSyscall{
		{Names: allow, Action: specs.ActAllow},
		// clone3 hides its flags in memory, where a filter cannot look; on ENOSYS C libraries use clone.
		{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys},
		{Names: []string{"clone"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: forbidden, ValueTwo: 0, Op: specs.OpMaskedEqual}}},
	}
	for _, family := range socketFamilies {
		// The kernel looks at the low half of the argument only: so must the filter.
		calls = append(calls, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: 1<<32 - 1, ValueTwo: family, Op: specs.OpMaskedEqual}}})
	}
	for _, p := range personalities {
		calls = append(calls, specs.LinuxSyscall{Names: []string{"personality"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: p, Op: specs.OpEqualTo}}})
	}
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &eperm, Syscalls: calls}
	if arch, ok := nativeArch[runtime.GOARCH]; ok {
		s.Architectures = []specs.Arch{arch}
	}
	return s
}
