package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/semaphore"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/build"
	"github.com/leapcell/leapcell/api/nomad"
	"github.com/leapcell/leapcell/api/source"
)

// Store is the deployer's memory across restarts.
type Store interface {
	Service(ctx context.Context, nameOrID string) (leapcell.Service, error)
	Services(ctx context.Context) ([]leapcell.Service, error)
	UpdateService(ctx context.Context, id string, change func(*leapcell.Service) error) (leapcell.Service, error)
	CreateDeployment(ctx context.Context, serviceID string, src leapcell.Source, settings leapcell.Settings, origin leapcell.Origin) (leapcell.Deployment, error)
	Deployment(ctx context.Context, id string) (leapcell.Deployment, error)
	// Requested gives the deployment of a service that the request with that key made, else CodeNotFound.
	Requested(ctx context.Context, serviceID, key string) (leapcell.Deployment, error)
	Deployments(ctx context.Context, serviceID string, limit int) ([]leapcell.Deployment, error)
	Unfinished(ctx context.Context) ([]leapcell.Deployment, error)
	// DeploymentsSince gives what made the deployments of a workspace since then, oldest first.
	DeploymentsSince(ctx context.Context, workspace string, since time.Time) ([]leapcell.Made, error)
	// UpdateDeployment refuses moves that State.CanBecome forbids with CodeConflict.
	UpdateDeployment(ctx context.Context, id string, change func(*leapcell.Deployment) error) (leapcell.Deployment, error)
}

// EnvStore tells which environments are not yet in effect everywhere.
type EnvStore interface {
	Env(ctx context.Context, serviceID string) (leapcell.SealedEnv, error)
	EnvApplied(ctx context.Context, serviceID string, version int) error
	EnvPending(ctx context.Context) ([]string, error)
}

// Nomad runs the jobs. Errors of calls that may succeed later have CodeUnavailable, those
// about jobs that it does not know CodeNotFound.
type Nomad interface {
	Register(ctx context.Context, job *api.Job) error
	Job(ctx context.Context, id string) (*api.Job, error)
	Jobs(ctx context.Context, prefix string) ([]*api.JobListStub, error)
	Scale(ctx context.Context, job string, n int) error
	Stop(ctx context.Context, job string, purge bool) error
	// WaitAllocs waits for allocations newer than index; 0 does not wait.
	WaitAllocs(ctx context.Context, job string, index uint64) ([]*api.AllocationListStub, uint64, error)
	// StopAlloc ends one allocation; Nomad starts another in its place.
	StopAlloc(ctx context.Context, id string) error
	// FailedPlacement says why Nomad finds no node for the job; nil when it does not say.
	FailedPlacement(ctx context.Context, job string) (*api.AllocationMetric, error)
	PutVariable(ctx context.Context, path string, value []byte) (index uint64, err error)
	// Variable gives what was put there, else CodeNotFound.
	Variable(ctx context.Context, path string) ([]byte, error)
	DeleteVariable(ctx context.Context, path string) error
	Logs(ctx context.Context, o nomad.LogOptions) (io.ReadCloser, error)
}

// Sources reads what users hand in.
type Sources interface {
	Save(ctx context.Context, r io.Reader) (sum string, err error)
	CheckGit(src leapcell.Source) error
	Fetch(ctx context.Context, src leapcell.Source, dst string, progress func(string)) (source.Tree, error)
	// Renew makes an upload young, so that Sweep leaves it; CodeNotFound if it is gone.
	Renew(sum string) error
	Sweep(keep map[string]bool, age time.Duration) error
}

// Builder knows runtimes and makes source images.
type Builder interface {
	Runtime(name string) (build.Runtime, error)
	Detect(names map[string]bool) (build.Found, error)
	// RunBase is the system that instances of the runtime stand on, by digest; "" is that of
	// its builds.
	RunBase(ctx context.Context, r build.Runtime, progress func(string)) (string, error)
	SourceImage(ctx context.Context, s build.Source, progress func(string)) (string, error)
}

// Images finds what was pushed to the registry.
type Images interface {
	// Resolve gives the reference with digest of repository:tag, else CodeNotFound.
	Resolve(ctx context.Context, repository, tag string) (string, error)
}

