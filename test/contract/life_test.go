package contract

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

func TestMust_LI1_ZeroOrMoreInstances(t *testing.T) {
	t.Parallel()
	t.Run("balance is per request", func(t *testing.T) {
		s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: leapcell.Persistent, MinInstances: 2, MaxInstances: 2}})
		harness.Eventually(t, aMinute, "two instances answer one visitor on one connection", func() bool {
			seen := map[string]int{}
			for range 20 {
				seen[s.Get(t, "/").Instance()]++
			}
			return len(seen) == 2
		})
	})
	t.Run("more when they are needed", func(t *testing.T) {
		s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Concurrency: 1, MaxInstances: 2}})
		load := s.Visitors(t, 6, "/sleep?ms=200")
		harness.Eventually(t, 30*time.Second, "a second instance came", func() bool { return len(s.Allocs(t)) == 2 })
		harness.Eventually(t, aMinute, "visits go on", func() bool { return load.Answered() > 50 })
		load.Check(t)
	})
	t.Run("none, and back", func(t *testing.T) {
		s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{
			DormantAfter: leapcell.Duration(2 * time.Second), ScaleInDelay: leapcell.Duration(time.Second),
		}})
		first := s.Get(t, "/").Instance()
		harness.Eventually(t, aMinute, "the service is dormant", func() bool { return len(s.Allocs(t)) == 0 })
		if r := s.Get(t, "/"); r.Status != http.StatusOK || r.Instance() == first || r.Instance() == "" {
			t.Errorf("after dormancy: %d %q from instance %q, before it was %q", r.Status, r.Body, r.Instance(), first)
		}
	})
}

// Nothing but a second instance can answer while the only one has all that it takes.
func TestMust_LI2_ScaleOutFollowsDemand(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Concurrency: 1, MaxInstances: 2}})
	first := s.Get(t, "/").Instance()
	long := make(chan harness.Reply, 1)
	go func() {
		r, err := s.Visit(context.Background(), harness.Get(t).HTTP, "/sleep?ms=20000")
		if err != nil {
			r.Err = err
		}
		long <- r
	}()
	harness.Eventually(t, aMinute, "another instance answers", func() bool { return s.Get(t, "/").Instance() != first })
	select {
	case r := <-long:
		t.Errorf("the other instance came only after the request that kept the first one busy: %d from %s", r.Status, r.Instance())
	default:
		if r := <-long; r.Status != http.StatusOK || r.Err != nil || r.Instance() != first {
			t.Errorf("the request that kept the first one busy got %d %v from %s, want it answered by %s", r.Status, r.Err, r.Instance(), first)
		}
	}
}

// What demand brought goes when it is over: first to one instance, then to none, each not before its delay.
func TestMust_LI2_ScaleInWaitsAndDormancyComesLast(t *testing.T) {
	t.Parallel()
	const delay, dormant = 5 * time.Second, 15 * time.Second
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{
		Concurrency: 1, MaxInstances: 2, ScaleInDelay: leapcell.Duration(delay), DormantAfter: leapcell.Duration(dormant),
	}})
	load := s.Visitors(t, 4, "/sleep?ms=200")
	harness.Eventually(t, aMinute, "demand has brought a second instance", func() bool { return len(s.Allocs(t)) == 2 })
	load.Check(t) // ends it
	over := time.Now()
	seen := []int{2}
	harness.Eventually(t, 2*time.Minute, "the service is dormant", func() bool {
		n := len(s.Allocs(t))
		if n == seen[len(seen)-1] {
			return n == 0
		}
		seen = append(seen, n)
		if waited, least := time.Since(over), map[int]time.Duration{1: delay, 0: dormant}[n]; waited < least-time.Second { // edges report four times a second
			t.Errorf("%d instances %s after the last answer, want %s to pass", n, waited, least)
		}
		return n == 0
	})
	if !slices.Equal(seen, []int{2, 1, 0}) {
		t.Errorf("the numbers of instances were %v", seen)
	}
	if r := s.Get(t, "/"); r.Status != http.StatusOK {
		t.Errorf("a visit to the dormant service: %d %q", r.Status, r.Body)
	}
}

