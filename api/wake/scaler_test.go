package wake

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// cluster is a store and a Nomad of one service.
type cluster struct {
	mu       sync.Mutex
	live     string
	kept     string // a former deployment; what runs is of it
	set      leapcell.Settings
	count    int
	starting bool // instances are not ready
	index    uint64
	changed  chan struct{}
	scaled   []string
}

func newCluster(set leapcell.Settings, count int) *cluster {
	return &cluster{live: "shop-1", set: set.Over(leapcell.DefaultSettings()), count: count, index: 1, changed: make(chan struct{})}
}

func (c *cluster) service() leapcell.Service {
	return leapcell.Service{ID: "shop-x", Name: "shop", Host: "shop-x.test", Live: c.live}
}

func (c *cluster) Services(context.Context) ([]leapcell.Service, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return []leapcell.Service{c.service()}, nil
}

func (c *cluster) Service(context.Context, string) (leapcell.Service, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.service(), nil
}

func (c *cluster) Deployment(_ context.Context, id string) (leapcell.Deployment, error) {
	dep := leapcell.Deployment{ID: id, ServiceID: "shop-x", Service: "shop", Number: 1, Settings: c.set}
	if id == c.kept {
		dep.State, dep.LiveAt, dep.Image = leapcell.Superseded, time.Now(), "image"
	}
	return dep, nil
}

func (c *cluster) Job(_ context.Context, id string) (*api.Job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &api.Job{ID: new(id), TaskGroups: []*api.TaskGroup{{Name: new(leapcell.Group), Count: new(c.count)}}}, nil
}

func (c *cluster) Scale(_ context.Context, job string, n int) error {
	c.mu.Lock()
	c.scaled = append(c.scaled, fmt.Sprintf("%s=%d", job, n))
	c.mu.Unlock()
	c.setCount(n)
	return nil
}

// setCount is also what an edge does when it wakes the service.
func (c *cluster) setCount(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count = n
	c.index++
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *cluster) WaitRunning(ctx context.Context, index uint64) ([]*api.AllocationListStub, uint64, error) {
	for {
		c.mu.Lock()
		if c.index > index {
			var out []*api.AllocationListStub
			for i := range c.count {
				out = append(out, c.alloc(i))
			}
			now := c.index
			c.mu.Unlock()
			return out, now, nil
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

func (c *cluster) alloc(i int) *api.AllocationListStub {
	events := []*api.TaskEvent{{Type: api.TaskReceived}, {Type: api.TaskStarted}}
	if !c.starting {
		events = append(events, &api.TaskEvent{Type: "Driver", Details: map[string]string{leapcell.ReadyAnnotation: "true"}})
	}
	return &api.AllocationListStub{
		ID: fmt.Sprint(i), JobID: cmp.Or(c.kept, c.live), DesiredStatus: "run", ClientStatus: "running",
		TaskStates: map[string]*api.TaskState{"shop-x": {State: "running", Events: events}},
	}
}

func (c *cluster) calls() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.scaled)
}

// simulate runs a scaler on c in simulated time.
func simulate(t *testing.T, c *cluster, act func(s *Scaler)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c.changed = make(chan struct{}) // of this bubble
		ctx, cancel := context.WithCancel(t.Context())
		s := New(Config{Namespace: "leapcell", Store: c, Nomad: c})
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		act(s)
		cancel()
		<-done
	})
}

func report(s *Scaler, edge string, load int, requests int64) {
	s.Report(leapcell.EdgeReport{Edge: edge, Services: []leapcell.EdgeService{
		{ServiceID: "shop-x", Deployment: "shop-1", InFlight: load, Requests: requests},
	}})
	synctest.Wait()
}

// idle lets time pass in which edge a reports that nothing happens.
func idle(s *Scaler, d time.Duration, requests int64) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(5*time.Second, time.Until(end)))
		report(s, "a", 0, requests)
	}
}

func wantCalls(t *testing.T, c *cluster, want ...string) {
	t.Helper()
	if got := c.calls(); !slices.Equal(got, want) {
		t.Errorf("scaled %v, want %v", got, want)
	}
}

