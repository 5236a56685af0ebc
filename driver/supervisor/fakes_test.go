package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/image"
	"github.com/leapcell/leapcell/internal/ports"
)

// fakeImages has every image but those that pull refuses.
type fakeImages struct {
	pull   func(ctx context.Context) error
	commit func(ctx context.Context, r image.Result) error

	mount func() // called by Mount, with the mount made

	mu        sync.Mutex
	mounted   map[string]bool
	committed []image.Result
	output    string

	tree           map[string]string // what a writable mount shows, once it is there
	push           error
	artifact       v1.Image
	artifactOutput string
}

func (f *fakeImages) Pull(ctx context.Context, ref string) (*image.Image, error) {
	if f.pull != nil {
		if err := f.pull(ctx); err != nil {
			return nil, err
		}
	}
	return &image.Image{Ref: ref, Env: []string{"PATH=/bin", "FROM_IMAGE=1"}, WorkDir: "/app"}, nil
}

func (f *fakeImages) Mount(_ *image.Image, dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mounted == nil {
		f.mounted = map[string]bool{}
	}
	f.mounted[dir] = true
	if f.mount != nil {
		f.mu.Unlock()
		f.mount()
		f.mu.Lock()
	}
	return nil
}

func (f *fakeImages) MountWritable(img *image.Image, dir, scratch string) error {
	if err := os.MkdirAll(image.Upper(scratch), 0o755); err != nil {
		return err
	}
	for name, content := range f.tree {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			if err := os.Symlink(target, name); err != nil {
				return err
			}
		} else if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return f.Mount(img, dir)
}

func (f *fakeImages) Unmount(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mounted, dir)
	return nil
}

func (f *fakeImages) PushLayout(context.Context, string, string, int64, func(leapcell.State, string)) (string, int64, error) {
	return "sha256:pushed", 1, nil
}

func (f *fakeImages) Mirror(string) (http.Handler, io.Closer, error) {
	return http.NotFoundHandler(), io.NopCloser(nil), nil
}

func (f *fakeImages) Push(_ context.Context, artifact v1.Image, output string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.artifact, f.artifactOutput = artifact, output
	return f.push
}

func (f *fakeImages) Commit(ctx context.Context, _ *image.Image, r image.Result, output string, progress func(leapcell.State, string)) (string, int64, error) {
	progress(leapcell.Packaging, "packaging")
	progress(leapcell.Publishing, "publishing")
	if f.commit != nil {
		if err := f.commit(ctx, r); err != nil {
			return "", 0, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.committed, f.output = append(f.committed, r), output
	return "sha256:abc", 1e6, nil
}

func (f *fakeImages) left() int { f.mu.Lock(); defer f.mu.Unlock(); return len(f.mounted) }

// fakeCaches are plain folders.
type fakeCaches struct{ dir string }

func (f fakeCaches) Recover() {}
func (f fakeCaches) Take(_ context.Context, name string, _ int) (folder, said string, release func(), err error) {
	return filepath.Join(f.dir, name), "", func() {}, nil
}

func (f fakeCaches) Forget(names ...string) error {
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(f.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// fakeNetworks hands out namespaces that are all the host's own network.
type fakeNetworks struct {
	got func() // called by Get, with the namespace handed out

	mu   sync.Mutex
	out  map[string]bool
	held map[string]bool // left by a supervisor that died
}

type fakeNamespace struct{ name string }

func (n fakeNamespace) NetnsName() string { return n.name }
func (n fakeNamespace) NetnsPath() string { return "/netns/" + n.name }
func (n fakeNamespace) Dial(ctx context.Context, address string) (net.Conn, error) {
	host, port, _ := net.SplitHostPort(address)
	at, ok := apps.Load(port)
	if !ok || host != "127.0.0.1" { // where apps listen: one that begins between two questions is asked again
		return nil, unix.ECONNREFUSED
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", at.(string))
}

// apps says where the app with that port inside really listens: on a port that the kernel
// chose, so that no two tests can meet.
var (
	apps     sync.Map
	nextPort atomic.Int32
)

func (f *fakeNetworks) Get(context.Context) (Namespace, error) {
	n, err := f.Adopt("ns-1")
	if f.got != nil {
		f.got()
	}
	return n, err
}

// died is the end of the supervisor that had the namespaces.
func (f *fakeNetworks) died() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held, f.out = f.out, nil
}

func (f *fakeNetworks) Adopt(name string) (Namespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.out == nil {
		f.out = map[string]bool{}
	}
	f.out[name] = true
	delete(f.held, name)
	return fakeNamespace{name}, nil
}

func (f *fakeNetworks) Put(n Namespace) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.out, n.NetnsName())
}
func (f *fakeNetworks) Settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = nil
}
func (f *fakeNetworks) ResolvConf() []byte { return []byte("nameserver 192.0.2.1\n") }
func (f *fakeNetworks) Close() error       { return nil }
func (f *fakeNetworks) left() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.out) + len(f.held)
}

