package wake

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapcell/leapcell"
)

const (
	dialTimeout  = time.Second
	scaleTimeout = 10 * time.Second
	// goneFor is how long a gate that said "gone" is left alone, if the table does not
	// drop it before: it does so within milliseconds.
	goneFor = time.Second
	// askAgain is when a deployment that got no instance although Nomad took the wish is
	// wished for again, in case somebody took the wish back in between.
	askAgain = 5 * time.Second
)

// call is one visitor's request on its way.
type call struct {
	host    string // where its route is found again
	path    string
	route   *leapcell.Route // as it was when the request came
	arrived time.Time
	retries int
	cold    bool // it waited for a start
	visit   Visit

	protocol string // the visitor wants to change to, "" for none
	trailers bool   // the visitor understands trailers
	expects  bool   // the visitor waits for "100 Continue"
}

// until is when the call is no longer held. [RQ5]
func (c *call) until() time.Time {
	start := time.Duration(c.route.StartTimeout)
	if start <= 0 {
		start = leapcell.StartTimeout
	}
	return c.arrived.Add(start + leapcell.HoldGrace)
}

// slot is the right to send one request to an instance.
type slot struct {
	in    *instance
	given time.Time // when the request got it; zero if it did not wait
	// asked and dialled are the clock of the last start: when Nomad was asked for the
	// instance, and when its gate answered the dial.
	asked, dialled time.Time
}

// waiter is a held request.
type waiter struct {
	call *call
	got  chan *slot    // one value, or
	no   chan *refusal // one value
}

// service is what an edge knows of one service: its instances with the requests in flight
// on each, and the queue of those that wait.
type service struct {
	h        *Handler
	id       string
	requests atomic.Int64

	mu         sync.Mutex
	host, path string          // of the last call; the route is found again by them
	route      *leapcell.Route // nil once it is gone
	seen       <-chan struct{} // the table's state that route and instances are of
	instances  []*instance
	next       int // where the round robin among equals goes on
	inFlight   int
	queue      list.List // of *waiter, first come first served
	pumping    bool
	kick       chan struct{} // wakes the pump: something other than the table changed
	asking     bool          // a call to the scaler is under way
	askAt      time.Time     // not before then again
	failures   int           // of the scaler, in a row
	asked      time.Time
	dialled    time.Time
	deployment string
	backoff    backoff // after starts that failed
	hours      hours   // of a plain job
}

func newService(h *Handler, id string) *service {
	return &service{h: h, id: id, kick: make(chan struct{}, 1)}
}

// acquire gives a slot, at once or after waiting in the queue. A call that comes back from
// an instance that did not take it goes to the front.
func (s *service) acquire(ctx context.Context, c *call) (*slot, *refusal) {
	s.mu.Lock()
	s.host, s.path = c.host, c.path
	s.refresh()
	if s.route == nil {
		s.mu.Unlock()
		return nil, refuseNoRoute
	}
	if no := s.backingOff(time.Now()); no != nil && c.retries == 0 {
		s.mu.Unlock()
		return nil, no
	}
	if c.retries == 0 && s.full() {
		s.mu.Unlock()
		return nil, refuseTooMany
	}
	if s.queue.Len() == 0 || c.retries > 0 {
		if in := s.pick(); in != nil {
			got := s.take(in)
			s.mu.Unlock()
			if c.cold {
				got.given = time.Now()
			}
			s.h.noteLoad()
			return got, nil
		}
	}
	if c.retries == 0 && s.queue.Len() >= s.h.cfg.QueueLimit {
		s.mu.Unlock()
		return nil, refuseQueueFull
	}
	if !s.anyReachable() {
		c.cold = true
	}
	w := &waiter{call: c, got: make(chan *slot, 1), no: make(chan *refusal, 1)}
	var place *list.Element
	if c.retries > 0 {
		place = s.queue.PushFront(w)
	} else {
		place = s.queue.PushBack(w)
		s.h.sums.held.Add(1)
		c.visit.Held = true
	}
	s.startPump()
	s.mu.Unlock()
	s.h.noteLoad()
	return s.wait(ctx, w, place)
}

// wait holds the request until it has a slot, its time is over, or the visitor has gone.
func (s *service) wait(ctx context.Context, w *waiter, place *list.Element) (*slot, *refusal) {
	timeout := time.NewTimer(time.Until(w.call.until()))
	defer timeout.Stop()
	no := refuseQuietly
	select {
	case got := <-w.got:
		return got, nil
	case no := <-w.no:
		return nil, no
	case <-ctx.Done():
	case <-timeout.C:
		no = refuseNotReady
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case got := <-w.got: // given in the same moment
		if no == refuseNotReady {
			return got, nil
		}
		s.giveBack(got)
	case no := <-w.no:
		return nil, no
	default:
		s.queue.Remove(place)
		if s.queue.Len() == 0 {
			s.kickPump()
		}
	}
	switch {
	case no == refuseNotReady && s.anyReachable():
		no = refuseNoSlot
	case no == refuseNotReady:
		s.startTimedOut()
	}
	s.h.noteLoad()
	return nil, no
}

