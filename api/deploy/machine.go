package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// worker is the goroutine of one unfinished deployment.
type worker struct {
	id      string
	service string
	cancel  context.CancelCauseFunc
	done    chan struct{}
	log     *logFile
	release func() // of the build slot; nil while none is held
}

// start begins to work on dep, unless somebody does already.
func (d *Deployer) start(dep leapcell.Deployment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.workers[dep.ID]; ok || d.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancelCause(d.ctx)
	w := &worker{id: dep.ID, service: dep.ServiceID, cancel: cancel, done: make(chan struct{})}
	w.log = d.logs.begin(dep.ID) // before Submit returns, so that its log can be followed
	d.workers[dep.ID] = w
	d.done.Go(func() {
		defer close(w.done)
		defer cancel(nil)
		d.run(ctx, w)
		d.leave(w)
		d.wantCollection()
	})
}

// leave ends the worker: from now on nobody works on the deployment.
func (d *Deployer) leave(w *worker) {
	if w.release != nil {
		w.release()
	}
	d.mu.Lock()
	delete(d.workers, w.id)
	d.mu.Unlock()
	w.log.close()
	d.notify(w.id)
}

// stop cancels the worker of a deployment and reports whether there was one.
func (d *Deployer) stop(id string, cause error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	w, ok := d.workers[id]
	if ok {
		w.cancel(cause)
	}
	return ok
}

// run takes the deployment from state to state until it is done.
func (d *Deployer) run(ctx context.Context, w *worker) {
	for {
		dep, err := d.cfg.Store.Deployment(d.ctx, w.id)
		if err != nil {
			if d.ctx.Err() == nil {
				d.cfg.Log.Error("deployment lost", "deployment", w.id, "err", err)
			}
			return
		}
		if dep.State.Done() {
			d.clean(dep, w)
			return
		}
		if err = d.step(ctx, dep, w); err == nil {
			continue
		}
		if d.ctx.Err() != nil {
			return // to be resumed
		}
		if now, lookErr := d.cfg.Store.Deployment(d.ctx, w.id); lookErr == nil && now.State.Done() {
			d.clean(now, w) // cancelled or overtaken, which is what stopped the step
			return
		}
		d.fail(dep, err, w)
		return
	}
}

// step does the work of the state that dep is in, and moves it on. Each can be repeated.
func (d *Deployer) step(ctx context.Context, dep leapcell.Deployment, w *worker) error {
	svc, err := d.cfg.Store.Service(ctx, dep.ServiceID)
	if err != nil {
		return err
	}
	if dep.State != leapcell.Starting {
		if err := d.takeSlot(ctx, svc, dep, w); err != nil {
			return err
		}
	}
	switch dep.State {
	case leapcell.Queued:
		_, err := d.move(ctx, w, leapcell.Fetching, nil)
		return err
	case leapcell.Fetching:
		if dep.Source.Image != "" {
			return d.useImage(ctx, svc, dep, w)
		}
		return d.fetch(ctx, svc, dep, w)
	case leapcell.Building, leapcell.Packaging, leapcell.Publishing:
		return d.build(ctx, svc, dep, w)
	case leapcell.Starting:
		if w.release != nil {
			w.release()
			w.release = nil
		}
		return d.bringUp(ctx, svc, dep, w)
	}
	return fmt.Errorf("deployment %s is in the unknown state %q", dep.ID, dep.State)
}

func (d *Deployer) takeSlot(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker) error {
	if w.release != nil {
		return nil
	}
	t := &ticket{id: dep.ID, begun: dep.State != leapcell.Queued, created: dep.CreatedAt}
	release, err := d.slots.take(ctx, svc.Workspace, t, func(place int) {
		w.log.say("queued: place %d; the plan %s builds %d at a time in the workspace %s", place, d.cfg.Plan.Name, d.cfg.Plan.Builds, svc.Workspace)
		d.notify(w.id)
	})
	w.release = release
	return err
}

// move takes the deployment to state to, along with what change sets.
func (d *Deployer) move(ctx context.Context, w *worker, to leapcell.State, change func(*leapcell.Deployment)) (leapcell.Deployment, error) {
	dep, err := d.update(ctx, w.id, func(dep *leapcell.Deployment) error {
		if change != nil {
			change(dep)
		}
		dep.State = to
		return nil
	})
	if err == nil {
		w.log.say("%s", to)
		d.cfg.Log.Info("deployment moved", "deployment", w.id, "state", to)
	}
	return dep, err
}

