package contract

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// How attempts to break out are refused: the errors that each may give. Those that are not
// here must give EPERM.
var refusedWith = map[string]string{
	"clone3 newuser": "ENOSYS", // its flags cannot be filtered; libraries use clone then
	"io_uring_setup": "EPERM ENOSYS",
	"more files":     "EPERM",
	"nice":           "EACCES EPERM", "realtime": "EPERM",

	"mknod block": "EPERM", "mknod mem": "EPERM",
	"inject keystrokes": "inappropriate ioctl for device",
	"descriptors":       "ENOENT",
	"follow own root":   "ENOENT", "follow first root": "ENOENT EACCES", "follow cwd": "ENOENT",

	"abstract socket of the machine": "connection refused",
	"socket crypto":                  "EPERM", "socket vsock": "EPERM",
	"socket xdp": "EPERM address family not supported by protocol", "socket key": "EPERM address family not supported by protocol",

	"kill": "ESRCH", "ptrace": "ESRCH EPERM", "pidfd": "ESRCH", "its root": "ENOENT", "its memory": "ENOENT",
	"process_vm": "ESRCH EPERM", "its limits": "ESRCH EPERM",
}

// refusedFile is how the kernel's files are kept: read-only, not this user's, masked or absent.
var refusedFile = []string{"EROFS", "EACCES", "EPERM", "ENOENT", "ENXIO", "ENODEV", "EINVAL", "empty: EOF", "EISDIR", "ENOTDIR", "empty: <nil>"}

func TestMust_FS5_NoWayOut(t *testing.T) {
	t.Parallel()
	unique := make([]byte, 6)
	_, _ = rand.Read(unique) // never fails
	name := "leapcell-test-" + hex.EncodeToString(unique)
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		q := url.Values{"abstract": {name}, "pid": {fmt.Sprint(max(os.Getpid(), 5000))}}
		tries := map[string]string{}
		s.Read(t, "/breakout?"+q.Encode(), &tries)
		if len(tries) < 120 {
			t.Fatalf("only %d attempts were made", len(tries))
		}
		for what, got := range tries {
			allowed := strings.Contains(" "+cmp.Or(refusedWith[what], "EPERM")+" ", " "+got+" ") || refusedWith[what] == got
			if strings.HasPrefix(what, "read ") || strings.HasPrefix(what, "write ") {
				allowed = slices.Contains(refusedFile, got) || strings.HasPrefix(got, "empty: ")
			}
			if strings.HasPrefix(what, "socket ") && strings.HasSuffix(refusedWith[what], got) {
				allowed = got != ""
			}
			if !allowed || got == "" {
				t.Errorf("%s: %q, want %s", what, got, cmp.Or(refusedWith[what], "EPERM"))
			}
		}
		t.Logf("%d attempts, all refused", len(tries))
	})
}

// Whatever a walk through the whole tree finds to be writable must be known here.
func TestMust_FS1_NothingElseIsWritable(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, mode leapcell.Mode, s *harness.Service) {
		var r struct{ Found []string }
		s.Read(t, "/writable", &r)
		if !slices.Contains(r.Found, "/tmp/") {
			t.Fatalf("not even /tmp is writable: the walk shows nothing (%d found)", len(r.Found))
		}
		for _, path := range r.Found {
			switch {
			case strings.HasPrefix(path, "/tmp/"), path == "/dev/mqueue/":
			case mode == leapcell.Persistent && !strings.HasPrefix(path, "/proc") && !strings.HasPrefix(path, "/sys") && (!strings.HasPrefix(path, "/dev") || path == "/dev/shm/"):
			default:
				t.Errorf("%s is writable", path)
			}
		}
		t.Logf("%d writable", len(r.Found))
	})
}

