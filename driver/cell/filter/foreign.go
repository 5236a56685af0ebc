package filter

// foreign are calls that policies may name although not every architecture has them: those of
// 32-bit tables, and those that arm64 left behind.
var foreign = map[string]bool{
	"_llseek": true, "_newselect": true, "access": true, "alarm": true, "arch_prctl": true, "chmod": true, "chown": true,
	"chown32": true, "clock_adjtime64": true, "clock_getres_time64": true, "clock_gettime64": true,
	"clock_nanosleep_time64": true, "creat": true, "dup2": true, "epoll_create": true, "epoll_ctl_old": true,
	"epoll_wait": true, "epoll_wait_old": true, "eventfd": true, "fadvise64_64": true, "fchown32": true, "fcntl64": true,
	"fork": true, "fstat64": true, "fstatat64": true, "fstatfs64": true, "ftruncate64": true, "futex_time64": true,
	"futimesat": true, "get_thread_area": true, "getdents": true, "getegid32": true, "geteuid32": true, "getgid32": true,
	"getgroups32": true, "getpgrp": true, "getresgid32": true, "getresuid32": true, "getuid32": true,
	"inotify_init": true, "io_pgetevents_time64": true, "ipc": true, "lchown": true, "lchown32": true, "link": true,
	"lstat": true, "lstat64": true, "mkdir": true, "mknod": true, "mmap2": true, "modify_ldt": true,
	"mq_timedreceive_time64": true, "mq_timedsend_time64": true, "open": true, "pause": true, "pipe": true, "poll": true,
	"ppoll_time64": true, "pselect6_time64": true, "readlink": true, "recv": true, "recvmmsg_time64": true,
	"rename": true, "rmdir": true, "rt_sigtimedwait_time64": true, "sched_rr_get_interval_time64": true, "select": true,
	"semtimedop_time64": true, "send": true, "sendfile64": true, "set_thread_area": true, "setfsgid32": true,
	"setfsuid32": true, "setgid32": true, "setgroups32": true, "setregid32": true, "setresgid32": true,
	"setresuid32": true, "setreuid32": true, "setuid32": true, "signal": true, "signalfd": true, "sigprocmask": true,
	"sigreturn": true, "socketcall": true, "stat": true, "stat64": true, "statfs64": true, "symlink": true, "time": true,
	"timer_gettime64": true, "timer_settime64": true, "timerfd_gettime64": true, "timerfd_settime64": true,
	"truncate64": true, "ugetrlimit": true, "unlink": true, "ustat": true, "utime": true, "utimensat_time64": true,
	"utimes": true, "vfork": true, "waitpid": true,
}
