package e2e

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

func TestColdStartAfterDormancy(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{DormantAfter: leapcell.Duration(2 * time.Second)}})
	for range 3 {
		harness.Eventually(t, time.Minute, "nothing of it runs", func() bool { return len(s.Allocs(t)) == 0 })
		r := s.Get(t, "/")
		if r.Status != http.StatusOK || r.Err != nil {
			t.Fatalf("the next visit: %d %q %v", r.Status, r.Body, r.Err)
		}
		timing := r.Header.Get("Server-Timing")
		for _, phase := range []string{"queue", "schedule", "sandbox", "app", "proxy"} {
			if !strings.Contains(timing, phase+";dur=") {
				t.Errorf("Server-Timing of a cold answer lacks %s: %q", phase, timing)
			}
		}
		for name := range r.Header {
			if strings.HasPrefix(name, leapcell.HeaderPrefix) {
				t.Errorf("the visitor sees the platform's own header %s", name)
			}
		}
	}
}

func TestColdServiceStartsOnceForTwoHundred(t *testing.T) {
	p := harness.Get(t)
	for _, delay := range []string{"0s", "300ms", "3s"} {
		crowd(t, p.Probe(t, harness.Spec{Env: map[string]string{"LISTEN_DELAY": delay}}))
	}
}

func crowd(t *testing.T, s *harness.Service) {
	t.Helper()
	s.ToZero(t)
	before := len(s.AllAllocs(t))
	const n = 200
	var wg sync.WaitGroup
	var mu sync.Mutex
	instances := map[string]int{}
	failed := 0
	for range n {
		wg.Go(func() {
			r, err := s.Visit(t.Context(), harness.Get(t).Visitor(), "/")
			mu.Lock()
			defer mu.Unlock()
			if err != nil || r.Status != http.StatusOK || r.Err != nil {
				if failed++; failed <= 3 {
					t.Errorf("a visitor got %d %.200q %v %v", r.Status, r.Body, r.Err, err)
				}
				return
			}
			instances[r.Instance()]++
		})
	}
	wg.Wait()
	if failed > 0 || len(instances) != 1 {
		t.Errorf("of %d visitors %d failed; answers came from %v", n, failed, instances)
	}
	if started := len(s.AllAllocs(t)) - before; started != 1 {
		t.Errorf("%d instances were started, want 1", started)
	}
}

func TestSuspendedCPUIsFlat(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	group := s.Inside(t, s.Get(t, "/").Instance()).Cgroup()
	harness.Eventually(t, 5*time.Second, "the idle instance is suspended", group.Frozen)
	before := group.CPU(t)
	time.Sleep(10 * time.Second) // the length of the measurement
	if used := group.CPU(t) - before; used != 0 {
		t.Errorf("it used %s of CPU in 10 s of suspension", used)
	}
	begin := time.Now()
	if r := s.Get(t, "/"); r.Status != http.StatusOK {
		t.Errorf("its next request: %d %q", r.Status, r.Body)
	}
	resumed := time.Since(begin)
	begin = time.Now()
	s.Get(t, "/")
	t.Logf("resumed %s, warm %s", resumed, time.Since(begin))
}