func TestScalesOutWithinASecondAndInAfterTheDelay(t *testing.T) {
	c := newCluster(leapcell.Settings{Concurrency: 10}, 1)
	simulate(t, c, func(s *Scaler) {
		report(s, "a", 8, 8)
		report(s, "b", 6, 6) // the sum counts
		wantCalls(t, c)
		time.Sleep(scaleOutAfter)
		synctest.Wait()
		wantCalls(t, c, "shop-1=2")
		report(s, "b", 0, 6)
		report(s, "a", 0, 8)
		idle(s, 59*time.Second, 8)
		wantCalls(t, c, "shop-1=2")
		idle(s, 2*time.Second, 8)
		wantCalls(t, c, "shop-1=2", "shop-1=1")

		f := s.Figures()
		if !f.Leading || f.Edges != 1 || f.Out != 1 || f.In != 1 || f.Dormant != 0 || f.Failed != 0 || f.Instances["shop-x"] != (Size{Wanted: 1, Ready: 1}) {
			t.Errorf("the figures are %+v", f)
		}
	})
}

// Two hundred at once at a service that slept: the first instance answers them all before
// the next could be there.
func TestShortBurstStartsOneInstance(t *testing.T) {
	c := newCluster(leapcell.Settings{}, 1)
	simulate(t, c, func(s *Scaler) {
		report(s, "a", 200, 200)
		time.Sleep(scaleOutAfter - time.Millisecond)
		report(s, "a", 0, 200)
		time.Sleep(panicWindow)
		report(s, "a", 200, 400) // the next burst begins anew
		time.Sleep(scaleOutAfter / 2)
		report(s, "a", 0, 400)
		wantCalls(t, c)
	})
}

// A crowd waits for an app that starts slowly: how many instances it needs shows only when
// the first one works.
func TestCrowdAtASlowStart(t *testing.T) {
	c := newCluster(leapcell.Settings{Concurrency: 10}, 1)
	c.starting = true
	simulate(t, c, func(s *Scaler) {
		for range 5 {
			report(s, "a", 200, 200)
			time.Sleep(2 * time.Second)
		}
		wantCalls(t, c)
		c.mu.Lock()
		c.starting = false
		c.mu.Unlock()
		c.setCount(1) // Nomad tells
		synctest.Wait()
		report(s, "a", 20, 200) // most were answered at once
		time.Sleep(scaleOutAfter)
		synctest.Wait()
		wantCalls(t, c, "shop-1=3")
	})
}

// Load that is on and off each 400 ms never lasts for scaleOutAfter, but needs four.
func TestChoppyLoad(t *testing.T) {
	c := newCluster(leapcell.Settings{Concurrency: 10}, 1)
	simulate(t, c, func(s *Scaler) {
		for i := range 20 {
			report(s, "a", 50*(1-i%2), int64(i))
			time.Sleep(400 * time.Millisecond)
		}
		if got := c.calls(); len(got) == 0 || got[len(got)-1] != "shop-1=4" {
			t.Errorf("scaled %v", got)
		}
	})
}

func TestDormancy(t *testing.T) {
	c := newCluster(leapcell.Settings{DormantAfter: leapcell.Duration(10 * time.Minute)}, 1)
	simulate(t, c, func(s *Scaler) {
		idle(s, 9*time.Minute, 5)
		report(s, "a", 0, 6) // one request between two reports
		idle(s, 9*time.Minute+50*time.Second, 6)
		wantCalls(t, c)
		idle(s, 20*time.Second, 6)
		wantCalls(t, c, "shop-1=0")

		// An edge wakes it; its report comes later. That must not be undone.
		idle(s, time.Hour, 6)
		c.setCount(1)
		synctest.Wait()
		idle(s, 9*time.Minute, 6)
		wantCalls(t, c, "shop-1=0")
		idle(s, 2*time.Minute, 6)
		wantCalls(t, c, "shop-1=0", "shop-1=0")
	})
}

func TestSilentEdges(t *testing.T) {
	c := newCluster(leapcell.Settings{Concurrency: 10, DormantAfter: leapcell.Duration(time.Minute)}, 1)
	simulate(t, c, func(s *Scaler) {
		report(s, "a", 14, 14)
		time.Sleep(scaleOutAfter)
		synctest.Wait()
		wantCalls(t, c, "shop-1=2")
		time.Sleep(time.Hour) // nobody says anything: nothing is known
		synctest.Wait()
		wantCalls(t, c, "shop-1=2")
		if len(s.edges) != 0 {
			t.Errorf("edges: %v", s.edges)
		}
	})
}

// What the deployer has just replaced is not for the scaler to start again.
func TestOnlyLiveIsScaled(t *testing.T) {
	c := newCluster(leapcell.Settings{Mode: leapcell.Persistent, MinInstances: 2}, 2)
	simulate(t, c, func(s *Scaler) {
		wantCalls(t, c)
		c.mu.Lock()
		c.live = "shop-2"
		c.mu.Unlock()
		c.setCount(1) // of shop-2; shop-1 has none any more
		synctest.Wait()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantCalls(t, c, "shop-2=2")
	})
}

