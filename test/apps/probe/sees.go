package main

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

func env(*http.Request) any {
	out := map[string]string{}
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		out[name] = value
	}
	return out
}

func id(*http.Request) any {
	status := map[string]string{}
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return problem(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		status[name] = strings.TrimSpace(value)
	}
	namespaces := map[string]string{}
	for _, name := range []string{"pid", "mnt", "ipc", "uts", "net", "cgroup", "user"} {
		namespaces[name], _ = os.Readlink("/proc/self/ns/" + name)
	}
	host, _ := os.Hostname()
	dir, _ := os.Getwd()
	cgroup, _ := os.ReadFile("/proc/self/cgroup")
	return map[string]any{
		"status": status, "namespaces": namespaces, "hostname": host, "dir": dir, "cgroup": string(cgroup),
		"pid": os.Getpid(), "ppid": os.Getppid(), "instance": os.Getenv("LEAPCELL_INSTANCE"), "startedAt": me.StartedAt,
	}
}

type process struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
}

func processes(*http.Request) any {
	out := []process{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			b, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
			out = append(out, process{pid, strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))})
		}
	}
	return out
}

func interfaces(*http.Request) any {
	out := map[string][]string{}
	list, err := net.Interfaces()
	if err != nil {
		return problem(err)
	}
	for _, i := range list {
		out[i.Name] = []string{}
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			out[i.Name] = append(out[i.Name], a.String())
		}
	}
	return out
}

func cores(*http.Request) any {
	var mask [128]uint64
	n, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask)))
	if errno != 0 {
		return problem(errno)
	}
	affinity := 0
	for _, word := range mask[:n/8] {
		for ; word != 0; word &= word - 1 {
			affinity++
		}
	}
	nproc, _ := exec.Command("nproc").Output()
	return map[string]any{"numCPU": runtime.NumCPU(), "affinity": affinity, "nproc": strings.TrimSpace(string(nproc))}
}

// stdin reads on a thread of its own: a terminal or an open pipe would never answer.
func stdin(*http.Request) any {
	info, err := os.Stdin.Stat()
	if err != nil {
		return problem(err)
	}
	n, err := os.Stdin.Read(make([]byte, 1))
	_, ttyErr := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	return map[string]any{
		"eof": n == 0 && errors.Is(err, io.EOF), "mode": info.Mode().String(),
		"tty": isTerminal(0) || isTerminal(1) || isTerminal(2), "devTTY": errName(ttyErr),
	}
}

func isTerminal(fd uintptr) bool {
	var termios [64]byte
	_, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, fd, syscall.TCGETS, uintptr(unsafe.Pointer(&termios)))
	return errno == 0
}

func stat(r *http.Request) any {
	info, err := os.Stat(r.FormValue("path"))
	if err != nil {
		return problem(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return map[string]any{"err": "", "mode": info.Mode().String(), "dir": info.IsDir(), "size": info.Size(), "uid": st.Uid, "gid": st.Gid, "rdev": st.Rdev}
}

func statfs(r *http.Request) any {
	var s syscall.Statfs_t
	if err := syscall.Statfs(r.FormValue("path"), &s); err != nil {
		return problem(err)
	}
	return map[string]any{
		"err": "", "bytes": s.Blocks * uint64(s.Bsize), "free": s.Bfree * uint64(s.Bsize),
		"tmpfs": s.Type == 0x01021994, "readOnly": s.Flags&1 != 0,
	}
}

func list(r *http.Request) any {
	entries, err := os.ReadDir(r.FormValue("path"))
	if err != nil {
		return problem(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return map[string]any{"err": "", "names": names}
}

func read(r *http.Request) any {
	f, err := os.Open(r.FormValue("path"))
	if err != nil {
		return problem(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return problem(err)
	}
	return map[string]any{"err": "", "text": string(b)}
}

// find looks for names below a folder, within what this user may read.
func find(r *http.Request) any {
	found := []string{}
	want := r.FormValue("name")
	_ = filepath.WalkDir(r.FormValue("path"), func(p string, d fs.DirEntry, err error) error {
		if p == "/proc" || p == "/sys" {
			return filepath.SkipDir
		}
		if err == nil && strings.Contains(d.Name(), want) {
			found = append(found, p)
		}
		return nil
	})
	return map[string]any{"err": "", "found": found}
}

func problem(err error) map[string]any {
	return map[string]any{"err": errName(err), "text": err.Error()}
}

// errName is the name of the error number in err, "" for none.
func errName(err error) string {
	if err == nil {
		return ""
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	names := map[syscall.Errno]string{
		syscall.EROFS: "EROFS", syscall.EACCES: "EACCES", syscall.EPERM: "EPERM", syscall.ENOENT: "ENOENT", syscall.ENOSPC: "ENOSPC",
		syscall.ENXIO: "ENXIO", syscall.ENOSYS: "ENOSYS", syscall.EINVAL: "EINVAL", syscall.EISDIR: "EISDIR", syscall.ENOTDIR: "ENOTDIR",
		syscall.ENODEV: "ENODEV", syscall.EBUSY: "EBUSY", syscall.EIO: "EIO", syscall.EFAULT: "EFAULT", syscall.ESRCH: "ESRCH",
	}
	if name, ok := names[errno]; ok {
		return name
	}
	return errno.Error()
}
