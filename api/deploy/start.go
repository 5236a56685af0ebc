package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/nomad"
	"github.com/leapcell/leapcell/jobs"
)

const (
	// dialPause is between attempts to reach a gate that does not listen yet: Nomad tells
	// the address some milliseconds before.
	dialPause = 2 * time.Millisecond
	// probeTimeout bounds one question to a gate. Gates hold it until they know, which is
	// never later than the start timeout.
	probeTimeout = leapcell.MaxStartTimeout + 10*time.Second
	// tailBytes is how much of an instance's log is read for its last lines.
	tailBytes = 16 << 10
)

// bringUp starts the deployment's instances, waits until one is ready and makes the
// deployment live.
func (d *Deployer) bringUp(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker) error {
	if dep.Static != nil && isRollback(dep) {
		if err := d.restoreFront(ctx, dep, w); err != nil {
			return err
		}
	}
	if dep.Whole() { // there is nothing to start
		if dep.Preview != "" {
			return d.showPreview(ctx, svc, dep, w)
		}
		return d.goLive(ctx, svc, dep, w)
	}
	env, err := d.cfg.Env.Env(ctx, svc.ID)
	if err != nil {
		return err
	}
	if err := d.sign(ctx, dep.Image, w); err != nil {
		return err
	}
	described, stop := d.describe(ctx, dep, w)
	defer stop()
	d.prefetch(ctx, svc, dep)
	if err := d.patiently(ctx, w, func(ctx context.Context) error { return d.runService(ctx, svc, dep) }); err != nil {
		return err
	}
	r := &readiness{d: d, w: w, svc: svc, dep: dep, begun: time.Now()}
	if err := d.waitReady(ctx, r); err != nil {
		return err
	}
	described()
	if dep.Preview != "" {
		return d.showPreview(ctx, svc, dep, w)
	}
	if err := d.goLive(ctx, svc, dep, w); err != nil {
		return err
	}
	// A change between the instance's start and the route's would have looked at the
	// former deployment.
	if now, err := d.cfg.Env.Env(ctx, svc.ID); err == nil && now.Version != env.Version {
		d.wantRefresh(svc, true)
	}
	return nil
}

func instances(dep leapcell.Deployment) int {
	if dep.Settings.Mode == leapcell.Persistent && dep.Preview == "" {
		return max(1, dep.Settings.MinInstances)
	}
	return 1
}

// runService makes Nomad run the deployment: it registers the job, or scales up one that is
// kept for rollback.
func (d *Deployer) runService(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) error {
	n := instances(dep)
	job, err := d.cfg.Nomad.Job(ctx, dep.ID)
	switch {
	case leapcell.ErrorCode(err) == leapcell.CodeNotFound, err == nil && job.Stop != nil && *job.Stop:
		return d.register(ctx, jobs.Service(jobs.ServiceSpec{
			Namespace: d.cfg.Namespace, Service: svc, Deployment: dep, Count: n,
		}))
	case err != nil:
		return err
	case jobCount(job) < n:
		return d.cfg.Nomad.Scale(ctx, dep.ID, n)
	}
	return nil
}

func jobCount(job *api.Job) int {
	for _, g := range job.TaskGroups {
		if g.Count != nil && g.Name != nil && *g.Name == leapcell.Group {
			return *g.Count
		}
	}
	return 0
}

// readiness waits for an instance of a deployment, not being one of those in skip.
type readiness struct {
	d     *Deployer
	w     *worker
	svc   leapcell.Service
	dep   leapcell.Deployment
	skip  map[string]bool
	begun time.Time
	ready string // the allocation, when there is one

	probed   string // the allocation that answers for the start
	address  string // of its gate
	answer   chan probeResult
	cancel   context.CancelFunc
	failed   error  // the last one that may go away by itself
	reported string // of that, what the log has
}

type probeResult struct {
	alloc  string
	status leapcell.GateStatus
	err    error
}

