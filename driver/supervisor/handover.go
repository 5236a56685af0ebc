package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/gate"
)

// A new build's supervisor N takes the tasks of the running one, O, without a failed request:
//
//	N                                      O
//	take ────────────────────────────────► no start, end or build begins; gates accept nothing
//	       ◄──────── task + socket, event ─
//	       ◄────────────────── lock + file ─
//	makes ready what it alone may break
//	ready ───────────────────────────────► gives up network, gates, logs and the lock
//	       ◄──────────────── busy…, commit ─
//	adopts the instances, accepts,         serves the connections that it has until they are gone
//	answers on the socket
//	       ◄───────── hold, release, exit ─
//	held ────────────────────────────────►
//
// Until "ready" came, O goes on as if nothing had been when N is gone. From then on it is N's;
// should it die, the next supervisor adopts the instances as after any crash, and O tells that
// one what it still serves ("stay"). Should O die before it said "commit", N adopts as after
// a crash. The instances themselves are nobody's: they run on in each case. Records are on the
// disk, so that only what a crash would lose travels: sockets, events, who is being served.

const (
	// handoverLimit bounds each wait of a supervisor for the other.
	handoverLimit = 10 * time.Second
	// stepLimit is how long a handover waits for starts that are under way: other starts wait
	// as long.
	stepLimit = 300 * time.Millisecond
	// holdLimit bounds the wait for an instance to be woken. A supervisor that died is back
	// long before.
	holdLimit = 10 * time.Second
)

// handOver gives the tasks to who asks at p. It returns true when they are given away.
func (s *Supervisor) handOver(p *peer, lock *os.File) bool {
	refuse := func(err error) bool {
		s.log.Warn("handover refused", "error", err)
		_ = p.send(message{Kind: kindRefused, Text: err.Error()}, nil)
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepLimit)
	defer cancel()
	if err := s.pace.shut(ctx); err != nil {
		return refuse(err)
	}
	tasks := s.living()
	for _, t := range tasks {
		t.pause()
	}
	if err := s.offer(p, tasks, lock); err != nil {
		for _, t := range tasks {
			t.resume()
		}
		s.pace.open()
		return refuse(err)
	}
	s.giveUp(tasks, lock)
	e := newElder(s.cfg.HandoverSocket, p, s.log)
	for _, t := range tasks {
		if t.leave(e) {
			_ = p.send(message{Kind: kindBusy, ID: t.req.ID}, nil)
		}
	}
	s.pace.move()
	if err := p.send(message{Kind: kindCommit}, nil); err != nil {
		s.log.Error("the supervisor that takes over is gone: the next one adopts the instances", "error", err)
	}
	s.log.Info("tasks handed over", "tasks", len(tasks))
	go func() {
		e.read(p)
		close(s.bereft)
		e.run()
	}()
	go s.linger(e, tasks)
	return true
}

// living are the tasks that have not ended.
func (s *Supervisor) living() []*task {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*task
	for _, t := range s.tasks {
		select {
		case <-t.done:
		default:
			out = append(out, t)
		}
	}
	return out
}

// offer sends what a crash would lose, and waits for the other to be ready.
func (s *Supervisor) offer(p *peer, tasks []*task, lock *os.File) error {
	for _, t := range tasks {
		socket, err := t.gate.Socket()
		if err == nil {
			err = p.send(message{Kind: kindTask, ID: t.req.ID}, socket)
		}
		if err != nil {
			return err
		}
	}
	for _, e := range s.events.all() {
		if err := p.send(message{Kind: kindEvent, Event: &e}, nil); err != nil {
			return err
		}
	}
	file, err := lock.SyscallConn()
	if err == nil {
		err = p.send(message{Kind: kindLock}, file)
	}
	if err != nil {
		return err
	}
	m, _, err := p.receive(time.Now().Add(handoverLimit))
	if err != nil {
		return err
	}
	if m.Kind != kindReady {
		return fmt.Errorf("handover: %q came in place of %q", m.Kind, kindReady)
	}
	return nil
}

// giveUp lets go of what two supervisors cannot share.
func (s *Supervisor) giveUp(tasks []*task, lock *os.File) {
	if err := s.networks.Close(); err != nil { // what is handed out stays
		s.log.Error("network namespaces are left behind", "error", err)
	}
	s.closeRetired()
	for _, t := range tasks {
		t.logs.abandon()
	}
	_ = lock.Close() // the other has it: the kernel lifts it when both are closed
}

// linger ends this process's part when the last connection and, where only a parent hears how a
// process ended, the last process that is our child is gone.
func (s *Supervisor) linger(e *elder, tasks []*task) {
	var all sync.WaitGroup
	for _, t := range tasks {
		all.Go(func() {
			<-t.gate.Over()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			t.gate.Close(ctx)
			e.release(t.req.ID)
			if s.reaps {
				<-t.done
			}
		})
	}
	all.Wait()
	e.close()
	close(s.left)
}

