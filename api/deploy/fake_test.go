package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/build"
	"github.com/leapcell/leapcell/api/nomad"
	"github.com/leapcell/leapcell/api/registry"
	"github.com/leapcell/leapcell/api/source"
)

// world is all that survives a kill of the deployer: store, Nomad, registry, uploads.
type world struct {
	t    *testing.T
	dir  string
	gate *httptest.Server

	mu      sync.Mutex
	svc     map[string]leapcell.Service
	deps    map[string]leapcell.Deployment
	numbers int
	env     map[string]int // versions
	applied map[string]int
	jobs    map[string]*fakeJob
	vars    map[string]string // deployments by path
	values  map[string][]byte
	writes  []string // of the route variable: deployments in order
	images  map[string]string
	allocs  int
	index   uint64
	changed chan struct{}
	forgot  []string
	swept   map[string]bool // uploads
	stopped []string        // allocations by StopAlloc
	builds  int             // registered
	fetched []*api.Job

	// What tests change.
	build  func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) // runs the build
	status func(alloc string) leapcell.GateStatus                             // what gates say
	start  func(w *world, a *api.AllocationListStub)                          // an instance begins
	logs   map[string]string                                                  // by alloc/stream
	place  *api.AllocationMetric
	down   error // what every call of Nomad gives
	tree   source.Tree
	fetch  error
	asked  chan struct{} // told when a gate that is held was asked
	held   chan struct{} // gates answer when it is closed; nil: at once
	linger bool          // instances that were told to stop go on running
	nodes  int           // that read images
	reads  string        // how reading an image stands on each: a client status

	signed, described map[string]bool // images; deployments
	unsigned, untold  error           // what signing and describing give
}

type fakeJob struct {
	job    *api.Job
	count  int
	allocs []*api.AllocationListStub
}

func (j *fakeJob) stopped() bool { return j.job.Stop != nil && *j.job.Stop }

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, dir: t.TempDir(), svc: map[string]leapcell.Service{}, deps: map[string]leapcell.Deployment{},
		env: map[string]int{}, applied: map[string]int{}, jobs: map[string]*fakeJob{}, vars: map[string]string{}, values: map[string][]byte{},
		images: map[string]string{}, swept: map[string]bool{}, index: 10, changed: make(chan struct{}), logs: map[string]string{}, asked: make(chan struct{}, 100),
		nodes: 2, reads: api.AllocClientStatusComplete, signed: map[string]bool{}, described: map[string]bool{},
		build: goodBuild, start: func(*world, *api.AllocationListStub) {},
		tree: source.Tree{Names: map[string]bool{"go.mod": true}, Files: 1},
	}
	w.status = func(string) leapcell.GateStatus { return leapcell.GateStatus{Ready: true} }
	w.gate = httptest.NewServer(http.HandlerFunc(w.serveGate))
	t.Cleanup(w.gate.Close)
	w.svc["shop-x"] = leapcell.Service{ID: "shop-x", Name: "shop", Workspace: "default", Host: "shop-x.test", URL: "http://shop-x.test"}
	return w
}

// serveGate is the gate of every instance; the last part of its alloc's port says which.
func (w *world) serveGate(rw http.ResponseWriter, r *http.Request) {
	if r.Header.Get(leapcell.HeaderProbe) == "" {
		w.t.Error("a gate was asked without the probe header")
	}
	w.mu.Lock()
	held, status := w.held, w.status
	w.mu.Unlock()
	if held != nil {
		select {
		case w.asked <- struct{}{}:
		default: // told often enough
		}
		select {
		case <-held:
		case <-r.Context().Done():
			return
		}
	}
	s := status(w.newestAlloc())
	rw.Header().Set(leapcell.HeaderInstance, w.newestAlloc())
	if !s.Ready {
		rw.WriteHeader(http.StatusBadGateway)
	}
	_ = json.NewEncoder(rw).Encode(s)
}

func (w *world) newestAlloc() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("alloc-%04d", w.allocs)
}

