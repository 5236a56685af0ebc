package wake

import (
	"math"
	"time"

	"github.com/leapcell/leapcell"
)

// utilization is how much of an instance's concurrency is aimed for: the rest is room for
// what comes while another instance starts.
const utilization = 0.7

// scaleOutAfter is how long more instances must be needed until they are added. What waits
// for a first instance is often answered by it within milliseconds once it is there: a
// burst at a service that was asleep must not start a herd. With the edges' 250 ms between
// reports, demand that stays is followed within a second. [LI2]
const scaleOutAfter = 750 * time.Millisecond

// Input is what is known about one service.
type Input struct {
	Route leapcell.Route
	Count int // as the job has it
	Load  int // requests in flight and queued, at all edges
	Edges int // how many edges report; without any, nothing is known of the load

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
func Needed(r leapcell.Route, load int) int {
	perInstance := max(1, float64(r.Concurrency)*utilization)
	n := int(math.Ceil(float64(load) / perInstance))
	return min(n, max(1, r.MaxInstances))
}

// Decide gives the number of instances that a service should have. It never raises zero:
// that is the edge's. [LI2]
func Decide(now time.Time, in Input) Decision {
	if in.Route.Mode == leapcell.Persistent {
		return decidePersistent(now, in)
	}
	keep := Decision{Count: in.Count}
	if in.Count == 0 {
		return keep
	}
	needed := max(1, Needed(in.Route, in.Load))
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
	if wait := scaleOutAfter - now.Sub(in.Short); wait > 0 {
		return Decision{Count: in.Count, Again: wait}
	}
	return Decision{Count: needed, Reason: "more requests in flight"}
}

// decidePersistent keeps the configured number always on, and scales above it alike. [LI6]
func decidePersistent(now time.Time, in Input) Decision {
	least := max(1, in.Route.MinInstances)
	needed := max(least, Needed(in.Route, in.Load))
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
