package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// breakout runs every attempt and says how each was refused; "" means that it was not.
// Arguments are such that an attempt that succeeds changes nothing that matters.
func breakout(r *http.Request) any {
	out := map[string]string{}
	for _, attempts := range []map[string]func() error{calls(), namespaces(), files(), sockets(r), foreign(r)} {
		for name, f := range attempts {
			out[name] = errName(f())
		}
	}
	return out
}

func call(nr uintptr, args ...uintptr) func() error {
	return func() error {
		args := append(args, 0, 0, 0, 0, 0, 0)
		fd, _, errno := syscall.Syscall6(nr, args[0], args[1], args[2], args[3], args[4], args[5])
		if errno != 0 {
			return errno
		}
		_ = fd // whatever it is: the test fails, and the instance goes
		return nil
	}
}

// kept is memory that system calls are given the addresses of.
var kept [][]byte

func text(s string) uintptr {
	b := append([]byte(s), 0)
	kept = append(kept, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// numbers is an array of them in memory.
func numbers(list ...uint64) uintptr {
	var b []byte
	for _, n := range list {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return text(string(b))
}

// calls are system calls that change the machine or look into its kernel.
func calls() map[string]func() error {
	now := syscall.Timeval{Sec: time.Now().Unix()}
	attr := text(strings.Repeat("\x00", 128))
	const noSuchFlag = 0xfff0
	return map[string]func() error{
		"bpf":               call(sysBPF, 5, attr, 128),
		"perf_event_open":   call(sysPerfEventOpen, attr, 0, ^uintptr(0), ^uintptr(0)),
		"userfaultfd":       call(sysUserfaultfd),
		"io_uring_setup":    call(425, 1, attr),
		"keyctl":            call(sysKeyctl, 0, ^uintptr(2)),
		"add_key":           call(sysAddKey, text("user"), text("x"), text("x"), 1, ^uintptr(2)),
		"request_key":       call(sysRequestKey, text("user"), text("x"), 0, ^uintptr(2)),
		"kexec_load":        call(sysKexecLoad, 0, 0, 0, noSuchFlag),
		"kexec_file_load":   call(sysKexecFileLoad, 0, 0, 0, 0, noSuchFlag),
		"init_module":       call(sysInitModule, 0, 0, text("")),
		"finit_module":      call(sysFinitModule, 0, text(""), noSuchFlag),
		"delete_module":     call(sysDeleteModule, text("no-such-module"), syscall.O_NONBLOCK),
		"settimeofday":      func() error { return syscall.Settimeofday(&now) },
		"clock_settime":     call(sysClockSettime, 0, numbers(uint64(time.Now().Unix()), 0)),
		"adjtimex":          func() error { _, err := syscall.Adjtimex(&syscall.Timex{Modes: 0x4000, Tick: 10000}); return err },
		"reboot":            call(syscall.SYS_REBOOT, 1, 2, 3),
		"swapon":            call(syscall.SYS_SWAPON, text("/tmp/none"), 0),
		"swapoff":           call(syscall.SYS_SWAPOFF, text("/tmp/none")),
		"acct":              call(syscall.SYS_ACCT, text("/tmp/none")),
		"quotactl":          call(syscall.SYS_QUOTACTL, 0x800002<<8, text("/tmp/none")),
		"sethostname":       func() error { return syscall.Sethostname([]byte("x")) },
		"setdomainname":     func() error { return syscall.Setdomainname([]byte("x")) },
		"syslog":            call(syscall.SYS_SYSLOG, 3, attr, 128),
		"vhangup":           call(syscall.SYS_VHANGUP),
		"fanotify_init":     call(sysFanotifyInit, 0, 0),
		"move_pages":        call(sysMovePages, 1),
		"kcmp":              call(sysKcmp, 1, 1, 0),
		"personality":       call(syscall.SYS_PERSONALITY, 0x0400000), // addresses that can be guessed
		"open_by_handle_at": call(sysOpenByHandleAt, ^uintptr(99), attr, 0),
		"setuid":            func() error { return syscall.Setuid(0) },
		"setgid":            func() error { return syscall.Setgid(0) },
		"setgroups":         func() error { return syscall.Setgroups([]int{0}) },
		"chroot":            func() error { return syscall.Chroot("/tmp") },
		"nice":              func() error { return syscall.Setpriority(syscall.PRIO_PROCESS, 0, -10) },
		"realtime":          call(syscall.SYS_SCHED_SETSCHEDULER, 0, 1, numbers(1)),
		"more files":        func() error { return raise(syscall.RLIMIT_NOFILE) },
	}
}

func raise(which int) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(which, &l); err != nil {
		return err
	}
	l.Max++
	return syscall.Setrlimit(which, &l)
}

// namespaces are ways into other namespaces and other mounts.
func namespaces() map[string]func() error {
	out := map[string]func() error{
		"mount tmpfs":    func() error { return syscall.Mount("none", "/tmp", "tmpfs", 0, "") },
		"mount proc":     func() error { return syscall.Mount("none", "/tmp", "proc", 0, "") },
		"mount cgroup":   func() error { return syscall.Mount("none", "/tmp", "cgroup", 0, "memory") },
		"mount bind":     func() error { return syscall.Mount("/proc", "/tmp", "", syscall.MS_BIND, "") },
		"remount /":      func() error { return syscall.Mount("", "/", "", syscall.MS_REMOUNT|syscall.MS_BIND, "") },
		"remount /proc":  func() error { return syscall.Mount("", "/proc/sys", "", syscall.MS_REMOUNT|syscall.MS_BIND, "") },
		"umount":         func() error { return syscall.Unmount("/proc/sys", syscall.MNT_DETACH) },
		"pivot_root":     func() error { return syscall.PivotRoot("/tmp", "/tmp") },
		"open_tree":      call(428, ^uintptr(99), text("/"), 1),
		"move_mount":     call(429, ^uintptr(99), text("/tmp"), ^uintptr(99), text("/tmp"), 0),
		"fsopen":         call(430, text("tmpfs"), 0),
		"mount_setattr":  call(442, ^uintptr(99), text("/"), 0, text(strings.Repeat("\x00", 32)), 32),
		"clone3 newuser": call(435, text("\x00\x00\x00\x10"+strings.Repeat("\x00", 60)), 64),
	}
	for name, flag := range map[string]uintptr{
		"user": syscall.CLONE_NEWUSER, "mnt": syscall.CLONE_NEWNS, "pid": syscall.CLONE_NEWPID, "net": syscall.CLONE_NEWNET,
		"ipc": syscall.CLONE_NEWIPC, "uts": syscall.CLONE_NEWUTS, "cgroup": 0x02000000,
	} {
		out["unshare "+name] = call(syscall.SYS_UNSHARE, flag)
		out["clone "+name] = func() error { return cloned(flag) }
		out["setns "+name] = func() error {
			f, err := os.Open("/proc/self/ns/" + name)
			if err != nil {
				return err
			}
			defer f.Close()
			return call(sysSetns, f.Fd(), 0)()
		}
	}
	return out
}

func cloned(flag uintptr) error {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flag}
	return cmd.Run()
}

// files are tricks with the kernel's files, devices and links.
func files() map[string]func() error {
	out := map[string]func() error{
		"mknod block":       func() error { return syscall.Mknod("/tmp/sda", syscall.S_IFBLK|0o666, 8<<8) },
		"mknod mem":         func() error { return syscall.Mknod("/tmp/mem", syscall.S_IFCHR|0o666, 1<<8|1) },
		"set-uid program":   setuidProgram,
		"inject keystrokes": inject,
		"descriptors":       descriptors,
		"follow own root":   func() error { return outside("/proc/self/root") },
		"follow first root": func() error { return outside("/proc/1/root") },
		"follow cwd":        func() error { return outside("/proc/self/cwd/../../../../../../..") },
	}
	for _, name := range []string{
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches", "/proc/sys/net/ipv4/ip_forward",
		"/proc/sys/net/ipv6/conf/all/disable_ipv6", "/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
		"/sys/kernel/uevent_helper", "/sys/power/state", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent",
		"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/cgroup.freeze",
		"/sys/fs/cgroup/freezer/freezer.state", "/sys/fs/cgroup/notify_on_release", "/proc/self/uid_map", "/proc/1/oom_score_adj",
	} {
		out["write "+name] = func() error { return openFor(name, os.O_WRONLY) }
	}
	for _, name := range []string{
		"/proc/kcore", "/proc/kmsg", "/proc/keys", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/fuse",
		"/dev/kvm", "/dev/net/tun", "/dev/loop-control", "/dev/loop0", "/dev/console", "/dev/tty", "/sys/kernel/debug/x", "/sys/kernel/tracing/trace",
		"/proc/timer_list", "/sys/firmware/x",
	} {
		out["read "+name] = func() error { return readable(name) }
	}
	return out
}

func openFor(name string, flags int) error {
	f, err := os.OpenFile(name, flags|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if strings.HasSuffix(name, "oom_score_adj") || strings.HasSuffix(name, "uid_map") {
		_, err = f.WriteString("-1000") // its own may be opened
	}
	return err
}

// readable is nil when there is something to read.
func readable(name string) error {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := f.Read(make([]byte, 64)); n == 0 {
		return fmt.Errorf("empty: %v", err)
	}
	return nil
}

// setuidProgram runs one of the image as its owner, which no_new_privs must prevent.
func setuidProgram() error {
	for _, name := range []string{"/usr/bin/su", "/bin/su", "/usr/bin/mount", "/usr/bin/passwd"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode()&os.ModeSetuid == 0 {
			continue
		}
		cmd := exec.Command(name, "--help")
		cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: false}
		in, _ := cmd.StdinPipe()
		if err := cmd.Start(); err != nil {
			return err
		}
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
		_, _ = in.Close(), cmd.Wait()
		if strings.Contains(string(b), "Uid:\t1000\t0") {
			return nil
		}
	}
	// Without the file's bit, su cannot become root even without a password to give.
	if err := exec.Command("su", "-c", "true", "root").Run(); err == nil {
		return nil
	}
	return syscall.EPERM
}

// inject pretends to type on whatever terminal there is.
func inject() error {
	c := byte('x')
	for _, name := range []string{"/dev/stdin", "/dev/stdout", "/dev/tty", "/dev/console", "/dev/pts/0"} {
		f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TIOCSTI, uintptr(unsafe.Pointer(&c)))
		_ = f.Close()
		if errno == 0 {
			return nil
		}
	}
	return syscall.ENOTTY
}

