package supervisor

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
)

// generation is one supervisor of a node, as a process is.
type generation struct {
	*Supervisor
	claim *claim
	peers *net.UnixListener
}

func (n *node) config() Config { return Config{StateDir: n.dir, TakeOver: true} }

// generation starts the node's next supervisor as Run does; a running one hands over.
func (n *node) generation() *generation {
	n.t.Helper()
	c, err := stake(n.config(), n.log)
	if err == nil {
		err = c.commit()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return n.enthrone(c)
}

// enthrone goes on after the commit.
func (n *node) enthrone(c *claim) *generation {
	n.t.Helper()
	n.restart()
	if err := n.recoverAll(c); err != nil {
		n.t.Fatal(err)
	}
	g := &generation{Supervisor: n.Supervisor, claim: c}
	var err error
	if g.peers, err = listenPeers(n.config().HandoverSocket()); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { g.peers.Close(); c.release() })
	go g.servePeers(g.peers, c.lock)
	return g
}

// kept is a connection that is kept between requests, as edges keep theirs.
type kept struct {
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, address string) *kept {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &kept{conn, bufio.NewReader(conn)}
}

func (k *kept) send(path string) { io.WriteString(k, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n") }

// answer is the next one; last says that the connection will be closed.
func (k *kept) answer(t *testing.T) (body string, last bool) {
	t.Helper()
	res, err := http.ReadResponse(k.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), res.Close
}

// slowApp answers /slow when it is told to.
func slowApp() (app http.HandlerFunc, begun, release chan struct{}) {
	begun, release = make(chan struct{}, 8), make(chan struct{})
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			begun <- struct{}{}
			<-release
		}
		hello(w, r)
	}, begun, release
}

// settled waits until the task's readiness was written down and its start is over: a handover
// waits for starts only so long.
func (n *node) settled(req StartRequest) {
	n.t.Helper()
	until(n.t, "record", func() bool {
		recs, _ := n.records.load()
		for _, r := range recs {
			if r.Request.ID == req.ID && r.App != "" {
				n.pace.mu.Lock()
				defer n.pace.mu.Unlock()
				return n.pace.steps == 0
			}
		}
		return false
	})
}

func TestHandover(t *testing.T) {
	t.Run("kernel that tells exits", func(t *testing.T) { testHandover(t, false) })
	t.Run("kernel that tells them to parents", func(t *testing.T) { testHandover(t, true) })
}

// testHandover: a supervisor that reaps stays until its children have ended, one that need not
// only until its connections are gone.
func testHandover(t *testing.T, reaps bool) {
	app, begun, release := slowApp()
	n := newNode(t, serves(app))
	n.reaps = reaps
	old := n.generation()
	suspended, busy, persistent := n.request(leapcell.TaskServerless), n.request(leapcell.TaskServerless), n.request(leapcell.TaskPersistent)
	for _, req := range []StartRequest{suspended, busy, persistent} {
		n.start(req)
		get(t, req.Address)
		n.settled(req)
	}
	idle, slow := dial(t, suspended.Address), dial(t, busy.Address)
	idle.send("/")
	idle.answer(t)
	slow.send("/slow")
	<-begun
	first := n.cells.cells[0]
	until(t, "suspension", first.Frozen)

	next := n.generation()
	if next.claim.former == nil {
		t.Fatal("nothing was handed over")
	}
	for _, req := range []StartRequest{suspended, busy, persistent} {
		if status, body := get(t, req.Address); status != 200 || body != "hello" {
			t.Errorf("%d %q", status, body)
		}
	}
	if len(n.cells.cells) != 3 {
		t.Errorf("%d cells: instances were started again", len(n.cells.cells))
	}
	if s, _ := n.Inspect(busy.ID); s.Gate.InFlight != 1 || s.Gate.Suspended {
		t.Errorf("the request at the old one does not keep the instance awake: %+v", s.Gate)
	}
	close(release)
	if body, _ := slow.answer(t); body != "hello" {
		t.Errorf("the request in flight got %q", body)
	}
	until(t, "suspension by the new one", func() bool { return n.cells.cells[1].Frozen() && first.Frozen() })
	idle.send("/")
	if body, last := idle.answer(t); body != "hello" || !last {
		t.Errorf("a connection of the old one: %q, last: %t", body, last)
	}
	slow.Close()
	if !reaps {
		<-old.left
	}
	if _, err := old.Inspect(busy.ID); err != nil {
		t.Error(err)
	}
	if !contains(n.messages(), "ready: sandbox") {
		t.Errorf("the old one's events are lost: %q", n.messages())
	}
	for _, req := range []StartRequest{suspended, busy, persistent} {
		if err := n.Stop(req.ID, time.Second, 0); err != nil {
			t.Fatal(err)
		}
		if exit := n.wait(req); exit.Message != "stopped" {
			t.Errorf("exit %+v", exit)
		}
	}
	<-old.left
	// Each instance wrote two lines, one before and one after.
	if out := n.logged(busy, "stdout"); strings.Count(out, "listening\n") != 3 || strings.Count(out, "bye\n") != 3 {
		t.Errorf("log %q", out)
	}
}

