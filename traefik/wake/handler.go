package wake

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
)

// Table is what the edge knows of routes and instances. All methods answer from memory,
// without blocking, from any goroutine.
type Table interface {
	// Ready reports whether routes and instances were read at least once. It never goes
	// back to false: while Nomad is away, the last state counts.
	Ready() bool
	// Route is the route of a path of a host (lower case, no port), or nil. What it points
	// to is never changed.
	Route(host, path string) *leapcell.Route
	// Instances are those that take requests. The slice is never changed.
	Instances(deployment string) []leapcell.Instance
	// Changed is closed when an answer of this table may differ from now on. Take it
	// before asking, or a change is missed. The same channel again means: no change.
	Changed() <-chan struct{}
}

// Scaler brings a deployment from zero instances to one.
type Scaler interface {
	// Wake returns when the wish is recorded, not when an instance is there: the [Table]
	// tells that. For a deployment that has instances it does no harm. An error with
	// [leapcell.CodeNotFound] is final, any other is worth another try.
	Wake(ctx context.Context, route *leapcell.Route) error
}

// Static answers requests with files, without an instance.
type Static interface {
	// Serve answers a request if a file of the route is meant by it. other is nil, or the
	// other one of two routes that share the service's requests.
	Serve(w http.ResponseWriter, r *http.Request, route, other *leapcell.Route) StaticResult
}

// StaticResult is what became of a request. The zero value: it is for an instance.
type StaticResult struct {
	Status  int
	Bytes   int64
	Aborted bool // the visitor did not get all of it
	Missing bool // there is no instance that could answer, and the file cannot be had
}

// Config is what a [Handler] is made of. Table and Scaler are needed.
type Config struct {
	Table  Table
	Scaler Scaler
	// Dial connects to the address of a gate; the default is TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Jobs are those that the platform did not deploy; nil for none.
	Jobs Jobs
	// Static serves front ends; nil for none.
	Static Static
	// QueueLimit bounds the requests held for one service; the default is the contract's.
	QueueLimit int
	// Observer hears of each request; nil for nobody.
	Observer Observer
	Log      *slog.Logger
}

// Handler is the middleware. It outlives Traefik's reloads: routers come and go, the
// services with their queues stay.
type Handler struct {
	cfg      Config
	services sync.Map // key of a route -> *service
	load     chan struct{}
	use      chan struct{} // a plain job is used that was not lately
	sums     sums

	closed     chan struct{} // ends the background work
	closing    sync.Once
	background sync.WaitGroup
}

// New makes a handler.
func New(cfg Config) *Handler {
	if cfg.Dial == nil {
		d := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", address)
		}
	}
	if cfg.QueueLimit == 0 {
		cfg.QueueLimit = leapcell.QueueLimit
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	h := &Handler{cfg: cfg, load: make(chan struct{}, 1), use: make(chan struct{}, 1), closed: make(chan struct{})}
	if cfg.Jobs != nil {
		h.background.Go(h.tend)
	}
	return h
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := &call{arrived: time.Now()}
	if h.cfg.Observer != nil {
		defer h.observe(r, call)
	}
	if dubiousFraming(r) {
		w.Header()["Connection"] = []string{"close"}
	}
	if no := checkLimits(r); no != nil {
		call.refuse(no, w, r)
		return
	}
	call.host, call.path = Host(r.Host), r.URL.Path
	route, no := h.route(r.Context(), call.host, call.path)
	call.route = route
	if no == nil && route.Ignores(r.URL.Path, r.UserAgent()) {
		no = refuseIgnored
	}
	if no != nil {
		call.refuse(no, w, r)
		return
	}
	other := h.split(call)
	prepare(r, call)
	if (call.route.HasFiles() || other != nil && other.HasFiles()) && h.serveStatic(w, r, call, other) {
		return
	}
	s := h.service(call.route)
	s.requests.Add(1)
	h.sums.requests.Add(1)

	for {
		slot, no := s.acquire(r.Context(), call)
		if no != nil {
			h.sums.rejected.Add(1)
			call.refuse(no, w, r)
			return
		}
		if !h.try(w, r, s, slot, call) {
			return
		}
		call.retries++
		h.sums.retries.Add(1)
	}
}

// try sends the request to one instance and says whether it may go to another. It returns
// the slot also when the exchange ends in a panic, which is how net/http aborts an answer.
func (h *Handler) try(w http.ResponseWriter, r *http.Request, s *service, got *slot, c *call) (moveOn bool) {
	defer s.release(got)
	return h.exchange(w, r, s, got, c)
}

// split sends a part of a service's requests to another of its deployments. It gives the
// route that the request does not go to, nil if there is but one.
func (h *Handler) split(c *call) (other *leapcell.Route) {
	split := c.route.Split
	if split == nil {
		return nil
	}
	other = h.cfg.Table.Route(split.Host, "/")
	if other != nil && rand.IntN(100) < split.Percent {
		c.host, c.path, c.route, other = split.Host, "/", other, c.route
	}
	return other
}

// serveStatic reports whether the request was answered without an instance.
func (h *Handler) serveStatic(w http.ResponseWriter, r *http.Request, c *call, other *leapcell.Route) bool {
	if h.cfg.Static == nil || c.protocol != "" {
		return false
	}
	got := h.cfg.Static.Serve(w, r, c.route, other)
	if got.Missing {
		c.refuse(refuseNoStatic, w, r)
		return true
	}
	c.visit.Status, c.visit.Bytes, c.visit.Aborted = got.Status, got.Bytes, got.Aborted
	return got.Status != 0
}

// route finds the route of a path of host. Right after the start of an edge there is no table yet:
// then the request waits for it, because a 404 would be a lie.
func (h *Handler) route(ctx context.Context, host, path string) (*leapcell.Route, *refusal) {
	if route := h.cfg.Table.Route(host, path); route != nil {
		return route, nil
	}
	timeout := time.NewTimer(leapcell.HoldGrace)
	defer timeout.Stop()
	for {
		changed := h.cfg.Table.Changed()
		if route := h.cfg.Table.Route(host, path); route != nil {
			return route, nil
		}
		if h.cfg.Table.Ready() {
			return nil, refuseNoRoute
		}
		select {
		case <-changed:
		case <-timeout.C:
			return nil, refuseNoTable
		case <-ctx.Done():
			return nil, refuseQuietly
		}
	}
}

func (h *Handler) service(route *leapcell.Route) *service {
	key := route.Key()
	if s, ok := h.services.Load(key); ok {
		return s.(*service)
	}
	s, _ := h.services.LoadOrStore(key, newService(h, key))
	return s.(*service)
}

// Close ends the background work and gives up the idle connections to all gates. Call it
// when no request is left.
func (h *Handler) Close() {
	h.closing.Do(func() { close(h.closed) })
	h.background.Wait()
	h.services.Range(func(_, s any) bool {
		s.(*service).close()
		return true
	})
}

// LoadChanged gets a value when the load of any service may have changed since the last
// value was taken.
func (h *Handler) LoadChanged() <-chan struct{} { return h.load }

func (h *Handler) noteLoad() {
	select {
	case h.load <- struct{}{}:
	default:
	}
}

// Load is what every service that this edge has seen carries at the moment. A service
// whose route is gone and that has nothing left to do is forgotten.
func (h *Handler) Load() []leapcell.EdgeService {
	var out []leapcell.EdgeService
	h.services.Range(func(id, v any) bool {
		load, dead := v.(*service).load()
		if dead {
			h.services.Delete(id)
			v.(*service).close()
		}
		out = append(out, load)
		return true
	})
	return out
}