// waitReady waits until an instance is ready, fails to start, or time is up.
func (d *Deployer) waitReady(ctx context.Context, r *readiness) error {
	limit := time.Duration(r.dep.Settings.StartTimeout) + d.cfg.StartGrace + d.cfg.Patience
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		leapcell.Errorf(leapcell.CodeStartFailed, "no instance was ready within %s", limit))
	defer cancel()
	r.answer = make(chan probeResult, 16)
	defer r.stopProbe()
	err := d.watchWith(ctx, r.dep.ID, r.see, d.placement(r.dep.ID, r.w), r.answer, r.hear)
	if err == nil || ctx.Err() == nil {
		return err
	}
	if r.failed != nil && context.Cause(ctx) != errStopped && d.ctx.Err() == nil {
		return r.failed // rather than that time is up
	}
	return causeOf(ctx, err)
}

// see begins to ask the newest instance, and takes notice of those that failed before they
// could be asked.
func (r *readiness) see(ctx context.Context, allocs []*api.AllocationListStub) (bool, error) {
	fresh := make([]*api.AllocationListStub, 0, len(allocs))
	for _, a := range allocs {
		if !r.skip[a.ID] && hasTask(a, r.svc.ID) {
			fresh = append(fresh, a)
		}
	}
	if len(fresh) == 0 {
		return false, nil
	}
	a := newest(fresh)
	if nomad.Running(a) {
		if address := nomad.Instance(a).Address; address != "" && a.ID != r.probed {
			r.probe(ctx, a.ID, address, 0)
		}
		return false, nil
	}
	if a.ClientStatus == api.AllocClientStatusFailed {
		return false, r.judge(ctx, r.startFailure(a))
	}
	return false, nil // stopped by somebody; Nomad brings another
}

// hasTask reports whether the allocation is of the service with that ID, and not of a deleted
// one with the same name whose instances have not all ended.
func hasTask(a *api.AllocationListStub, serviceID string) bool {
	if a.AllocatedResources == nil {
		return false
	}
	_, ok := a.AllocatedResources.Tasks[serviceID]
	return ok
}

// judge gives back what is final, and keeps what Nomad's next attempt may mend.
func (r *readiness) judge(ctx context.Context, f *failure) error {
	if !passing(f.problem) {
		f.problem.LogTail = r.d.instanceTail(ctx, r.svc, r.probed)
		return f
	}
	r.failed = f
	if message := f.problem.Message; message != r.reported {
		r.reported = message
		r.w.log.say("waiting: %s", message)
	}
	return nil
}

// passing reports whether a start failed for want of something that may come back.
func passing(p leapcell.Problem) bool {
	return p.Code == leapcell.CodeUnavailable
}

// pluginGone is how Nomad says that a driver's plugin ended, and is being started anew.
const pluginGone = "plugin is shut down"

// startFailure is why an allocation ended before its gate could be asked.
func (r *readiness) startFailure(a *api.AllocationListStub) *failure {
	r.probed = a.ID
	task := a.TaskStates[r.svc.ID]
	if e := lastEvent(task, api.TaskDriverFailure); e != nil {
		message := driverMessage(e)
		if strings.Contains(message, leapcell.TextPortTaken) || strings.Contains(message, pluginGone) {
			return &failure{notNow(message)}
		}
		return &failure{startFailed(message)}
	}
	if task == nil || len(task.Events) == 0 { // its node could not take it, and Nomad looks for another or tries again
		return &failure{notNow(eventText(a, task))}
	}
	if e := lastEvent(task, api.TaskTerminated); e != nil {
		return &failure{exitFailure(r.dep.Settings.Port, e)}
	}
	return &failure{startFailed(eventText(a, task))}
}

// probe asks the gate of an allocation, after a pause when it has been asked before.
func (r *readiness) probe(ctx context.Context, alloc, address string, pause time.Duration) {
	r.stopProbe()
	r.probed, r.address = alloc, address
	limit := time.Duration(r.dep.Settings.StartTimeout) + r.d.cfg.StartGrace
	ctx, r.cancel = context.WithTimeoutCause(ctx, limit,
		leapcell.Errorf(leapcell.CodeStartFailed, "the instance at %s could not be reached within %s", address, limit))
	go func(answer chan<- probeResult) {
		err := sleep(ctx, pause)
		var status leapcell.GateStatus
		if err == nil {
			status, err = r.d.askGate(ctx, alloc, address)
		}
		if err != nil {
			err = causeOf(ctx, err)
		}
		select {
		case answer <- probeResult{alloc, status, err}:
		default: // there is room unless nobody listens any more
		}
	}(r.answer)
}

