package wake

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/leapcell/leapcell"
)

// Observer hears of what happens. Both methods are called on the way of a request, so they
// must not block, and from many goroutines.
type Observer interface {
	// Visited is called once for each request that came here, when all is said: also for
	// one that was refused or whose visitor left, and before the last bytes of a short
	// answer leave the process. Nothing of v may be kept.
	Visited(v *Visit)
	// Woke is called when Nomad is asked for the first instance of a deployment.
	Woke(route *leapcell.Route)
}

// Visit is what there is to say of one request.
type Visit struct {
	Request *http.Request
	Arrived time.Time
	Took    time.Duration

	Host     string          // as routes have it; "" if the request was refused before that was asked
	Route    *leapcell.Route // that it was sent by; nil if there was none
	Instance string          // the last one that it was sent to, "" for none

	Status int   // of the answer; [StatusGone] if the visitor left before there was one
	Bytes  int64 // of the answer's body
	// Refused says why the answer is not the app's, in a word of the edge's (see refuse.go)
	// or an error code of the gate's; "" if it is the app's.
	Refused string
	Broken  bool // the connection to the instance failed after the request was sent
	Aborted bool // the answer had begun, and the visitor did not get all of it

	Held    bool // it waited for an instance or for a place on one
	Cold    bool // it waited for a start
	Timed   bool // Phases are known: the start succeeded
	Phases  Phases
	Retries int // how often it moved on before an instance took it
}

// StatusGone stands for "no answer: the visitor had left". Other proxies log the same number.
const StatusGone = 499

// Reasons that are not those of one answer in refuse.go.
const (
	reasonLeft       = "visitor_left"
	reasonBroken     = "connection_broken"
	reasonBackingOff = "backing_off"
)

// observe tells the observer about a call that is over.
func (h *Handler) observe(r *http.Request, c *call) {
	v := &c.visit
	v.Request, v.Arrived, v.Took = r, c.arrived, time.Since(c.arrived)
	v.Host, v.Route = c.host, c.route
	v.Retries = c.retries
	v.Cold = v.Cold || c.cold
	if v.Status == 0 {
		v.Status, v.Refused = StatusGone, reasonLeft
	}
	h.cfg.Observer.Visited(v)
}

// refuse answers the call without an instance.
func (c *call) refuse(no *refusal, w http.ResponseWriter, r *http.Request) {
	c.visit.Status, c.visit.Refused = no.status, no.reason
	c.visit.Bytes = no.write(w, r)
}

// sums are the running totals behind [Counters].
type sums struct {
	requests, wakes, held, retries, rejected, broken atomic.Int64
}

// Counters are totals since the edge started.
type Counters struct {
	Requests int64 // that found a service
	Wakes    int64 // calls that asked for the first instance of a deployment
	Held     int64 // requests that waited for a slot
	Retries  int64 // requests that moved on after a dial error or a gate that was gone
	Rejected int64 // refused because of a limit, or after waiting in vain
	Broken   int64 // exchanges in which the gate's connection failed
}

// Counters reads the totals.
func (h *Handler) Counters() Counters {
	s := &h.sums
	return Counters{Requests: s.requests.Load(), Wakes: s.wakes.Load(), Held: s.held.Load(),
		Retries: s.retries.Load(), Rejected: s.rejected.Load(), Broken: s.broken.Load()}
}