// goodBuild ends well: phases, output, image.
func goodBuild(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
	w.logs[a.ID+"/stdout"] = "compiling\ndone"
	a.ClientStatus = api.AllocClientStatusComplete
	a.TaskStates = map[string]*api.TaskState{dep.ServiceID: {
		State: "dead", StartedAt: time.Now(), FinishedAt: time.Now(),
		Events: []*api.TaskEvent{
			{Type: "Driver", Details: map[string]string{leapcell.PhaseAnnotation: string(leapcell.Packaging)}},
			{Type: "Driver", Details: map[string]string{leapcell.PhaseAnnotation: string(leapcell.Publishing)}},
			{Type: api.TaskTerminated},
		},
	}}
	w.images[fmt.Sprintf("%s/app:%d", dep.ServiceID, dep.Number)] = fmt.Sprintf("registry/%s/app@sha256:%d", dep.ServiceID, dep.Number)
}

func badBuild(code int, output string) func(*world, *api.AllocationListStub, leapcell.Deployment) {
	return func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
		w.logs[a.ID+"/stdout"] = output
		a.ClientStatus = api.AllocClientStatusFailed
		a.TaskStates = map[string]*api.TaskState{dep.ServiceID: {
			State: "dead", Failed: true, StartedAt: time.Now(), FinishedAt: time.Now(),
			Events: []*api.TaskEvent{{Type: api.TaskTerminated, ExitCode: code}},
		}}
	}
}

func (w *world) bump() {
	w.index++
	close(w.changed)
	w.changed = make(chan struct{})
}

// scaleTo makes allocations of a service job; the highest go first. The caller holds mu.
func (w *world) scaleTo(id string, j *fakeJob, n int) {
	j.count = n
	for _, g := range j.job.TaskGroups {
		g.Count = new(n)
	}
	running := 0
	for _, a := range j.allocs {
		if !nomad.Running(a) {
			continue
		}
		if running++; running > n {
			a.DesiredStatus = api.AllocDesiredStatusStop
			if !w.linger {
				a.ClientStatus = api.AllocClientStatusComplete
			}
		}
	}
	for ; running < n; running++ {
		w.newAlloc(id, j)
	}
	w.bump()
}

func (w *world) newAlloc(id string, j *fakeJob) *api.AllocationListStub {
	w.allocs++
	port := w.gate.Listener.Addr().(interface{ String() string }).String()
	host, number, _ := strings.Cut(port, ":")
	var value int
	fmt.Sscan(number, &value)
	a := &api.AllocationListStub{
		ID: fmt.Sprintf("alloc-%04d", w.allocs), JobID: id, DesiredStatus: api.AllocDesiredStatusRun, ClientStatus: api.AllocClientStatusRunning,
		CreateIndex: uint64(w.allocs), CreateTime: int64(w.allocs),
		AllocatedResources: &api.AllocatedResources{Shared: api.AllocatedSharedResources{
			Ports: []api.PortMapping{{Label: leapcell.PortLabel, HostIP: host, Value: value}},
		}, Tasks: map[string]*api.AllocatedTaskResources{j.job.TaskGroups[0].Tasks[0].Name: {}}},
		TaskStates: map[string]*api.TaskState{"shop-x": {State: "running", StartedAt: time.Now()}},
	}
	j.allocs = append(j.allocs, a)
	w.start(w, a)
	return a
}

// fetchOnNodes runs a prefetch job. The caller holds mu.
func (w *world) fetchOnNodes(j *fakeJob) {
	for n := range w.nodes {
		j.allocs = append(j.allocs, &api.AllocationListStub{
			ID: fmt.Sprintf("fetch-%d", n), JobID: *j.job.ID, DesiredStatus: api.AllocDesiredStatusRun, ClientStatus: w.reads,
		})
	}
	w.fetched = append(w.fetched, j.job)
	w.bump()
}

// running is "job=count" of all jobs that have instances.
func (w *world) running() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, j := range w.jobs {
		if j.count > 0 {
			out = append(out, fmt.Sprintf("%s=%d", id, j.count))
		}
	}
	slices.Sort(out)
	return out
}