func (r *readiness) stopProbe() {
	if r.cancel != nil {
		r.cancel()
		r.cancel = nil
	}
}

// hear takes a gate's answer and reports whether an instance is ready.
func (r *readiness) hear(ctx context.Context, p probeResult) (bool, error) {
	if p.alloc != r.probed {
		return false, nil // overtaken by a newer one
	}
	switch {
	case errors.Is(p.err, errGateGone), errors.Is(p.err, context.Canceled):
		return false, nil // stopped by somebody; Nomad brings another
	case p.status.Ready:
		r.ready = p.alloc
		return true, nil
	}
	f := gateFailure(p.status)
	if p.err != nil {
		f = &failure{*problemOf(p.err)}
	}
	if err := r.judge(ctx, f); err != nil {
		return false, err
	}
	r.probe(ctx, p.alloc, r.address, r.d.cfg.Pause) // Nomad starts the task again in its place
	return false, nil
}

var errGateGone = errors.New("the instance is stopping")

// askGate asks the gate of alloc at address until it listens and says whether the instance
// is ready.
func (d *Deployer) askGate(ctx context.Context, alloc, address string) (leapcell.GateStatus, error) {
	for {
		status, err := d.askOnce(ctx, alloc, address)
		if err == nil || errors.Is(err, errGateGone) || ctx.Err() != nil {
			return status, err
		}
		if err := sleep(ctx, dialPause); err != nil {
			return status, err
		}
	}
}

func (d *Deployer) askOnce(ctx context.Context, alloc, address string) (leapcell.GateStatus, error) {
	var status leapcell.GateStatus
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return status, err
	}
	req.Header.Set(leapcell.HeaderProbe, "1")
	resp, err := d.http.Do(req)
	if err != nil {
		return status, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return status, err
	}
	if resp.Header.Get(leapcell.HeaderInstance) != alloc {
		return status, errors.New("another gate still listens at " + address)
	}
	if resp.Header.Get(leapcell.HeaderGone) != "" {
		return status, errGateGone
	}
	if err := json.Unmarshal(body, &status); err != nil || !status.Ready && status.Code == "" {
		return status, errors.New("what answers at " + address + " is no gate")
	}
	return status, nil
}

// startedLimit is how long it takes at most until Nomad knows of a start that we saw.
const startedLimit = 2 * time.Second

// startedLog is a log of an instance whose start we saw. Nomad has none before it has noted the
// start itself, by known, and what exits at once ends sooner than that.
func (d *Deployer) startedLog(ctx context.Context, known time.Time, o nomad.LogOptions) (io.ReadCloser, error) {
	for {
		r, err := d.cfg.Nomad.Logs(ctx, o)
		if leapcell.ErrorCode(err) != leapcell.CodeNotFound || time.Now().After(known) || sleep(ctx, 50*time.Millisecond) != nil {
			return r, err
		}
	}
}

// instanceTail is the last lines that an instance wrote, of its errors if there are any.
func (d *Deployer) instanceTail(ctx context.Context, svc leapcell.Service, alloc string) []string {
	if alloc == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	known := time.Now().Add(startedLimit)
	for _, stream := range []string{"stderr", "stdout"} {
		r, err := d.startedLog(ctx, known, nomad.LogOptions{AllocID: alloc, Task: svc.ID, Stream: stream, Offset: tailBytes, FromEnd: true})
		if err != nil {
			d.cfg.Log.Debug("instance log not read", "alloc", alloc, "err", err)
			continue
		}
		b, _ := io.ReadAll(io.LimitReader(r, 2*tailBytes)) // what there is will do
		r.Close()
		if text := strings.TrimRight(string(b), "\n"); text != "" {
			lines := strings.Split(strings.ToValidUTF8(text, "�"), "\n")
			return lines[max(0, len(lines)-tailLines):]
		}
	}
	return nil
}
