package supervisor

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/image"
)

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }

func get(t *testing.T, address string, header ...string) (int, string) {
	t.Helper()
	r, _ := http.NewRequest("GET", "http://"+address+"/", nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	r.Close = true
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, strings.TrimSpace(string(b))
}

func (n *node) messages() []string {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out []string
	for _, e := range n.events.after(ctx, 0) {
		out = append(out, e.Message)
	}
	return out
}

func contains(list []string, part string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, part) })
}

func TestLifeOfAnInstance(t *testing.T) {
	n := newNode(t, serves(hello))
	n.options.Envs = fakeEnvs{values: map[string]string{"SECRET": "s3cr3t-value", "PORT": "1", "HOME": "/data"}}
	n.restart()
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	if status, body := get(t, req.Address); status != 200 || body != "hello" {
		t.Fatalf("%d %q", status, body)
	}
	c := n.cells.last()
	until(t, "suspension", c.Frozen)
	if s, err := n.Inspect(req.ID); err != nil || s.State != Running || s.PID != 4711 || !s.Gate.Suspended {
		t.Errorf("status %+v, %v", s, err)
	}
	if s, err := n.Stats(req.ID); err != nil || s.Cell.Memory != 6 || s.Gate.Requests != 1 {
		t.Errorf("stats %+v, %v", s, err)
	}
	until(t, "CPU cap", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.ready })
	want := []string{"FROM_IMAGE=1", "HOME=/data", "LEAPCELL_DEPLOYMENT=shop-1", "LEAPCELL_INSTANCE=0a1b2c3d-alloc", "LEAPCELL_MEMORY_MB=256",
		"LEAPCELL_MODE=serverless", "LEAPCELL_SERVICE=shop", "SECRET=s3cr3t-value"}
	for _, e := range want {
		if !slices.Contains(c.cfg.Env, e) {
			t.Errorf("%s is not in the app's environment %q", e, c.cfg.Env)
		}
	}
	if c.env("PORT") == "1" || c.cfg.WorkDir != "/app" || !slices.Equal(c.cfg.Args, []string{"bash", "-c", "./app"}) || c.cfg.CgroupParent != "leapcell-test" {
		t.Errorf("cell %+v", c.cfg)
	}
	until(t, "record", func() bool {
		b, _ := os.ReadFile(n.records.file(req.cellID()))
		return strings.Contains(string(b), `"app":"127`)
	})
	noFileContains(t, n.dir, "s3cr3t-value")
	if err := n.Signal(req.ID, unix.SIGHUP); err != nil {
		t.Error(err)
	}
	until(t, "signal", func() bool { return strings.Contains(n.logged(req, "stdout"), "got SIGHUP") })
	if err := n.Stop(req.ID, 20*time.Second, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := n.wait(req); exit.Code != 0 || exit.Message != "stopped" {
		t.Errorf("exit %+v", exit)
	}
	if out := n.logged(req, "stdout"); out != "listening\ngot SIGHUP\nbye\n" {
		t.Errorf("log %q", out)
	}
	if !contains(n.messages(), "ready: sandbox") {
		t.Errorf("events %q", n.messages())
	}
	n.clean(req)
}

// noFileContains is EN1 for what we write ourselves.
func noFileContains(t *testing.T, dir, secret string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), secret) {
			t.Errorf("%s contains a secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestStopLetsRequestsFinish(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	n := newNode(t, serves(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			close(begun)
			<-release
		}
		hello(w, r)
	}))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	answered := make(chan string, 1)
	go func() {
		_, body := get(t, req.Address)
		answered <- body
	}()
	select {
	case <-begun:
	case body := <-answered:
		t.Fatalf("answered %q without the app", body)
	}
	stopped := make(chan struct{})
	go func() { n.Stop(req.ID, time.Minute, 0); close(stopped) }()
	until(t, "drain", func() bool { s, _ := n.Inspect(req.ID); return s.Gate.State == "draining" })
	if status, _ := get(t, req.Address); status != 503 {
		t.Errorf("a new request got %d", status)
	}
	if len(n.cells.last().signals) > 0 {
		t.Error("the app was signalled while it worked")
	}
	close(release)
	if body := <-answered; body != "hello" {
		t.Errorf("the request in flight got %q", body)
	}
	<-stopped
	if !contains(n.messages(), "drained: 1 requests") {
		t.Errorf("events %q", n.messages())
	}
	n.clean(req)
}

func TestStartThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(n *node)
		message string
		prefix  string
	}{
		"no image":   {func(n *node) { n.images.pull = func(context.Context) error { return errors.New("404") } }, "the image could not be pulled: 404", leapcell.StartFailedPrefix},
		"no sandbox": {func(n *node) { n.cells.refuse = errors.New("runc is broken") }, "runc is broken", leapcell.StartFailedPrefix},
		"no env": {func(n *node) {
			n.options.Envs = fakeEnvs{err: leapcell.Wrap(leapcell.CodeUnavailable, errors.New("503"), "Vault is sealed")}
			n.restart()
		}, "Vault is sealed", leapcell.StartUnavailablePrefix},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, hangs)
			c.change(n)
			req := n.request(leapcell.TaskServerless)
			n.start(req)
			if status, body := get(t, req.Address); status != 502 || body != leapcell.TextStartFailed {
				t.Errorf("visitor got %d %q", status, body)
			}
			exit := n.wait(req)
			if exit.Code == 0 || exit.Message != c.prefix+c.message {
				t.Errorf("exit %+v", exit)
			}
			if status, body := get(t, req.Address, leapcell.HeaderProbe, "1"); status != 502 || !strings.Contains(body, c.message) {
				t.Errorf("owner got %d %q after the end", status, body)
			}
			if log := n.logged(req, "stderr"); !strings.Contains(log, c.message) || !contains(n.messages(), c.message) {
				t.Errorf("log %q, events %q", log, n.messages())
			}
			n.clean(req)
		})
	}
}

func TestLC6_AppExits(t *testing.T) {
	n := newNode(t, exits(3, "cannot open config\n"))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	if exit := n.wait(req); exit.Code != 3 || exit.Message != "exited with code 3" {
		t.Errorf("exit %+v", exit)
	}
	if log := n.logged(req, "stderr"); log != "cannot open config\nleapcell: exited with code 3\n" {
		t.Errorf("log %q", log)
	}
	n.clean(req)
	n.cells.program = serves(hello)
	n.start(req) // as Nomad does: same task, same address
	if status, body := get(t, req.Address); status != 200 || body != "hello" {
		t.Errorf("after the restart: %d %q", status, body)
	}
}

// An app that somebody kills while it starts has not failed: whoever waits is sent to the next
// instance, and the owner is told that Nomad tries again.
func TestKilledByOthersDuringItsStart(t *testing.T) {
	n := newNode(t, func(c *fakeCell) { c.end(cell.Exit{Code: 137, Signal: 9}) })
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	if status, _ := get(t, req.Address); status != 503 {
		t.Errorf("visitor got %d", status)
	}
	if exit := n.wait(req); exit.Code != 137 || !strings.HasPrefix(exit.Message, leapcell.StartUnavailablePrefix) {
		t.Errorf("exit %+v", exit)
	}
	n.clean(req)
	n.cells.program = serves(hello)
	n.start(req) // as Nomad does
	if status, body := get(t, req.Address); status != 200 || body != "hello" {
		t.Errorf("after the restart: %d %q", status, body)
	}
}

// Who hears of the end from the gate reads the log next, for the reason.
func TestLC6_LastWordsAreInTheLogFirst(t *testing.T) {
	n := newNode(t, exits(3, strings.Repeat("x", 2*logBurst)+"last words\n")) // so much that copying pauses
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	if status, _ := get(t, req.Address); status != 502 {
		t.Errorf("visitor got %d", status)
	}
	if log := n.logged(req, "stderr"); !strings.Contains(log, "last words\n") {
		t.Errorf("%d bytes are logged, without the last", len(log))
	}
	n.wait(req)
}

func TestLC5_WrongPort(t *testing.T) {
	n := newNode(t, hangs)
	req := n.request(leapcell.TaskServerless)
	req.Config.StartTimeout = "50ms"
	text := leapcell.PortNotListeningText(req.Config.Port)
	n.start(req)
	if status, body := get(t, req.Address); status != 502 || body != text {
		t.Errorf("visitor got %d %q", status, body)
	}
	if exit := n.wait(req); exit.Code == 0 || exit.Message != text {
		t.Errorf("exit %+v", exit)
	}
	if log := n.logged(req, "stderr"); !strings.Contains(log, text) {
		t.Errorf("log %q", log)
	}
	n.clean(req)
}

func TestID6_OutOfMemory(t *testing.T) {
	n := newNode(t, func(c *fakeCell) { c.end(cell.Exit{Code: 137, Signal: 9, OOM: true}) })
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	if exit := n.wait(req); !exit.OOM || exit.Message != "out of memory: limit 256 MB" {
		t.Errorf("exit %+v", exit)
	}
}

func TestStopDuringTheStart(t *testing.T) {
	n := newNode(t, hangs)
	n.images.pull = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	if err := n.Stop(req.ID, time.Second, 0); err != nil {
		t.Fatal(err)
	}
	if exit := n.wait(req); exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
	n.clean(req)
}