// release returns a slot and gives it to the next in the queue.
func (s *service) release(got *slot) {
	s.mu.Lock()
	s.giveBack(got)
	s.mu.Unlock()
	s.h.noteLoad()
}

// The methods below are called with mu held.

func (s *service) giveBack(got *slot) {
	got.in.inFlight--
	s.inFlight--
	s.noteUse()
	s.dispatch()
}

func (s *service) full() bool {
	return s.route.MaxInFlight > 0 && s.inFlight >= s.route.MaxInFlight
}

// refresh brings route and instances up to the table, if that has changed.
func (s *service) refresh() {
	changed := s.h.cfg.Table.Changed()
	if changed == s.seen && s.route != nil {
		return
	}
	s.seen = changed
	route := s.h.cfg.Table.Route(s.host, s.path)
	if route == nil || route.Key() != s.id {
		s.route = nil
		s.setInstances(nil)
		return
	}
	if route.Deployment != s.deployment {
		s.deployment, s.askAt, s.failures = route.Deployment, time.Time{}, 0
		s.backoff = backoff{}
	}
	s.route = route
	s.setInstances(s.h.cfg.Table.Instances(route.Deployment))
}

// setInstances keeps those that are known with their counts, and lets go of those that
// left the table: requests in flight on them go on, new ones do not come.
func (s *service) setInstances(now []leapcell.Instance) {
	before := s.instances
	s.instances = make([]*instance, 0, len(now))
	for _, n := range now {
		in := find(before, n)
		if in == nil {
			in = &instance{id: n.ID, address: n.Address, plain: s.plain()}
		}
		s.instances = append(s.instances, in)
	}
	for _, in := range before {
		if find(s.instances, leapcell.Instance{ID: in.id, Address: in.address}) == nil {
			in.retire()
			s.leftTable(in)
		}
	}
	// A new instance takes its share at once, not only when the others are full.
	for _, in := range s.instances {
		s.startReach(in)
	}
}

func find(list []*instance, n leapcell.Instance) *instance {
	for _, in := range list {
		if in.id == n.ID && in.address == n.Address {
			return in
		}
	}
	return nil
}

func (s *service) anyReachable() bool {
	for _, in := range s.instances {
		if in.reachable {
			return true
		}
	}
	return false
}

// pick chooses the instance with the least in flight, in turn among equals; nil if none
// takes one more.
func (s *service) pick() *instance {
	limit := s.route.Concurrency
	if limit <= 0 {
		limit = leapcell.DefaultConcurrency
	}
	var best *instance
	n := len(s.instances)
	for i := range n {
		in := s.instances[(s.next+i)%n]
		if !in.usable() || in.inFlight >= limit {
			continue
		}
		if best == nil || in.inFlight < best.inFlight {
			best = in
		}
	}
	if best != nil {
		s.next = (s.next + 1) % n
	}
	return best
}

func (s *service) take(in *instance) *slot {
	in.inFlight++
	s.inFlight++
	s.noteUse()
	return &slot{in: in, asked: s.asked, dialled: s.dialled}
}

// dispatch gives free slots to the queue, in order.
func (s *service) dispatch() {
	if s.route == nil {
		return
	}
	for s.queue.Len() > 0 && !s.full() {
		in := s.pick()
		if in == nil {
			return
		}
		w := s.queue.Remove(s.queue.Front()).(*waiter)
		got := s.take(in)
		got.given = time.Now()
		w.got <- got
		if s.queue.Len() == 0 {
			s.kickPump()
		}
	}
}

// refuseAll empties the queue.
func (s *service) refuseAll(no *refusal) {
	for s.queue.Len() > 0 {
		s.queue.Remove(s.queue.Front()).(*waiter).no <- no
	}
}

// avoid notes that an instance did not take a request.
func (s *service) avoid(in *instance, gone bool) {
	s.mu.Lock()
	if gone {
		in.goneUntil = time.Now().Add(goneFor)
	} else {
		in.reachable = false
		s.startReach(in)
	}
	s.mu.Unlock()
}

// load is the service's line in the report, and whether the service can be forgotten.
func (s *service) load() (leapcell.EdgeService, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	idle := s.inFlight == 0 && s.queue.Len() == 0
	load := leapcell.EdgeService{ServiceID: s.id, Deployment: s.deployment, InFlight: s.inFlight,
		Queued: s.queue.Len(), Requests: s.requests.Load(), Plain: s.plain()}
	if s.route != nil {
		load.ServiceID, load.Preview = s.route.ServiceID, s.route.Preview
	}
	return load, idle && s.route == nil
}

func (s *service) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, in := range s.instances {
		in.retire()
	}
	s.instances, s.seen = nil, nil
}
