package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/disk"
	"github.com/leapcell/leapcell/driver/gate"
)

// Options is what a [Supervisor] is made of.
type Options struct {
	Group      string // cgroup of the platform
	RunDir     string // on a tmpfs
	RecordDir  string // what must survive a restart of the supervisor
	ScratchDir string // what builds and persistent instances write
	DiskMB     int    // for what a persistent instance or a build writes, unless the task says it; 0: no limit
	// HandoverSocket is where former and future supervisors of the node are met.
	HandoverSocket string
	MeterDir       string // figures that nobody took in yet
	SuspendAfter   time.Duration
	Build          BuildConfig

	Images   Images
	Networks Networks
	Cells    Cells
	Envs     Envs
	Caches   Caches
	MeterAPI MeterAPI // nil: figures stay on the node
	Log      *slog.Logger
}

// Supervisor runs tasks. All methods may be called at any time.
type Supervisor struct {
	cfg      Options
	images   Images
	networks Networks
	cells    Cells
	envs     Envs
	caches   Caches
	log      *slog.Logger
	events   *events
	records  records
	meters   *meters
	pace     *pace
	left     chan struct{}           // closed when all was handed over and nothing is left to do
	bereft   chan struct{}           // closed when the one that took over is gone: nobody may be told to ask it
	deaths   deaths                  // what former supervisors report
	reaps    bool                    // the kernel tells only a parent how a process ended
	sockets  map[string]net.Listener // by task: passed on by the former supervisor; used by Recover only

	mu      sync.Mutex
	tasks   map[string]*task
	turns   map[string]chan struct{} // by task: whoever starts or destroys it
	closed  bool
	retired map[string]*gate.Gate // by address: failed starts that still answer why
	elders  map[*peer]bool        // former supervisors that still serve requests
}

// New makes a supervisor without tasks.
func New(o Options) *Supervisor {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Supervisor{
		cfg: o, images: o.Images, networks: o.Networks, cells: o.Cells, envs: o.Envs, caches: o.Caches, log: o.Log,
		events: newEvents(), records: records{o.RecordDir}, meters: newMeters(o), pace: newPace(), left: make(chan struct{}), bereft: make(chan struct{}), reaps: !kernelTellsExits(),
		tasks: map[string]*task{}, turns: map[string]chan struct{}{}, retired: map[string]*gate.Gate{}, elders: map[*peer]bool{},
	}
}

// turn waits until nobody else starts or destroys the task of that ID; done ends it.
func (s *Supervisor) turn(id string) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.turns[id] != nil {
		other := s.turns[id]
		s.mu.Unlock()
		<-other
		s.mu.Lock()
	}
	mine := make(chan struct{})
	s.turns[id] = mine
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.turns, id)
		close(mine)
	}
}

// Start begins a task. It returns when the gate accepts connections: the app is started
// meanwhile, and what goes wrong from here on is the task's exit. Starting a task that runs
// already does nothing; one that ended is started anew.
func (s *Supervisor) Start(req StartRequest) (Status, error) {
	status, _, err := s.start(req)
	return status, err
}