func TestStartIsRepeatable(t *testing.T) {
	n := newNode(t, serves(hello))
	req := n.request(leapcell.TaskPersistent)
	n.start(req)
	n.start(req)
	get(t, req.Address)
	if len(n.cells.cells) != 1 {
		t.Errorf("%d cells", len(n.cells.cells))
	}
	if err := n.Shutdown(false); err == nil {
		t.Error("shut down under a running task")
	}
	if err := n.Destroy(req.ID, false); err == nil {
		t.Error("destroyed a running task")
	}
	if err := n.Destroy(req.ID, true); err != nil {
		t.Error(err)
	}
}

func TestInvalidRequests(t *testing.T) {
	n := newNode(t, hangs)
	for part, change := range map[string]func(r *StartRequest){
		`mode is "fast"`:        func(r *StartRequest) { r.Config.Mode = "fast" },
		"image is empty":        func(r *StartRequest) { r.Config.Image = "" },
		`no port labelled`:      func(r *StartRequest) { r.Address = "" },
		`start_timeout is "1h"`: func(r *StartRequest) { r.Config.StartTimeout = "1hour" },
		"memory is 0":           func(r *StartRequest) { r.MemoryMB = 0 },
		"memory is 127 MB: it must be from 128 to 7076": func(r *StartRequest) { r.MemoryMB = 127 },
		"memory is 8000 MB":                             func(r *StartRequest) { r.MemoryMB = 8000 },
		"concurrency is 2000":                           func(r *StartRequest) { r.Config.Concurrency = 2000 },
		"start_timeout is \"2m\": at most 1m0s":         func(r *StartRequest) { r.Config.StartTimeout = "2m" },
		"port is 70000":                                 func(r *StartRequest) { r.Config.Port = 70000 },
		"mode build needs":                              func(r *StartRequest) { r.Config.Mode, r.Config.Output = leapcell.TaskBuild, "" },
		`caches contains "/"`:                           func(r *StartRequest) { r.Config.Caches = []string{"/"} },
	} {
		req := n.request(leapcell.TaskServerless)
		change(&req)
		_, err := n.Start(req)
		if leapcell.ErrorCode(err) != leapcell.CodeInvalid || !strings.Contains(err.Error(), strings.TrimSuffix(part, `"1h"`)) {
			t.Errorf("%s: %v", part, err)
		}
	}
}

func TestRecover(t *testing.T) {
	n := newNode(t, serves(hello))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	c := n.cells.last()
	until(t, "suspension", c.Frozen)
	until(t, "record", func() bool {
		b, _ := os.ReadFile(n.records.file(req.cellID()))
		return strings.Contains(string(b), `"app":"127`)
	})
	dead := n.Supervisor
	// What a kill does to the old one: its listener is closed, all else just stops.
	old, _ := dead.task(req.ID)
	old.gate.Close(context.Background())
	n.restart()
	if err := n.Recover(); err != nil {
		t.Fatal(err)
	}
	if status, body := get(t, req.Address); status != 200 || body != "hello" {
		t.Errorf("%d %q", status, body)
	}
	if len(n.cells.cells) != 1 {
		t.Error("the app was started again")
	}
	until(t, "suspension", c.Frozen)
	if err := n.Stop(req.ID, time.Second, 0); err != nil {
		t.Fatal(err)
	}
	if exit := n.wait(req); exit.Message != "stopped" {
		t.Errorf("exit %+v", exit)
	}
	<-old.done
}

func TestRecoverOfWhatIsGone(t *testing.T) {
	n := newNode(t, hangs)
	req := n.request(leapcell.TaskServerless)
	if err := n.records.save(record{Request: req, PID: 1, Netns: "ns-1"}); err != nil {
		t.Fatal(err)
	}
	if err := n.Recover(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if exit := n.wait(req); exit.Code == 0 || exit != missed(record{Request: req}, nil) {
			t.Errorf("exit %+v", exit)
		}
		n.restart() // the result is there for the next one, too
		if err := n.Recover(); err != nil {
			t.Fatal(err)
		}
	}
	n.clean(req)
}