// A working directory that is a link to an open descriptor of the runtime once led to the
// machine's own tree (CVE-2024-21626).
func TestMust_FS5_WorkingDirectoryIsInside(t *testing.T) {
	t.Parallel()
	for _, number := range []int{7, 8} {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			s := harness.Get(t).Create(t, harness.Spec{Settings: leapcell.Settings{StartTimeout: leapcell.Duration(harness.Stretch(5*time.Second, 30*time.Second))}})
			s.Set(t, leapcell.Settings{
				BuildCommand: fmt.Sprintf("cp probe /usr/local/bin/probe && chmod 755 /usr/local/bin/probe && cd / && rm -rf /app && ln -s /proc/self/fd/%d /app", number),
				StartCommand: "exec /usr/local/bin/probe",
			})
			d := s.TryDeploy(t)
			if d.State != leapcell.Live {
				t.Logf("not started: %+v", d.Error)
				return
			}
			var r struct{ Err string }
			if s.Read(t, "/stat?path=../../../../../../../../"+url.QueryEscape(harness.Get(t).Config.StateDir), &r); r.Err != "ENOENT" {
				t.Errorf("the machine's tree can be reached: %q", r.Err)
			}
		})
	}
}

// watch is a neighbour's visitor that notes how long each visit takes.
type watch struct {
	mu    sync.Mutex
	took  []time.Duration
	fails []string
	stop  func()
}

func neighbour(t *testing.T) (*harness.Service, func() *watch) {
	s := harness.Get(t).Probe(t, harness.Spec{})
	return s, func() *watch {
		w := &watch{}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			visitor := harness.Get(t).Visitor()
			defer visitor.CloseIdleConnections()
			for ctx.Err() == nil {
				begin := time.Now()
				r, err := s.Visit(context.Background(), visitor, "/")
				w.note(time.Since(begin), r, err)
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
		w.stop = func() { cancel(); wg.Wait() }
		return w
	}
}

func (w *watch) note(d time.Duration, r harness.Reply, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil || r.Status != http.StatusOK || r.Err != nil {
		w.fails = append(w.fails, fmt.Sprintf("%d %.100q %v %v", r.Status, r.Body, r.Err, err))
		return
	}
	w.took = append(w.took, d)
}

// end stops the visits, fails the test if one failed, and gives median and 99th percentile.
func (w *watch) end(t *testing.T) string {
	t.Helper()
	w.stop()
	if len(w.fails) > 0 {
		t.Errorf("%d of the neighbour's visits failed, the first: %s", len(w.fails), w.fails[0])
	}
	if len(w.took) == 0 {
		t.Error("the neighbour was never visited")
		return "no visits"
	}
	slices.Sort(w.took)
	at := func(q float64) time.Duration {
		return w.took[int(q*float64(len(w.took)-1))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d visits, p50 %s, p99 %s", len(w.took), at(0.5), at(0.99))
}

// Each takes all it can get of one thing. The neighbour on the same machine goes on answering.
func TestMust_ID6_ExhaustionStaysInside(t *testing.T) {
	harness.Quick(t)
	_, begin := neighbour(t)
	modes(t, func(t *testing.T, mode leapcell.Mode, _ *harness.Service) {
		s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: mode, MemoryMB: 1024}})
		platform := harness.Get(t).Parts("nomad", "agent")
		w := begin()
		time.Sleep(2 * time.Second) // of figures to compare with, no synchronisation
		t.Logf("%-28s %s", "neighbour before", w.end(t))
		for _, what := range attacks(mode) {
			w := begin()
			var r struct {
				Err   string
				Count int
			}
			s.Read(t, "/exhaust?"+what.query, &r)
			t.Logf("%-28s %s; took %d, %s", what.name, w.end(t), r.Count, cmp.Or(r.Err, "no error"))
			if r.Count < what.least || r.Count > what.most || what.err != "" && r.Err != what.err {
				t.Errorf("%s: took %d (%q), want %d to %d (%q)", what.name, r.Count, r.Err, what.least, what.most, what.err)
			}
			if reply := s.Get(t, "/"); reply.Status != http.StatusOK {
				t.Errorf("after %s the instance itself answers %d", what.name, reply.Status)
			}
		}
		for _, p := range platform {
			if !p.Alive() {
				t.Errorf("process %d of the platform is gone", p.PID)
			}
		}
		if len(platform) == 0 {
			t.Error("no Nomad agent was found: this shows nothing")
		}
	})
}

