package wake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/nomad"
	"github.com/leapcell/leapcell/jobs"
)

const (
	// edgeSilence is how long an edge may say nothing until it is forgotten, with its load.
	edgeSilence = 15 * time.Second
	// edgeGreeting is how long after its start a control plane may not know every edge: they
	// report every five seconds if nothing happens.
	edgeGreeting = 6 * time.Second
	// routesAge is how old the list of live deployments may get; routesPause is the least
	// time between two readings of it.
	routesAge   = 30 * time.Second
	routesPause = time.Second
	// retryPause is the wait after Nomad did not answer.
	retryPause = time.Second
	// countsPause is the least time between two readings of all instances: each of many that start
	// at once changes several times.
	countsPause = 100 * time.Millisecond
	// never is longer than anything.
	never = 365 * 24 * time.Hour
)

// Store tells which deployments are live.
type Store interface {
	Services(ctx context.Context) ([]leapcell.Service, error)
	Service(ctx context.Context, nameOrID string) (leapcell.Service, error)
	Deployment(ctx context.Context, id string) (leapcell.Deployment, error)
}

// Nomad runs the instances.
type Nomad interface {
	Job(ctx context.Context, id string) (*api.Job, error)
	Scale(ctx context.Context, job string, n int) error
	// WaitRunning waits for a change after index, and gives the allocations that run; 0 does not
	// wait.
	WaitRunning(ctx context.Context, index uint64) ([]*api.AllocationListStub, uint64, error)
}

// Config is what [New] needs to know.
type Config struct {
	Namespace string
	Store     Store
	Nomad     Nomad
	Log       *slog.Logger
}

// Scaler sizes live deployments. Report is safe for concurrent use; Run is called while this
// process leads, and never twice at a time.
type Scaler struct {
	cfg   Config
	began time.Time
	news  chan struct{} // of one: something changed

	mu     sync.Mutex
	edges  map[string]*edge
	heard  chan struct{}    // closed at the next report
	counts map[string]count // by deployment
	sizes  map[string]Size  // by service; for Figures

	sums sums

	// Of Run alone.
	services map[string]*watched // by deployment
	readAt   time.Time           // of the live deployments
	unknown  bool                // a deployment was seen that is not among them
}

// count is how many instances of a deployment Nomad wants, and how many of them are ready.
type count struct{ wanted, ready int }

// edge is what one edge said last.
type edge struct {
	at       time.Time
	routes   uint64                          // index up to which it has the routes
	services map[string]leapcell.EdgeService // by the key of the route
}

// New makes a scaler; it does nothing until Run.
func New(cfg Config) *Scaler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Scaler{
		cfg: cfg, began: time.Now(), news: make(chan struct{}, 1),
		edges: map[string]*edge{}, heard: make(chan struct{}), counts: map[string]count{}, services: map[string]*watched{},
	}
}

// Report takes what an edge sees. It does not block.
func (s *Scaler) Report(r leapcell.EdgeReport) {
	e := &edge{at: time.Now(), routes: r.RoutesIndex, services: make(map[string]leapcell.EdgeService, len(r.Services))}
	for _, svc := range r.Services {
		e.services[svc.Key()] = svc
	}
	s.mu.Lock()
	if old, ok := s.edges[r.Edge]; ok {
		// A report names what changed; what it leaves out is as it was.
		for id, svc := range old.services {
			if _, ok := e.services[id]; !ok {
				e.services[id] = svc
			}
		}
	}
	s.edges[r.Edge] = e
	close(s.heard)
	s.heard = make(chan struct{})
	s.mu.Unlock()
	s.wake()
}

// AwaitRoutes waits until every edge that was heard of lately has read the routes up to
// index. One that was killed is waited for until it counts as silent.
func (s *Scaler) AwaitRoutes(ctx context.Context, index uint64) error {
	for {
		heard, behind, again := s.behind(index)
		if behind == "" {
			return nil
		}
		timer := time.NewTimer(again)
		select {
		case <-heard:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%s: %w", behind, ctx.Err())
		}
		timer.Stop()
	}
}

