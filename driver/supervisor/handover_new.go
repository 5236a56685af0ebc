package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/gate"
)

// claim is the right to a state folder, with what the supervisor that had it passed on.
type claim struct {
	name    string   // of the lock file
	lock    *os.File // the right lasts as long as some process has it open
	former  *peer    // who gave its tasks; nil after a plain start
	sockets map[string]net.Listener
	busy    map[string]bool
	events  []Event
	log     *slog.Logger
}

// stake claims the state folder of cfg. When another supervisor has it, that one is asked to
// hand over if cfg says so.
func stake(cfg Config, log *slog.Logger) (*claim, error) {
	c := &claim{name: cfg.path("supervisor.lock"), sockets: map[string]net.Listener{}, busy: map[string]bool{}, log: log}
	var err error
	if c.lock, err = lock(c.name); err == nil || !cfg.TakeOver || !errors.Is(err, ErrRunning) {
		return c, err
	}
	p, err := dialPeer(cfg.HandoverSocket())
	if err != nil {
		return nil, fmt.Errorf("%w, and it cannot hand over: %w", ErrRunning, err)
	}
	c.former = p
	if err := c.take(); err != nil {
		return nil, c.withdraw(err)
	}
	return c, nil
}

// refusal is what the running supervisor says when it does not hand over now.
type refusal string

func (r refusal) Error() string { return "the running supervisor does not hand over: " + string(r) }

// take asks for the tasks and reads all but the last word.
func (c *claim) take() error {
	if err := c.former.send(message{Kind: kindTake, Version: handoverVersion}, nil); err != nil {
		return c.alone(err)
	}
	for {
		m, file, err := c.former.receive(time.Now().Add(handoverLimit))
		if err != nil {
			return c.alone(err)
		}
		switch {
		case m.Kind == kindRefused:
			return refusal(m.Text)
		case m.Kind == kindEvent && m.Event != nil:
			c.events = append(c.events, *m.Event)
		case m.Kind == kindTask && file != nil:
			l, err := net.FileListener(file) // a copy
			_ = file.Close()
			if err != nil {
				return fmt.Errorf("handover: socket of task %s: %w", m.ID, err)
			}
			c.sockets[m.ID] = l
		case m.Kind == kindLock && file != nil:
			c.lock = file
			return nil
		}
	}
}

// commit takes the tasks for good; what comes after it is as after any start. Until then the
// former supervisor would go on if we ended.
func (c *claim) commit() error {
	if c.former == nil {
		return nil
	}
	err := c.former.send(message{Kind: kindReady}, nil)
	for err == nil {
		var m message
		var file *os.File
		if m, file, err = c.former.receive(time.Now().Add(handoverLimit)); file != nil {
			_ = file.Close()
		}
		switch m.Kind {
		case kindBusy:
			c.busy[m.ID] = true
		case kindRefused:
			return c.withdraw(refusal(m.Text))
		case kindCommit:
			return nil
		}
	}
	if err := c.alone(err); err != nil {
		return c.withdraw(err)
	}
	return nil
}

// alone makes sure, after the connection broke, that the former supervisor is dead: then its
// lock can be had, and we start as after a crash, with the sockets that came.
func (c *claim) alone(cause error) error {
	c.former.close()
	c.former = nil
	if c.lock != nil {
		_ = c.lock.Close()
		c.lock = nil
	}
	for end := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		f, err := lock(c.name)
		if err == nil {
			c.log.Warn("the former supervisor died during the handover", "error", cause)
			c.lock = f
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("handover: %w; %w", cause, err)
		}
	}
}

// withdraw lets go of everything that came; the former supervisor goes on.
func (c *claim) withdraw(err error) error {
	if c.former != nil {
		c.former.close()
	}
	c.closeSockets()
	c.release()
	return err
}

func (c *claim) closeSockets() {
	for id, l := range c.sockets {
		_ = l.Close()
		delete(c.sockets, id)
	}
}

func (c *claim) release() {
	if c.lock != nil {
		_ = c.lock.Close()
	}
}

// guests are the tasks that a former supervisor still passes requests to.
type guests struct {
	sup  *Supervisor
	peer *peer
	held map[string]*gate.Gate
}

