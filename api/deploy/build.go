package deploy

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/nomad"
	"github.com/leapcell/leapcell/jobs"
)

// tailLines is how many of the last lines a failure shows.
const tailLines = 20

// build runs the build job and takes up its image.
func (d *Deployer) build(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker) error {
	if err := d.runBuild(ctx, svc, dep, w); err != nil {
		return err
	}
	front, err := d.publishFront(ctx, dep, w)
	if err != nil {
		return err
	}
	var image string
	if front != nil && front.Whole {
		image = d.frontImage(front, dep)
	} else if image, err = patient(ctx, d, w, func(ctx context.Context) (string, error) {
		return d.cfg.Images.Resolve(ctx, svc.ID+"/"+appRepository, strconv.Itoa(dep.Number))
	}); err != nil {
		return err
	}
	job := leapcell.BuildJobID(svc.Name, dep.Number)
	if err := d.patiently(ctx, w, func(ctx context.Context) error { return d.cfg.Nomad.Stop(ctx, job, true) }); err != nil {
		return err
	}
	settings, bytes := dep.Settings, int64(0)
	switch {
	case settings.Runtime == leapcell.RuntimeDocker:
		if settings, bytes, err = d.adopt(ctx, svc, dep.Number, settings, w); err != nil {
			return err
		}
	case front == nil || !front.Whole:
		// Only to be shown: a registry that is away holds nothing up here.
		_, bytes, _ = d.cfg.Upstream.Config(ctx, svc.ID+"/"+appRepository, strconv.Itoa(dep.Number))
	}
	_, err = d.move(ctx, w, leapcell.Starting, func(dep *leapcell.Deployment) {
		dep.Image, dep.Settings, dep.ImageBytes = image, settings, bytes
	})
	return err
}

// buildAttempts is how often a build is handed to Nomad that no node could begin. A build
// that began is never run twice: what failed is told to the user, who decides.
const buildAttempts = 3

// runBuild sees the build job through, unless a former process did.
func (d *Deployer) runBuild(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker) error {
	unable := map[string]bool{} // allocations that never began
	for {
		begun, err := patient(ctx, d, w, func(ctx context.Context) (bool, error) { return d.beginBuild(ctx, svc, dep) })
		if err != nil || !begun {
			return err
		}
		follow, err := d.followBuild(ctx, svc, dep, w, unable)
		if err == nil || follow.ran || len(unable) == buildAttempts-1 {
			return err
		}
		unable[follow.alloc] = true
		w.log.say("trying again: %s", problemOf(err).Message)
		if err := d.patiently(ctx, w, func(ctx context.Context) error {
			return d.cfg.Nomad.Stop(ctx, leapcell.BuildJobID(svc.Name, dep.Number), true)
		}); err != nil {
			return err
		}
	}
}

// beginBuild registers the build job, unless a former process did, and reports whether
// there is one to follow: there is none when that process saw it through.
func (d *Deployer) beginBuild(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) (bool, error) {
	_, err := d.cfg.Nomad.Job(ctx, leapcell.BuildJobID(svc.Name, dep.Number))
	if leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return err == nil, err
	}
	_, err = d.cfg.Images.Resolve(ctx, svc.ID+"/"+appRepository, strconv.Itoa(dep.Number))
	if leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return false, err
	}
	if front, err := d.front(ctx, dep); err != nil || front != nil && front.Whole {
		return false, err
	}
	return true, d.registerBuild(ctx, svc, dep)
}

// followBuild follows the build job to its end. Allocations in skip are of former attempts.
func (d *Deployer) followBuild(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker, skip map[string]bool) (*buildFollower, error) {
	id := leapcell.BuildJobID(svc.Name, dep.Number)
	// The node ends a build that takes too long. This is for a node that does not.
	limit := time.Duration(d.cfg.Plan.BuildTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, limit+d.cfg.Patience,
		leapcell.Errorf(leapcell.CodeBuildFailed, "the build did not end within its limit of %s", d.cfg.Plan.BuildTimeout))
	defer cancel()
	follow := &buildFollower{d: d, w: w, task: svc.ID, state: dep.State, skip: skip, ran: true}
	defer follow.stopLog()
	if err := d.watch(ctx, id, follow.see, d.placement(id, w)); err != nil {
		return follow, causeOf(ctx, err)
	}
	return follow, follow.result
}

func (d *Deployer) registerBuild(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) error {
	source, err := d.cfg.Images.Resolve(ctx, svc.ID+"/"+sourceRepository, strconv.Itoa(dep.Number))
	if err != nil {
		return err
	}
	runtime, err := d.builtOn(dep.Settings)
	if err != nil {
		return err
	}
	run, err := d.cfg.Builder.RunBase(ctx, runtime, func(string) {}) // fetch made it, and told of it
	if err != nil {
		return err
	}
	static := ""
	if d.cfg.Fronts != nil {
		static = fmt.Sprintf("%s/%s/static:%d", d.cfg.RegistryAddress, svc.ID, dep.Number)
	}
	return d.register(ctx, jobs.Build(jobs.BuildSpec{
		Static:    static,
		Namespace: d.cfg.Namespace, Service: svc, Deployment: dep,
		SourceImage: source,
		Output:      fmt.Sprintf("%s/%s/app:%d", d.cfg.RegistryAddress, svc.ID, dep.Number),
		Caches:      runtime.Caches,
		RunImage:    run,
		Plan:        d.cfg.Plan,
		Modified:    modified,
	}))
}