// kernelTellsExits reports whether PIDFD_GET_INFO tells the exit status of a process that is
// not the asker's child and was reaped already: since Linux 6.15.
func kernelTellsExits() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if n, _ := fmt.Sscanf(strings.ReplaceAll(unix.ByteSliceToString(u.Release[:]), "-", " "), "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major > 6 || major == 6 && minor >= 15
}

// pause makes a task stand still for a handover: its instance runs on.
func (t *task) pause() {
	t.gate.Pause()
	t.logs.pause()
}

func (t *task) resume() {
	t.logs.resume()
	t.gate.Resume()
}

// leave gives the task's instance away. busy says that it must be kept awake for us.
func (t *task) leave(e *elder) (busy bool) {
	busy = t.gate.Leave(seat{e, t.req.ID})
	if busy {
		e.want(t.req.ID)
	}
	t.mu.Lock()
	t.elder = e
	t.mu.Unlock()
	return busy
}

// seat is a gate's owner in another process.
type seat struct {
	*elder
	id string
}

func (s seat) Hold() error    { return s.hold(s.id) }
func (s seat) Release() error { s.release(s.id); return nil }

var _ gate.Owner = seat{}

// elder tells the current supervisor, whichever it is, what a former one still serves.
type elder struct {
	socket string
	log    *slog.Logger
	end    chan struct{}

	mu     sync.Mutex
	peer   *peer            // nil while there is none
	wanted map[string]*wish // by task
}

// wish is a task that must be awake.
type wish struct {
	held chan struct{} // closed when it is, or when err says that it will not be
	err  error
}

func newElder(socket string, p *peer, log *slog.Logger) *elder {
	return &elder{socket: socket, log: log, peer: p, end: make(chan struct{}), wanted: map[string]*wish{}}
}

// want is hold without asking: the other knows.
func (e *elder) want(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := &wish{held: make(chan struct{})}
	close(w.held)
	e.wanted[id] = w
}

func (e *elder) hold(id string) error {
	e.mu.Lock()
	w := &wish{held: make(chan struct{})}
	e.wanted[id] = w
	if e.peer != nil {
		_ = e.peer.send(message{Kind: kindHold, ID: id}, nil) // a failure is seen by run, which asks again
	}
	e.mu.Unlock()
	timer := time.NewTimer(holdLimit)
	defer timer.Stop()
	select {
	case <-w.held:
	case <-timer.C:
		w.fail(fmt.Errorf("no supervisor woke the instance within %s", holdLimit), e)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if w.err != nil && e.wanted[id] == w {
		delete(e.wanted, id)
	}
	return w.err
}

// fail decides the wish, unless it is decided.
func (w *wish) fail(err error, e *elder) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.decide(err)
}

// decide is called with the elder's lock held.
func (w *wish) decide(err error) {
	select {
	case <-w.held:
	default:
		w.err = err
		close(w.held)
	}
}

func (e *elder) release(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.wanted[id] == nil {
		return
	}
	delete(e.wanted, id)
	if e.peer != nil {
		_ = e.peer.send(message{Kind: kindRelease, ID: id}, nil)
	}
}

// exited reports the end of a process that was our child.
func (e *elder) exited(id string, exit cell.Exit) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.peer != nil {
		_ = e.peer.send(message{Kind: kindExit, ID: id, Exit: &exit}, nil)
	}
}

// run finds the next supervisor when the one before is gone, and reads its answers.
func (e *elder) run() {
	for {
		p := e.reconnect()
		if p == nil {
			return
		}
		e.read(p)
	}
}

// read takes answers in until the other is gone.
func (e *elder) read(p *peer) {
	defer p.close()
	for {
		m, file, err := p.receive(time.Time{})
		if file != nil {
			_ = file.Close()
		}
		if err != nil {
			return
		}
		if m.Kind != kindHeld {
			continue
		}
		var failed error
		if m.Text != "" {
			failed = fmt.Errorf("%s", m.Text)
		}
		e.mu.Lock()
		if w := e.wanted[m.ID]; w != nil {
			w.decide(failed)
		}
		e.mu.Unlock()
	}
}

// reconnect asks anew for all that is wanted; nil at the end.
func (e *elder) reconnect() *peer {
	e.mu.Lock()
	e.peer = nil
	e.mu.Unlock()
	for {
		select {
		case <-e.end:
			return nil
		case <-time.After(5 * time.Millisecond): // there is no event for a socket that appears
		}
		p, err := dialPeer(e.socket)
		if err != nil {
			continue
		}
		if e.stay(p) == nil {
			return p
		}
		p.close()
	}
}

func (e *elder) stay(p *peer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := p.send(message{Kind: kindStay, Version: handoverVersion}, nil); err != nil {
		return err
	}
	for id := range e.wanted {
		if err := p.send(message{Kind: kindHold, ID: id}, nil); err != nil {
			return err
		}
	}
	e.peer = p
	return nil
}

// close ends the connection: nothing is served any more.
func (e *elder) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.end)
	if e.peer != nil {
		e.peer.close()
	}
}