// Whoever waits at the old one is told to ask again, and nothing is begun there.
func TestHandoverMovesQuestions(t *testing.T) {
	n := newNode(t, serves(hello))
	old := n.generation()
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.settled(req)
	waited := make(chan error, 2)
	go func() { _, err := old.Wait(context.Background(), req.ID); waited <- err }()
	n.generation()
	if err := <-waited; leapcell.ErrorCode(err) != CodeMoved {
		t.Errorf("wait: %v", err)
	}
	other := n.request(leapcell.TaskServerless)
	if _, err := old.Start(other); leapcell.ErrorCode(err) != CodeMoved {
		t.Errorf("start: %v", err)
	}
	if err := old.Stop(req.ID, time.Second, 0); leapcell.ErrorCode(err) != CodeMoved {
		t.Errorf("stop: %v", err)
	}
	if n.cells.last().Frozen() {
		get(t, req.Address)
	}
	n.start(other)
	if status, _ := get(t, other.Address); status != 200 {
		t.Errorf("start at the new one: %d", status)
	}
}

func TestHandoverWaitsForBuilds(t *testing.T) {
	n := newNode(t, hangs)
	old := n.generation()
	req := n.request(leapcell.TaskBuild)
	n.start(req)
	until(t, "cell", func() bool { s, _ := n.Inspect(req.ID); return s.State == Running })
	_, err := stake(n.config(), n.log)
	var no refusal
	if !errors.As(err, &no) || !strings.Contains(err.Error(), "build") {
		t.Fatalf("%v", err)
	}
	if old.pace.isMoved() {
		t.Error("moved all the same")
	}
	if err := n.Stop(req.ID, time.Second, 0); err != nil {
		t.Error(err)
	}
}

func TestNewSupervisorDiesBeforeItsCommit(t *testing.T) {
	app, begun, release := slowApp()
	n := newNode(t, serves(app))
	old := n.generation()
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.settled(req)
	slow := dial(t, req.Address)
	slow.send("/slow")
	<-begun
	c, err := stake(n.config(), n.log)
	if err != nil {
		t.Fatal(err)
	}
	early := dial(t, req.Address) // while nobody accepts
	early.send("/")
	_ = c.withdraw(errors.New("killed")) // as the kernel does
	if body, last := early.answer(t); body != "hello" || last {
		t.Errorf("%q, last: %t", body, last)
	}
	close(release)
	if body, _ := slow.answer(t); body != "hello" {
		t.Errorf("the request in flight got %q", body)
	}
	until(t, "suspension", n.cells.last().Frozen)
	io.WriteString(n.cells.last().stdout, "still read\n")
	until(t, "log", func() bool { return strings.Contains(n.logged(req, "stdout"), "still read") })
	if old.pace.isMoved() {
		t.Error("the old one gave up")
	}
	n.generation() // and the next try succeeds
	if status, _ := get(t, req.Address); status != 200 {
		t.Errorf("%d", status)
	}
}

