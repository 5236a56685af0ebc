package static

import (
	"context"
	"sync"

	"github.com/leapcell/leapcell"
)

// Table is what the edge knows of routes.
type Table interface {
	RoutesIndex() uint64
	Changed() <-chan struct{}
	// Fronts are the routes with a front end, their own or a former one.
	Fronts() []*leapcell.Route
}

// Ready says how far the routes were read, and their lists of files as well: a deployment is
// called live when every edge has both. A list that cannot be had holds nothing up.
type Ready struct {
	server *Server
	table  Table

	mu      sync.Mutex
	index   uint64
	changed chan struct{}
}

// NewReady makes one. It knows nothing until Run.
func NewReady(server *Server, table Table) *Ready {
	return &Ready{server: server, table: table, changed: make(chan struct{})}
}

// RoutesIndex is Nomad's index up to which routes and lists are here.
func (r *Ready) RoutesIndex() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.index
}

// Changed is closed when RoutesIndex has grown.
func (r *Ready) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Run fetches lists as routes come, until ctx ends.
func (r *Ready) Run(ctx context.Context) {
	seen := map[string]bool{} // lists that were asked for
	for {
		changed := r.table.Changed()
		if index := r.table.RoutesIndex(); index != r.RoutesIndex() {
			seen = r.fetch(ctx, seen)
			r.mu.Lock()
			r.index = index
			close(r.changed)
			r.changed = make(chan struct{})
			r.mu.Unlock()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Ready) fetch(ctx context.Context, seen map[string]bool) map[string]bool {
	now := map[string]bool{}
	for _, route := range r.table.Fronts() {
		digests := route.Former
		if route.Static != nil {
			digests = append([]string{route.Static.Manifest}, digests...)
		}
		r.read(ctx, route.ServiceID, digests, seen, now)
	}
	return now
}

// read reads the lists that were not seen yet, and notes them.
func (r *Ready) read(ctx context.Context, service string, digests []string, seen, now map[string]bool) {
	for _, digest := range digests {
		if !seen[digest] && !now[digest] && ctx.Err() == nil {
			if _, err := r.server.await(ctx, service, digest); err != nil && ctx.Err() == nil {
				r.server.log.Warn("the list of a site's files could not be read; it will be tried again with its next request",
					"service", service, "error", err)
			}
		}
		now[digest] = true
	}
}
