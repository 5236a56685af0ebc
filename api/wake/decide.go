package wake

import (
	"math"
	"time"

	"github.com/leapcell/leapcell"
)

// utilization is how much of an instance's concurrency is aimed for: the rest is room for
// what comes while another instance starts.
const utilization = 0.7

// scaleOutAfter is how long more instances must be needed until they are added. A burst is
// often answered within milliseconds by what is there, and must not start a herd. With the
// edges' 250 ms between reports, demand that stays is followed within a second. [LI2]
// Demand that comes and goes faster than that shows in the mean over [panicWindow].
const scaleOutAfter = 750 * time.Millisecond

// Input is what is known about one service.
type Input struct {
	Route leapcell.Route
	Count int // as the job has it
	// Load is the number of requests in flight and queued, at all edges.
	Load int
	// Demand is Load since an instance is ready, else 0: before that the queue says how many
	// came, not how many instances they need.
	Demand int
	Mean   float64 // of Demand over panicWindow
	Edges  int     // how many edges report; without any, nothing is known of the load

	// Traffic is the last time that load or a request was seen, or the service woke up, or
	// this process began to watch.
	Traffic time.Time
	// Short is since when more instances than Count are needed.
	Short time.Time
	// High is the largest number of instances that was needed within the scale-in delay.
	High int
}

// Decision is what to do.
type Decision struct {
	Count  int
	Reason string        // "" when nothing changes
	Again  time.Duration // when to ask again although nothing changed; 0: not needed
}

// Needed is the number of instances that the load asks for, without regard to delays.
func Needed(r leapcell.Route, load float64) int {
	perInstance := max(1, float64(r.Concurrency)*utilization)
	n := int(math.Ceil(load / perInstance))
	return min(n, max(1, r.MaxInstances))
}

// needed is what the load asks for at this moment, and the mean if it asks for more than
// there is: load that comes and goes is seen by it while it is away.
func (in Input) needed() int {
	now := Needed(in.Route, float64(in.Demand))
	if mean := Needed(in.Route, in.Mean); mean > in.Count {
		return max(now, mean)
	}
	return now
}

// Decide gives the number of instances that a service should have. It never raises zero:
// that is the edge's. [LI2]
func Decide(now time.Time, in Input) Decision {
	if in.Route.Mode == leapcell.Persistent && !in.Route.Preview {
		return decidePersistent(now, in)
	}
	keep := Decision{Count: in.Count}
	if in.Count == 0 {
		return keep
	}
	needed := max(1, in.needed())
	if needed > in.Count {
		return scaleOut(now, in, needed)
	}
	if in.Edges == 0 {
		return keep // whoever serves visitors now cannot tell us
	}
	if in.Load == 0 {
		idle := now.Sub(in.Traffic)
		if left := time.Duration(in.Route.DormantAfter) - idle; left <= 0 {
			return Decision{Count: 0, Reason: "no traffic for " + in.Route.DormantAfter.String()}
		} else {
			keep.Again = left
		}
	}
	if want := max(needed, in.High, 1); want < in.Count {
		return Decision{Count: want, Reason: "fewer requests in flight for " + in.Route.ScaleInDelay.String(), Again: keep.Again}
	}
	return keep
}

func scaleOut(now time.Time, in Input, needed int) Decision {
	if mean := Needed(in.Route, in.Mean); mean > in.Count {
		return Decision{Count: mean, Reason: "more requests in flight over " + panicWindow.String()}
	}
	if wait := scaleOutAfter - now.Sub(in.Short); wait > 0 {
		return Decision{Count: in.Count, Again: wait}
	}
	return Decision{Count: needed, Reason: "more requests in flight"}
}

// decidePersistent keeps the configured number always on, and scales above it alike. [LI6]
func decidePersistent(now time.Time, in Input) Decision {
	least := max(1, in.Route.MinInstances)
	needed := max(least, in.needed())
	switch {
	case in.Count < least:
		return Decision{Count: needed, Reason: "persistent: fewer than configured"}
	case needed > in.Count:
		return scaleOut(now, in, needed)
	}
	if want := max(needed, in.High, least); want < in.Count && in.Edges > 0 {
		return Decision{Count: want, Reason: "fewer requests in flight for " + in.Route.ScaleInDelay.String()}
	}
	return Decision{Count: in.Count}
}
