package wake

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leapcell/leapcell"
)

// tick is the time between two reports of an edge whose load changes all the time.
const tick = 250 * time.Millisecond

// TestTraces plays traffic on simulated time: load is what is in flight as time goes by,
// with ten at an instance and a scale-in delay of a minute.
func TestTraces(t *testing.T) {
	step := func(at time.Duration, before, after int) func(time.Duration) int {
		return func(now time.Duration) int {
			if now < at {
				return before
			}
			return after
		}
	}
	for name, trace := range map[string]struct {
		load  func(time.Duration) int
		last  time.Duration
		short time.Duration // at most this long in a row fewer instances than the load needs
		most  int           // instances
		calls int           // at most so many changes
		end   int
	}{
		"steady":          {step(0, 0, 6), 10 * time.Minute, 0, 1, 0, 1},
		"step up":         {step(time.Minute, 5, 60), 5 * time.Minute, time.Second, 9, 2, 9},
		"step down":       {step(2*time.Minute, 60, 5), 5 * time.Minute, time.Second, 9, 4, 1},
		"spike of 500 ms": {func(now time.Duration) int { return pulse(now-time.Minute, 500*time.Millisecond, 20) }, 3 * time.Minute, time.Second, 1, 0, 1},
		"spike of 20 s":   {func(now time.Duration) int { return pulse(now-time.Minute, 20*time.Second, 60) }, 4 * time.Minute, time.Second, 9, 3, 1},
		"on and off": {func(now time.Duration) int {
			return pulse(now%time.Second, 500*time.Millisecond, 40)
		}, 3 * time.Minute, time.Second, 3, 2, 3},
		"sine of two minutes": {func(now time.Duration) int {
			return int(30 - 30*math.Cos(2*math.Pi*now.Minutes()/2))
		}, 10 * time.Minute, 2 * time.Second, 9, 60, 5},
		"over the maximum": {step(time.Minute, 5, 5000), 3 * time.Minute, time.Hour, 20, 2, 20},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(leapcell.Settings{Concurrency: 10, MaxInstances: 20}, 1)
			simulate(t, c, func(s *Scaler) {
				short, longest, most := time.Duration(0), time.Duration(0), 0
				for now := time.Duration(0); now < trace.last; now += tick {
					load := trace.load(now)
					report(s, "a", load, int64(now))
					c.mu.Lock()
					count := c.count
					c.mu.Unlock()
					if count*10 < load {
						short += tick
					} else {
						short = 0
					}
					longest, most = max(longest, short), max(most, count)
					time.Sleep(tick)
					synctest.Wait()
				}
				calls := c.calls()
				if longest > trace.short || most > trace.most || len(calls) > trace.calls || c.count < trace.end {
					t.Errorf("short for %s (at most %s), up to %d instances (%d), %d at the end (%d), changes %v (%d)",
						longest, trace.short, most, trace.most, c.count, trace.end, calls, trace.calls)
				}
				t.Logf("short for at most %s, up to %d instances, changes %v", longest, most, calls)
			})
		})
	}
}

// pulse is height from 0 on for length.
func pulse(now, length time.Duration, height int) int {
	if now < 0 || now >= length {
		return 0
	}
	return height
}