func TestRecoverDuringABuild(t *testing.T) {
	n := newNode(t, hangs)
	req := n.request(leapcell.TaskBuild)
	n.start(req)
	until(t, "record", func() bool {
		b, _ := os.ReadFile(n.records.file(req.cellID()))
		return strings.Contains(string(b), `"pid":4711`)
	})
	former, err := n.task(req.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { <-former.done }() // it was not really killed and still writes
	n.restart()
	if err := n.Recover(); err != nil {
		t.Fatal(err)
	}
	if exit := n.wait(req); exit.Code == 0 {
		t.Errorf("exit %+v", exit)
	}
	if !n.cells.last().isDeleted() {
		t.Error("the build runs on")
	}
}

func TestBuild(t *testing.T) {
	n := newNode(t, func(c *fakeCell) {
		io.WriteString(c.stdout, "one\n")
		io.WriteString(c.stderr, "two\n")
		io.WriteString(c.stdout, "three\n")
		c.end(cell.Exit{})
	})
	n.options.Build = BuildConfig{Env: map[string]string{"HTTP_PROXY": "http://proxy"}, Files: map[string]string{"/etc/pip.conf": "/host/pip.conf"}}
	n.restart()
	req := n.request(leapcell.TaskBuild)
	req.Config.Caches, req.Config.CPUs = []string{"/root/.cache/pip"}, 2
	n.start(req)
	if exit := n.wait(req); exit.Code != 0 || exit.Message != "image sha256:abc" {
		t.Errorf("exit %+v", exit)
	}
	log := n.logged(req, "stdout")
	if !strings.HasPrefix(log, "one\ntwo\nthree\n==> packaging\n==> publishing\nimage sha256:abc") {
		t.Errorf("log %q", log)
	}
	c := n.cells.last().cfg
	cache := filepath.Join(n.dir, "caches", req.Config.ServiceID)
	if c.CPUs != 2 || !slices.Contains(c.Env, "HTTP_PROXY=http://proxy") || !slices.Contains(c.Env, "HOME=/root") || contains(c.Env, "LEAPCELL_") ||
		len(c.Mounts) != 2 || c.Mounts[0] != (cell.Mount{Source: "/host/pip.conf", Target: "/etc/pip.conf", ReadOnly: true}) ||
		c.Mounts[1].Target != "/root/.cache/pip" || c.Mounts[1].ReadOnly || filepath.Dir(c.Mounts[1].Source) != cache {
		t.Errorf("cell %+v", c)
	}
	r := n.images.committed[0]
	if n.images.output != req.Config.Output || !slices.Equal(r.Cmd, []string{"bash", "-c", "./app --serve"}) || r.WorkDir != "/app" ||
		!slices.Equal(r.Exclude, []string{"/root/.cache/pip", "/etc/pip.conf"}) {
		t.Errorf("committed %+v", r)
	}
	var phases []string
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, e := range n.events.after(ctx, 0) {
		if p := e.Annotations[leapcell.PhaseAnnotation]; p != "" {
			phases = append(phases, p)
		}
	}
	if !slices.Equal(phases, []string{"building", "packaging", "publishing"}) {
		t.Errorf("phases %q", phases)
	}
	n.clean(req)
	if _, err := os.Stat(cache); err != nil {
		t.Errorf("the cache is gone: %v", err)
	}
}

func TestBuildThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		program func(*fakeCell)
		commit  error
		timeout string
		code    int
		message string
	}{
		"command": {program: exits(2, "no such package\n"), code: 2, message: "the build command exited with code 2"},
		"timeout": {program: func(c *fakeCell) { <-c.ended }, timeout: "50ms", code: 1, message: "the build took longer than its limit of 50ms"},
		"memory":  {program: func(c *fakeCell) { c.end(cell.Exit{Code: 137, OOM: true}) }, code: 137, message: "out of memory: the build was killed at 256 MB"},
		"killed":  {program: func(c *fakeCell) { c.end(cell.Exit{Code: 137, Signal: 9}) }, code: 137, message: "the build command was killed from outside of its sandbox: deploy again"},
		"disk":    {program: exits(0, ""), commit: &fs.PathError{Op: "write", Path: "/x", Err: unix.ENOSPC}, code: 1, message: "the image could not be published: no space left on the node's disk"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, c.program)
			n.images.commit = func(context.Context, image.Result) error { return c.commit }
			req := n.request(leapcell.TaskBuild)
			req.Config.Timeout = c.timeout
			n.start(req)
			if exit := n.wait(req); exit.Code != c.code || exit.Message != c.message {
				t.Errorf("exit %+v", exit)
			}
			if log := n.logged(req, "stdout"); !strings.HasSuffix(log, "leapcell: "+c.message+"\n") {
				t.Errorf("log %q", log)
			}
			n.clean(req)
		})
	}
}

func TestBuildStopped(t *testing.T) {
	n := newNode(t, hangs)
	req := n.request(leapcell.TaskBuild)
	n.start(req)
	until(t, "cell", func() bool { s, _ := n.Inspect(req.ID); return s.State == Running })
	if err := n.Stop(req.ID, 10*time.Second, 0); err != nil {
		t.Fatal(err)
	}
	if exit := n.wait(req); exit.Code == 0 || exit.Message != "the build was stopped" {
		t.Errorf("exit %+v", exit)
	}
	n.clean(req)
}
