package gate

import (
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// An instance can change its gate while it runs: the new build's supervisor gets the listening
// socket and makes a gate of its own on it; the old gate goes on with the connections that it
// has accepted, until they are gone.
//
//	old:  Ready ──Pause──► takes no connection, suspends nothing ──Leave──► asks its Owner before it passes a request on
//	        ▲                                   │
//	        └────────────── Resume ─────────────┘
//	new:  New(passed listener), Adopt, and Hold/Release for the requests of the old one
//
// Between Pause and the first Accept of the new gate, connections wait in the kernel's queue.

// Owner decides about an instance's suspension once its gate was left: the gate of the new
// supervisor, reached through a socket.
type Owner interface {
	// Hold returns when the instance is awake, and keeps it so until Release. After an error
	// the request that asked is sent elsewhere.
	Hold() error
	Release() error
}

// pausable is a listener that can stop accepting without closing its socket.
type pausable struct {
	net.Listener

	mu     sync.Mutex
	resume chan struct{} // closed to go on; nil while not paused
}

// Accept waits while the listener is paused.
func (l *pausable) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return conn, err
		}
		l.mu.Lock()
		resume := l.resume
		l.mu.Unlock()
		if resume != nil {
			<-resume
		}
	}
}

func (l *pausable) setDeadline(t time.Time) {
	if d, ok := l.Listener.(interface{ SetDeadline(time.Time) error }); ok {
		_ = d.SetDeadline(t) // fails on a closed one only, which accepts nothing anyway
	}
}

func (l *pausable) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resume == nil {
		l.resume = make(chan struct{})
		l.setDeadline(time.Unix(1, 0))
	}
}

func (l *pausable) goOn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resume != nil {
		l.setDeadline(time.Time{})
		close(l.resume)
		l.resume = nil
	}
}

// Close ends a pause too: Accept then sees the end.
func (l *pausable) Close() error {
	err := l.Listener.Close()
	l.goOn()
	return err
}

// Pause stops accepting and suspending until Resume or Leave: the state that the instance is in
// now stays, but for requests on connections that are open already, which are served.
func (g *Gate) Pause() {
	g.listener.pause()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = true
}

// Resume undoes Pause.
func (g *Gate) Resume() {
	g.mu.Lock()
	g.paused = false
	if g.state == Ready && g.inFlight == 0 {
		g.goIdle(time.Now())
	}
	g.mu.Unlock()
	g.listener.goOn()
}

// Socket is the listening socket, to be passed to another process. It belongs to the gate.
func (g *Gate) Socket() (syscall.RawConn, error) {
	s, ok := g.listener.Listener.(syscall.Conn)
	if !ok {
		return nil, errors.New("the gate's listener is not a socket")
	}
	return s.SyscallConn()
}

// leftBackend is one whose instance another process freezes and thaws.
type leftBackend struct {
	Backend
	owner Owner
}

func (l leftBackend) Freeze() error { return l.owner.Release() }
func (l leftBackend) Thaw() error   { return l.owner.Hold() }

// Leave gives the instance away for good. The gate closes its copy of the socket and serves the
// connections that it has, each until its next answer, which says that it is the last. From now
// on it freezes nothing: it asks o to keep the instance awake for as long as it needs it. busy
// says that it needs it now, as if Hold had been called.
func (g *Gate) Leave(o Owner) (busy bool) {
	_ = g.listener.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	// While it starts, those who ask for its state wait here too: it must come to a decision.
	busy = g.inFlight > 0 || g.awake > 0 || g.state == Starting
	if g.inFlight > 0 {
		g.meter(time.Now()) // the new gate goes on counting the time
	}
	g.left.Store(true)
	g.backend = leftBackend{g.backend, o}
	g.frozen, g.paused = !busy, false
	g.checkOver()
	return busy
}

// Over is closed when a gate that was left has no connection, no request and no operator's
// command any more.
func (g *Gate) Over() <-chan struct{} { return g.over }

// connState is the server's hook.
func (g *Gate) connState(conn net.Conn, s http.ConnState) {
	if l, ok := conn.(*lane); ok {
		l.state(s)
	}
	switch s {
	case http.StateNew:
		g.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		if g.conns.Add(-1) > 0 {
			return
		}
		select {
		case g.alone <- struct{}{}:
		default:
		}
		if g.left.Load() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.checkOver()
		}
	}
}

// checkOver closes over if that is due. The caller holds mu.
func (g *Gate) checkOver() {
	if !g.left.Load() || g.inFlight > 0 || g.awake > 0 || g.conns.Load() > 0 {
		return
	}
	select {
	case <-g.over:
	default:
		close(g.over)
	}
}

var errNotTaking = errors.New("the instance takes no requests")

// Hold keeps the instance awake for requests that a gate which was left passes on: they count
// as one in flight, and a drain waits for them. Each Hold needs its Release.
func (g *Gate) Hold() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != Ready && g.state != Starting {
		return errNotTaking
	}
	if g.thaw() != nil {
		return errors.New("the instance could not be resumed")
	}
	g.inFlight++
	if g.inFlight == 1 {
		g.begin(time.Now())
	}
	return nil
}

// Release undoes one Hold.
func (g *Gate) Release() { g.leave() }
