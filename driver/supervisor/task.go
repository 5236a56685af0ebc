package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/gate"
	"github.com/leapcell/leapcell/driver/image"
	"github.com/leapcell/leapcell/driver/meter"
)

// task is one task of the node from the order to start it until it is destroyed. One
// goroutine, run, takes it through its life; all others only look, and ask it to stop.
type task struct {
	sup  *Supervisor
	req  StartRequest
	id   string // of the cell
	dir  string // run folder, on a tmpfs
	gate *gate.Gate
	naps naps
	page *meter.Page // what the task is charged for
	logs *logs
	log  *slog.Logger

	cancel context.CancelFunc // ends a start that is under way, and builds
	done   chan struct{}      // closed when exit is set and nothing is left of the task
	step   bool               // a step of the pace is held; touched by the task's goroutine only
	long   bool               // the step is a build

	releaseCache func() // of a build; touched by the task's goroutine only

	visits visits     // commands of operators
	docker *dockerHub // answers a build of a Dockerfile
	saving sync.Mutex // one file, one writer

	mu       sync.Mutex
	cell     Cell // nil until it was launched
	netns    Namespace
	mounted  bool
	stopping bool
	rec      record
	died     cell.Exit // how the process ended, before it is put into words
	elder    *elder    // set when the task was handed over
}

// backend lets a gate reach a cell.
type backend struct {
	Namespace
	Cell
}

// newTask opens what a task needs before its process: run folder, logs, gate.
func newTask(s *Supervisor, req StartRequest, begin time.Time) (*task, error) {
	t := &task{
		sup: s, req: req, id: req.cellID(), done: make(chan struct{}), cancel: func() {},
		log: s.log.With("task", req.ID),
		rec: record{Request: req.lasting()},
	}
	t.dir = filepath.Join(s.cfg.RunDir, "tasks", t.id)
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if t.logs, err = openLogs(req, t.dir, t.build(), t.log); err != nil {
		return nil, leapcell.Wrap(leapcell.CodeStartFailed, err, "the log files could not be opened")
	}
	if t.prefetch() || t.forget() {
		return t, nil
	}
	if t.build() {
		t.openMeter()
		return t, nil
	}
	listener, err := s.listen(req)
	if err != nil {
		t.logs.close()
		return nil, err
	}
	t.openMeter()
	t.gate = gate.New(gate.Config{
		Instance: req.AllocID, Listener: listener, Mode: req.Config.Mode, Port: req.Config.Port, Begin: begin,
		Concurrency:    req.Config.Concurrency,
		StartTimeout:   duration(req.Config.StartTimeout),
		RequestTimeout: duration(req.Config.RequestTimeout),
		SuspendAfter:   s.cfg.SuspendAfter,
		Meter:          t.page,
		Naps:           t.napped,
		Log:            t.log,
	})
	return t, nil
}

func (t *task) build() bool { return t.req.Config.Mode == leapcell.TaskBuild }

func (t *task) path(elem ...string) string {
	return filepath.Join(append([]string{t.dir}, elem...)...)
}

// run is the life of a task.
func (t *task) run(ctx context.Context) {
	var exit Exit
	switch {
	case t.build():
		exit = t.runBuild(ctx)
	case t.prefetch():
		exit = t.runPrefetch(ctx)
	case t.forget():
		exit = t.runForget()
	default:
		exit = t.runApp(ctx)
	}
	t.finish(exit)
}

// runApp starts the app and stays with it until it is gone.
func (t *task) runApp(ctx context.Context) Exit {
	if err := t.launch(ctx); err != nil {
		message := describe(err)
		if t.isStopping() {
			return Exit{Code: 0, Message: "stopped before it was started"}
		}
		t.log.Error("start failed", "error", err)
		code, prefix := leapcell.CodeStartFailed, leapcell.StartFailedPrefix
		if leapcell.ErrorCode(err) == leapcell.CodeUnavailable {
			// What was missing may come back: it is worth another try.
			code, prefix = leapcell.CodeUnavailable, leapcell.StartUnavailablePrefix
		}
		t.gate.Fail(code, message)
		return Exit{Code: 1, Message: prefix + message}
	}
	t.endStep()
	return t.attend()
}

