package contract

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

func TestMust_RQ5_HeldInOrder(t *testing.T) {
	t.Parallel()
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		t.Run(string(mode), func(t *testing.T) {
			const n = 12
			apart := harness.Stretch(50*time.Millisecond, 500*time.Millisecond)
			s := harness.Get(t).Probe(t, harness.Spec{
				Settings: leapcell.Settings{Mode: mode, Concurrency: 1, MaxInstances: 1, StartTimeout: leapcell.Duration(time.Minute)},
				Env:      map[string]string{"LISTEN_DELAY": (n*apart + 1400*time.Millisecond).String()},
			})
			s.ToZero(t)
			var want []string
			var all sync.WaitGroup
			for i := range n {
				name := fmt.Sprint(i)
				want = append(want, name)
				all.Go(func() {
					if r, err := s.Visit(t.Context(), harness.Get(t).Visitor(), "/seen?name="+name); err != nil || r.Status != http.StatusOK {
						t.Errorf("visitor %d: %d %q %v", i, r.Status, r.Body, err)
					}
				})
				time.Sleep(apart) // they come one after the other
			}
			all.Wait()
			var got []string
			if s.Read(t, "/seen", &got); !slices.Equal(got, want) {
				t.Errorf("the order was %v", got)
			}
		})
	}
}

// The queue has a bound. Whoever is in it is served, whoever is not is told to come again.
func TestMust_RQ5_QueueIsBounded(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{
		Settings: leapcell.Settings{MaxInstances: 1, Concurrency: 10, StartTimeout: leapcell.Duration(time.Minute)},
		Env:      map[string]string{"LISTEN_DELAY": harness.Stretch(6*time.Second, 45*time.Second).String()}, // all are there by then
	})
	s.ToZero(t)
	const more = 60
	var mu sync.Mutex
	var ok, refused int
	allAtOnce(t, s, leapcell.QueueLimit+10+more, "/", func(r harness.Reply) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.Status == http.StatusOK:
			ok++
		case r.Status == http.StatusServiceUnavailable && r.Header.Get("Retry-After") == "1":
			refused++
		default:
			t.Errorf("a visitor got %d %.200q, Retry-After %q", r.Status, r.Body, r.Header.Get("Retry-After"))
		}
	})
	// At the edge 1,000 wait, and at the gate as many as the instance takes at once.
	if ok < leapcell.QueueLimit || refused == 0 || ok+refused != leapcell.QueueLimit+10+more {
		t.Errorf("%d were served and %d refused", ok, refused)
	}
}

// allAtOnce has n visitors come together. One whose connection fails fails the test.
func allAtOnce(t *testing.T, s *harness.Service, n int, path string, each func(harness.Reply)) {
	t.Helper()
	visitor := harness.Get(t).Visitor()
	defer visitor.CloseIdleConnections()
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			r, err := s.Visit(t.Context(), visitor, path)
			if err != nil || r.Err != nil {
				t.Errorf("a visitor: %v %v", err, r.Err)
				return
			}
			each(r)
		})
	}
	all.Wait()
}

// A request that ends the app is sent to one instance and to no other.
func TestMust_RQ6_NothingIsSentTwice(t *testing.T) {
	t.Parallel()
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		t.Run(string(mode), func(t *testing.T) {
			s := twoInstances(t, mode)
			before := starts(t, s)
			if r := s.Get(t, "/exit?code=3"); r.Status != http.StatusBadGateway {
				t.Errorf("a request that ends the app got %d %q", r.Status, r.Body)
			}
			harness.Eventually(t, aMinute, "two instances answer again", func() bool { return len(starts(t, s)) == 2 })
			same := 0
			for instance, at := range starts(t, s) {
				if before[instance] == at {
					same++
				}
			}
			if same != 1 {
				t.Errorf("%d of 2 instances outlived it, want 1", same)
			}
		})
	}
}

