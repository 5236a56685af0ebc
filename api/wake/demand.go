package wake

import "time"

// panicWindow is the span over which choppy load is averaged, as Knative's autoscaler does:
// ten percent of its stable window of 60 s.
// https://knative.dev/docs/serving/autoscaling/kpa-specific/
const panicWindow = 6 * time.Second

// demand is the load of the last panicWindow, as steps: each holds until the next one.
type demand []step

type step struct {
	at   time.Time
	load int
}

// add takes notice of the load from now on, and forgets what is too old to matter.
func (d *demand) add(now time.Time, load int) {
	steps := *d
	if n := len(steps); n == 0 || steps[n-1].load != load {
		steps = append(steps, step{now, load})
	}
	begin := now.Add(-panicWindow)
	for len(steps) > 1 && !steps[1].at.After(begin) {
		steps = steps[1:]
	}
	*d = steps
}

// mean is the average over panicWindow; before the first step there was nothing.
func (d demand) mean(now time.Time) float64 {
	begin, sum := now.Add(-panicWindow), 0.0
	for i, s := range d {
		from, to := s.at, now
		if from.Before(begin) {
			from = begin
		}
		if i+1 < len(d) {
			to = d[i+1].at
		}
		sum += float64(s.load) * max(to.Sub(from), 0).Seconds()
	}
	return sum / panicWindow.Seconds()
}