// start reports also whether it was this call that began the task.
func (s *Supervisor) start(req StartRequest) (status Status, begun bool, err error) {
	begin := time.Now()
	if req.Config.Port == 0 {
		req.Config.Port = 8080
	}
	if err := req.validate(); err != nil {
		return Status{}, false, err
	}
	defer s.turn(req.ID)()
	if err := s.pace.begin(); err != nil {
		return Status{}, false, err
	}
	t, begun, err := s.open(req, begin)
	if err != nil || !begun {
		s.pace.end()
		if err != nil {
			return Status{}, false, err
		}
		return t.status(), false, nil
	}
	t.step = true // until the app was started, or the task is over
	if t.gate == nil {
		t.long = true
		s.pace.build(1)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	s.mu.Lock()
	s.tasks[req.ID] = t
	s.mu.Unlock()
	go t.run(ctx)
	return t.status(), true, nil
}

// open makes a new task for req, or finds the one that runs.
func (s *Supervisor) open(req StartRequest, begin time.Time) (t *task, made bool, err error) {
	s.mu.Lock()
	old, closed := s.tasks[req.ID], s.closed
	s.mu.Unlock()
	if closed {
		return nil, false, errors.New("the supervisor is shutting down")
	}
	if old != nil {
		select {
		case <-old.done:
		default:
			return old, false, nil
		}
	}
	if t, err = newTask(s, req, begin); err != nil {
		return nil, false, errors.Join(err, os.RemoveAll(filepath.Join(s.cfg.RunDir, "tasks", req.cellID())))
	}
	return t, true, nil
}

func (s *Supervisor) task(id string) (*task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tasks[id]
	if t == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	return t, nil
}

// Inspect is the task as it is now.
func (s *Supervisor) Inspect(id string) (Status, error) {
	t, err := s.task(id)
	if err != nil {
		return Status{}, err
	}
	return t.status(), nil
}

// List is all tasks.
func (s *Supervisor) List() []Status {
	s.mu.Lock()
	tasks := make([]*task, 0, len(s.tasks))
	for _, t := range s.tasks {
		tasks = append(tasks, t)
	}
	s.mu.Unlock()
	out := make([]Status, 0, len(tasks))
	for _, t := range tasks {
		out = append(out, t.status())
	}
	return out
}

// Wait returns the result of the task when it has one, or ctx's error.
func (s *Supervisor) Wait(ctx context.Context, id string) (Exit, error) {
	t, err := s.task(id)
	if err != nil {
		return Exit{}, err
	}
	select {
	case <-t.done:
		return *t.status().Exit, nil
	case <-s.pace.moved:
		return Exit{}, errMoved
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// present is a context that ends when the tasks are handed over.
func (s *Supervisor) present(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-s.pace.moved:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// Stop ends a task within about timeout and returns when nothing is left of it. [LI3]
func (s *Supervisor) Stop(id string, timeout time.Duration, signal unix.Signal) error {
	t, err := s.task(id)
	if err != nil {
		return err
	}
	return t.stop(timeout, signal)
}

// Destroy forgets a task; one that runs is stopped at once if force is set. One that is just
// being started is waited for: when Destroy has returned, nothing of that ID is there.
func (s *Supervisor) Destroy(id string, force bool) error {
	defer s.turn(id)()
	t, err := s.task(id)
	if err != nil {
		return err
	}
	select {
	case <-t.done:
	default:
		if !force {
			return fmt.Errorf("task %s is running: stop it first", id)
		}
		if err := t.stop(time.Second, unix.SIGTERM); err != nil {
			return err
		}
	}
	if err := s.pace.begin(); err != nil {
		return err
	}
	defer s.pace.end()
	s.mu.Lock()
	if s.tasks[id] == t {
		delete(s.tasks, id)
	}
	s.mu.Unlock()
	return s.records.remove(t.id)
}

// Stats is what the task uses.
func (s *Supervisor) Stats(id string) (TaskStats, error) {
	t, err := s.task(id)
	if err != nil {
		return TaskStats{}, err
	}
	out := TaskStats{Time: time.Now(), Gate: t.gateStats()}
	t.mu.Lock()
	c, ended := t.cell, t.rec.Exit != nil
	t.mu.Unlock()
	if c == nil || ended {
		return out, nil
	}
	out.Cell, err = c.Stats()
	return out, err
}

// retireFor is how long a gate whose start failed goes on telling why. Who asks comes in
// this time or not at all: the edge connects as soon as it knows the address.
const retireFor = 5 * time.Second

// retire ends the gate of a task that is over: a failed start's after a while, others now.
func (s *Supervisor) retire(address string, g *gate.Gate) {
	end := func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		g.Close(ctx)
	}
	status := g.Status()
	if status.Code == "" || g.Stats().Start > 0 {
		end()
		return
	}
	s.mu.Lock()
	s.retired[address] = g
	s.mu.Unlock()
	time.AfterFunc(retireFor, func() {
		s.mu.Lock()
		mine := s.retired[address] == g
		if mine {
			delete(s.retired, address)
		}
		s.mu.Unlock()
		if mine {
			end()
		}
	})
}

// evict makes room at address.
func (s *Supervisor) evict(address string) {
	s.mu.Lock()
	g := s.retired[address]
	delete(s.retired, address)
	s.mu.Unlock()
	if g == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	g.Close(ctx)
}

// Recover takes over what an earlier supervisor left running, and removes what it left in the
// middle of a start. It is called once, before anybody else calls anything.
func (s *Supervisor) Recover() error { return s.recoverAll(&claim{}) }

// recoverAll is Recover with what a living supervisor passed on.
func (s *Supervisor) recoverAll(c *claim) error {
	s.sockets = c.sockets
	s.events.restore(c.events)
	var visit *guests
	if c.former != nil {
		visit = s.welcome(c.former)
	}
	recs, err := s.records.load()
	known := map[string]bool{}
	for _, rec := range recs {
		known[rec.Request.cellID()] = true
		t := s.recover(rec)
		if t != nil && c.busy[rec.Request.ID] {
			visit.adopt(t)
		}
		s.goOn(t, rec)
	}
	c.closeSockets()
	if visit != nil {
		go visit.serve()
	}
	s.sweep(known)
	s.caches.Recover()
	s.networks.Settle()
	return err
}

// recover takes one task over; nil when nothing of it runs.
func (s *Supervisor) recover(rec record) *task {
	log := s.log.With("task", rec.Request.ID)
	if rec.Exit != nil {
		t := &task{sup: s, req: rec.Request, id: rec.Request.cellID(), rec: rec, log: log, done: make(chan struct{}), cancel: func() {}}
		close(t.done)
		s.tasks[rec.Request.ID] = t
		return nil
	}
	t, err := newTask(s, rec.Request, time.Now())
	if err != nil {
		// Nomad is told that nobody knows the task, and starts it anew.
		log.Error("task could not be taken over", "error", errors.Join(err, s.ruin(rec)))
		return nil
	}
	s.tasks[rec.Request.ID] = t
	if err = t.adopt(rec); err == nil {
		log.Info("task taken over", "pid", rec.PID)
		return t
	}
	log.Error("task could not be taken over", "error", err)
	if t.gate != nil {
		_ = t.gate.Drain(context.Background()) // it is empty: who comes is sent elsewhere
	}
	go t.finish(missed(rec, err))
	return nil
}

// missed is the result of a task that ended while nobody looked.
func missed(rec record, err error) Exit {
	switch {
	case rec.Stop != nil:
		return Exit{Message: "stopped"}
	case rec.Request.Config.Mode == leapcell.TaskBuild:
		return Exit{Code: 1, Message: "the build was interrupted, because the supervisor of its node ended: deploy again"}
	case errors.Is(err, cell.ErrOutOfMemory):
		return Exit{Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL), OOM: true, Message: outOfMemoryText(rec.Request.MemoryMB, cell.Stats{})}
	}
	return Exit{Code: 1, Message: "ended while no supervisor was running: its exit code is not known"}
}

// goOn lets a task that was taken over live on, or stops it if that was asked for before.
func (s *Supervisor) goOn(t *task, rec record) {
	if t == nil {
		return
	}
	go func() { t.finish(t.attend()) }()
	if stop := rec.Stop; stop != nil {
		go func() { _ = t.stop(max(time.Until(stop.Until), time.Second), unix.Signal(stop.Signal)) }()
	}
}

// ruin removes what is there of a task that cannot be taken over.
func (s *Supervisor) ruin(rec record) error {
	id := rec.Request.cellID()
	dir := filepath.Join(s.cfg.RunDir, "tasks", id)
	var errs []error
	c, err := s.cells.Adopt(cell.Config{
		ID: id, Dir: filepath.Join(dir, "cell"), Rootfs: filepath.Join(dir, "rootfs"), Mode: rec.Request.Config.Mode,
		MemoryMB: rec.Request.MemoryMB, CgroupParent: s.cfg.Group,
	}, rec.PID)
	if err == nil {
		errs = append(errs, c.Kill(), c.Delete())
	} // else it goes by itself
	if ns, err := s.networks.Adopt(rec.Netns); err == nil {
		s.networks.Put(ns)
	}
	return errors.Join(append(errs, s.removeFiles(id), s.records.remove(id))...)
}

// removeFiles removes the mount, the run folder and what the task of that ID wrote.
func (s *Supervisor) removeFiles(id string) error {
	dir := filepath.Join(s.cfg.RunDir, "tasks", id)
	err := errors.Join(s.images.Unmount(filepath.Join(dir, "rootfs")), disk.Unmount(s.scratch(id)))
	if err != nil {
		return err // what is in it must not be removed through it
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(s.scratch(id)))
}

// sweep removes what belongs to no task that is known: a start that had not been written
// down yet.
func (s *Supervisor) sweep(known map[string]bool) {
	for _, dir := range []string{filepath.Join(s.cfg.RunDir, "tasks"), s.cfg.ScratchDir} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if known[e.Name()] {
				continue
			}
			s.log.Info("removing what is left of a start", "cell", e.Name())
			if err := s.removeFiles(e.Name()); err != nil {
				s.log.Error("remove what is left of a start", "cell", e.Name(), "error", err)
			}
		}
	}
}