// descriptors looks at what was open when the app started, and in it for a folder.
func descriptors() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || link == "/proc/"+strconv.Itoa(os.Getpid())+"/fd" {
			continue
		}
		if info, err := os.Stat("/proc/self/fd/" + e.Name()); err == nil && info.IsDir() {
			return nil
		}
	}
	return syscall.ENOENT
}

// outside is nil if path leads to another root than this process has.
func outside(path string) error {
	var mine, other syscall.Stat_t
	if err := syscall.Stat("/", &mine); err != nil {
		return err
	}
	if err := syscall.Stat(path, &other); err != nil {
		return err
	}
	if mine.Ino == other.Ino && mine.Dev == other.Dev {
		return syscall.ENOENT
	}
	return nil
}

// sockets are families and kinds that reach more than the network.
func sockets(r *http.Request) map[string]func() error {
	out := map[string]func() error{
		"abstract socket of the machine": func() error {
			c, err := net.Dial("unix", "@"+r.FormValue("abstract"))
			if err == nil {
				_ = c.Close()
			}
			return err
		},
		"add an address": func() error { return netlinkRequest(syscall.RTM_NEWADDR) },
		"turn a link":    func() error { return netlinkRequest(syscall.RTM_NEWLINK) },
		"add a route":    func() error { return netlinkRequest(syscall.RTM_NEWROUTE) },
	}
	for name, s := range map[string][3]int{
		"packet": {syscall.AF_PACKET, syscall.SOCK_RAW, 0}, "packet datagram": {syscall.AF_PACKET, syscall.SOCK_DGRAM, 0},
		"raw ip": {syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP}, "raw ip6": {syscall.AF_INET6, syscall.SOCK_RAW, syscall.IPPROTO_ICMPV6},
		"crypto": {38, syscall.SOCK_SEQPACKET, 0}, "vsock": {40, syscall.SOCK_STREAM, 0}, "xdp": {44, syscall.SOCK_RAW, 0}, "key": {15, syscall.SOCK_RAW, 2},
	} {
		out["socket "+name] = func() error {
			fd, err := syscall.Socket(s[0], s[1]|syscall.SOCK_CLOEXEC, s[2])
			if err == nil {
				_ = syscall.Close(fd)
			}
			return err
		}
	}
	return out
}