// behind names an edge that has not read the routes up to index, "" when all have. The
// answer may be another one with the next report, and after the time given.
func (s *Scaler) behind(index uint64) (heard <-chan struct{}, behind string, again time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	again = never
	if left := edgeGreeting - time.Since(s.began); left > 0 {
		behind, again = "edges that did not report yet", left
	}
	for name, e := range s.edges {
		if left := edgeSilence - time.Since(e.at); e.routes < index && left > 0 {
			behind, again = "edge "+name, min(again, left)
		}
	}
	return s.heard, behind, again
}

func (s *Scaler) wake() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// Run scales until ctx ends.
func (s *Scaler) Run(ctx context.Context) error {
	s.sums.leading.Store(true)
	defer s.sums.leading.Store(false)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { s.watchCounts(ctx) })
	for {
		pause := s.round(ctx)
		timer := time.NewTimer(pause)
		select {
		case <-s.news:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// watchCounts keeps the number of instances of each deployment.
func (s *Scaler) watchCounts(ctx context.Context) {
	var index uint64
	for ctx.Err() == nil {
		allocs, next, err := s.cfg.Nomad.WaitRunning(ctx, index)
		if err != nil {
			if !errors.Is(err, context.Canceled) && index != 0 {
				s.cfg.Log.Warn("scaler: allocations are not known", "err", err)
				index = 0 // said once, and begun anew
			}
			select {
			case <-time.After(retryPause):
			case <-ctx.Done():
			}
			continue
		}
		index = next
		counts := map[string]count{}
		for _, a := range allocs {
			n := counts[a.JobID]
			n.wanted++
			if nomad.Ready(a) {
				n.ready++
			}
			counts[a.JobID] = n
		}
		s.mu.Lock()
		s.counts = counts
		s.mu.Unlock()
		s.wake()
		select {
		case <-time.After(countsPause):
		case <-ctx.Done():
		}
	}
}

// round looks at all live deployments and gives the time until it must look again even if
// nothing happens.
func (s *Scaler) round(ctx context.Context) time.Duration {
	now := time.Now()
	again := s.forgetEdges(now)
	if now.Sub(s.readAt) > routesAge || s.unknown && now.Sub(s.readAt) > routesPause {
		if err := s.readLive(ctx, now); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("scaler: live deployments are not known", "err", err)
		}
	}
	s.observe(now)
	for _, w := range s.services {
		again = min(again, s.size(ctx, now, w))
	}
	if s.unknown {
		again = min(again, routesPause)
	}
	return max(min(again, routesAge), time.Millisecond)
}

// forgetEdges drops silent edges and gives the time until the next may be one.
func (s *Scaler) forgetEdges(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := never
	for id, e := range s.edges {
		left := edgeSilence - now.Sub(e.at)
		if left <= 0 {
			delete(s.edges, id)
			s.cfg.Log.Warn("scaler: an edge has fallen silent", "edge", id)
			continue
		}
		next = min(next, left)
	}
	return next
}

// readLive reads which deployments are live.
func (s *Scaler) readLive(ctx context.Context, now time.Time) error {
	s.readAt = now
	all, err := s.cfg.Store.Services(ctx)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, svc := range all {
		if svc.Live == "" {
			continue
		}
		live[svc.Live] = true
		if w, ok := s.services[svc.Live]; ok && !w.route.Preview {
			continue // what a deployment is run with never changes
		}
		dep, err := s.cfg.Store.Deployment(ctx, svc.Live)
		if err != nil {
			return err
		}
		if dep.Whole() {
			continue // there is nothing to scale
		}
		s.services[svc.Live] = &watched{route: jobs.Route(s.cfg.Namespace, svc, dep), traffic: now, requests: map[string]int64{}}
	}
	return s.readPreviews(ctx, now, live)
}

// readPreviews adds the deployments that are not live but run, because somebody visits them
// by their own names or a part of the service's requests goes there.
func (s *Scaler) readPreviews(ctx context.Context, now time.Time, live map[string]bool) error {
	s.mu.Lock()
	running := slices.Collect(maps.Keys(s.counts))
	s.mu.Unlock()
	for _, id := range running {
		if live[id] {
			continue
		}
		dep, err := s.cfg.Store.Deployment(ctx, id)
		if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
			continue // a build
		}
		if err != nil {
			return err
		}
		if !dep.Kept() {
			continue // on its way in or out: the deployer's
		}
		live[id] = true
		if w, ok := s.services[id]; ok && w.route.Preview {
			continue
		}
		svc, err := s.cfg.Store.Service(ctx, dep.ServiceID)
		if err != nil {
			return err
		}
		s.services[id] = &watched{route: jobs.Preview(s.cfg.Namespace, svc, dep), traffic: now, requests: map[string]int64{}}
	}
	for id := range s.services {
		if !live[id] {
			delete(s.services, id)
		}
	}
	return nil
}