func (w *world) registered() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, j := range w.jobs {
		if !j.stopped() && *j.job.Type != api.JobTypeSysbatch { // those come and go beside the deployment
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func (w *world) states() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.deps {
		out = append(out, d.ID+" "+string(d.State))
	}
	slices.Sort(out)
	return out
}

// view is what one life of the deployer has of the world: it ends at the call crashAt, as
// by kill -9: that call and all later ones do nothing any more.
type view struct {
	*world
	mu      sync.Mutex
	calls   int
	crashAt int           // 0: never
	after   bool          // the fatal call has its effect, but its answer is not heard
	crashed chan struct{} // closed then
	last    string
}

var errCrashed = errors.New("the process is gone")

func (w *world) view(crashAt int, after bool) *view {
	return &view{world: w, crashAt: crashAt, after: after, crashed: make(chan struct{})}
}

// do runs effect, unless the process is gone.
func (v *view) do(ctx context.Context, name string, effect func() error) error {
	v.mu.Lock()
	select {
	case <-v.crashed:
		v.mu.Unlock()
		return errCrashed
	default:
	}
	v.calls++
	v.last = name
	fatal := v.calls == v.crashAt
	if fatal {
		close(v.crashed)
	}
	v.mu.Unlock()
	if fatal && !v.after {
		return errCrashed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	v.world.mu.Lock()
	err := effect()
	v.world.mu.Unlock()
	if fatal {
		return errCrashed
	}
	return err
}

func notFound(what string) error { return leapcell.Errorf(leapcell.CodeNotFound, "no %s", what) }

func (v *view) Service(ctx context.Context, id string) (out leapcell.Service, err error) {
	err = v.do(ctx, "Service", func() error {
		var ok bool
		if out, ok = v.svc[id]; !ok {
			return notFound(id)
		}
		return nil
	})
	return out, err
}

func (v *view) Services(ctx context.Context) (out []leapcell.Service, err error) {
	err = v.do(ctx, "Services", func() error {
		for _, s := range v.svc {
			out = append(out, s)
		}
		return nil
	})
	return out, err
}

func (v *view) UpdateService(ctx context.Context, id string, change func(*leapcell.Service) error) (out leapcell.Service, err error) {
	err = v.do(ctx, "UpdateService", func() error {
		s, ok := v.svc[id]
		if !ok {
			return notFound(id)
		}
		if err := change(&s); err != nil {
			return err
		}
		v.svc[id], out = s, s
		return nil
	})
	return out, err
}

func (v *view) CreateDeployment(ctx context.Context, serviceID string, src leapcell.Source, set leapcell.Settings, origin leapcell.Origin) (out leapcell.Deployment, err error) {
	err = v.do(ctx, "CreateDeployment", func() error {
		v.numbers++
		s := v.svc[serviceID]
		out = leapcell.Deployment{
			ID: leapcell.JobID(s.Name, v.numbers), ServiceID: s.ID, Service: s.Name, Number: v.numbers, State: leapcell.Queued,
			Source: src, Settings: set, Origin: origin, CreatedAt: time.Now(), UpdatedAt: time.Now(),
		}
		v.deps[out.ID] = out
		return nil
	})
	return out, err
}

func (v *view) Requested(ctx context.Context, serviceID, key string) (out leapcell.Deployment, err error) {
	err = v.do(ctx, "Requested", func() error {
		for _, dep := range v.deps {
			if dep.ServiceID == serviceID && dep.Request == key {
				out = dep
				return nil
			}
		}
		return notFound(key)
	})
	return out, err
}

func (v *view) Deployment(ctx context.Context, id string) (out leapcell.Deployment, err error) {
	err = v.do(ctx, "Deployment", func() error {
		var ok bool
		if out, ok = v.deps[id]; !ok {
			return notFound(id)
		}
		return nil
	})
	return out, err
}

func (v *view) Deployments(ctx context.Context, serviceID string, _ int) (out []leapcell.Deployment, err error) {
	err = v.do(ctx, "Deployments", func() error {
		for _, d := range v.deps {
			if d.ServiceID == serviceID {
				out = append(out, d)
			}
		}
		slices.SortFunc(out, func(a, b leapcell.Deployment) int { return b.Number - a.Number })
		return nil
	})
	return out, err
}

func (v *view) Unfinished(ctx context.Context) (out []leapcell.Deployment, err error) {
	err = v.do(ctx, "Unfinished", func() error {
		for _, d := range v.deps {
			if !d.State.Done() {
				out = append(out, d)
			}
		}
		slices.SortFunc(out, func(a, b leapcell.Deployment) int { return a.Number - b.Number })
		return nil
	})
	return out, err
}

func (v *view) DeploymentsSince(ctx context.Context, workspace string, since time.Time) (out []leapcell.Made, err error) {
	err = v.do(ctx, "DeploymentsSince", func() error {
		for _, d := range v.deps {
			if v.svc[d.ServiceID].Workspace == workspace && !d.CreatedAt.Before(since) {
				out = append(out, leapcell.Made{Origin: d.Origin, CreatedAt: d.CreatedAt})
			}
		}
		slices.SortFunc(out, func(a, b leapcell.Made) int { return a.CreatedAt.Compare(b.CreatedAt) })
		return nil
	})
	return out, err
}

func (v *view) UpdateDeployment(ctx context.Context, id string, change func(*leapcell.Deployment) error) (out leapcell.Deployment, err error) {
	err = v.do(ctx, "UpdateDeployment", func() error {
		before, ok := v.deps[id]
		if !ok {
			return notFound(id)
		}
		out = before
		if err := change(&out); err != nil {
			return err
		}
		if out.State != before.State && !before.State.CanBecome(out.State) {
			return leapcell.Errorf(leapcell.CodeConflict, "%s: %s to %s", id, before.State, out.State)
		}
		out.UpdatedAt = time.Now()
		v.deps[id] = out
		return nil
	})
	return out, err
}

func (v *view) Env(ctx context.Context, id string) (out leapcell.SealedEnv, err error) {
	err = v.do(ctx, "Env", func() error { out.Version = v.env[id]; return nil })
	return out, err
}

func (v *view) EnvApplied(ctx context.Context, id string, version int) error {
	return v.do(ctx, "EnvApplied", func() error { v.applied[id] = version; return nil })
}

func (v *view) EnvPending(ctx context.Context) (out []string, err error) {
	err = v.do(ctx, "EnvPending", func() error {
		for id, version := range v.env {
			if v.applied[id] != version {
				out = append(out, id)
			}
		}
		return nil
	})
	return out, err
}

func (v *view) nomad(ctx context.Context, name string, effect func() error) error {
	return v.do(ctx, name, func() error {
		if v.down != nil {
			return v.down
		}
		return effect()
	})
}

func (v *view) Register(ctx context.Context, job *api.Job) error {
	return v.nomad(ctx, "Register "+*job.ID, func() error {
		if image, _ := job.TaskGroups[0].Tasks[0].Config["image"].(string); image != "none" && !v.signed[image] {
			v.t.Errorf("job %s runs %s, which nobody has signed", *job.ID, image)
		}
		j := &fakeJob{job: job}
		if old, ok := v.jobs[*job.ID]; ok {
			if !old.stopped() {
				v.t.Errorf("job %s was registered twice", *job.ID)
			}
			j.allocs = old.allocs
		}
		v.jobs[*job.ID] = j
		if *job.Type == api.JobTypeService {
			v.scaleTo(*job.ID, j, *job.TaskGroups[0].Count)
			return nil
		}
		if *job.Type == api.JobTypeSysbatch {
			v.fetchOnNodes(j)
			return nil
		}
		v.builds++
		if v.place == nil {
			a := v.newAlloc(*job.ID, j)
			v.build(v.world, a, v.deps[strings.TrimPrefix(*job.ID, "build-")])
		}
		v.bump()
		return nil
	})
}

func (v *view) Job(ctx context.Context, id string) (out *api.Job, err error) {
	err = v.nomad(ctx, "Job", func() error {
		j, ok := v.jobs[id]
		if !ok {
			return notFound(id)
		}
		out = j.job
		return nil
	})
	return out, err
}

func (v *view) Jobs(ctx context.Context, prefix string) (out []*api.JobListStub, err error) {
	err = v.nomad(ctx, "Jobs", func() error {
		for id := range v.jobs {
			if strings.HasPrefix(id, prefix) {
				out = append(out, &api.JobListStub{ID: id, Stop: v.jobs[id].stopped()})
			}
		}
		return nil
	})
	return out, err
}

func (v *view) Scale(ctx context.Context, job string, n int) error {
	return v.nomad(ctx, fmt.Sprintf("Scale %s %d", job, n), func() error {
		j, ok := v.jobs[job]
		if !ok {
			return notFound(job)
		}
		v.scaleTo(job, j, n)
		return nil
	})
}

func (v *view) Stop(ctx context.Context, job string, purge bool) error {
	return v.nomad(ctx, "Stop "+job, func() error {
		j, ok := v.jobs[job]
		if !ok {
			return nil
		}
		if purge {
			if slices.ContainsFunc(j.allocs, alive) && *j.job.Type == api.JobTypeService {
				v.t.Errorf("job %s was purged while an instance runs: Nomad gives its port to others", job)
			}
			delete(v.jobs, job)
			v.bump()
			return nil
		}
		j.job.Stop = new(true)
		v.scaleTo(job, j, 0)
		return nil
	})
}

func (v *view) WaitAllocs(ctx context.Context, job string, index uint64) (out []*api.AllocationListStub, at uint64, err error) {
	for {
		var changed chan struct{}
		err := v.nomad(ctx, "WaitAllocs", func() error {
			changed, at, out = v.changed, v.index, nil
			if j, ok := v.jobs[job]; ok {
				for _, a := range j.allocs {
					out = append(out, new(*a))
				}
			}
			return nil
		})
		if err != nil || at > index {
			return out, at, err
		}
		select {
		case <-changed:
		case <-v.crashed:
			return nil, 0, errCrashed
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

func (v *view) StopAlloc(ctx context.Context, id string) error {
	return v.nomad(ctx, "StopAlloc", func() error {
		v.stopped = append(v.stopped, id)
		for job, j := range v.jobs {
			for _, a := range j.allocs {
				if a.ID == id {
					a.DesiredStatus, a.ClientStatus = api.AllocDesiredStatusStop, api.AllocClientStatusComplete
					v.scaleTo(job, j, j.count)
					return nil
				}
			}
		}
		return notFound(id)
	})
}

func (v *view) FailedPlacement(ctx context.Context, _ string) (out *api.AllocationMetric, err error) {
	err = v.nomad(ctx, "FailedPlacement", func() error { out = v.place; return nil })
	return out, err
}

func (v *view) PutVariable(ctx context.Context, path string, value []byte) (uint64, error) {
	return 1, v.nomad(ctx, "PutVariable", func() error {
		route, err := leapcell.ParseRoute(value)
		if err != nil {
			return err
		}
		v.vars[path], v.values[path] = route.Deployment, value
		if !route.Preview {
			v.writes = append(v.writes, route.Deployment)
		}
		return nil
	})
}

func (v *view) Variable(ctx context.Context, path string) (out []byte, err error) {
	err = v.nomad(ctx, "Variable", func() error {
		var ok bool
		if out, ok = v.values[path]; !ok {
			return notFound(path)
		}
		return nil
	})
	return out, err
}

func (v *view) DeleteVariable(ctx context.Context, path string) error {
	return v.nomad(ctx, "DeleteVariable", func() error { delete(v.vars, path); return nil })
}

func (v *view) Logs(ctx context.Context, o nomad.LogOptions) (out io.ReadCloser, err error) {
	err = v.nomad(ctx, "Logs", func() error {
		text, ok := v.logs[o.AllocID+"/"+o.Stream]
		if !ok {
			return notFound("log")
		}
		if !o.FromEnd {
			text = text[min(int(o.Offset), len(text)):]
		}
		if !o.Follow {
			out = io.NopCloser(strings.NewReader(text))
			return nil
		}
		r, w := io.Pipe()
		go func() {
			_, _ = io.WriteString(w, text)
			<-ctx.Done() // Nomad does not end it
			w.CloseWithError(ctx.Err())
		}()
		out = r
		return nil
	})
	return out, err
}

func (v *view) Save(ctx context.Context, r io.Reader) (string, error) {
	b, err := io.ReadAll(r)
	return "sum-" + string(b), errors.Join(err, v.do(ctx, "Save", func() error { return nil }))
}

func (v *view) CheckGit(leapcell.Source) error { return nil }

func (v *view) Renew(sum string) error {
	v.world.mu.Lock()
	defer v.world.mu.Unlock()
	if v.swept[sum] {
		return notFound(sum)
	}
	return nil
}

func (v *view) Sweep(keep map[string]bool, _ time.Duration) error {
	v.world.mu.Lock()
	defer v.world.mu.Unlock()
	for _, dep := range v.deps {
		if dep.Source.Upload != "" && !keep[dep.Source.Upload] {
			v.swept[dep.Source.Upload] = true
		}
	}
	return nil
}

func (v *view) Fetch(ctx context.Context, _ leapcell.Source, _ string, progress func(string)) (out source.Tree, err error) {
	err = v.do(ctx, "Fetch", func() error { out = v.tree; return v.fetch })
	progress("fetched")
	return out, err
}

func (v *view) Runtime(name string) (build.Runtime, error) {
	for _, r := range build.Runtimes() {
		if r.Name == name {
			return r, nil
		}
	}
	return build.Runtime{}, leapcell.Errorf(leapcell.CodeInvalid, "the runtime %q is not known", name)
}

func (v *view) Detect(map[string]bool) (build.Found, error) {
	return build.Found{Runtime: "go", File: "go.mod"}, nil
}

func (v *view) RunBase(context.Context, build.Runtime, func(string)) (string, error) {
	return "registry/base/run@sha256:1", nil
}

func (v *view) SourceImage(ctx context.Context, s build.Source, _ func(string)) (out string, err error) {
	err = v.do(ctx, "SourceImage", func() error {
		out = "registry/" + s.Repository + "@sha256:s"
		v.images[s.Repository+":"+s.Tag] = out
		return nil
	})
	return out, err
}

func (v *view) Resolve(ctx context.Context, repository, tag string) (out string, err error) {
	err = v.do(ctx, "Resolve", func() error {
		var ok bool
		if out, ok = v.images[repository+":"+tag]; !ok {
			return notFound(tag)
		}
		return nil
	})
	return out, err
}

func (v *view) Sign(ctx context.Context, image string) error {
	return v.do(ctx, "Sign", func() error {
		if v.unsigned == nil {
			v.signed[image] = true
		}
		return v.unsigned
	})
}

func (v *view) Prepare(context.Context, string) error { return nil }

func (v *view) Describe(ctx context.Context, dep leapcell.Deployment) error {
	return v.do(ctx, "Describe", func() error {
		if v.untold == nil {
			v.described[dep.ID] = true
		}
		return v.untold
	})
}

// deployer starts a life of the deployer.
func (w *world) deployer(v *view, change func(*Config)) *Deployer {
	w.t.Helper()
	cfg := Config{
		Dir: w.dir, Namespace: "leapcell", RegistryAddress: "registry", Store: v, Env: v, Nomad: v, Sources: v, Builder: v, Images: v, Edges: noEdges{},
		Storage: noStorage{w}, Upstream: &fakeUpstream{}, Supply: v,
		Handover: time.Millisecond, Pause: time.Millisecond, StartGrace: 5 * time.Second, Patience: 10 * time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { d.Close() })
	return d
}

// ada asks for rollbacks and the like.
var ada = leapcell.Origin{StartedBy: "ada"}

func (w *world) submit(d *Deployer) leapcell.Deployment {
	w.t.Helper()
	w.mu.Lock()
	svc := w.svc["shop-x"]
	w.mu.Unlock()
	dep, err := d.Submit(w.t.Context(), svc, leapcell.Source{}, leapcell.Origin{}, strings.NewReader("x"))
	if err != nil {
		w.t.Fatal(err)
	}
	return dep
}

// finish waits until a deployment is done and nobody works on it any more.
func (w *world) finish(d *Deployer, id string) leapcell.Deployment {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	dep, err := d.Wait(ctx, id)
	if err != nil {
		w.t.Fatalf("%s: %v (%s)", id, err, dep.State)
	}
	d.awaitLeave(id)
	return dep
}

func readLog(t *testing.T, d *Deployer, id string) string {
	t.Helper()
	r, err := d.Log(t.Context(), id, leapcell.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// noEdges is a platform without edges: nobody has to be waited for.
type noEdges struct{}

func (noEdges) AwaitRoutes(context.Context, uint64) error { return nil }

// noStorage has no images; it notes whose are forgotten.
type noStorage struct{ w *world }

func (s noStorage) Forget(folder string) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.forgot = append(s.w.forgot, folder)
	return nil
}

func (noStorage) Repositories() ([]string, error)               { return nil, nil }
func (noStorage) Tags(string) ([]string, error)                 { return nil, nil }
func (noStorage) Untag(string, string, time.Time) (bool, error) { return false, nil }
func (noStorage) Collect(context.Context, registry.Collection) (registry.Freed, error) {
	return registry.Freed{}, nil
}