// endStep ends the step of the pace that a start or an end is.
func (t *task) endStep() {
	if t.step {
		t.step = false
		if t.long {
			t.sup.pace.build(-1)
		}
		t.sup.pace.end()
	}
}

// launch brings the app's process into being.
func (t *task) launch(ctx context.Context) error {
	begin := time.Now()
	img, env, err := t.gather(ctx)
	if err != nil {
		return err
	}
	gathered := time.Now()
	rootfs := t.path("rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return err
	}
	if t.req.Config.Mode == leapcell.TaskPersistent {
		if err := t.makeDisk(ctx); err != nil {
			return err
		}
		err = t.sup.images.MountWritable(img, rootfs, t.sup.scratch(t.id))
	} else {
		err = t.sup.images.Mount(img, rootfs)
	}
	if err != nil {
		return leapcell.Wrap(leapcell.CodeStartFailed, err, "the image could not be mounted: "+describe(err))
	}
	t.mu.Lock()
	t.mounted, t.rec.StopSignal = true, img.Stop
	t.mu.Unlock()
	mounted := time.Now()
	cfg := t.cellConfig()
	cfg.Env = environment(t.req, img.Env, env)
	cfg.WorkDir = img.WorkDir
	cfg.Args = program(t.req.Config.Command, img, rootfs)
	if cfg.User, err = userOf(img.User, rootfs); err != nil {
		return err
	}
	c, err := t.sup.cells.Start(ctx, cfg)
	if err != nil {
		return leapcell.Wrap(leapcell.CodeStartFailed, err, describe(err))
	}
	if !t.adoptCell(c) {
		return leapcell.Errorf(leapcell.CodeCancelled, "stopped while it was starting")
	}
	t.gate.Launched(backend{t.netns, c}, c.StartedAt())
	t.log.Debug("launched", "pid", c.PID(), "gather", gathered.Sub(begin), "mount", mounted.Sub(gathered), "cell", time.Since(mounted))
	t.save()
	return nil
}

// adoptCell makes c the task's cell, unless the task was told to stop meanwhile.
func (t *task) adoptCell(c Cell) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cell = c
	t.page.Start()
	t.rec.PID, t.rec.StartedAt = c.PID(), c.StartedAt()
	if t.netns != nil {
		t.rec.Netns = t.netns.NetnsName()
	}
	return !t.stopping
}

// gather fetches, all at once, what the process needs to begin with.
func (t *task) gather(ctx context.Context) (img *image.Image, env map[string]string, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		begin := time.Now()
		img, err = t.sup.images.Pull(ctx, t.req.Config.Image)
		if err != nil {
			return leapcell.Wrap(leapcell.CodeStartFailed, err, "the image could not be pulled: "+describe(err))
		}
		if took := time.Since(begin); img.Pulled > 0 || took > 50*time.Millisecond {
			t.event(nil, "%s", pulledText(t.req.Config.Image, img, took))
		}
		if img.Warning != "" {
			t.event(nil, "%s", img.Warning)
		}
		return nil
	})
	group.Go(func() (err error) {
		env, err = t.sup.envs.Read(ctx, t.req)
		return err
	})
	group.Go(func() error {
		ns, err := t.sup.networks.Get(ctx)
		if err != nil {
			return leapcell.Wrap(leapcell.CodeStartFailed, err, "no network namespace could be made: "+describe(err))
		}
		t.mu.Lock()
		t.netns = ns
		t.mu.Unlock()
		return nil
	})
	// Before there is a process: whoever comes after a crash must find what to remove.
	t.save()
	err = group.Wait()
	return img, env, err
}

// cellConfig is what of the cell's settings follows from the request alone.
func (t *task) cellConfig() cell.Config {
	c := cell.Config{
		ID: t.id, Dir: t.path("cell"), Rootfs: t.path("rootfs"), Mode: t.req.Config.Mode,
		Args:         []string{"bash", "-c", t.req.Config.Command},
		MemoryMB:     t.req.MemoryMB,
		Hostname:     hostname(t.req.Config.Service),
		ResolvConf:   t.sup.networks.ResolvConf(),
		Stdout:       t.logs.stdoutPipe.app,
		CgroupParent: t.sup.cfg.Group,
	}
	c.Stderr = c.Stdout
	if !t.logs.joined {
		c.Stderr = t.logs.stderrPipe.app
	}
	if t.netns != nil {
		c.NetnsPath = t.netns.NetnsPath()
	}
	return c
}