// Edges are those that send visitors.
type Edges interface {
	// AwaitRoutes waits until every edge has read the routes up to Nomad's index.
	AwaitRoutes(ctx context.Context, index uint64) error
}

// Config is what [New] needs to know. Zero durations and numbers mean the defaults.
type Config struct {
	Dir             string // for logs and layers
	Namespace       string // in Nomad
	RegistryAddress string // host:port as nodes reach it
	Store           Store
	Env             EnvStore
	Nomad           Nomad
	Sources         Sources
	Builder         Builder
	Images          Images
	Upstream        Upstream
	Edges           Edges
	Fronts          Fronts // nil: no front end is taken out of builds
	Supply          Supply // nil: images are neither signed nor described
	Storage         Storage
	Log             *slog.Logger

	Plan leapcell.Plan // of all workspaces; default hobby
	Keep int           // superseded deployments that stay registered; default what the plan keeps

	// FormerFor is how long the files of a former front end are there at least, for pages that were
	// loaded before the deploy; default a day.
	FormerFor time.Duration

	// Patience is how long a deployment waits for Nomad, Vault or the registry to come
	// back before it fails; default 5 minutes.
	Patience time.Duration
	// PlacementPatience is how long it waits for a node with room; default 1 minute.
	PlacementPatience time.Duration
	// StartGrace is added to the start timeout, for what comes before the app's start:
	// above all reading the image; default 30 seconds.
	StartGrace time.Duration
	// Handover bounds the wait until every edge knows a new route; an edge that does not
	// say so in time does not hold a deployment up. Default 2 seconds.
	Handover time.Duration
	// Pause is the first wait before something is tried again; default 250 ms.
	Pause time.Duration

	// CollectEvery is how often images are collected when nothing is deployed; default an hour.
	CollectEvery time.Duration
	// CollectPause is before each collection, so that many deployments cause few; default a minute.
	CollectPause time.Duration
	// CollectAge is how long what is not needed stays at least: longer than a push takes.
	// Default an hour.
	CollectAge time.Duration
	// MirrorAge is how long images of other registries stay that no build asks for; default a week.
	MirrorAge time.Duration
}

