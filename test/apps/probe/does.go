package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// handler is the list of what the app can be asked.
func handler() http.Handler {
	mux := http.NewServeMux()
	report := func(path string, f func(*http.Request) any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(f(r))
		})
	}
	report("/env", env)
	report("/id", id)
	report("/ps", processes)
	report("/net", interfaces)
	report("/cores", cores)
	report("/stdin", stdin)
	report("/stat", stat)
	report("/statfs", statfs)
	report("/ls", list)
	report("/read", read)
	report("/find", find)
	report("/mounts", func(*http.Request) any {
		return read(&http.Request{Form: map[string][]string{"path": {"/proc/self/mountinfo"}}})
	})
	report("/life", func(*http.Request) any { me.mu.Lock(); defer me.mu.Unlock(); return me })
	report("/fs", write)
	report("/syscall", system)
	report("/dial", dial)
	report("/cpu", cpu)
	report("/counter", counter)
	isolation(report)
	protocols(mux)
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/sleep", sleep)
	mux.HandleFunc("/big", big)
	mux.HandleFunc("/log", logs)
	mux.HandleFunc("/exit", exit)
	mux.HandleFunc("/kaithhealth", health)
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "probe") })
	return remember(mux)
}

func remember(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inFlight.Add(1)
		defer inFlight.Add(-1)
		now := time.Now().UnixNano()
		me.mu.Lock()
		if r.URL.Path == "/kaithhealth" {
			me.Probes = append(me.Probes, probe{now, r.RemoteAddr, r.Host, r.Method})
		} else if me.FirstAt == 0 && r.Method != "PRI" { // the probe of an app that may speak HTTP/2 only
			me.FirstAt = now
		}
		me.mu.Unlock()
		w.Header().Set("Probe-Instance", os.Getenv("LEAPCELL_INSTANCE"))
		next.ServeHTTP(w, r)
	})
}

func health(w http.ResponseWriter, r *http.Request) {
	status, err := strconv.Atoi(os.Getenv("PROBE_STATUS"))
	if err != nil {
		status = http.StatusNotFound
	}
	w.WriteHeader(status)
}

func number(r *http.Request, name string) int {
	n, _ := strconv.Atoi(r.FormValue(name))
	return n
}

// write tries to write to a path: data to a new or existing file, or with dir=1 a folder.
func write(r *http.Request) any {
	path := r.FormValue("write")
	if r.FormValue("dir") != "" {
		return done(os.Mkdir(path, 0o755))
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return problem(err)
	}
	defer f.Close()
	_, err = io.WriteString(f, r.FormValue("data"))
	return done(err)
}

func done(err error) map[string]any {
	if err != nil {
		return problem(err)
	}
	return map[string]any{"err": ""}
}

// system tries a system call that an instance must not have, with arguments that are valid
// enough for the kernel to look at who is asking.
func system(r *http.Request) any {
	const keyctl, bpf, addKey, userfaultfd, openByHandle = 250, 321, 248, 323, 304
	var err error
	call := func(nr uintptr, args ...uintptr) {
		args = append(args, 0, 0, 0)
		if _, _, errno := syscall.RawSyscall(nr, args[0], args[1], args[2]); errno != 0 {
			err = errno
		}
	}
	switch r.FormValue("name") {
	case "unshare-user":
		call(syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER)
	case "unshare-net":
		call(syscall.SYS_UNSHARE, syscall.CLONE_NEWNET)
	case "mount":
		err = syscall.Mount("none", "/tmp", "tmpfs", 0, "")
	case "keyctl":
		call(keyctl)
	case "bpf":
		call(bpf)
	case "add_key":
		call(addKey)
	case "userfaultfd":
		call(userfaultfd)
	case "open_by_handle_at":
		call(openByHandle)
	case "setuid":
		err = syscall.Setuid(0)
	case "chroot":
		err = syscall.Chroot("/tmp")
	case "sethostname":
		err = syscall.Sethostname([]byte("x"))
	case "reboot":
		call(syscall.SYS_REBOOT)
	case "socket-packet":
		fd, e := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
		if err = e; e == nil {
			_ = syscall.Close(fd)
		}
	default:
		return problem(fmt.Errorf("unknown call %q", r.FormValue("name")))
	}
	return done(err)
}

func dial(r *http.Request) any {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.FormValue("to"))
	if err == nil {
		_ = conn.Close()
	}
	return done(err)
}

// cpu keeps as many threads busy as asked for and says how much CPU time they got.
func cpu(r *http.Request) any {
	end := time.Now().Add(time.Duration(number(r, "ms")) * time.Millisecond)
	begin, before := time.Now(), cpuTime()
	var wg sync.WaitGroup
	for range max(1, number(r, "threads")) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for x := 1; time.Now().Before(end); x++ {
				for range 1000 {
					x *= 31
				}
			}
		}()
	}
	wg.Wait()
	return map[string]any{"wall": time.Since(begin), "cpu": cpuTime() - before}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func counter(*http.Request) any {
	return map[string]any{"count": ticks.Load(), "at": time.Now().UnixNano(), "cpu": cpuTime()}
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"method": r.Method, "host": r.Host, "path": r.URL.RequestURI(), "header": r.Header, "size": len(body), "body": string(body[:min(len(body), 1<<10)]),
	})
}

func sleep(w http.ResponseWriter, r *http.Request) {
	begin := ticks.Load()
	if r.FormValue("say") != "" {
		fmt.Println("probe: sleeps")
	}
	time.Sleep(time.Duration(number(r, "ms")) * time.Millisecond)
	fmt.Fprintf(w, "slept, ticks=%d\n", ticks.Load()-begin)
}

// big answers with as many bytes as asked for, with their number announced or not.
func big(w http.ResponseWriter, r *http.Request) {
	n := number(r, "bytes")
	if r.FormValue("chunked") == "" {
		w.Header().Set("Content-Length", strconv.Itoa(n))
	} else if d := number(r, "pause"); d > 0 { // let the head leave first
		w.(http.Flusher).Flush()
		time.Sleep(time.Duration(d) * time.Millisecond)
	}
	chunk := strings.Repeat("x", 64<<10)
	for n > 0 {
		k, err := io.WriteString(w, chunk[:min(n, len(chunk))])
		if err != nil {
			return
		}
		n -= k
	}
}

func logs(w http.ResponseWriter, r *http.Request) {
	if s := r.FormValue("out"); s != "" {
		fmt.Fprintln(os.Stdout, s)
	}
	if s := r.FormValue("err"); s != "" {
		fmt.Fprintln(os.Stderr, s)
	}
}

func exit(_ http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(os.Stderr, "probe: exit on request")
	os.Exit(number(r, "code"))
}
