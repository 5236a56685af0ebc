package routes

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapcell/leapcell"
)

// Table answers from the last state that was published. The zero value is not usable:
// see [New].
type Table struct {
	now atomic.Pointer[state]
	mu  sync.Mutex // of those that publish

	read struct{ routes, instances atomic.Int64 } // when Nomad said last what there is; in ns since 1970
}

// state is what the edge knows at one moment. It is never changed once published.
type state struct {
	routes    sites                          // nil until read
	index     uint64                         // of Nomad, up to which routes were read
	instances map[string][]leapcell.Instance // by deployment; nil until read
	// restarting are the deployments of which an instance failed and that Nomad brings
	// back by itself.
	restarting map[string]bool
	// parts and jobSites are of the jobs that the platform did not deploy.
	parts    parts
	jobSites sites
	changed  chan struct{} // closed when another state is published
}

func newTable() *Table {
	t := &Table{}
	t.now.Store(&state{changed: make(chan struct{})})
	t.read.routes.Store(time.Now().UnixNano())
	t.read.instances.Store(time.Now().UnixNano())
	return t
}

// Ready reports whether both tables were read once.
func (t *Table) Ready() bool {
	s := t.now.Load()
	return s.routes != nil && s.instances != nil && s.parts.ready()
}

// Route is the route of a path of a host, or nil. Services of the platform go before other
// jobs.
func (t *Table) Route(host, path string) *leapcell.Route {
	s := t.now.Load()
	if route := s.routes.route(host, path); route != nil {
		return route
	}
	return s.jobSites.route(host, path)
}

// Instances are the instances of a deployment that take requests.
func (t *Table) Instances(deployment string) []leapcell.Instance {
	s := t.now.Load()
	if list := s.instances[deployment]; list != nil {
		return list
	}
	if p := s.parts.of(deployment); p != nil {
		return p.instances[deployment]
	}
	return nil
}

// Changed is closed when a later state is there.
func (t *Table) Changed() <-chan struct{} { return t.now.Load().changed }

// Restarting reports whether Nomad is about to replace a failed instance of the deployment.
func (t *Table) Restarting(deployment string) bool {
	s := t.now.Load()
	if s.restarting[deployment] {
		return true
	}
	p := s.parts.of(deployment)
	return p != nil && p.restarting[deployment]
}

// Sizes are the number of hosts, of deployments with instances, and of these instances, for
// metrics.
func (t *Table) Sizes() (hosts, deployments, instances int) {
	s := t.now.Load()
	for _, list := range s.instances {
		instances += len(list)
	}
	hosts, deployments = len(s.routes)+len(s.jobSites), len(s.instances)
	for _, p := range s.parts {
		for _, route := range p.routes {
			if list := p.instances[route.Deployment]; len(list) > 0 {
				deployments++
				instances += len(list)
			}
		}
	}
	return hosts, deployments, instances
}

// Ages are the times since Nomad said last what routes and what instances there are; before
// the first time, since the table was made. While Nomad answers, neither is much more than a
// minute.
func (t *Table) Ages() (routes, instances time.Duration) {
	return time.Since(time.Unix(0, t.read.routes.Load())), time.Since(time.Unix(0, t.read.instances.Load()))
}

// wasRead notes that Nomad answered about "routes" or "instances".
func (t *Table) wasRead(what string) {
	at := &t.read.routes
	if what == "instances" {
		at = &t.read.instances
	}
	at.Store(time.Now().UnixNano())
}

// publish makes change's result the current state and wakes all who wait for one.
func (t *Table) publish(change func(next *state)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.now.Load()
	next := *before
	next.changed = make(chan struct{})
	change(&next)
	t.now.Store(&next)
	close(before.changed)
}

// RoutesIndex is the index of Nomad up to which the routes are known.
func (t *Table) RoutesIndex() uint64 { return t.now.Load().index }

// Fronts are the routes of the platform's services that have a front end, or had one.
func (t *Table) Fronts() []*leapcell.Route {
	var out []*leapcell.Route
	for _, s := range t.now.Load().routes {
		if s.root != nil && s.root.HasFiles() {
			out = append(out, s.root)
		}
		for _, p := range s.paths {
			if p.route.HasFiles() {
				out = append(out, p.route)
			}
		}
	}
	return out
}

func (t *Table) publishRoutes(routes sites, index uint64) {
	t.publish(func(next *state) { next.routes, next.index = routes, index })
}

// wasListed reports whether all instances were published once.
func (t *Table) wasListed() bool { return t.now.Load().instances != nil }

// publishAll replaces all instances.
func (t *Table) publishAll(instances map[string][]leapcell.Instance, restarting map[string]bool) {
	t.publish(func(next *state) { next.instances, next.restarting = instances, restarting })
}

// publishSome replaces what is known of some deployments.
func (t *Table) publishSome(some map[string][]leapcell.Instance, restarting map[string]bool) {
	t.publish(func(next *state) {
		next.instances, next.restarting = replaced(next.instances, some), restarting
	})
}
