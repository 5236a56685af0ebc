package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/nomad/nomad/structs"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/supervisor"
)

// logLimit is the size from which on a start begins a new log of the supervisor.
const logLimit = 10 << 20

// up gives the supervisor's client, starting the supervisor if it is not there and replacing
// it if it is of another build.
func (d *Driver) up(ctx context.Context) (*supervisor.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*quick)
	defer cancel()
	client, err := d.supervisor()
	if err != nil {
		return nil, err
	}
	d.launching.Lock() // not mu: tasks may be started meanwhile
	defer d.launching.Unlock()
	d.mu.Lock()
	cfg := d.cfg
	d.mu.Unlock()
	l := launch{program: d.exec, cfg: cfg, client: client}
	h, err := client.Health(ctx)
	if err != nil {
		return client, start(ctx, l)
	}
	own := supervisor.ProgramID(d.exec)
	if h.Program == "" || own == "" || h.Program == own {
		return client, nil
	}
	return client, d.replace(ctx, l, h)
}

// start is startSupervisor for as long as another process has the state folder: it may be
// about to answer, or to end.
func start(ctx context.Context, l launch) error {
	for {
		err := startSupervisor(ctx, l)
		if !errors.Is(err, supervisor.ErrRunning) {
			return err
		}
		for end := time.Now().Add(time.Second); time.Now().Before(end); pause(ctx, 5*time.Millisecond) {
			if _, asked := l.client.Health(ctx); asked == nil {
				return nil
			}
			if ctx.Err() != nil {
				return err
			}
		}
	}
}