// Shutdown ends the supervisor's own things. With tasks that run it fails, unless force is
// set: then they are stopped first.
func (s *Supervisor) Shutdown(force bool) error {
	s.mu.Lock()
	var running []*task
	for _, t := range s.tasks {
		select {
		case <-t.done:
		default:
			running = append(running, t)
		}
	}
	if len(running) > 0 && !force {
		s.mu.Unlock()
		return fmt.Errorf("%d tasks are running", len(running))
	}
	s.closed = true
	s.mu.Unlock()
	var all sync.WaitGroup
	for _, t := range running {
		all.Go(func() { _ = t.stop(time.Second, unix.SIGTERM) })
	}
	all.Wait()
	if s.pace.isMoved() {
		return errMoved
	}
	s.closeRetired()
	s.meters.close()
	return s.networks.Close()
}

// closeRetired ends all gates of failed starts now.
func (s *Supervisor) closeRetired() {
	s.mu.Lock()
	retired := s.retired
	s.retired = map[string]*gate.Gate{}
	s.mu.Unlock()
	var all sync.WaitGroup
	for _, g := range retired {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			g.Close(ctx)
		})
	}
	all.Wait()
}

// scratch is where what a task writes goes to.
func (s *Supervisor) scratch(cellID string) string { return filepath.Join(s.cfg.ScratchDir, cellID) }

// health is what the supervisor says about itself.
func (s *Supervisor) health() Health {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, t := range s.tasks {
		select {
		case <-t.done:
		default:
			n++
		}
	}
	return Health{Version: Version, Program: ProgramID("/proc/self/exe"), PID: os.Getpid(), Tasks: n, LastSeq: s.events.last(), Handover: handoverVersion}
}