// adopt keeps a task that is just being adopted awake for the former supervisor.
func (g *guests) adopt(t *task) {
	if err := t.gate.Hold(); err != nil {
		t.log.Warn("requests in flight may have to wait for the next one", "error", err)
		return
	}
	g.held[t.req.ID] = t.gate
}

// serve answers the former supervisor until it is gone.
func (g *guests) serve() {
	defer g.leave()
	for {
		m, file, err := g.peer.receive(time.Time{})
		if file != nil {
			_ = file.Close()
		}
		if err != nil {
			return
		}
		switch m.Kind {
		case kindHold:
			answer := message{Kind: kindHeld, ID: m.ID}
			if err := g.hold(m.ID); err != nil {
				answer.Text = err.Error()
			}
			if g.peer.send(answer, nil) != nil {
				return
			}
		case kindRelease:
			if held := g.held[m.ID]; held != nil {
				delete(g.held, m.ID)
				held.Release()
			}
		case kindExit:
			if m.Exit != nil {
				g.sup.deaths.add(m.ID, *m.Exit)
			}
		}
	}
}

func (g *guests) hold(id string) error {
	if g.held[id] != nil {
		return nil
	}
	t, err := g.sup.task(id)
	if err != nil {
		return err
	}
	if t.gate == nil {
		return fmt.Errorf("task %s has no gate", id)
	}
	if err := t.gate.Hold(); err != nil {
		return err
	}
	g.held[id] = t.gate
	return nil
}

// leave ends the visit: whoever was served by the former supervisor is not any more.
func (g *guests) leave() {
	g.peer.close()
	for _, held := range g.held {
		held.Release()
	}
	g.sup.mu.Lock()
	defer g.sup.mu.Unlock()
	delete(g.sup.elders, g.peer)
	if len(g.sup.elders) == 0 {
		g.sup.deaths.close()
	}
}

// welcome registers a former supervisor; serve must follow.
func (s *Supervisor) welcome(p *peer) *guests {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.elders[p] = true
	s.deaths.open()
	return &guests{sup: s, peer: p, held: map[string]*gate.Gate{}}
}

// servePeers answers other supervisors of the node until l is closed.
func (s *Supervisor) servePeers(l *net.UnixListener, lock *os.File) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		go s.greet(newPeer(conn), lock)
	}
}

func (s *Supervisor) greet(p *peer, lock *os.File) {
	m, file, err := p.receive(time.Now().Add(handoverLimit))
	if file != nil {
		_ = file.Close()
	}
	switch {
	case err != nil || s.pace.isMoved():
	case m.Version != handoverVersion:
		_ = p.send(message{Kind: kindRefused, Text: fmt.Sprintf("it speaks version %d of the handover, not %d", handoverVersion, m.Version)}, nil)
	case m.Kind == kindStay:
		s.welcome(p).serve()
		return
	case m.Kind == kindTake && s.handOver(p, lock):
		return // the connection stays: it is told who is still served
	}
	p.close()
}

// deaths are exits that former supervisors report of processes that were their children.
type deaths struct {
	mu    sync.Mutex
	exits map[string]cell.Exit // by task
	more  chan struct{}        // closed with each; nil when nobody can report any
}

func (d *deaths) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.more == nil {
		d.more, d.exits = make(chan struct{}), map[string]cell.Exit{}
	}
}

func (d *deaths) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.more != nil {
		close(d.more)
		d.more = nil
	}
}

func (d *deaths) add(id string, e cell.Exit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.more != nil {
		d.exits[id] = e
		close(d.more)
		d.more = make(chan struct{})
	}
}

// of waits for the report about a task; false when there is none until ctx is done or nobody
// is left to report.
func (d *deaths) of(ctx context.Context, id string) (cell.Exit, bool) {
	for {
		d.mu.Lock()
		e, ok := d.exits[id]
		more := d.more
		delete(d.exits, id)
		d.mu.Unlock()
		if ok || more == nil {
			return e, ok
		}
		select {
		case <-more:
		case <-ctx.Done():
			return cell.Exit{}, false
		}
	}
}
