// The probe is the app inside the cells of the tests: it tells what it sees, as JSON.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	switch os.Args[1] {
	case "look":
		look()
	case "exit":
		fmt.Fprintln(os.Stderr, "leaving")
		var code int
		fmt.Sscan(os.Args[2], &code)
		os.Exit(code)
	case "sleep": // until a signal that is left to its default
		fmt.Println("ready")
		select {
		case <-time.After(time.Hour):
		}
	case "plain": // handles no SIGTERM, as most programs; the Go runtime would
		plain(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "graceful": // says which signal it got and leaves with 7
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		fmt.Println(<-c)
		os.Exit(7)
	case "parent": // starts a child and outlives it
		signal.Ignore(syscall.SIGTERM)
		cmd := exec.Command("/bin/probe", os.Args[2:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		err := cmd.Run()
		fmt.Println("child:", err)
		time.Sleep(time.Hour)
	case "spin":
		fmt.Println("ready")
		for {
		}
	case "eat":
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
	}
}

// plain gives a signal back to the kernel's default.
func plain(sig syscall.Signal) {
	var action [32]byte
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

// try does something and gives the error's text, "" for none.
func try(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

func write(name string) string { return try(os.WriteFile(name, []byte("x"), 0o644)) }

func look() {
	out := map[string]any{}
	out["uid"], out["gid"], out["pid"] = os.Getuid(), os.Getgid(), os.Getpid()
	out["env"] = os.Environ()
	out["cwd"], _ = os.Getwd()
	out["hostname"], _ = os.Hostname()
	out["cpus"] = runtime.NumCPU()
	stdin, err := io.ReadAll(os.Stdin)
	out["stdin"] = string(stdin) + try(err)
	out["write"] = map[string]string{
		"/": write("/x"), "/tmp": write("/tmp/x"), "/dev/shm": write("/dev/shm/x"), "cwd": write("x"),
		"/proc/sys/kernel/hostname": write("/proc/sys/kernel/hostname"), "/proc/sysrq-trigger": write("/proc/sysrq-trigger"),
		"/sys/kernel/x": write("/sys/kernel/x"), "/etc/resolv.conf": write("/etc/resolv.conf"),
	}
	for _, name := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/proc/self/status", "/proc/self/mountinfo", "/proc/self/cgroup", "/proc/kcore", "/proc/keys"} {
		b, err := os.ReadFile(name)
		out[name] = string(b) + try(err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	out["procs"] = procs
	devs, _ := filepath.Glob("/dev/*")
	out["dev"] = devs
	cg := []string{}
	filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == "cgroup.procs" {
			cg = append(cg, p+": "+write(p))
		}
		return nil
	})
	out["cgroup write"] = cg
	var fs syscall.Statfs_t
	syscall.Statfs("/tmp", &fs)
	out["tmp MB"] = int(fs.Blocks * uint64(fs.Bsize) >> 20)
	st, _ := os.Stat("/tmp")
	out["tmp mode"] = st.Mode().String()
	ns := map[string]string{}
	links, _ := filepath.Glob("/proc/self/ns/*")
	for _, l := range links {
		ns[filepath.Base(l)], _ = os.Readlink(l)
	}
	out["ns"] = ns
	calls := map[string]string{
		"mount":          try(syscall.Mount("none", "/tmp", "tmpfs", 0, "")),
		"unshare":        try(syscall.Unshare(syscall.CLONE_NEWUSER)),
		"chown":          try(os.WriteFile("/tmp/own", nil, 0o600)) + try(os.Chown("/tmp/own", 0, 0)),
		"mknod":          try(syscall.Mknod("/tmp/null", syscall.S_IFCHR|0o666, 1<<8|3)),
		"user namespace": try(cloned(syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID)),
		"net namespace":  try(cloned(syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET)),
		"chroot":         try(syscall.Chroot("/tmp")),
	}
	for name, fam := range map[string]int{"inet": syscall.AF_INET, "alg": 38, "vsock": 40, "netlink": syscall.AF_NETLINK} {
		fd, err := syscall.Socket(fam, syscall.SOCK_STREAM, 0)
		if name == "alg" {
			fd, err = syscall.Socket(fam, syscall.SOCK_SEQPACKET, 0)
		}
		if name == "netlink" {
			fd, err = syscall.Socket(fam, syscall.SOCK_RAW, 0)
		}
		if err == nil {
			syscall.Close(fd)
		}
		calls["socket "+name] = try(err)
	}
	// The kernel looks at the low half of the family only; a filter that compares all of it is fooled.
	if fd, _, errno := syscall.RawSyscall(syscall.SYS_SOCKET, 1<<32|38, syscall.SOCK_SEQPACKET, 0); errno != 0 {
		calls["socket alg in disguise"] = errno.Error()
	} else {
		syscall.Close(int(fd))
		calls["socket alg in disguise"] = ""
	}
	out["calls"] = calls
	for line := range strings.Lines(out["/proc/self/status"].(string)) {
		if k, v, ok := strings.Cut(line, ":"); ok && (strings.HasPrefix(k, "Cap") || k == "NoNewPrivs" || k == "Seccomp") {
			out[k] = strings.TrimSpace(v)
		}
	}
	out["restrictions"] = restrictions(out["/proc/self/status"].(string))
	delete(out, "/proc/self/status")
	json.NewEncoder(os.Stdout).Encode(out)
}

// restrictions is what two runtimes should agree in, line by line.
func restrictions(status string) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for line := range strings.Lines(status) {
		switch name, _, _ := strings.Cut(line, ":"); name {
		case "Uid", "Gid", "Groups", "Umask", "NSpid", "NSpgid", "NSsid", "TracerPid", "NoNewPrivs", "Seccomp", "Seccomp_filters", "SigPnd", "SigBlk", "SigIgn",
			"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Cpus_allowed_list", "Mems_allowed_list", "Speculation_Store_Bypass":
			add("status %s", strings.Join(strings.Fields(line), " "))
		}
	}
	limits, _ := os.ReadFile("/proc/self/limits")
	for line := range strings.Lines(string(limits)) {
		add("limit %s", strings.Join(strings.Fields(line), " "))
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		left, right, _ := strings.Cut(line, " - ")
		f, end := strings.Fields(left), strings.Fields(right)
		add("mount %s %s %s %v", f[4], end[0], f[5], f[6:])
	}
	devices, _ := filepath.Glob("/dev/*")
	for _, name := range devices {
		if st, err := os.Lstat(name); err == nil {
			link, _ := os.Readlink(name)
			add("device %s %s %s", name, st.Mode(), link)
		}
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		name, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if kind, _, ok := strings.Cut(name, ":"); ok {
			name = kind // of pipes and sockets the number is not the same
		}
		if err == nil { // the folder itself is closed by now
			add("descriptor %s %s", fd.Name(), name)
		}
	}
	for _, name := range []string{"oom_score_adj", "personality", "coredump_filter", "loginuid", "sessionid", "attr/current", "uid_map", "gid_map", "setgroups"} {
		text, err := os.ReadFile("/proc/self/" + name)
		add("process %s %s %s", name, strings.Join(strings.Fields(string(text)), " "), try(err))
	}
	stat, _ := os.ReadFile("/proc/self/stat")
	if f := strings.Fields(string(stat)); len(f) > 41 {
		add("process parent %s, nice %s, real-time priority %s, policy %s", f[3], f[18], f[39], f[40])
	}
	for name, number := range map[string]uintptr{"dumpable": 3, "keeps capabilities": 7, "secure bits": 27, "reaper": 37, "huge pages off": 42, "flusher": 58} {
		result, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, number, uintptr(unsafe.Pointer(new([2]uint64))), 0, 0, 0, 0)
		add("prctl %s %d %d", name, result, errno)
	}
	var signal [2]uint64
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, 2, uintptr(unsafe.Pointer(&signal)), 0, 0, 0, 0)
	add("prctl signal at the parent's end %d %d", signal[0], errno)
	exe, _ := os.Readlink("/proc/self/exe")
	add("program %s", exe)
	cgroup, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(cgroup)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			add("cgroup %s %s", parts[1], parts[2])
		}
	}
	return out
}

// cloned runs this program in new namespaces, as somebody else.
func cloned(flags uintptr) error {
	cmd := exec.Command("/proc/self/exe", "exit", "0")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 10}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, UidMappings: ids, GidMappings: ids}
	return cmd.Run()
}
