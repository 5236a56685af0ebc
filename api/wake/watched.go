package wake

import (
	"slices"
	"time"

	"github.com/leapcell/leapcell"
)

// watched is what is remembered of one live deployment.
type watched struct {
	route    leapcell.Route
	edges    int
	count    int
	load     int
	served   int    // load, if an instance is ready
	demand   demand // the past of served
	needed   int
	short    time.Time // since when more instances than there are were needed; zero: enough
	traffic  time.Time
	requests map[string]int64 // by edge
	peaks    []peak           // of the past, within the scale-in delay
	known    bool             // observed at least once
	failing  bool             // the last attempt to scale failed
}

// peak is a number of instances that was needed until at.
type peak struct {
	at time.Time
	n  int
}

// sawRequests takes notice of an edge's counter. One that is less than before is that of an
// edge that was restarted.
func (w *watched) sawRequests(now time.Time, edge string, n int64) {
	if n != w.requests[edge] && n > 0 {
		w.traffic = now
	}
	w.requests[edge] = n
}

// observe takes in how many instances Nomad wants, how many of them are ready, and the load.
func (w *watched) observe(now time.Time, count, ready, load int) {
	if load > 0 || w.load > 0 || count > 0 && w.count == 0 {
		// The last is an edge's own wake-up: its report may come later.
		w.traffic = now
	}
	if !w.known {
		// As many were needed, for all we know.
		w.known, w.needed = true, count
	}
	if count > w.count {
		// Whoever wanted more, be it for replacing instances one by one, has them for as
		// long as if the load had asked for them.
		w.peaks = append(w.peaks, peak{now, count})
	}
	w.served = load
	if ready == 0 {
		w.served = 0
	}
	w.demand.add(now, w.served)
	if needed := Needed(w.route, float64(w.served)); needed != w.needed {
		w.peaks = append(w.peaks, peak{now, w.needed})
		w.needed = needed
	}
	switch short := count > 0 && w.needed > count; {
	case !short:
		w.short = time.Time{}
	case w.short.IsZero():
		w.short = now
	}
	oldest := now.Add(-time.Duration(w.route.ScaleInDelay))
	w.peaks = slices.DeleteFunc(w.peaks, func(p peak) bool { return !p.at.After(oldest) })
	w.count, w.load = count, load
}

func (w *watched) input(now time.Time) Input {
	in := Input{Route: w.route, Count: w.count, Load: w.load, Demand: w.served, Mean: w.demand.mean(now), Edges: w.edges, Traffic: w.traffic, Short: w.short}
	for _, p := range w.peaks {
		if now.Sub(p.at) < time.Duration(w.route.ScaleInDelay) {
			in.High = max(in.High, p.n)
		}
	}
	return in
}

// again is when the rule may decide otherwise although nothing happens.
func (w *watched) again(now time.Time, d Decision) time.Duration {
	next := never
	if d.Again > 0 {
		next = d.Again
	}
	for _, p := range w.peaks {
		next = min(next, time.Duration(w.route.ScaleInDelay)-now.Sub(p.at))
	}
	return next
}