func TestMust_LI3_InFlightFinishesThenSIGTERM(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, mode leapcell.Mode, s *harness.Service) {
		var wg sync.WaitGroup
		var r harness.Reply
		var answered time.Time
		alloc := s.Get(t, "/").Instance()
		wg.Go(func() {
			r = s.Get(t, fmt.Sprintf("/sleep?say=1&ms=%d", harness.Stretch(3*time.Second, 20*time.Second).Milliseconds()))
			answered = time.Now()
		})
		harness.Eventually(t, aMinute, "the request is at the app", func() bool { return strings.Contains(allocLog(t, alloc), "probe: sleeps") })
		s.Scale(t, 0)
		wg.Wait()
		if r.Status != http.StatusOK || r.Err != nil || r.Instance() != alloc {
			t.Errorf("the request in flight got %d %q %v from %s", r.Status, r.Body, r.Err, r.Instance())
		}
		term := waitForTerm(t, s, alloc)
		if term.inFlight != 0 {
			t.Errorf("SIGTERM came with %d requests in flight", term.inFlight)
		}
		// The app and we read the same clock; the answer left the app before it came to us.
		if early := answered.Sub(term.at); early > harness.Allow(50*time.Millisecond) {
			t.Errorf("SIGTERM came %s before the answer did", early)
		}
	})
}

func TestMust_LI3_FrozenInstanceHearsSIGTERM(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	alloc := s.Get(t, "/").Instance()
	harness.Eventually(t, 5*time.Second, "the idle instance is suspended", s.Inside(t, alloc).Cgroup().Frozen)
	s.Scale(t, 0)
	waitForTerm(t, s, alloc)
}

func TestMust_LI3_SIGTERMGoesToTheWholeGroup(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{StartCommand: "./probe child & ./probe & wait; wait; wait"}})
	alloc := s.Get(t, "/").Instance()
	s.Scale(t, 0)
	waitForTerm(t, s, alloc)
	harness.Eventually(t, 20*time.Second, "the child heard SIGTERM too", func() bool {
		return strings.Contains(allocLog(t, alloc), "probe: child term")
	})
}

func TestMust_LI3_SIGKILLAfterTheGrace(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Env: map[string]string{"TERM_IGNORE": "1"}})
	alloc := s.Get(t, "/").Instance()
	inside := s.Inside(t, alloc)
	s.Scale(t, 0)
	term := waitForTerm(t, s, alloc)
	harness.Eventually(t, leapcell.StopGrace+20*time.Second, "the app that ignores SIGTERM is killed", func() bool { return !inside.Alive() })
	if lived := time.Since(term.at); lived < leapcell.StopGrace-500*time.Millisecond {
		t.Errorf("it was killed %s after SIGTERM, want %s", lived, leapcell.StopGrace)
	}
}

// No request fails while instances stop: whoever comes then is held for the next instance.
func TestMust_LI3_NoNewRequestToAStoppingInstance(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	load := s.Visitors(t, 4, "/sleep?ms=20")
	for range 3 {
		harness.Eventually(t, aMinute, "somebody answers", func() bool { return load.Answered() > 20 })
		s.Scale(t, 0)
		time.Sleep(time.Second) // lets visitors wake it and be answered again
	}
	load.Check(t)
}

type term struct {
	inFlight int
	at       time.Time
}

var termLine = regexp.MustCompile(`probe: term inflight=(\d+) at=(\d+)`)

func waitForTerm(t *testing.T, s *harness.Service, alloc string) term {
	t.Helper()
	var m []string
	harness.Eventually(t, 20*time.Second, "the app hears SIGTERM", func() bool {
		m = termLine.FindStringSubmatch(allocLog(t, alloc))
		return m != nil
	})
	n, _ := strconv.Atoi(m[1])
	at, _ := strconv.ParseInt(m[2], 10, 64)
	return term{n, time.Unix(0, at)}
}

// allocLog is the stdout of an instance as Nomad has it, also after it stopped.
func allocLog(t *testing.T, id string) string {
	t.Helper()
	client := harness.Get(t).Nomad
	alloc, _, err := client.Allocations().Info(id, (&nomad.QueryOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatalf("allocation %s: %v", id, err)
	}
	for task := range alloc.TaskStates {
		cancel := make(chan struct{})
		defer close(cancel)
		frames, errs := client.AllocFS().Logs(alloc, false, task, "stdout", "start", 0, cancel, nil)
		var text strings.Builder
		for {
			select {
			case f, ok := <-frames:
				if !ok {
					return text.String()
				}
				text.Write(f.Data)
			case err := <-errs:
				if err == io.EOF {
					return text.String()
				}
				return text.String() + fmt.Sprintf("(log: %v)", err)
			}
		}
	}
	return ""
}