// modified is the time of all files of an image, as it is that of those of the source: a layer
// with the same files is the same layer, and need not be moved again.
var modified = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// causeOf is why ctx ended, if that is why err is there.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// buildFollower sees a build job through: its log, its phases, its result.
type buildFollower struct {
	d      *Deployer
	w      *worker
	task   string
	state  leapcell.State
	skip   map[string]bool // allocations of former attempts
	alloc  string
	ran    bool               // the build began, or may have
	cancel context.CancelFunc // of the log stream; nil while there is none
	done   chan struct{}
	result error
}

// see looks at the allocations of the job and reports whether it ended.
func (f *buildFollower) see(ctx context.Context, allocs []*api.AllocationListStub) (bool, error) {
	allocs = slices.DeleteFunc(slices.Clone(allocs), func(a *api.AllocationListStub) bool { return f.skip[a.ID] })
	if len(allocs) == 0 {
		return false, nil
	}
	a := newest(allocs) // and the only one of this attempt
	f.alloc = a.ID
	task := a.TaskStates[f.task]
	if task != nil && !task.StartedAt.IsZero() && f.cancel == nil {
		f.followLog(ctx)
	}
	if err := f.phases(ctx, task); err != nil {
		return false, err
	}
	switch a.ClientStatus {
	case api.AllocClientStatusComplete, api.AllocClientStatusFailed, api.AllocClientStatusLost:
	default:
		if a.DesiredStatus == api.AllocDesiredStatusRun {
			return false, nil
		}
	}
	f.stopLog()
	f.readRest(ctx)
	f.ran = task != nil && !task.StartedAt.IsZero()
	f.result = f.judge(a, task)
	if !f.ran {
		return true, nil
	}
	_, err := f.d.update(ctx, f.w.id, func(dep *leapcell.Deployment) error {
		dep.BuildBegan, dep.BuildEnded = task.StartedAt, task.FinishedAt
		return nil
	})
	return true, err
}

// phases moves the deployment along with what the node says it does.
func (f *buildFollower) phases(ctx context.Context, task *api.TaskState) error {
	if task == nil {
		return nil
	}
	for _, e := range task.Events {
		to := leapcell.State(e.Details[leapcell.PhaseAnnotation])
		if to == "" || !f.state.CanBecome(to) || to == leapcell.Starting || to.Done() {
			continue
		}
		// The node says it in the log itself, between the lines it belongs to.
		if _, err := f.d.update(ctx, f.w.id, func(dep *leapcell.Deployment) error {
			dep.State = to
			return nil
		}); err != nil {
			return err
		}
		f.state = to
	}
	return nil
}

func (f *buildFollower) judge(a *api.AllocationListStub, task *api.TaskState) error {
	if a.ClientStatus == api.AllocClientStatusComplete && (task == nil || !task.Failed) {
		return nil
	}
	problem := leapcell.Problem{Code: leapcell.CodeBuildFailed}
	switch ended, broken := lastEvent(task, api.TaskTerminated), lastEvent(task, api.TaskDriverFailure); {
	case a.ClientStatus == api.AllocClientStatusLost:
		problem.Message = "the node that ran the build was lost: deploy again"
	case broken != nil:
		problem.Message = "the build could not be run: " + driverMessage(broken)
	case ended != nil && ended.ExitCode != 0:
		problem = buildFailure(ended)
	default:
		problem.Message = "the build could not be run: " + eventText(a, task)
	}
	problem.LogTail = f.w.log.tail()
	return &failure{problem}
}

// followLog streams what the build writes into the deployment's log, from where that is.
func (f *buildFollower) followLog(ctx context.Context) {
	ctx, f.cancel = context.WithCancel(ctx)
	f.done = make(chan struct{})
	alloc := f.alloc
	go func() {
		defer close(f.done)
		for ctx.Err() == nil {
			err := f.copyLog(ctx, alloc, true)
			if err == nil || ctx.Err() == nil {
				_ = sleep(ctx, f.d.cfg.Pause) // the stream broke, or is not there yet
			}
		}
	}()
}

func (f *buildFollower) stopLog() {
	if f.cancel != nil {
		f.cancel()
		<-f.done
	}
}

// readRest takes what came after the stream was stopped, or all of it after a restart.
func (f *buildFollower) readRest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := f.copyLog(ctx, f.alloc, false); err != nil && ctx.Err() == nil {
		f.d.cfg.Log.Warn("build log incomplete", "deployment", f.w.id, "err", err)
	}
}

func (f *buildFollower) copyLog(ctx context.Context, alloc string, follow bool) error {
	r, err := f.d.cfg.Nomad.Logs(ctx, nomad.LogOptions{
		AllocID: alloc, Task: f.task, Stream: "stdout", Follow: follow, Offset: f.w.log.offset(),
	})
	if err != nil {
		return err
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { _ = r.Close() })()
	_, err = io.Copy(f.w.log, r)
	return err
}
