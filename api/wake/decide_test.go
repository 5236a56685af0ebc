package wake

import (
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func route(change func(*leapcell.Route)) leapcell.Route {
	r := leapcell.Route{
		ServiceID: "shop-x", Deployment: "shop-1", Mode: leapcell.Serverless, Concurrency: 10, MinInstances: 1, MaxInstances: 5,
		DormantAfter: leapcell.Duration(30 * time.Minute), ScaleInDelay: leapcell.Duration(time.Minute),
	}
	if change != nil {
		change(&r)
	}
	return r
}

func TestDecide(t *testing.T) {
	now := time.Now()
	persistent := route(func(r *leapcell.Route) { r.Mode, r.MinInstances = leapcell.Persistent, 2 })
	preview := persistent
	preview.Preview = true
	for name, test := range map[string]struct {
		in   Input
		want int
	}{
		"zero stays: waking is the edge's":       {Input{Route: route(nil), Count: 0, Load: 100, Demand: 100, Edges: 1, Traffic: now}, 0},
		"one is enough up to 7 of 10":            {Input{Route: route(nil), Count: 1, Load: 7, Demand: 7, Edges: 1, Traffic: now}, 1},
		"8 of 10 need two":                       {Input{Route: route(nil), Count: 1, Load: 8, Demand: 8, Edges: 1, Traffic: now}, 2},
		"demand at once, not step by step":       {Input{Route: route(nil), Count: 1, Load: 28, Demand: 28, Edges: 1, Traffic: now}, 4},
		"a burst that may be over in a moment":   {Input{Route: route(nil), Count: 1, Load: 28, Demand: 28, Edges: 1, Traffic: now, Short: now.Add(-scaleOutAfter + 1)}, 1},
		"demand that stays":                      {Input{Route: route(nil), Count: 1, Load: 28, Demand: 28, Edges: 1, Traffic: now, Short: now.Add(-scaleOutAfter)}, 4},
		"persistent: a burst":                    {Input{Route: persistent, Count: 2, Load: 21, Demand: 21, Edges: 1, Traffic: now, Short: now}, 2},
		"never over the maximum":                 {Input{Route: route(nil), Count: 1, Load: 1000, Demand: 1000, Edges: 1, Traffic: now}, 5},
		"less load, but the delay is not over":   {Input{Route: route(nil), Count: 3, Load: 1, Demand: 1, High: 3, Edges: 1, Traffic: now}, 3},
		"less load for the delay":                {Input{Route: route(nil), Count: 3, Load: 1, Demand: 1, Edges: 1, Traffic: now}, 1},
		"to what was needed within the delay":    {Input{Route: route(nil), Count: 4, Load: 1, Demand: 1, High: 2, Edges: 1, Traffic: now}, 2},
		"idle, but not for long":                 {Input{Route: route(nil), Count: 1, Edges: 1, Traffic: now.Add(-29 * time.Minute)}, 1},
		"dormant":                                {Input{Route: route(nil), Count: 1, Edges: 1, Traffic: now.Add(-30 * time.Minute)}, 0},
		"dormant with many":                      {Input{Route: route(nil), Count: 3, High: 3, Edges: 1, Traffic: now.Add(-time.Hour)}, 0},
		"no edge tells: nothing is taken":        {Input{Route: route(nil), Count: 3, Traffic: now.Add(-time.Hour)}, 3},
		"a long request is no idleness":          {Input{Route: route(nil), Count: 1, Load: 1, Demand: 1, Edges: 1, Traffic: now.Add(-time.Hour)}, 1},
		"concurrency of one":                     {Input{Route: route(func(r *leapcell.Route) { r.Concurrency = 1 }), Count: 1, Load: 3, Demand: 3, Edges: 1, Traffic: now}, 3},
		"choppy load, at its height":             {Input{Route: route(nil), Count: 1, Load: 28, Demand: 28, Mean: 14, Edges: 1, Traffic: now, Short: now}, 2},
		"choppy load, while it is away":          {Input{Route: route(nil), Count: 1, Mean: 14, Edges: 1, Traffic: now}, 2},
		"a crowd that waits for the first":       {Input{Route: route(nil), Count: 1, Load: 500, Edges: 1, Traffic: now, Short: now.Add(-time.Minute)}, 1},
		"a preview is never always on":           {Input{Route: preview, Count: 0, Edges: 1, Traffic: now}, 0},
		"a preview goes to sleep":                {Input{Route: preview, Count: 2, Edges: 1, Traffic: now.Add(-time.Hour)}, 0},
		"persistent is always on":                {Input{Route: persistent, Count: 2, Edges: 1, Traffic: now.Add(-24 * time.Hour)}, 2},
		"persistent below its number":            {Input{Route: persistent, Count: 0, Traffic: now}, 2},
		"persistent scales out":                  {Input{Route: persistent, Count: 2, Load: 21, Demand: 21, Edges: 1, Traffic: now}, 3},
		"persistent scales in to its number":     {Input{Route: persistent, Count: 4, Edges: 1, Traffic: now}, 2},
		"persistent keeps all when edges silent": {Input{Route: persistent, Count: 4, Traffic: now}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			got := Decide(now, test.in)
			if got.Count != test.want || (got.Reason != "") != (test.want != test.in.Count) {
				t.Errorf("got %+v, want %d", got, test.want)
			}
		})
	}
	if d := Decide(now, Input{Route: route(nil), Count: 1, Edges: 1, Traffic: now.Add(-29 * time.Minute)}); d.Again != time.Minute {
		t.Errorf("asks again in %s, dormant in 1m", d.Again)
	}
}