// netlinkRequest asks the kernel to change this network namespace, with an empty request:
// who may not ask at all is told so first.
func netlinkRequest(kind uint16) error {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	b := make([]byte, 48)
	*(*syscall.NlMsghdr)(unsafe.Pointer(&b[0])) = syscall.NlMsghdr{Len: 48, Type: kind, Flags: syscall.NLM_F_REQUEST | syscall.NLM_F_ACK, Seq: 1}
	if err := syscall.Sendto(fd, b, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(fd, answer, 0)
	if err != nil || n < 20 {
		return errors.Join(err, fmt.Errorf("answer of %d bytes", n))
	}
	if code := *(*int32)(unsafe.Pointer(&answer[16])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// foreign reaches for a process that is not of this instance.
func foreign(r *http.Request) map[string]func() error {
	pid := number(r, "pid")
	if pid == 0 {
		pid = 1 << 21
	}
	path := "/proc/" + strconv.Itoa(pid)
	local, remote := numbers(uint64(text("........")), 8), numbers(0x10000, 8)
	return map[string]func() error{
		"kill":       func() error { return syscall.Kill(pid, 0) },
		"ptrace":     func() error { return syscall.PtraceAttach(pid) },
		"pidfd":      call(434, uintptr(pid), 0),
		"its root":   func() error { _, err := os.Stat(path + "/root/etc"); return err },
		"its memory": func() error { return openFor(path+"/mem", os.O_RDWR) },
		"process_vm": call(sysProcessVMReadv, uintptr(pid), local, 1, remote, 1),
		"its limits": call(syscall.SYS_PRLIMIT64, uintptr(pid), 7, 0, 0),
	}
}

// writable walks the whole tree and tells where this user may write: folders that take a new
// file and files that open for writing. What belongs to its own processes is left out.
func writable(*http.Request) any {
	found := []string{}
	_ = filepath.WalkDir("/", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // may not even be read
		}
		if d.IsDir() && own(p) {
			return filepath.SkipDir
		}
		switch {
		case d.IsDir():
			name := filepath.Join(p, ".written-by-probe")
			if f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
				_, _ = f.Close(), os.Remove(name)
				found = append(found, p+"/")
			}
		case d.Type().IsRegular():
			if info, err := os.Stat(p); err != nil || !info.Mode().IsRegular() {
				return nil // masked by a device that swallows everything
			}
			if f, err := os.OpenFile(p, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
				_ = f.Close()
				found = append(found, p)
			}
		}
		return nil
	})
	return map[string]any{"err": "", "found": found}
}

// own reports whether p is the folder of a process, all of which are this instance's.
func own(p string) bool {
	name, ok := strings.CutPrefix(p, "/proc/")
	_, err := strconv.Atoi(name)
	return ok && (err == nil || name == "self" || name == "thread-self")
}