// fakeCells starts cells that are functions: program is the app.
type fakeCells struct {
	exec    func(ctx context.Context, c *fakeCell, e cell.ExecConfig) (cell.Exit, error)
	program func(c *fakeCell)
	made    func() // called by Start, with the process made
	refuse  error
	adopted func(c *fakeCell) Cell // what Adopt gives in place of the cell

	mu    sync.Mutex
	cells []*fakeCell
}

func (f *fakeCells) Start(_ context.Context, cfg cell.Config) (Cell, error) {
	if f.refuse != nil {
		return nil, f.refuse
	}
	c := &fakeCell{cfg: cfg, exec: f.exec, ended: make(chan struct{}), signals: make(chan unix.Signal, 8), started: time.Now()}
	f.mu.Lock()
	c.pid = 4711 + len(f.cells)
	f.cells = append(f.cells, c)
	f.mu.Unlock()
	// The app keeps its outputs over the supervisor's end, as a process does.
	for _, out := range []**os.File{&c.stdout, &c.stderr} {
		file := cfg.Stdout
		if out == &c.stderr {
			file = cfg.Stderr
		}
		fd, err := unix.Dup(int(file.Fd()))
		if err != nil {
			return nil, err
		}
		*out = os.NewFile(uintptr(fd), file.Name())
	}
	go f.program(c)
	if f.made != nil {
		f.made()
	}
	return c, nil
}

func (f *fakeCells) Adopt(cfg cell.Config, pid int) (Cell, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.cells {
		if c.PID() == pid && !c.isDeleted() {
			if f.adopted != nil {
				return f.adopted(c), nil
			}
			return c, nil
		}
	}
	for _, c := range f.cells { // what there is of it goes, whoever it is
		if c.cfg.ID == cfg.ID && !c.isDeleted() {
			_, _ = c.Kill(), c.Delete()
		}
	}
	return nil, errors.New("no such process")
}

func (f *fakeCells) last() *fakeCell {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cells[len(f.cells)-1]
}

type fakeCell struct {
	exec           func(ctx context.Context, c *fakeCell, e cell.ExecConfig) (cell.Exit, error)
	cfg            cell.Config
	pid            int
	started        time.Time
	stdout, stderr *os.File
	ended          chan struct{}
	signals        chan unix.Signal
	once           sync.Once
	exit           cell.Exit

	mu      sync.Mutex
	frozen  bool
	ready   bool
	deleted bool
}

func (c *fakeCell) end(e cell.Exit) { c.once.Do(func() { c.exit = e; close(c.ended) }) }

func (c *fakeCell) PID() int             { return c.pid }
func (c *fakeCell) StartedAt() time.Time { return c.started }
func (c *fakeCell) Wait(ctx context.Context) (cell.Exit, error) {
	select {
	case <-c.ended:
		return c.exit, nil
	case <-ctx.Done():
		return cell.Exit{}, ctx.Err()
	}
}
func (c *fakeCell) Signal(sig unix.Signal) error {
	if err := c.Thaw(); err != nil {
		return err
	}
	select {
	case c.signals <- sig:
	default:
	}
	return nil
}
func (c *fakeCell) set(b *bool, v bool) error { c.mu.Lock(); defer c.mu.Unlock(); *b = v; return nil }
func (c *fakeCell) Freeze() error             { return c.set(&c.frozen, true) }
func (c *fakeCell) Thaw() error               { return c.set(&c.frozen, false) }
func (c *fakeCell) Frozen() bool              { c.mu.Lock(); defer c.mu.Unlock(); return c.frozen }
func (c *fakeCell) SetReady() error           { return c.set(&c.ready, true) }
func (c *fakeCell) isDeleted() bool           { c.mu.Lock(); defer c.mu.Unlock(); return c.deleted }
func (c *fakeCell) Stats() (cell.Stats, error) {
	return cell.Stats{CPUNanos: 5, Memory: 6}, nil
}
func (c *fakeCell) Exec(ctx context.Context, e cell.ExecConfig) (cell.Exit, error) {
	return c.exec(ctx, c, e)
}
func (c *fakeCell) Kill() error { c.end(cell.Exit{Code: 137, Signal: 9}); return nil }
func (c *fakeCell) Delete() error {
	_ = c.stdout.Close()
	_ = c.stderr.Close()
	return c.set(&c.deleted, true)
}