// attend waits for the start to be decided and for the app to end.
func (t *task) attend() Exit {
	ended := make(chan struct{})
	var died cell.Exit
	var waitErr error
	go func() {
		defer close(ended)
		died, waitErr = t.cell.Wait(context.Background())
	}()
	select {
	case <-ended:
	case <-t.gate.Started():
		t.decided()
		<-ended
	}
	if waitErr != nil {
		t.log.Error("exit status of the app is unknown", "error", waitErr)
		died = cell.Exit{Code: -1}
	}
	if died.Code == -1 && died.Signal == 0 {
		died = t.report(died)
	}
	t.died = died
	failure := t.gate.Status()
	exit := t.judge(died)
	if failure.Code == leapcell.CodePortNotListening {
		exit = Exit{Code: 1, Message: failure.Message}
	}
	if t.sup.pace.begin() == nil {
		t.logs.drain() // who hears of the end from the gate reads the log next
		t.sup.pace.end()
	}
	if killedByOthers(exit) {
		t.gate.Killed(exit.Code, exit.Message)
		if t.gateStats().Start == 0 {
			exit.Message = leapcell.StartUnavailablePrefix + exit.Message
		}
	} else {
		t.gate.Exited(exit.Code, exit.Message)
	}
	return exit
}

// killedByOthers reports whether it was not the app that ended the app: the kernel spares the
// first process of a pid namespace the SIGKILL of all that live in it, and those that the cell
// sends count as the signal that they stand for. What the kernel kills for want of memory is
// the app's own doing.
func killedByOthers(e Exit) bool {
	return e.Signal == int(unix.SIGKILL) && !e.OOM
}

// report is how the process ended according to the former supervisor, whose child it was.
func (t *task) report(unknown cell.Exit) cell.Exit {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if e, ok := t.sup.deaths.of(ctx, t.req.ID); ok {
		e.OOM = e.OOM || unknown.OOM
		return e
	}
	return unknown
}

// decided acts on the end of the start phase.
func (t *task) decided() {
	if t.sup.pace.begin() != nil {
		return // the new supervisor sees it too
	}
	status := t.gate.Status()
	if status.Ready {
		t.becameReady()
	}
	t.sup.pace.end()
	if status.Code == leapcell.CodePortNotListening {
		t.logs.say("%s", status.Message)
		t.event(nil, "%s", status.Message)
		t.end(t.cell, leapcell.StopGrace)
	}
}

// becameReady puts the CPU cap into force and writes down where the app listens.
func (t *task) becameReady() {
	if err := t.cell.SetReady(); err != nil {
		t.log.Error("CPU cap could not be set", "error", err)
	}
	t.page.ColdStart()
	s := t.gate.Stats()
	t.mu.Lock()
	known := t.rec.App != ""
	t.rec.App = s.App
	t.mu.Unlock()
	if known {
		return // taken over: it was ready before
	}
	t.save()
	t.event(map[string]string{leapcell.ReadyAnnotation: "true"}, "%s", startedText(s))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// judge puts the end of an app into words.
func (t *task) judge(e cell.Exit) Exit {
	exit := Exit{Code: e.Code, Signal: e.Signal, OOM: e.OOM}
	switch {
	case e.OOM:
		used, _ := t.cell.Stats() // of no use for anything else by now
		exit.Message = outOfMemoryText(t.req.MemoryMB, used)
	case t.isStopping():
		exit = Exit{Message: "stopped"}
	case e.Code == -1 && e.Signal == 0:
		exit.Message = "ended while the supervisor was being restarted: its exit code is not known"
	case e.Signal != 0:
		exit.Message = "ended by signal " + unix.SignalName(unix.Signal(e.Signal))
	default:
		exit.Message = fmt.Sprintf("exited with code %d", e.Code)
	}
	return exit
}

// end asks a cell to end itself and makes it after grace. [LI3]
func (t *task) end(c Cell, grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := c.Signal(t.stopSignal()); err != nil {
		t.log.Debug("instance could not be asked to end", "error", err)
	}
	if _, err := c.Wait(ctx); err == nil || ctx.Err() == nil {
		return
	}
	if err := c.Kill(); err != nil {
		t.log.Error("instance could not be killed", "error", err)
	}
}

// stopSignal is how the image wants to be asked to end.
func (t *task) stopSignal() unix.Signal {
	t.mu.Lock()
	name := t.rec.StopSignal
	t.mu.Unlock()
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return unix.Signal(n)
	}
	if s := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")); s != 0 {
		return s
	}
	return unix.SIGTERM
}