// A former deployment that somebody visits by its own name goes to sleep like any other.
func TestPreviewGoesToSleep(t *testing.T) {
	c := newCluster(leapcell.Settings{Mode: leapcell.Persistent, DormantAfter: leapcell.Duration(time.Minute)}, 1)
	c.set.MinInstances = 0
	simulate(t, c, func(s *Scaler) {
		time.Sleep(2 * time.Second)
		c.mu.Lock()
		c.live, c.kept = "shop-2", "shop-1" // it was live until now
		c.mu.Unlock()
		time.Sleep(time.Minute)
		for range 20 {
			s.Report(leapcell.EdgeReport{Edge: "a", Services: []leapcell.EdgeService{
				{ServiceID: "shop-x", Deployment: "shop-1", Preview: true, InFlight: 1, Requests: 1},
				{ServiceID: "shop-x", Deployment: "shop-2", InFlight: 0, Requests: 7},
			}})
			time.Sleep(5 * time.Second)
		}
		if got := c.calls(); slices.Contains(got, "shop-1=0") {
			t.Errorf("busy, but scaled %v", got)
		}
		for range 20 {
			s.Report(leapcell.EdgeReport{Edge: "a", Services: []leapcell.EdgeService{
				{ServiceID: "shop-x", Deployment: "shop-1", Preview: true, Requests: 1},
			}})
			time.Sleep(5 * time.Second)
		}
		if got := c.calls(); !slices.Contains(got, "shop-1=0") {
			t.Errorf("idle, but scaled %v", got)
		}
	})
}

// The deployer starts one more while it replaces instances.
func TestExtraInstanceIsLeftAlone(t *testing.T) {
	c := newCluster(leapcell.Settings{}, 1)
	simulate(t, c, func(s *Scaler) {
		idle(s, 5*time.Minute, 1)
		c.setCount(2)
		synctest.Wait()
		idle(s, 50*time.Second, 1)
		wantCalls(t, c)
		idle(s, 20*time.Second, 1) // forgotten by whoever did it
		wantCalls(t, c, "shop-1=1")
	})
}

func TestReportDoesNotBlock(t *testing.T) {
	s := New(Config{})
	for range 10 {
		s.Report(leapcell.EdgeReport{Edge: "a"}) // nobody runs
	}
}

func TestAwaitRoutesWaitsForTheSlowestEdge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		begun := time.Now()
		if err := s.AwaitRoutes(t.Context(), 5); err != nil || time.Since(begun) != edgeGreeting {
			t.Errorf("without an edge: %v after %s", err, time.Since(begun))
		}
		s.Report(leapcell.EdgeReport{Edge: "a", RoutesIndex: 5})
		s.Report(leapcell.EdgeReport{Edge: "b", RoutesIndex: 4})
		done := make(chan error, 1)
		go func() { done <- s.AwaitRoutes(t.Context(), 5) }()
		synctest.Wait()
		select {
		case err := <-done:
			t.Errorf("edge b has not read the route, but the wait ended: %v", err)
		default:
		}
		s.Report(leapcell.EdgeReport{Edge: "b", RoutesIndex: 6})
		if err := <-done; err != nil {
			t.Error(err)
		}
		begun = time.Now()
		if err := s.AwaitRoutes(t.Context(), 100); err != nil || time.Since(begun) != edgeSilence {
			t.Errorf("edges that are dead: %v after %s, want %s", err, time.Since(begun), edgeSilence)
		}
	})
}

// A control plane that has just taken over knows no edge, but there are some.
func TestAwaitRoutesOfAYoungControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		done := make(chan error, 1)
		go func() { done <- s.AwaitRoutes(t.Context(), 5) }()
		time.Sleep(edgeGreeting - time.Second)
		s.Report(leapcell.EdgeReport{Edge: "a", RoutesIndex: 4})
		time.Sleep(2 * time.Second)
		select {
		case err := <-done:
			t.Errorf("edge a has not read the route, but the wait ended: %v", err)
		default:
		}
		s.Report(leapcell.EdgeReport{Edge: "a", RoutesIndex: 5})
		if err := <-done; err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.AwaitRoutes(ctx, 6); err == nil || !strings.Contains(err.Error(), "edge a") {
			t.Errorf("an edge that stays behind: %v", err)
		}
	})
}