func (c Config) withDefaults() Config {
	orDefault(&c.Plan, leapcell.Plans()[0])
	orDefault(&c.Keep, c.Plan.ImagesKept)
	orDefault(&c.FormerFor, 24*time.Hour)
	orDefault(&c.Patience, 5*time.Minute)
	orDefault(&c.PlacementPatience, time.Minute)
	orDefault(&c.StartGrace, 30*time.Second)
	orDefault(&c.Handover, 2*time.Second)
	orDefault(&c.Pause, 250*time.Millisecond)
	orDefault(&c.CollectEvery, time.Hour)
	orDefault(&c.CollectPause, time.Minute)
	orDefault(&c.CollectAge, time.Hour)
	orDefault(&c.MirrorAge, 7*day)
	if c.Supply == nil {
		c.Supply = noSupply{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func orDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Deployer drives deployments. It is safe for concurrent use.
type Deployer struct {
	cfg       Config
	collector collector
	ctx       context.Context // of all work that outlives the call that asked for it
	cancel    context.CancelCauseFunc
	logs      *logs
	slots     *slots
	http      *http.Client // asks gates
	followed  *semaphore.Weighted
	done      sync.WaitGroup

	admitting   sync.Mutex // held while deployments are counted and another is added
	clearing    sync.Mutex // held while nodes remove build caches
	registering sync.Mutex // held while a job is registered, or looked at and then purged

	mu       sync.Mutex
	workers  map[string]*worker       // by deployment
	changed  map[string]chan struct{} // by deployment: closed at the next change
	services map[string]*serviceState // by service ID
	purging  map[string]bool          // stopped jobs that Nomad will forget
}

// serviceState is what the deployer knows of a service beside the store.
type serviceState struct {
	live  sync.Mutex // held while the route changes, or instances are replaced
	front sync.Mutex // held while static files are published, or collected

	// Under Deployer.mu.
	deleting     bool
	refreshing   bool // an environment is being brought to the instances
	refreshNext  bool // and another one after that
	refreshForce bool // of which one is for a deployment that has just gone live
}

// Causes by which work is cancelled.
var (
	errClosed   = errors.New("the deployer is closed")
	errStopped  = errors.New("the deployment was cancelled")
	errOvertook = errors.New("a newer deployment is live")
)

// New makes a deployer. Call Resume once, and Close at the end.
func New(cfg Config) (*Deployer, error) {
	cfg = cfg.withDefaults()
	l, err := newLogs(filepath.Join(cfg.Dir, "logs"))
	if err != nil {
		return nil, err
	}
	d := &Deployer{
		cfg: cfg, logs: l, slots: newSlots(cfg.Plan.Builds),
		workers: map[string]*worker{}, changed: map[string]chan struct{}{}, services: map[string]*serviceState{},
		purging: map[string]bool{}, collector: collector{wake: make(chan struct{}, 1)},
		http:     &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		followed: semaphore.NewWeighted(maxFollowed),
	}
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	return d, nil
}

// Close stops all work where it is and waits for it. Nothing is lost: Resume of the next
// process goes on.
func (d *Deployer) Close() error {
	d.cancel(errClosed)
	d.done.Wait()
	return nil
}

// Submit stores a deployment and starts to work on it. archive is the uploaded tar.gz, nil
// when src names an upload that is whole, an image or a git repository; it is read before Submit returns.
// A request that made a deployment before ([leapcell.Origin.Request]) gets that one.
func (d *Deployer) Submit(ctx context.Context, svc leapcell.Service, src leapcell.Source, origin leapcell.Origin, archive io.Reader) (leapcell.Deployment, error) {
	if d.isDeleting(svc.ID) {
		return leapcell.Deployment{}, errDeleting(svc)
	}
	// Before a byte of the source is read; what counts are the looks in create.
	if dep, made, err := d.requested(ctx, svc, origin); made || err != nil {
		return dep, err
	}
	if err := d.admit(ctx, svc, origin); err != nil {
		return leapcell.Deployment{}, err
	}
	switch {
	case src.Image != "":
		if err := d.cfg.Upstream.Check(src.Image); err != nil {
			return leapcell.Deployment{}, err
		}
	case src.Upload != "":
		if err := d.cfg.Sources.Renew(src.Upload); err != nil {
			return leapcell.Deployment{}, err
		}
	case archive == nil:
		if err := d.cfg.Sources.CheckGit(src); err != nil {
			return leapcell.Deployment{}, err
		}
	default:
		sum, err := d.cfg.Sources.Save(ctx, archive)
		if err != nil {
			return leapcell.Deployment{}, err
		}
		src.Upload = sum
	}
	return d.begin(ctx, svc, src, svc.Settings, origin)
}

// begin stores a deployment and starts to work on it.
func (d *Deployer) begin(ctx context.Context, svc leapcell.Service, src leapcell.Source, settings leapcell.Settings, origin leapcell.Origin) (leapcell.Deployment, error) {
	dep, fresh, err := d.create(ctx, svc, src, settings, origin)
	if err != nil || !fresh {
		return dep, err
	}
	d.start(dep)
	if !dep.Automatic() { // who takes in pushes does it when he has noted the event
		d.quiet(dep.ID, d.Overtake(context.WithoutCancel(ctx), dep))
	}
	return dep, nil
}

// Redeploy deploys again what dep was made of: src is its source, with the credentials of today. by is
// whose wish it is, and which request's.
func (d *Deployer) Redeploy(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, src leapcell.Source, by leapcell.Origin) (leapcell.Deployment, error) {
	if d.isDeleting(svc.ID) {
		return leapcell.Deployment{}, errDeleting(svc)
	}
	if dep, made, err := d.requested(ctx, svc, by); made || err != nil {
		return dep, err
	}
	if dep.Preview != "" {
		return leapcell.Deployment{}, leapcell.Errorf(leapcell.CodeConflict, "the deployment %s is a preview: push to %s to deploy it again", dep.ID, dep.Source.Branch)
	}
	var err error
	switch {
	case src.Image != "":
		err = d.cfg.Upstream.Check(src.Image)
	case src.Upload != "":
		err = d.cfg.Sources.Renew(src.Upload)
		if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
			err = leapcell.Errorf(leapcell.CodeConflict, "the upload of %s is no longer kept: deploy the folder itself", dep.ID)
		}
	default:
		err = d.cfg.Sources.CheckGit(src)
	}
	if err != nil {
		return leapcell.Deployment{}, err
	}
	return d.begin(ctx, svc, src, dep.Settings, leapcell.Origin{Trigger: leapcell.Redeploy, StartedBy: by.StartedBy, Request: by.Request, Of: dep.ID})
}

func errDeleting(svc leapcell.Service) error {
	return leapcell.Errorf(leapcell.CodeConflict, "the service %s is being deleted", svc.Name)
}

// Cancel stops a deployment that is not done. What it left in Nomad is removed afterwards.
func (d *Deployer) Cancel(ctx context.Context, id string) error {
	dep, err := d.update(ctx, id, func(dep *leapcell.Deployment) error {
		if dep.State.Done() {
			return leapcell.Errorf(leapcell.CodeConflict, "the deployment %s is %s: there is nothing to cancel", id, dep.State)
		}
		if isRollback(*dep) {
			dep.State = leapcell.Superseded // it was good before, and can be rolled back to again
			return nil
		}
		dep.State = leapcell.Cancelled
		dep.Error = &leapcell.Problem{Code: leapcell.CodeCancelled, Message: "somebody cancelled the deployment"}
		return nil
	})
	if err != nil {
		return err
	}
	if !d.stop(id, errStopped) {
		d.start(dep) // nobody works on it: at least what it left must go
	}
	return nil
}

// Wait blocks until the deployment is done or ctx ends.
func (d *Deployer) Wait(ctx context.Context, id string) (leapcell.Deployment, error) {
	for {
		changed := d.changes(id) // taken before looking, so that nothing is missed between
		dep, err := d.cfg.Store.Deployment(ctx, id)
		if err != nil || dep.State.Done() {
			return dep, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return dep, ctx.Err()
		}
	}
}

// Log streams a deployment's log; when it follows, until nobody works on the deployment any
// more. Close it.
func (d *Deployer) Log(ctx context.Context, id string, o leapcell.LogOptions) (io.ReadCloser, error) {
	if _, err := d.cfg.Store.Deployment(ctx, id); err != nil {
		return nil, err
	}
	return d.logs.read(ctx, id, o)
}

// Resume takes up what a former process left: unfinished deployments, environments that are
// not in effect, jobs that should no longer run. It returns when the work has begun.
func (d *Deployer) Resume(ctx context.Context) error {
	unfinished, err := d.cfg.Store.Unfinished(ctx)
	if err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	for _, dep := range unfinished {
		d.cfg.Log.Info("deployment resumed", "deployment", dep.ID, "state", dep.State)
		d.start(dep)
	}
	pending, err := d.cfg.Env.EnvPending(ctx)
	if err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	for _, id := range pending {
		svc, err := d.cfg.Store.Service(ctx, id)
		if err != nil {
			d.cfg.Log.Error("environment not resumed", "service", id, "err", err)
			continue
		}
		if err := d.EnvChanged(ctx, svc); err != nil {
			d.cfg.Log.Error("environment not resumed", "service", id, "err", err)
		}
	}
	d.done.Go(d.tidy)
	d.done.Go(d.tidyFronts)
	d.done.Go(d.signKept)
	return nil
}

// update changes a stored deployment and tells those who wait.
func (d *Deployer) update(ctx context.Context, id string, change func(*leapcell.Deployment) error) (leapcell.Deployment, error) {
	dep, err := d.cfg.Store.UpdateDeployment(ctx, id, func(dep *leapcell.Deployment) error {
		if err := change(dep); err != nil {
			return err
		}
		if dep.State.Done() && dep.EndedAt.IsZero() {
			dep.EndedAt = time.Now()
		}
		return nil
	})
	if err == nil {
		d.notify(id)
	}
	return dep, err
}

func (d *Deployer) notify(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c, ok := d.changed[id]; ok {
		close(c)
		delete(d.changed, id)
	}
}

func (d *Deployer) changes(id string) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.changed[id]
	if !ok {
		c = make(chan struct{})
		d.changed[id] = c
	}
	return c
}

func (d *Deployer) service(id string) *serviceState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.serviceLocked(id)
}

func (d *Deployer) serviceLocked(id string) *serviceState {
	s, ok := d.services[id]
	if !ok {
		s = &serviceState{}
		d.services[id] = s
	}
	return s
}

func (d *Deployer) isDeleting(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.serviceLocked(id).deleting
}