// stop ends the task: the gate takes no new requests, those in flight have until timeout
// less the grace of the app, then the app is told. It returns when nothing is left, or with
// an error when the task was handed over: whoever has it now was told to go on. [LI3]
func (t *task) stop(timeout time.Duration, signal unix.Signal) error {
	t.mu.Lock()
	first := !t.stopping
	t.stopping = true
	c := t.cell
	t.mu.Unlock()
	if first {
		if err := t.writeStop(timeout, signal); err != nil {
			return err
		}
		if t.gate != nil {
			t.drain(timeout)
		}
		if t.sup.pace.isMoved() {
			return errMoved
		}
		t.cancel()
		if c != nil {
			grace := min(leapcell.StopGrace, max(timeout/2, time.Second))
			if t.build() {
				grace = 0 // nothing of it is to be kept
			}
			t.visits.end()
			if signal != 0 && signal != unix.SIGTERM {
				_ = c.Signal(signal)
			}
			t.end(c, grace)
		}
	}
	select {
	case <-t.done:
		return nil
	case <-t.sup.pace.moved:
		return errMoved
	}
}

// writeStop makes the stop outlive this supervisor: the next one goes on with it.
func (t *task) writeStop(timeout time.Duration, signal unix.Signal) error {
	if err := t.sup.pace.begin(); err != nil {
		return err
	}
	defer t.sup.pace.end()
	t.mu.Lock()
	if t.rec.Stop == nil {
		t.rec.Stop = &stopOrder{Until: time.Now().Add(timeout), Signal: int(signal)}
	}
	ended := t.rec.Exit != nil
	t.mu.Unlock()
	if !ended {
		t.save()
	}
	return nil
}

func (t *task) drain(timeout time.Duration) {
	left := max(timeout-leapcell.StopGrace-2*time.Second, timeout/2)
	ctx, cancel := context.WithTimeout(context.Background(), left)
	defer cancel()
	ctx, stop := t.sup.present(ctx)
	defer stop()
	begin, busy := time.Now(), t.gate.Stats().InFlight
	err := t.gate.Drain(ctx)
	if t.sup.pace.isMoved() {
		return
	}
	if err != nil {
		s := t.gate.Stats()
		t.logs.say("leapcell: stopping although %d requests are in flight after %s", s.InFlight, left)
		t.event(nil, "drain ended after %s with %d requests in flight", left, s.InFlight)
		return
	}
	if busy > 0 {
		t.event(nil, "drained: %d requests were in flight, %s", busy, time.Since(begin).Round(time.Millisecond))
	}
}

// finish removes what the task has on this machine and publishes its result.
func (t *task) finish(exit Exit) {
	if !t.step {
		if t.sup.pace.begin() != nil {
			t.depart(exit)
			return
		}
		t.step = true
	}
	defer t.endStep()
	t.cleanUp()
	t.logs.drain()
	said := exit.Message == "stopped" || exit.Message == leapcell.PortNotListeningText(t.req.Config.Port)
	if !said && !t.build() {
		t.logs.say("leapcell: %s", exit.Message)
	}
	t.event(nil, "%s", endedText(exit, t.gateStats(), time.Since(t.status().StartedAt)))
	if t.gate != nil {
		t.sup.retire(t.req.Address, t.gate)
	}
	t.closeMeter()
	t.logs.close()
	if err := os.RemoveAll(t.dir); err != nil {
		t.log.Error("run folder could not be removed", "error", err)
	}
	t.mu.Lock()
	t.rec.Exit, t.rec.EndedAt = &exit, time.Now()
	t.mu.Unlock()
	t.save()
	t.log.Info("task ended", "code", exit.Code, "message", exit.Message)
	close(t.done)
}

// depart is finish for a task that was handed over: all that is left to do is to tell how
// our child ended.
func (t *task) depart(exit Exit) {
	t.mu.Lock()
	e := t.elder
	t.rec.Exit, t.rec.EndedAt = &exit, time.Now()
	t.mu.Unlock()
	if e != nil {
		e.exited(t.req.ID, t.died)
	}
	close(t.done)
}

