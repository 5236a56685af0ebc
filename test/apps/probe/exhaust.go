package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// exhaust takes as much of one thing as it gets, says how much that was, and gives it back.
func exhaust(r *http.Request) any {
	dir := r.FormValue("dir")
	span := time.Duration(number(r, "ms")) * time.Millisecond
	var n int
	var err error
	switch what := r.FormValue("what"); what {
	case "processes":
		n, err = bomb(span)
	case "memory":
		n = grow()
	case "disk":
		n, err = fill(dir)
	case "allocated":
		n, err = allocate(dir)
	case "inodes":
		n, err = create(dir, number(r, "max"))
	case "files":
		n, err = open()
	case "log":
		n, err = flood(span)
	default:
		err = fmt.Errorf("cannot exhaust %q", what)
	}
	return map[string]any{"err": errName(err), "count": n}
}

// bomb runs the classic one and gives the most processes that there were at a time.
func bomb(d time.Duration) (most int, err error) {
	cmd := exec.Command("bash", "-c", "b() { b | b & }; b; sleep 60")
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		entries, _ := os.ReadDir("/proc")
		count := 0
		for _, e := range entries {
			if e.Name()[0] >= '0' && e.Name()[0] <= '9' {
				count++
			}
		}
		most = max(most, count)
	}
	// New ones may come between two kills; this process is the first of its namespace and
	// is spared. It also inherits them all.
	for range 1000 {
		if syscall.Kill(-1, syscall.SIGKILL) == syscall.ESRCH {
			break
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	_ = cmd.Wait() // taken by the loop above
	return most, nil
}

var hoard [][]byte

// grow takes memory until the kernel ends it. Nothing comes back from here.
func grow() int {
	for {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		hoard = append(hoard, b)
	}
}

// fill writes megabytes until one finds no room, then removes them.
func fill(dir string) (n int, err error) {
	name := filepath.Join(dir, "filled")
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	defer os.Remove(name)
	defer f.Close()
	block := []byte(strings.Repeat("x", 1<<20))
	for ; n < 1<<16; n++ {
		if _, err = f.Write(block); err != nil {
			break
		}
	}
	return n, err
}

// allocate has room set aside without writing it, in pieces of 64 MB, then tries to write a
// byte beside it; n is in MB.
func allocate(dir string) (n int, err error) {
	name := filepath.Join(dir, "allocated")
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	defer os.Remove(name)
	defer f.Close()
	for step := int64(64 << 20); step >= 4096; {
		if e := syscall.Fallocate(int(f.Fd()), 0, int64(n)<<20, step); e == syscall.ENOSPC {
			step /= 2
			if step < 1<<20 {
				break
			}
			continue
		} else if e != nil {
			return n, e
		}
		n += int(step >> 20)
		if n > 1<<20 {
			return n, nil // a terabyte: there is no end
		}
	}
	other := filepath.Join(dir, "beside")
	defer os.Remove(other)
	return n, os.WriteFile(other, []byte(strings.Repeat("x", 2<<20)), 0o600)
}

// create makes empty files.
func create(dir string, most int) (n int, err error) {
	sub := filepath.Join(dir, "inodes")
	if err := os.Mkdir(sub, 0o755); err != nil {
		return 0, err
	}
	defer os.RemoveAll(sub)
	for ; n < most; n++ {
		f, err := os.Create(fmt.Sprintf("%s/%d", sub, n))
		if err != nil {
			return n, err
		}
		_ = f.Close()
	}
	return n, nil
}

// open takes descriptors.
func open() (n int, err error) {
	var files []int
	defer func() {
		for _, fd := range files {
			_ = syscall.Close(fd)
		}
	}()
	for len(files) < 1<<22 {
		fd, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return len(files), err
		}
		files = append(files, fd)
	}
	return len(files), nil
}

// flood writes to the log as fast as it goes; n is in MB.
func flood(d time.Duration) (n int, err error) {
	line := strings.Repeat("flood ", 170) + "\n"
	block := []byte(strings.Repeat(line, 64))
	bytes := 0
	for end := time.Now().Add(d); time.Now().Before(end); {
		k, err := os.Stdout.Write(block)
		bytes += k
		if err != nil {
			return bytes >> 20, err
		}
	}
	return bytes >> 20, nil
}

// isolation registers what this file and its neighbours can be asked.
func isolation(report func(string, func(*http.Request) any)) {
	report("/reach", reach)
	report("/ask", ask)
	report("/pretend", pretend)
	report("/breakout", breakout)
	report("/writable", writable)
	report("/exhaust", exhaust)
}