// serves is a program that answers on its port until it is told to end.
func serves(h http.HandlerFunc) func(c *fakeCell) {
	return func(c *fakeCell) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			c.end(cell.Exit{Code: 98})
			return
		}
		apps.Store(c.env("PORT"), l.Addr().String())
		defer apps.Delete(c.env("PORT"))
		server := &http.Server{Handler: h}
		go server.Serve(l)
		io.WriteString(c.stdout, "listening\n")
		for {
			select {
			case sig := <-c.signals:
				if sig != unix.SIGTERM {
					io.WriteString(c.stdout, "got "+unix.SignalName(sig)+"\n")
					continue
				}
				io.WriteString(c.stdout, "bye\n")
				server.Close()
				c.end(cell.Exit{Code: 143, Signal: 15})
			case <-c.ended:
				server.Close()
			}
			return
		}
	}
}

// exits is a program that writes to stderr and ends.
func exits(code int, text string) func(c *fakeCell) {
	return func(c *fakeCell) {
		io.WriteString(c.stderr, text)
		c.end(cell.Exit{Code: code})
	}
}

func hangs(c *fakeCell) { <-c.signals; c.end(cell.Exit{Code: 143, Signal: 15}) }

func (c *fakeCell) env(name string) string {
	for _, e := range c.cfg.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

type fakeEnvs struct {
	values map[string]string
	err    error
}

func (f fakeEnvs) Read(context.Context, StartRequest) (map[string]string, error) {
	return f.values, f.err
}

// node is a supervisor on fakes.
type node struct {
	*Supervisor
	t        *testing.T
	dir      string
	images   *fakeImages
	networks *fakeNetworks
	cells    *fakeCells
	options  Options
	reaps    bool // its supervisors are on a kernel that tells only parents how a process ended
	n        int
}

func newNode(t *testing.T, program func(*fakeCell)) *node {
	n := &node{t: t, dir: t.TempDir(), images: &fakeImages{}, networks: &fakeNetworks{}, cells: &fakeCells{program: program}}
	n.options = Options{
		Group: "leapcell-test", RunDir: filepath.Join(n.dir, "run"), RecordDir: filepath.Join(n.dir, "tasks"),
		ScratchDir:     filepath.Join(n.dir, "scratch"),
		HandoverSocket: filepath.Join(n.dir, "handover.sock"),
		SuspendAfter:   5 * time.Millisecond,
		Images:         n.images, Networks: n.networks, Cells: n.cells, Envs: fakeEnvs{}, Caches: fakeCaches{filepath.Join(n.dir, "caches")},
	}
	n.restart()
	t.Cleanup(func() {
		if err := n.Shutdown(true); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) restart() {
	n.Supervisor = New(n.options)
	n.Supervisor.reaps = n.reaps // whatever this machine's kernel does
}

// free is an address that nobody listens on.
func free(t *testing.T) string {
	port, err := ports.Free(1, ports.ForPrograms)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func (n *node) request(mode leapcell.TaskMode) StartRequest {
	n.n++
	p := 10000 + int(nextPort.Add(1))
	return StartRequest{
		ID: "0a1b2c3d-alloc/shop/" + string(rune('0'+n.n)), Name: "shop", AllocID: "0a1b2c3d-alloc", Namespace: "leapcell",
		Dir: filepath.Join(n.dir, "alloc"), Address: free(n.t), MemoryMB: 256,
		Config: leapcell.TaskConfig{
			Mode: mode, Image: "registry/shop@sha256:1", Command: "./app", Port: p, Service: "shop", ServiceID: "shop-main-abcdefgh",
			Deployment: "shop-1", StartTimeout: "30s", Output: "registry/shop:1", StartCommand: "./app --serve",
		},
	}
}

func (n *node) start(req StartRequest) {
	n.t.Helper()
	if _, err := n.Start(req); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) wait(req StartRequest) Exit {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	exit, err := n.Wait(ctx, req.ID)
	if err != nil {
		n.t.Fatal(err)
	}
	return exit
}

// until waits for what has no event to wait for.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

func (n *node) logged(req StartRequest, output string) string {
	b, _ := os.ReadFile(filepath.Join(req.logDir(), req.Name+"."+output+".0"))
	return string(b)
}

// clean checks that an ended task left nothing behind.
func (n *node) clean(req StartRequest) {
	n.t.Helper()
	if m, ns := n.images.left(), n.networks.left(); m != 0 || ns != 0 {
		n.t.Errorf("%d mounts and %d namespaces are left", m, ns)
	}
	for _, dir := range []string{filepath.Join(n.options.RunDir, "tasks"), n.options.ScratchDir} {
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			n.t.Errorf("%s is not empty: %v", dir, entries)
		}
	}
	if len(n.cells.cells) > 0 && !n.cells.last().isDeleted() {
		n.t.Error("the cell was not deleted")
	}
	if err := n.Destroy(req.ID, false); err != nil {
		n.t.Error(err)
	}
	if entries, _ := os.ReadDir(n.options.RecordDir); len(entries) > 0 {
		n.t.Errorf("records are left: %v", entries)
	}
}
