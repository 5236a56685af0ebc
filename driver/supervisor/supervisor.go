package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/driver/gate"
)

// Options is what a [Supervisor] is made of.
type Options struct {
	Group        string // cgroup of the platform
	RunDir       string // on a tmpfs
	RecordDir    string // what must survive a restart of the supervisor
	ScratchDir   string // what builds and persistent instances write
	CacheDir     string // kept between builds
	DiskMB       int    // for what a persistent instance writes; 0: no limit
	SuspendAfter time.Duration
	Build        BuildConfig

	Images   Images
	Networks Networks
	Cells    Cells
	Envs     Envs
	Log      *slog.Logger
}

// Supervisor runs tasks. All methods may be called at any time.
type Supervisor struct {
	cfg      Options
	images   Images
	networks Networks
	cells    Cells
	envs     Envs
	log      *slog.Logger
	events   *events
	records  records

	mu      sync.Mutex
	tasks   map[string]*task
	closed  bool
	retired map[string]*gate.Gate // by address: failed starts that still answer why
}

// New makes a supervisor without tasks.
func New(o Options) *Supervisor {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Supervisor{
		cfg: o, images: o.Images, networks: o.Networks, cells: o.Cells, envs: o.Envs, log: o.Log,
		events: newEvents(), records: records{o.RecordDir},
		tasks: map[string]*task{}, retired: map[string]*gate.Gate{},
	}
}

// Start begins a task. It returns when the gate accepts connections: the app is started
// meanwhile, and what goes wrong from here on is the task's exit. Starting a task that runs
// already does nothing; one that ended is started anew.
func (s *Supervisor) Start(req StartRequest) (Status, error) {
	begin := time.Now()
	if req.Config.Port == 0 {
		req.Config.Port = 8080
	}
	if err := req.validate(); err != nil {
		return Status{}, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Status{}, errors.New("the supervisor is shutting down")
	}
	if old := s.tasks[req.ID]; old != nil {
		select {
		case <-old.done:
		default:
			s.mu.Unlock()
			return old.status(), nil
		}
	}
	s.mu.Unlock()
	t, err := newTask(s, req, begin)
	if err != nil {
		return Status{}, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	s.mu.Lock()
	s.tasks[req.ID] = t
	s.mu.Unlock()
	go t.run(ctx)
	return t.status(), nil
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
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Stop ends a task within about timeout and returns when nothing is left of it. [LI3]
func (s *Supervisor) Stop(id string, timeout time.Duration, signal unix.Signal) error {
	t, err := s.task(id)
	if err != nil {
		return err
	}
	t.stop(timeout, signal)
	return nil
}

// Destroy forgets a task; one that runs is stopped at once if force is set.
func (s *Supervisor) Destroy(id string, force bool) error {
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
		t.stop(time.Second, unix.SIGTERM)
	}
	s.mu.Lock()
	if s.tasks[id] == t {
		delete(s.tasks, id)
	}
	s.mu.Unlock()
	return s.records.remove(t.id)
}

// Signal sends a signal to the app, thawing it for that.
func (s *Supervisor) Signal(id string, signal unix.Signal) error {
	t, err := s.task(id)
	if err != nil {
		return err
	}
	t.mu.Lock()
	c := t.cell
	t.mu.Unlock()
	if c == nil {
		return fmt.Errorf("task %s has no process yet", id)
	}
	return c.Signal(signal)
}

// Stats is what the task uses.
func (s *Supervisor) Stats(id string) (TaskStats, error) {
	t, err := s.task(id)
	if err != nil {
		return TaskStats{}, err
	}
	out := TaskStats{Time: time.Now()}
	if t.gate != nil {
		out.Gate = t.gate.Stats()
	}
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

// Recover takes over what an earlier supervisor left running. It is called once, before
// anybody else calls anything.
func (s *Supervisor) Recover() error {
	recs, err := s.records.load()
	for _, rec := range recs {
		s.recover(rec)
	}
	return err
}

func (s *Supervisor) recover(rec record) {
	log := s.log.With("task", rec.Request.ID)
	if rec.Exit != nil {
		t := &task{sup: s, req: rec.Request, id: rec.Request.cellID(), rec: rec, log: log, done: make(chan struct{}), cancel: func() {}}
		close(t.done)
		s.tasks[rec.Request.ID] = t
		return
	}
	t, err := newTask(s, rec.Request, time.Now())
	if err != nil {
		// Nomad is told that nobody knows the task, and starts it anew.
		log.Error("task could not be taken over", "error", errors.Join(err, s.records.remove(rec.Request.cellID())))
		return
	}
	s.tasks[rec.Request.ID] = t
	if err = t.adopt(rec); err == nil {
		log.Info("task taken over", "pid", rec.PID)
		go func() { t.finish(t.attend()) }()
		return
	}
	log.Error("task could not be taken over", "error", err)
	if t.gate != nil {
		_ = t.gate.Drain(context.Background()) // it is empty: who comes is sent elsewhere
	}
	go t.finish(Exit{Code: 1, Message: "ended while the supervisor was not running"})
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
	retired := s.retired
	s.retired = map[string]*gate.Gate{}
	s.mu.Unlock()
	var all sync.WaitGroup
	for _, t := range running {
		all.Go(func() { t.stop(time.Second, unix.SIGTERM) })
	}
	for _, g := range retired {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			g.Close(ctx)
		})
	}
	all.Wait()
	return s.networks.Close()
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
	return Health{Version: Version, Program: ProgramID("/proc/self/exe"), PID: os.Getpid(), Tasks: n, LastSeq: s.events.last()}
}
