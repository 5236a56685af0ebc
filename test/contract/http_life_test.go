package contract

import (
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

func TestMust_CP6_NeverSuspended(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: leapcell.Persistent}})
	group := s.Inside(t, instanceOf(t, s)).Cgroup()
	used := group.CPU(t)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if group.Frozen() {
			t.Fatal("an idle persistent instance is suspended")
		}
	}
	// Its background thread wakes up each millisecond.
	if more := group.CPU(t) - used; more == 0 {
		t.Error("an idle persistent instance used no CPU in 3 s")
	}
}

// Visitors come all the time while everything happens to a service that may.
func TestMust_LI4_NothingAcceptedIsLost(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, mode leapcell.Mode, s *harness.Service) {
		load := s.Visitors(t, 4, "/sleep?ms=20")
		more := func(what string) {
			t.Helper()
			n := load.Answered()
			harness.Eventually(t, aMinute, "visits go on after "+what, func() bool { return load.Answered() > n+30 })
		}
		more("the beginning")
		s.SetEnv(t, map[string]string{"CHANGED": "1"})
		more("a change of a variable")
		s.Scale(t, 2)
		more("a second instance")
		s.Scale(t, 1)
		more("one instance less")
		s.Deploy(t)
		more("a deployment")
		if err := harness.Get(t).API.Call(t.Context(), http.MethodPost, "/v1/services/"+s.Name+"/rollback", map[string]any{}, nil); err != nil {
			t.Fatal(err)
		}
		more("a rollback")
		s.Set(t, leapcell.Settings{Mode: other(mode)})
		s.Deploy(t)
		more("a change of the mode")
		load.Check(t)
	})
}

func other(mode leapcell.Mode) leapcell.Mode {
	if mode == leapcell.Serverless {
		return leapcell.Persistent
	}
	return leapcell.Serverless
}

// What the app worked on when it crashed is lost, and said so; who waited is served.
func TestMust_LI5_CrashCostsOnlyWhatWasInFlight(t *testing.T) {
	t.Parallel()
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		t.Run(string(mode), func(t *testing.T) {
			s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: mode, Concurrency: 1, MaxInstances: 1}})
			instance := instanceOf(t, s)
			first := s.Inside(t, instance)
			var all sync.WaitGroup
			var busy harness.Reply
			var waiting [5]harness.Reply
			all.Go(func() { busy = s.Get(t, "/wait") })
			harness.Eventually(t, aMinute, "the app works on it", func() bool { return strings.Contains(allocLog(t, instance), "probe: waits") })
			for i := range waiting {
				all.Go(func() { waiting[i] = s.Get(t, "/") })
			}
			time.Sleep(500 * time.Millisecond) // the others are in the queue, most likely: it can be told by nothing
			if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			all.Wait()
			if busy.Status != http.StatusBadGateway || busy.Body != leapcell.TextCrashed+"\n" {
				t.Errorf("the request in flight got %d %q %v", busy.Status, busy.Body, busy.Err)
			}
			for i, r := range waiting {
				if r.Status != http.StatusOK || r.Err != nil {
					t.Errorf("waiting visitor %d got %d %q %v", i, r.Status, r.Body, r.Err)
				}
			}
		})
	}
}

// LI6: as many as were asked for, without a visitor and after a crash.
func TestMust_LI6_AlwaysOn(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{
		Mode: leapcell.Persistent, MinInstances: 2, MaxInstances: 3,
		DormantAfter: leapcell.Duration(time.Second), ScaleInDelay: leapcell.Duration(500 * time.Millisecond),
	}})
	two := func() bool { return len(s.Allocs(t)) == 2 }
	harness.Eventually(t, aMinute, "two instances run without a visitor", two)
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if n := len(s.Allocs(t)); n != 2 {
			t.Fatalf("%d instances without traffic, want 2", n)
		}
	}
	victim := s.Inside(t, instanceOf(t, s))
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, aMinute, "two instances answer again", func() bool { return len(starts(t, s)) == 2 })
	if !two() {
		t.Errorf("%d instances, want 2", len(s.Allocs(t)))
	}
}