// fail ends the deployment: what it started is stopped, then its state says why.
func (d *Deployer) fail(dep leapcell.Deployment, err error, w *worker) {
	problem := problemOf(err)
	for _, line := range problem.LogTail {
		if problem.Code != leapcell.CodeBuildFailed { // a build's are in the log already
			w.log.say("| %s", line)
		}
	}
	w.log.say("failed: %s", problem.Message)
	d.cfg.Log.Warn("deployment failed", "deployment", dep.ID, "state", dep.State, "code", problem.Code, "err", err)
	to := leapcell.Failed
	if isRollback(dep) {
		to = leapcell.Superseded // it was live before, and may be again
	}
	d.removeJobs(dep, to, w)
	_, err = d.update(d.ctx, dep.ID, func(dep *leapcell.Deployment) error {
		dep.State, dep.Error = to, problem
		return nil
	})
	if err != nil && d.ctx.Err() == nil && leapcell.ErrorCode(err) != leapcell.CodeConflict {
		d.cfg.Log.Error("failure not stored", "deployment", dep.ID, "err", err)
	}
	d.removeFiles(dep)
}

// clean removes what a done deployment leaves: all of it, unless it is or was live.
func (d *Deployer) clean(dep leapcell.Deployment, w *worker) {
	if dep.State == leapcell.Cancelled || dep.State == leapcell.Superseded && dep.LiveAt.IsZero() {
		w.log.say("%s", dep.State)
	}
	d.removeJobs(dep, dep.State, w)
	d.removeFiles(dep)
}

// removeJobs makes Nomad agree with the state that dep has or will have.
func (d *Deployer) removeJobs(dep leapcell.Deployment, state leapcell.State, w *worker) {
	err := d.patiently(d.ctx, w, func(ctx context.Context) error {
		if err := d.cfg.Nomad.Stop(ctx, leapcell.BuildJobID(dep.Service, dep.Number), true); err != nil {
			return err
		}
		if state == leapcell.Live {
			return nil
		}
		if err := d.cfg.Nomad.Stop(ctx, leapcell.PrefetchJobID(dep.ID), true); err != nil {
			return err
		}
		if state == leapcell.Superseded && !dep.LiveAt.IsZero() && dep.Preview != "" && dep.PreviewEnded.IsZero() {
			return nil // who pushed will look at it: the scaler takes its instance away
		}
		if state == leapcell.Superseded && !dep.LiveAt.IsZero() {
			return d.scaleDown(ctx, dep.ID)
		}
		return d.remove(ctx, dep.ID)
	})
	if err != nil && d.ctx.Err() == nil {
		d.cfg.Log.Error("jobs not removed", "deployment", dep.ID, "err", err)
	}
}

func (d *Deployer) scaleDown(ctx context.Context, job string) error {
	err := d.cfg.Nomad.Scale(ctx, job, 0)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return nil
	}
	return err
}

func (d *Deployer) layerPath(dep leapcell.Deployment) string {
	return filepath.Join(d.cfg.Dir, "layers", dep.ID+".tar")
}

func (d *Deployer) removeFiles(dep leapcell.Deployment) {
	if err := os.Remove(d.layerPath(dep)); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.cfg.Log.Error("source layer not removed", "deployment", dep.ID, "err", err)
	}
}

const maxPause = 5 * time.Second

// patiently repeats call while what it needs is unavailable, and says so in the log, for as
// long as the patience lasts.
func (d *Deployer) patiently(ctx context.Context, w *worker, call func(context.Context) error) error {
	deadline := time.Now().Add(d.cfg.Patience)
	pause, said := d.cfg.Pause, ""
	for {
		err := call(ctx)
		if err == nil || leapcell.ErrorCode(err) != leapcell.CodeUnavailable || ctx.Err() != nil || time.Now().After(deadline) {
			if err == nil && said != "" {
				w.log.say("going on")
			}
			return err
		}
		if message := leapcell.ErrorMessage(err); message != said {
			said = message
			w.log.say("waiting: %s", message)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, maxPause)
	}
}

// patient is patiently for calls that give something.
func patient[T any](ctx context.Context, d *Deployer, w *worker, call func(context.Context) (T, error)) (T, error) {
	var out T
	err := d.patiently(ctx, w, func(ctx context.Context) (err error) {
		out, err = call(ctx)
		return err
	})
	return out, err
}

func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// register registers a job. That Nomad refuses one is our fault, and said in one line.
func (d *Deployer) register(ctx context.Context, job *api.Job) error {
	d.registering.Lock()
	err := d.cfg.Nomad.Register(ctx, job)
	d.registering.Unlock()
	if leapcell.ErrorCode(err) != leapcell.CodeInternal {
		return err
	}
	return leapcell.Wrap(leapcell.CodeInternal, err, "Nomad did not accept the job "+*job.ID+", which is a fault of the platform: "+oneLine(leapcell.ErrorMessage(err)))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// failure is an error with more to tell than a message.
type failure struct{ problem leapcell.Problem }

func (f *failure) Error() string { return f.problem.Message }

func problemOf(err error) *leapcell.Problem {
	var f *failure
	if errors.As(err, &f) {
		return &f.problem
	}
	return &leapcell.Problem{Code: leapcell.ErrorCode(err), Message: leapcell.ErrorMessage(err)}
}

// isRollback reports whether dep, which is starting, was live before.
func isRollback(dep leapcell.Deployment) bool {
	return dep.State == leapcell.Starting && !dep.LiveAt.IsZero()
}
