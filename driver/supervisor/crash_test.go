package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
)

// dies ends the node's supervisor as kill -9 does: its sockets are closed and it touches
// nothing any more, because it believes that all was handed over. A step under way stops where
// it is: the fakes never come back from where the test holds it.
func (n *node) dies() {
	n.t.Helper()
	close(n.pace.moved)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	n.mu.Lock()
	for _, t := range n.tasks {
		if t.gate != nil {
			t.gate.Close(ctx)
		}
	}
	n.mu.Unlock()
	n.networks.died()
}

func listenTCP(address string) (net.Listener, error) { return net.Listen("tcp", address) }

// comesBack is the next supervisor.
func (n *node) comesBack() {
	n.t.Helper()
	n.restart()
	if err := n.Recover(); err != nil {
		n.t.Fatal(err)
	}
}

func TestMissed(t *testing.T) {
	build := StartRequest{Config: leapcell.TaskConfig{Mode: leapcell.TaskBuild}}
	tests := []struct {
		rec  record
		err  error
		want Exit
	}{
		{record{}, errors.New("gone"), Exit{Code: 1, Message: "ended while no supervisor was running: its exit code is not known"}},
		{record{Request: StartRequest{MemoryMB: 256}}, fmt.Errorf("process 7: %w", cell.ErrOutOfMemory), Exit{Code: 137, Signal: 9, OOM: true, Message: "out of memory: limit 256 MB"}},
		{record{Stop: &stopOrder{}}, cell.ErrOutOfMemory, Exit{Message: "stopped"}},
		{record{Request: build}, errors.New("builds are not taken over"), Exit{Code: 1, Message: "the build was interrupted, because the supervisor of its node ended: deploy again"}},
	}
	for _, tt := range tests {
		if got := missed(tt.rec, tt.err); got != tt.want {
			t.Errorf("%+v, want %+v", got, tt.want)
		}
	}
}

func TestKilledInTheMiddleOfAStart(t *testing.T) {
	for name, hold := range map[string]func(n *node, here func()){
		"image not there yet":       func(n *node, here func()) { n.images.pull = func(context.Context) error { here(); return nil } },
		"namespace taken":           func(n *node, here func()) { n.networks.got = here },
		"mounted":                   func(n *node, here func()) { n.images.mount = here },
		"process made, not written": func(n *node, here func()) { n.cells.made = here },
	} {
		for _, mode := range []leapcell.TaskMode{leapcell.TaskServerless, leapcell.TaskPersistent, leapcell.TaskBuild} {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				n := newNode(t, hangs)
				reached := make(chan struct{}, 1)
				var once atomic.Bool
				hold(n, func() {
					if once.Swap(true) {
						return
					}
					reached <- struct{}{}
					select {} // for ever: the process is gone
				})
				req := n.request(mode)
				n.start(req)
				<-reached
				// Image and namespace are fetched side by side: the dead fetch nothing any more.
				until(t, "record and namespace", func() bool { recs, _ := n.records.load(); return len(recs) == 1 && n.networks.left() == 1 })
				n.dies()
				n.comesBack()
				if exit := n.wait(req); exit.Code == 0 || exit != missed(record{Request: req}, nil) {
					t.Errorf("exit %+v", exit)
				}
				n.clean(req)
				// Nomad starts it again, with the same address.
				n.cells.program = serves(hello)
				if mode == leapcell.TaskBuild {
					n.cells.program = exits(0, "")
				}
				n.start(req)
				if mode == leapcell.TaskBuild {
					if exit := n.wait(req); exit.Code != 0 {
						t.Errorf("the second build: %+v", exit)
					}
				} else if status, _ := get(t, req.Address); status != 200 {
					t.Errorf("the second start: %d", status)
				}
			})
		}
	}
}