// cleanUp gives back cell, mount and network; each even if another fails.
func (t *task) cleanUp() {
	t.mu.Lock()
	c, ns, mounted := t.cell, t.netns, t.mounted
	t.netns, t.mounted = nil, false
	t.mu.Unlock()
	var errs []error
	if c != nil {
		errs = append(errs, c.Kill(), c.Delete())
	}
	if mounted {
		errs = append(errs, t.sup.images.Unmount(t.path("rootfs")))
	}
	if t.releaseCache != nil {
		t.releaseCache() // after the cell, whose mounts hold it
	}
	if ns != nil {
		t.sup.networks.Put(ns)
	}
	if t.req.Config.Mode != leapcell.TaskServerless {
		errs = append(errs, t.removeScratch())
	}
	if err := errors.Join(errs...); err != nil {
		t.log.Error("clean-up is not complete", "error", err)
	}
}

func (t *task) isStopping() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stopping
}

// event tells the operator; annotations may be nil.
func (t *task) event(annotations map[string]string, format string, args ...any) {
	t.sup.events.add(Event{
		TaskID: t.req.ID, TaskName: t.req.Name, AllocID: t.req.AllocID,
		Message: fmt.Sprintf(format, args...), Annotations: annotations,
	})
}

// save writes the task down for the next supervisor. The caller holds a step: what was handed
// over is another's to write.
func (t *task) save() {
	t.saving.Lock()
	defer t.saving.Unlock()
	t.mu.Lock()
	rec := t.rec
	t.mu.Unlock()
	if err := t.sup.records.save(rec); err != nil {
		t.log.Error("task could not be written down: it will not survive a restart of the supervisor", "error", err)
	}
}

// status is the task as it is now.
func (t *task) status() Status {
	t.mu.Lock()
	s := Status{
		ID: t.req.ID, Name: t.req.Name, State: Starting, Dir: t.req.Dir,
		StartedAt: t.rec.StartedAt, CompletedAt: t.rec.EndedAt, Exit: t.rec.Exit, PID: t.rec.PID,
	}
	switch {
	case t.rec.Exit != nil:
		s.State = Exited
	case t.cell != nil:
		s.State = Running
	}
	t.mu.Unlock()
	s.Gate = t.gateStats()
	return s
}

// adopt takes over a task that an earlier supervisor ran; its gate listens again already.
// Requests pass at once if the app was ready. After an error, finish removes what is left.
func (t *task) adopt(rec record) error {
	t.rec, t.mounted = rec, true
	c, err := t.sup.cells.Adopt(t.cellConfig(), rec.PID) // the cell goes if it cannot be had
	if err != nil {
		return fmt.Errorf("process %d: %w", rec.PID, err)
	}
	t.cell = c
	t.netns, err = t.sup.networks.Adopt(rec.Netns)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", rec.Netns, err)
	}
	if t.gate == nil {
		return errors.New("builds are not taken over")
	}
	if rec.App != "" {
		t.gate.Adopt(backend{t.netns, c}, rec.StartedAt, c.Frozen(), rec.App)
	} else {
		t.gate.Launched(backend{t.netns, c}, time.Now())
	}
	return nil
}

// listen gives the gate's socket: the one that the former supervisor passed on, or a new one
// at the address. A gate that still tells why its start failed makes room; one that is just
// closing is given a second.
func (s *Supervisor) listen(req StartRequest) (net.Listener, error) {
	if l := s.sockets[req.ID]; l != nil {
		delete(s.sockets, req.ID)
		return l, nil
	}
	s.evict(req.Address)
	if strings.HasPrefix(req.Address, ":") {
		return nil, leapcell.Errorf(leapcell.CodeStartFailed, "the gate could not listen on %q: an IP address is needed", req.Address)
	}
	for end := time.Now().Add(time.Second); ; time.Sleep(10 * time.Millisecond) {
		l, err := net.Listen("tcp", req.Address)
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, unix.EADDRINUSE):
			return nil, leapcell.Wrap(leapcell.CodeStartFailed, err, "the gate could not listen on "+req.Address)
		case time.Now().After(end):
			return nil, leapcell.Wrap(leapcell.CodeConflict, err, leapcell.TextPortTaken+": "+req.Address)
		}
	}
}