// replace puts this build's supervisor in the place of another's: it takes the tasks over
// without a failed request. [LI4] One that cannot hand over, because it is too old or busy
// with a build, stays: it is asked again with the next fingerprint. The caller holds launching.
func (d *Driver) replace(ctx context.Context, l launch, old supervisor.Health) error {
	if old.Handover > 0 {
		l.takeOver = true
		err := startSupervisor(ctx, l)
		if err == nil {
			d.log.Info("replaced the supervisor of another build", "former_pid", old.PID, "former_version", old.Version, "tasks", old.Tasks)
			d.postponed = ""
			return nil
		}
		if why := err.Error(); why != d.postponed {
			d.log.Warn("the supervisor is of another build and stays for now", "pid", old.PID, "version", old.Version, "reason", why)
			d.postponed = why
		}
		return nil
	}
	if err := l.client.Shutdown(ctx, false); err != nil {
		d.log.Warn("the supervisor is of another build; it is replaced when no task runs", "pid", old.PID, "version", old.Version, "tasks", old.Tasks)
		return nil
	}
	d.log.Info("replacing the supervisor of another build", "pid", old.PID, "version", old.Version)
	for {
		err := start(ctx, l)
		if h, asked := l.client.Health(ctx); asked == nil && h.PID != old.PID {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		pause(ctx, 20*time.Millisecond) // the old one answers until its end
	}
}

// watch starts the supervisor again as soon as it dies, whether or not anybody asks for it:
// its instances run on, but nobody serves their requests meanwhile.
func (d *Driver) watch(ctx context.Context) {
	was := false // there: a first start is the fingerprint's, which looks at the machine before
	for ctx.Err() == nil {
		client, err := d.supervisor()
		if err == nil {
			_, err = client.Events(ctx, math.MaxInt64) // none is so new: it hangs as long as the supervisor lives
		}
		if ctx.Err() != nil {
			return
		}
		if answered(err) {
			was = true
			continue
		}
		if was {
			d.log.Warn("supervisor went away; starting it again", "error", err)
			_, err = d.up(ctx)
		}
		if err != nil {
			pause(ctx, time.Second)
		}
		was = was || !isDown(err)
	}
}

// ask puts a question to the supervisor until it is answered or ctx is done: one that dies
// meanwhile is started again, knows its tasks, and is asked again. Whoever gave up would have
// Nomad believe that an instance is gone that runs on.
func (d *Driver) ask(ctx context.Context, question func(*supervisor.Client) error) error {
	for {
		client, err := d.supervisor()
		if err != nil {
			return err
		}
		if err = question(client); answered(err) || ctx.Err() != nil {
			return err
		}
		d.log.Debug("supervisor went away in the middle of a question", "error", err)
		wait := 10 * time.Millisecond
		if _, down := d.up(ctx); down != nil {
			d.log.Error("supervisor could not be started", "error", down)
			wait = time.Second
		}
		pause(ctx, wait)
	}
}

// answered reports whether the supervisor itself has answered, with err or nil: the
// connection did not break.
func answered(err error) bool {
	var e *leapcell.Error
	return err == nil || errors.As(err, &e)
}

// isDown reports whether the supervisor was not reached, so that nothing can have begun.
func isDown(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// notStarted is what Nomad is told about a start that failed. When nobody knows how far it
// came, the task is destroyed before: an instance that Nomad does not know would hold the port
// for ever.
func (d *Driver) notStarted(id string, err error) error {
	if !answered(err) && !isDown(err) {
		ctx, cancel := context.WithTimeout(context.Background(), leapcell.StopGrace+2*quick)
		defer cancel()
		gone := d.ask(ctx, func(c *supervisor.Client) error { return c.Destroy(ctx, id, true) })
		if gone != nil && !errors.Is(gone, supervisor.ErrNotFound) {
			err = fmt.Errorf("%w; it may run all the same: %w", err, gone)
		}
	}
	var e *leapcell.Error
	if errors.As(err, &e) && strings.HasPrefix(e.Message, leapcell.TextPortTaken) {
		// Not in place: the port would be the same. Nomad places the allocation anew.
		return structs.NewRecoverableError(errors.New(e.Message), false)
	}
	if e != nil && e.Code == leapcell.CodeInvalid {
		return structs.NewRecoverableError(errors.New(e.Message), false) // the job must be changed
	}
	// Nomad tries again as the job's restart block says. What stands in the way, a full disk
	// for example, may be gone by then.
	return structs.NewRecoverableError(fmt.Errorf("task was not started: %w", err), true)
}

// launch is one start of a supervisor.
type launch struct {
	program  string
	cfg      supervisor.Config
	client   *supervisor.Client
	takeOver bool // the tasks of the running one
}

// startSupervisor starts the node's supervisor in a session of its own, so that no signal
// meant for the agent reaches it, and waits until it answers. Should two plugins do so at
// once, one of the two finds the state folder locked and ends; the other answers.
func startSupervisor(ctx context.Context, l launch) error {
	if err := l.cfg.Write(); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	name := filepath.Join(l.cfg.StateDir, "supervisor.log")
	if info, err := os.Stat(name); err == nil && info.Size() > logLimit {
		_ = os.Rename(name, name+".old")
	}
	log, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	defer log.Close()
	begin, _ := log.Seek(0, 2)
	args := []string{"supervisor", "--config", l.cfg.File()}
	if l.takeOver {
		args = append(args, "--take-over")
	}
	cmd := exec.Command(l.program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it outlives us if all is well
		close(ended)
	}()
	there := func() bool {
		h, err := l.client.Health(ctx)
		return err == nil && (!l.takeOver || h.PID == cmd.Process.Pid)
	}
	for {
		if there() {
			return nil
		}
		select {
		case <-ended:
			if there() {
				return nil // somebody else's
			}
			last := tail(name, begin)
			if strings.Contains(last, supervisor.ErrRunning.Error()) {
				return fmt.Errorf("%w: %s", supervisor.ErrRunning, last)
			}
			return fmt.Errorf("the supervisor ended at once: %s", last)
		case <-ctx.Done():
			return fmt.Errorf("the supervisor does not answer: see %s", name)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// tail is the last line that the supervisor wrote, or where to look.
func tail(name string, begin int64) string {
	b, err := os.ReadFile(name)
	if err != nil || int64(len(b)) <= begin {
		return "see " + name
	}
	lines := bytes.Split(bytes.TrimSpace(b[begin:]), []byte("\n"))
	return string(lines[len(lines)-1])
}