func TestNewSupervisorDiesAfterItsCommit(t *testing.T) {
	app, begun, release := slowApp()
	n := newNode(t, serves(app))
	old := n.generation()
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.settled(req)
	slow := dial(t, req.Address)
	slow.send("/slow")
	<-begun
	c, err := stake(n.config(), n.log)
	if err == nil {
		err = c.commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = c.withdraw(errors.New("killed"))
	third := n.generation()
	if third.claim.former != nil {
		t.Fatal("there was nobody to take over from")
	}
	if status, _ := get(t, req.Address); status != 200 {
		t.Errorf("%d", status)
	}
	until(t, "the oldest one's request is known to the third", func() bool { s, _ := n.Inspect(req.ID); return s.Gate.InFlight == 1 })
	if n.cells.last().Frozen() {
		t.Error("suspended under a request in flight")
	}
	close(release)
	if body, _ := slow.answer(t); body != "hello" {
		t.Errorf("the request in flight got %q", body)
	}
	until(t, "suspension", n.cells.last().Frozen)
	slow.Close()
	<-old.left
}

func TestOldSupervisorDiesDuringTheHandover(t *testing.T) {
	for name, say := range map[string]func(p *peer){
		"before a word":     func(p *peer) {},
		"before its commit": func(p *peer) { p.receive(time.Time{}) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, serves(hello))
			held, err := lock(n.config().path("supervisor.lock"))
			if err != nil {
				t.Fatal(err)
			}
			peers, err := listenPeers(n.config().HandoverSocket())
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				conn, err := peers.AcceptUnix()
				if err != nil {
					return
				}
				p := newPeer(conn)
				p.receive(time.Time{})
				if file, err := held.SyscallConn(); name != "before a word" && err == nil {
					_ = p.send(message{Kind: kindLock}, file)
				}
				say(p)
				// The end of a process.
				held.Close()
				p.close()
				peers.Close()
			}()
			g := n.generation()
			if g.claim.former != nil || g.claim.lock == nil {
				t.Errorf("%+v", g.claim)
			}
			req := n.request(leapcell.TaskServerless)
			n.start(req)
			if status, _ := get(t, req.Address); status != 200 {
				t.Errorf("%d", status)
			}
		})
	}
}

// The old one is the parent of the instance's process: what it learns reaches the new one.
func TestExitCodeFromTheFormerSupervisor(t *testing.T) {
	n := newNode(t, serves(hello))
	n.reaps = true
	old := n.generation()
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.settled(req)
	idle := dial(t, req.Address)
	idle.send("/")
	idle.answer(t) // keeps the old one there
	// A kernel that tells nothing to strangers.
	n.cells.adopted = func(c *fakeCell) Cell { return stranger{c} }
	n.generation()
	n.cells.last().end(cell.Exit{Code: 42})
	if exit := n.wait(req); exit.Code != 42 || exit.Message != "exited with code 42" {
		t.Errorf("exit %+v", exit)
	}
	idle.Close()
	<-old.left
}

// stranger is a cell whose exit code is known to its parent only.
type stranger struct{ *fakeCell }

func (s stranger) Wait(ctx context.Context) (cell.Exit, error) {
	if _, err := s.fakeCell.Wait(ctx); err != nil {
		return cell.Exit{}, err
	}
	return cell.Exit{Code: -1}, nil
}

func TestHandoverOfADrain(t *testing.T) {
	app, begun, release := slowApp()
	n := newNode(t, serves(app))
	n.generation()
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.settled(req)
	slow := dial(t, req.Address)
	slow.send("/slow")
	<-begun
	old := n.Supervisor
	stopped := make(chan error, 1)
	go func() { stopped <- old.Stop(req.ID, time.Minute, unix.SIGTERM) }()
	until(t, "drain", func() bool { s, _ := old.Inspect(req.ID); return s.Gate.State == "draining" })
	until(t, "order", func() bool { recs, _ := n.records.load(); return recs[0].Stop != nil })
	n.generation()
	if err := <-stopped; leapcell.ErrorCode(err) != CodeMoved {
		t.Errorf("%v", err)
	}
	until(t, "the drain goes on", func() bool { s, _ := n.Inspect(req.ID); return s.Gate.State == "draining" })
	if len(n.cells.last().signals) > 0 {
		t.Error("the app was signalled while it worked")
	}
	close(release)
	if body, _ := slow.answer(t); body != "hello" {
		t.Errorf("the request in flight got %q", body)
	}
	if exit := n.wait(req); exit.Message != "stopped" {
		t.Errorf("exit %+v", exit)
	}
}

func TestHandoverOfAnotherVersion(t *testing.T) {
	n := newNode(t, serves(hello))
	old := n.generation()
	p, err := dialPeer(n.config().HandoverSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.send(message{Kind: kindTake, Version: handoverVersion + 1}, nil); err != nil {
		t.Fatal(err)
	}
	m, file, err := p.receive(time.Now().Add(10 * time.Second))
	if err != nil || file != nil || m.Kind != kindRefused || !strings.Contains(m.Text, "version") {
		t.Errorf("%+v, %v, %v", m, file, err)
	}
	if old.pace.isMoved() {
		t.Error("moved all the same")
	}
}

// A supervisor of before there were handovers is not disturbed.
func TestHandoverFromOneThatSpeaksNone(t *testing.T) {
	n := newNode(t, serves(hello))
	held, err := lock(n.config().path("supervisor.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := stake(n.config(), n.log); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "cannot hand over") {
		t.Errorf("%v", err)
	}
}