// observe takes the last reports and counts into what is watched.
func (s *Scaler) observe(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unknown = false
	for id := range s.counts {
		if _, ok := s.services[id]; !ok {
			s.unknown = true
		}
	}
	s.sizes = map[string]Size{}
	for id, w := range s.services {
		size := s.sizes[w.route.ServiceID]
		s.sizes[w.route.ServiceID] = Size{size.Wanted + s.counts[id].wanted, size.Ready + s.counts[id].ready}
		load := 0
		for name, e := range s.edges {
			// A deployment has visitors by its own name, and those of the service if it is live.
			seen := e.services[id]
			if !w.route.Preview {
				main := e.services[w.route.ServiceID]
				seen.InFlight, seen.Queued = seen.InFlight+main.InFlight, seen.Queued+main.Queued
				seen.Requests += main.Requests
			}
			load += seen.InFlight + seen.Queued
			w.sawRequests(now, name, seen.Requests)
		}
		w.edges = len(s.edges)
		w.observe(now, s.counts[id].wanted, s.counts[id].ready, load)
	}
}

// size asks the rule about one deployment and does what it says. It gives the time until
// the rule must be asked again.
func (s *Scaler) size(ctx context.Context, now time.Time, w *watched) time.Duration {
	d := Decide(now, w.input(now))
	if d.Reason == "" {
		return w.again(now, d)
	}
	id := w.route.Deployment
	err := s.apply(ctx, now, w, d)
	if err != nil && ctx.Err() == nil && !w.failing {
		s.cfg.Log.Error("scaler: scaling failed", "deployment", id, "count", d.Count, "err", err)
	}
	if err != nil {
		s.sums.failed.Add(1)
	}
	w.failing = err != nil
	return retryPause // by when Nomad's answer is seen
}

// apply scales, unless what Nomad and the store say by now makes another decision.
func (s *Scaler) apply(ctx context.Context, now time.Time, w *watched, d Decision) error {
	id := w.route.Deployment
	svc, err := s.cfg.Store.Service(ctx, w.route.ServiceID)
	if err != nil {
		return err
	}
	if (svc.Live == id) == w.route.Preview {
		s.unknown = true // another one is live since
		return nil
	}
	job, err := s.cfg.Nomad.Job(ctx, id)
	if err != nil {
		return err
	}
	in := w.input(now)
	in.Count = jobCount(job)
	d = Decide(now, in)
	if d.Reason == "" || d.Count == in.Count {
		return nil
	}
	s.cfg.Log.Info("scaled", "deployment", id, "service", svc.ID, "from", in.Count, "to", d.Count, "load", in.Load, "why", d.Reason)
	if err := s.cfg.Nomad.Scale(ctx, id, d.Count); err != nil {
		return err
	}
	s.sums.scaled(in.Count, d.Count)
	return nil
}

func jobCount(job *api.Job) int {
	for _, g := range job.TaskGroups {
		if g.Name != nil && *g.Name == leapcell.Group && g.Count != nil {
			return *g.Count
		}
	}
	return 0
}
