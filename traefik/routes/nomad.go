package routes

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/leapcell/leapcell"
)

// Config is what a [Table] is read with. Client and Namespace are needed.
type Config struct {
	Client    *api.Client
	Namespace string // of services and of their route variables
	// Jobs are the namespaces of jobs that the platform did not deploy and that may ask for
	// the edge in their meta.
	Jobs []string
	Log  *slog.Logger
}

// New makes a table; [Run] keeps it up to date.
func New() *Table { return newTable() }

// Run follows Nomad until ctx ends. While Nomad is away the table keeps its last state.
func (t *Table) Run(ctx context.Context, cfg Config) {
	n := &nomad{client: cfg.Client, namespace: cfg.Namespace, log: cfg.Log, table: t}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	v := &variables{nomad: n, table: t}
	a := &allocations{nomad: n, table: t}
	t.expectJobs(cfg.Jobs)
	var all sync.WaitGroup
	all.Go(func() { n.follow(ctx, "routes", v.run) })
	all.Go(func() { n.follow(ctx, "instances", a.run) })
	for _, namespace := range cfg.Jobs {
		n := &nomad{client: n.client, namespace: namespace, log: n.log.With("namespace", namespace), table: t}
		j := &jobs{nomad: n, table: t}
		a := &allocations{nomad: n, table: jobInstances{t, namespace}, plain: true}
		all.Go(func() { n.follow(ctx, "jobs", j.run) })
		all.Go(func() { n.follow(ctx, "instances", a.run) })
	}
	all.Wait()
}

// nomad is what the two followers share.
type nomad struct {
	client    *api.Client
	namespace string
	log       *slog.Logger
	table     *Table

	mu   sync.Mutex
	away map[string]time.Time // what cannot be read, and since when
}

const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

// follow runs run again and again. It says once when it stops working and once when it
// works again.
func (n *nomad) follow(ctx context.Context, what string, run func(context.Context) error) {
	pause := firstPause
	for {
		began := time.Now()
		err := run(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastPause {
			pause = firstPause
		}
		n.failed(what, err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, lastPause)
	}
}

func (n *nomad) failed(what string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.away == nil {
		n.away = map[string]time.Time{}
	}
	if _, known := n.away[what]; known {
		return
	}
	n.away[what] = time.Now()
	n.log.Warn("nomad does not answer; the last state is used meanwhile", "reading", what, "error", err)
}

func (n *nomad) answered(what string) {
	n.table.wasRead(what)
	n.mu.Lock()
	defer n.mu.Unlock()
	if since, ok := n.away[what]; ok {
		delete(n.away, what)
		n.log.Info("nomad answers again", "reading", what, "after", time.Since(since).Round(time.Millisecond))
	}
}

func (n *nomad) query(ctx context.Context, q *api.QueryOptions) *api.QueryOptions {
	if q == nil {
		q = &api.QueryOptions{}
	}
	q.Namespace = n.namespace
	return q.WithContext(ctx)
}

// Scaler brings deployments from zero instances to one, straight through Nomad.
type Scaler struct {
	cfg    Config
	table  *Table
	flight singleflight.Group
	calls  *semaphore.Weighted // of [leapcell.NomadCalls]
}

// NewScaler makes a scaler that uses the table to see what Nomad does by itself.
func NewScaler(cfg Config, table *Table) *Scaler {
	return &Scaler{cfg: cfg, table: table, calls: semaphore.NewWeighted(leapcell.NomadCalls)}
}

// Wake sets the deployment's count to one. Callers at the same time share one call.
// The error has [leapcell.CodeNotFound] when there is no such deployment.
func (s *Scaler) Wake(ctx context.Context, route *leapcell.Route) error {
	_, err, _ := s.flight.Do(route.Deployment, func() (any, error) {
		if err := s.calls.Acquire(ctx, 1); err != nil {
			return nil, leapcell.Wrap(leapcell.CodeUnavailable, err, "Nomad was too slow to scale the deployment "+route.Deployment)
		}
		defer s.calls.Release(1)
		return nil, s.wake(ctx, route)
	})
	return err
}

func (s *Scaler) wake(ctx context.Context, route *leapcell.Route) error {
	if route.Plain != nil {
		return wakeJob(ctx, s.cfg.Client, route)
	}
	namespace := route.Namespace
	if namespace == "" {
		namespace = s.cfg.Namespace
	}
	jobs := s.cfg.Client.Jobs()
	if s.table.Restarting(route.Deployment) {
		// An instance has failed. Nomad brings it back after its own delay, unless
		// somebody has set the count to zero since.
		status, _, err := jobs.ScaleStatus(route.Deployment, (&api.QueryOptions{Namespace: namespace}).WithContext(ctx))
		if err == nil && status.TaskGroups[leapcell.Group].Desired > 0 {
			return nil
		}
	}
	one := 1
	_, _, err := jobs.Scale(route.Deployment, leapcell.Group, &one, "a request waits for it", false, nil,
		(&api.WriteOptions{Namespace: namespace}).WithContext(ctx))
	var answer api.UnexpectedResponseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answer) && answer.StatusCode() == http.StatusNotFound:
		return leapcell.Wrap(leapcell.CodeNotFound, err, "the deployment "+route.Deployment+" is not in Nomad")
	default:
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "Nomad did not scale the deployment "+route.Deployment)
	}
}