type attack struct {
	name, query string
	least, most int
	err         string
}

func attacks(mode leapcell.Mode) []attack {
	list := []attack{
		{"/tmp", "what=disk&dir=/tmp", 300, 512, "ENOSPC"},
		{"files in /tmp", "what=inodes&dir=/tmp&max=20000", 1000, 20000, ""},
		{"descriptors", "what=files", 500, 65536, "too many open files"},
		{"log", "what=log&ms=3000", 1, 1 << 20, ""},
	}
	if mode == leapcell.Persistent {
		list = append(list,
			attack{"root", "what=allocated&dir=/app", 500, 10240, "ENOSPC"},
			attack{"files in the root", "what=inodes&dir=/app&max=20000", 1000, 20000, ""})
	}
	return list
}

// The app itself may die of it: its runtime wants threads that it does not get.
func TestMust_ID6_ForkBombStaysInside(t *testing.T) {
	_, begin := neighbour(t)
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		instance := s.Get(t, "/").Instance()
		w := begin()
		answered := make(chan error, 1)
		go func() {
			_, err := s.Visit(context.Background(), harness.Get(t).HTTP, fmt.Sprintf("/exhaust?what=processes&ms=%d", harness.Stretch(2*time.Second, 20*time.Second).Milliseconds()))
			answered <- err
		}()
		most := 0
		for done := false; !done; {
			select {
			case err := <-answered:
				if err != nil {
					t.Error(err)
				}
				done = true
			case <-time.After(200 * time.Millisecond): // there is no event for "forked"
				most = max(most, len(harness.Members(instance)))
			}
		}
		t.Logf("neighbour: %s; up to %d processes were seen", w.end(t), most)
		if most < 20 || most > leapcell.PidsLimit {
			t.Errorf("%d processes were seen, want up to %d", most, leapcell.PidsLimit)
		}
		harness.Eventually(t, aMinute, "the service is there again", func() bool { return s.Get(t, "/").Status == http.StatusOK })
	})
}

// Logs have a size, however much is written.
func TestMust_ID6_LogsAreBounded(t *testing.T) {
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{MemoryMB: 1769}})
	var r struct{ Count int }
	s.Read(t, "/exhaust?what=log&ms=5000", &r)
	if r.Count < 25 {
		t.Skipf("only %d MB were written: this machine is too slow to show anything", r.Count)
	}
	var size int64
	alloc := filepath.Join(harness.Get(t).Config.StateDir, "nomad", "data", "alloc", s.Allocs(t)[0].ID, "alloc", "logs")
	entries, err := os.ReadDir(alloc)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			size += info.Size()
			if !info.Mode().IsRegular() {
				t.Errorf("%s is no plain file: %s", e.Name(), info.Mode())
			}
		}
	}
	t.Logf("%d MB were written, the log has %d MB", r.Count, size>>20)
	if size > 41<<20 {
		t.Errorf("the log has %d bytes", size)
	}
}

func TestMust_ID6_MemoryBombEndsItself(t *testing.T) {
	_, begin := neighbour(t)
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		first := s.Get(t, "/").Instance()
		w := begin()
		if r := s.Get(t, "/exhaust?what=memory"); r.Status == http.StatusOK {
			t.Errorf("memory without end: %d %q", r.Status, r.Body)
		}
		t.Logf("neighbour: %s", w.end(t))
		harness.Eventually(t, aMinute, "the instance is replaced", func() bool {
			r := s.Get(t, "/")
			return r.Status == http.StatusOK && (r.Instance() != first || age(t, s) < 60)
		})
		harness.Eventually(t, 20*time.Second, "the log says why", func() bool {
			return strings.Contains(s.Logs(t), "out of memory: limit 256 MB")
		})
	})
}

// age is how many seconds ago the app was started.
func age(t *testing.T, s *harness.Service) float64 {
	var id identity
	s.Read(t, "/id", &id)
	return time.Since(time.Unix(0, id.StartedAt)).Seconds()
}