// Before anything is written there are folders only, and a namespace perhaps.
func TestKilledBeforeTheRecord(t *testing.T) {
	n := newNode(t, hangs)
	req := n.request(leapcell.TaskPersistent)
	for _, dir := range []string{filepath.Join(n.options.RunDir, "tasks", req.cellID(), "rootfs"), n.scratch(req.cellID())} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.networks.Get(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.networks.died()
	n.comesBack()
	if _, err := n.Inspect(req.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	for _, dir := range []string{filepath.Join(n.options.RunDir, "tasks"), n.options.ScratchDir} {
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("%s: %v", dir, entries)
		}
	}
	if n.networks.left() > 0 {
		t.Error("a namespace is lost")
	}
}

func TestKilledWhileItStarts(t *testing.T) {
	listen := make(chan struct{})
	n := newNode(t, func(c *fakeCell) { <-listen; serves(hello)(c) })
	req := n.request(leapcell.TaskServerless)
	req.Config.StartTimeout = "20s"
	n.start(req)
	until(t, "record", func() bool { recs, _ := n.records.load(); return len(recs) == 1 && recs[0].PID != 0 })
	n.dies()
	n.comesBack()
	answered := make(chan int, 1)
	go func() { status, _ := get(t, req.Address); answered <- status }()
	until(t, "a request that waits", func() bool { s, _ := n.Inspect(req.ID); return s.Gate.Waiting == 1 })
	close(listen)
	if status := <-answered; status != 200 {
		t.Errorf("%d", status)
	}
	n.settled(req)
	if len(n.cells.cells) != 1 {
		t.Error("the app was started again")
	}
}

// A stop that was asked for goes on, although nobody asks again.
func TestKilledWhileItDrains(t *testing.T) {
	app, begun, release := slowApp()
	n := newNode(t, serves(app))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.settled(req)
	slow := dial(t, req.Address)
	slow.send("/slow")
	<-begun
	defer close(release)
	former := n.Supervisor
	go former.Stop(req.ID, time.Minute, unix.SIGTERM)
	until(t, "order", func() bool { recs, _ := n.records.load(); return recs[0].Stop != nil })
	n.dies()
	n.comesBack()
	if exit := n.wait(req); exit.Message != "stopped" || exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
	n.clean(req)
}

// A persistent instance, or one that is suspended, is the same after the restart.
func TestKilledWithInstancesInEveryState(t *testing.T) {
	n := newNode(t, serves(hello))
	suspended, persistent := n.request(leapcell.TaskServerless), n.request(leapcell.TaskPersistent)
	for _, req := range []StartRequest{suspended, persistent} {
		n.start(req)
		get(t, req.Address)
		n.settled(req)
	}
	until(t, "suspension", n.cells.cells[0].Frozen)
	n.dies()
	n.comesBack()
	if !n.cells.cells[0].Frozen() {
		t.Error("the restart woke an instance that nobody asked for")
	}
	for _, req := range []StartRequest{suspended, persistent} {
		if status, _ := get(t, req.Address); status != 200 {
			t.Errorf("%s: %d", req.Config.Mode, status)
		}
	}
	until(t, "suspension", n.cells.cells[0].Frozen)
	if n.cells.cells[1].Frozen() {
		t.Error("a persistent instance was suspended")
	}
}

// When the port is lost to somebody else, nothing of the instance may stay.
func TestRecoverWithoutThePort(t *testing.T) {
	n := newNode(t, serves(hello))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.settled(req)
	n.dies()
	server := &http.Server{Addr: req.Address}
	l, err := listenTCP(req.Address)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	defer server.Close()
	n.comesBack()
	if _, err := n.Inspect(req.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if !n.cells.last().isDeleted() || n.images.left() > 0 || n.networks.left() > 0 {
		t.Error("the instance runs on, and nobody knows")
	}
	if entries, _ := os.ReadDir(n.options.RecordDir); len(entries) > 0 {
		t.Errorf("records %v", entries)
	}
}

func TestPortTaken(t *testing.T) {
	n := newNode(t, serves(hello))
	req := n.request(leapcell.TaskServerless)
	l, err := listenTCP(req.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = n.Start(req)
	if leapcell.ErrorCode(err) != leapcell.CodeConflict || !strings.HasPrefix(leapcell.ErrorMessage(err), leapcell.TextPortTaken) || !strings.Contains(err.Error(), req.Address) {
		t.Errorf("%v", err)
	}
	if entries, _ := os.ReadDir(filepath.Join(n.options.RunDir, "tasks")); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
	// A gate that is just closing goes in time.
	time.AfterFunc(50*time.Millisecond, func() { l.Close() })
	n.start(req)
	if status, _ := get(t, req.Address); status != 200 {
		t.Errorf("%d", status)
	}
}

// Whoever asks for a start and does not get the answer must find nothing of it.
func TestDestroyWaitsForTheStart(t *testing.T) {
	n := newNode(t, serves(hello))
	req := n.request(leapcell.TaskServerless)
	l, err := listenTCP(req.Address) // makes the start take its time
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { _, err := n.Start(req); started <- err }()
	until(t, "the start", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.turns[req.ID] != nil })
	destroyed := make(chan error, 1)
	go func() { destroyed <- n.Destroy(req.ID, true) }()
	l.Close()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := <-destroyed; err != nil {
		t.Errorf("the start came after its end: %v", err)
	}
	if _, err := n.Inspect(req.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}
