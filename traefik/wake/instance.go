package wake

import (
	"bufio"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// idleConns bounds the kept connections to one gate, idleFor their age. Gates keep
	// idle connections for longer, so that it is the edge that closes them.
	idleConns = 256
	idleFor   = 30 * time.Second
)

// instance is a gate as this edge sees it. The fields of the first block belong to the
// service's mu.
type instance struct {
	id, address string
	plain       bool // no gate stands before it
	inFlight    int
	reachable   bool // a dial has succeeded and none has failed since
	dialling    bool
	goneUntil   time.Time
	retired     bool // left the table

	start atomic.Int32 // what is known of its start

	conns  sync.Mutex
	idle   []*gateConn // the youngest last
	reaper *time.Timer
	closed bool
}

// What is known of an instance's start.
const (
	startUnknown int32 = iota
	startGood          // it has answered
	startFailed
)

// usable reports whether a request may be sent. Called with the service's mu held.
func (in *instance) usable() bool {
	return in.reachable && (in.goneUntil.IsZero() || time.Now().After(in.goneUntil))
}

// retire lets go of an instance that left the table. Called with the service's mu held.
func (in *instance) retire() {
	in.retired = true
	in.conns.Lock()
	defer in.conns.Unlock()
	in.closed = true
	for _, c := range in.idle {
		c.Close()
	}
	in.idle = nil
	if in.reaper != nil {
		in.reaper.Stop()
	}
}

// get gives an idle connection that the gate has not closed, or nil.
func (in *instance) get() *gateConn {
	for {
		in.conns.Lock()
		n := len(in.idle)
		if n == 0 {
			in.conns.Unlock()
			return nil
		}
		c := in.idle[n-1]
		in.idle = in.idle[:n-1]
		in.conns.Unlock()
		if c.alive() && (!in.plain || time.Since(c.since) < plainIdleFor) {
			return c
		}
		c.Close()
	}
}

// put keeps a connection on which an exchange has ended properly.
func (in *instance) put(c *gateConn) {
	in.conns.Lock()
	defer in.conns.Unlock()
	if in.closed || len(in.idle) >= idleConns {
		c.Close()
		return
	}
	c.since = time.Now()
	in.idle = append(in.idle, c)
	if len(in.idle) == 1 {
		if in.reaper == nil {
			in.reaper = time.AfterFunc(idleFor, in.reap)
		} else {
			in.reaper.Reset(idleFor)
		}
	}
}

// reap closes connections that nobody needed for a while.
func (in *instance) reap() {
	in.conns.Lock()
	defer in.conns.Unlock()
	old := 0
	for old < len(in.idle) && time.Since(in.idle[old].since) >= idleFor {
		in.idle[old].Close()
		old++
	}
	in.idle = append(in.idle[:0], in.idle[old:]...)
	if len(in.idle) > 0 && !in.closed {
		in.reaper.Reset(idleFor - time.Since(in.idle[0].since))
	}
}

// gateConn is a connection to a gate.
type gateConn struct {
	net.Conn
	r     *bufio.Reader
	w     *bufio.Writer
	since time.Time // idle since
}

func newGateConn(c net.Conn) *gateConn {
	return &gateConn{Conn: c, r: bufio.NewReaderSize(c, 4<<10), w: bufio.NewWriterSize(c, 4<<10)}
}