// twoInstances is a service with two instances that have both answered.
func twoInstances(t *testing.T, mode leapcell.Mode) *harness.Service {
	t.Helper()
	settings := leapcell.Settings{Mode: mode, MaxInstances: 2, Concurrency: 2, ScaleInDelay: leapcell.Duration(10 * time.Minute)}
	if mode == leapcell.Persistent {
		settings.MinInstances = 2
	}
	s := harness.Get(t).Probe(t, harness.Spec{Settings: settings})
	s.Scale(t, 2)
	harness.Eventually(t, aMinute, "two instances answer", func() bool { return len(starts(t, s)) == 2 })
	return s
}

// starts is when the app of each instance began, of those that answer now.
func starts(t *testing.T, s *harness.Service) map[string]int64 {
	t.Helper()
	at := map[string]int64{}
	for range 8 {
		var l life
		r := s.Get(t, "/life")
		if r.Status != http.StatusOK || json.Unmarshal([]byte(r.Body), &l) != nil {
			continue // between the old and the new one
		}
		at[r.Instance()] = l.StartedAt
	}
	return at
}

// A request is moved on while nothing of it was taken: visitors do not notice an instance
// that is killed between two requests, awake or suspended.
func TestMust_RQ6_MovedBeforeTheFirstByte(t *testing.T) {
	t.Parallel()
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		t.Run(string(mode), func(t *testing.T) {
			s := twoInstances(t, mode)
			for round := range 4 {
				victim := s.Inside(t, instanceOf(t, s))
				group := victim.Cgroup()
				if mode == leapcell.Serverless && round%2 == 1 {
					harness.Eventually(t, 10*time.Second, "it is suspended", group.Frozen)
				}
				if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				// A zombie may have threads that are still ending, and with them open sockets.
				harness.Eventually(t, 10*time.Second, "nothing is left of it", func() bool { return victim.File("stat") == "" || group.HoldsKilled() })
				for range 20 {
					if r := s.Get(t, "/"); r.Status != http.StatusOK || r.Err != nil {
						t.Errorf("a visitor got %d %q %v", r.Status, r.Body, r.Err)
					}
				}
				harness.Eventually(t, aMinute, "two instances answer again", func() bool { return len(starts(t, s)) == 2 })
			}
		})
	}
}

func TestMust_RQ8_ConcurrencyPerInstance(t *testing.T) {
	t.Parallel()
	if leapcell.DefaultConcurrency != 50 || leapcell.MaxConcurrency != 1000 {
		t.Errorf("the defaults are %d and %d", leapcell.DefaultConcurrency, leapcell.MaxConcurrency)
	}
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		t.Run(string(mode), func(t *testing.T) {
			s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: mode, Concurrency: 3, MaxInstances: 1}})
			var mu sync.Mutex
			most := ""
			allAtOnce(t, s, 30, "/gauge?ms=100", func(r harness.Reply) {
				mu.Lock()
				defer mu.Unlock()
				if r.Status != http.StatusOK {
					t.Errorf("a visitor got %d %q", r.Status, r.Body)
				}
				most = max(most, r.Body)
			})
			if most != "3" {
				t.Errorf("%s requests were at the app at once, want 3", most)
			}
		})
	}
}

// Over the limit of the service visitors are told at once.
func TestMust_RQ8_TooManyInFlight(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Concurrency: leapcell.MaxConcurrency, MaxInstances: 1, MemoryMB: 512}})
	s.Get(t, "/")
	const limit, more = 1000, 50
	var mu sync.Mutex
	got := map[int]int{}
	path := fmt.Sprintf("/sleep?ms=%d", harness.Stretch(8*time.Second, time.Minute).Milliseconds()) // all are there by then
	allAtOnce(t, s, limit+more, path, func(r harness.Reply) {
		mu.Lock()
		defer mu.Unlock()
		got[r.Status]++
	})
	if got[http.StatusOK] < limit || got[http.StatusTooManyRequests] == 0 || got[http.StatusOK]+got[http.StatusTooManyRequests] != limit+more {
		t.Errorf("answers by status: %v", got)
	}
}
