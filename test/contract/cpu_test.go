package contract

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

func TestMust_CP1_CPUFollowsMemory(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		memory int
		mode   leapcell.Mode
	}{{128, leapcell.Serverless}, {192, leapcell.Serverless}, {1769, leapcell.Serverless}, {192, leapcell.Persistent}} {
		memory := c.memory
		t.Run(fmt.Sprint(memory, c.mode), func(t *testing.T) {
			t.Parallel()
			s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: c.mode, MemoryMB: memory}})
			group := s.Inside(t, instanceOf(t, s)).Cgroup()
			quota, period := group.Quota(t)
			if period != leapcell.CPUPeriod {
				t.Errorf("the cap holds over periods of %s, want %s", period, leapcell.CPUPeriod)
			}
			cores := float64(memory) / leapcell.MemoryPerCoreMB
			if got := float64(quota) / float64(period); math.Abs(got-cores) > 0.001 {
				t.Errorf("the cap is %.4f cores, want %.4f", got, cores)
			}
			if got := group.MemoryLimit(t); got != int64(memory)<<20 {
				t.Errorf("the memory limit is %d bytes, want %d MB", got, memory)
			}
			// A cap is an upper bound: a busy machine may give less, never more.
			var used struct{ Wall, CPU time.Duration }
			s.Read(t, "/cpu?ms=3000&threads=2", &used)
			if got := float64(used.CPU) / float64(used.Wall); got > cores*1.05+0.01 {
				t.Errorf("a busy loop got %.4f cores, want %.4f at most", got, cores)
			}
		})
	}
}

// Ten seconds of a busy loop, within 5 % of the cap: small ones, which a machine that runs
// other things as well can give in full.
func TestMust_CP3_BusyLoopGetsTheCap(t *testing.T) {
	harness.Quick(t)
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		const memory = 192
		s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: mode, MemoryMB: memory}})
		group := s.Inside(t, instanceOf(t, s)).Cgroup()
		before := group.CPU(t)
		var used struct{ Wall, CPU time.Duration }
		s.Read(t, "/cpu?ms=10000&threads=2", &used)
		got, want := float64(group.CPU(t)-before)/float64(used.Wall), memory/float64(leapcell.MemoryPerCoreMB)
		if math.Abs(got-want) > 0.05*want+0.002 { // the second for the request itself
			t.Errorf("%s: a busy loop got %.4f cores over %s, want %.4f and 5 %% more or less", mode, got, used.Wall, want)
		}
	}
}

// Until it listens an instance has a whole core, however small it is.
func TestMust_CP3_StartHasAWholeCore(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{
		Settings: leapcell.Settings{MemoryMB: 128}, Env: map[string]string{"LISTEN_DELAY": "3s"},
	})
	s.ToZero(t)
	answered := make(chan harness.Reply, 1)
	go func() {
		r, _ := s.Visit(t.Context(), harness.Get(t).Visitor(), "/")
		answered <- r
	}()
	quota := func(wait string, fits func(cores float64) bool) {
		t.Helper()
		harness.Eventually(t, aMinute, wait, func() bool {
			for _, p := range harness.Processes(func(p harness.Process) bool { return p.Env("LEAPCELL_SERVICE") == s.Name }) {
				if quota, period := p.Cgroup().Quota(t); fits(float64(quota) / float64(period)) {
					return true
				}
			}
			return false
		})
	}
	quota("a starting instance has one core", func(cores float64) bool { return cores >= 1 })
	if r := <-answered; r.Status != http.StatusOK {
		t.Errorf("%d %q", r.Status, r.Body)
	}
	quota("a ready one has its own share", func(cores float64) bool { return math.Abs(cores-128.0/leapcell.MemoryPerCoreMB) < 0.001 })
}

func TestMust_CP1_MemoryIsTheOnlySize(t *testing.T) {
	p := harness.Get(t)
	for _, memory := range []int{127, 7077} {
		in := map[string]any{"name": "too-big-or-small", "settings": map[string]any{"runtime": "go", "memoryMB": memory}}
		err := p.API.Call(t.Context(), http.MethodPost, "/v1/services", in, nil)
		var e *harness.APIError
		if !errors.As(err, &e) || e.Status/100 != 4 || !strings.Contains(e.Detail, "128") || !strings.Contains(e.Detail, "7076") {
			t.Errorf("%d MB: %v, want a message that names the limits", memory, err)
		}
		if err == nil {
			_ = p.API.Call(t.Context(), http.MethodDelete, "/v1/services/too-big-or-small", nil, nil)
		}
	}
}

func TestMust_CP2_VisibleCores(t *testing.T) {
	t.Parallel()
	for memory, want := range map[int]int{128: 1, 1769: 1, 1770: 2, 3539: 3} {
		t.Run(fmt.Sprint(memory), func(t *testing.T) {
			want := min(want, runtime.NumCPU()) // no machine shows cores that it lacks
			s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{MemoryMB: memory}})
			var cores struct {
				NumCPU, Affinity int
				NProc            string
			}
			s.Read(t, "/cores", &cores)
			if cores.NumCPU != want || cores.Affinity != want || cores.NProc != fmt.Sprint(want) {
				t.Errorf("%d MB: %+v, want %d", memory, cores, want)
			}
		})
	}
}

func instanceOf(t *testing.T, s *harness.Service) string {
	t.Helper()
	var id identity
	s.Read(t, "/id", &id)
	return id.Instance
}

type count struct {
	Count, At int64
	CPU       time.Duration
}

func TestMust_CP4_IdleInstanceIsSuspended(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	inside := s.Inside(t, instanceOf(t, s))
	group := inside.Cgroup()

	// Within 100 ms: the median of several, for the machine has other things to do.
	var waits []time.Duration
	for range 7 {
		s.Get(t, "/")
		begin := time.Now()
		harness.Eventually(t, 5*time.Second, "the idle instance is suspended", group.Frozen)
		waits = append(waits, time.Since(begin))
	}
	slices.Sort(waits)
	// Eventually looks each 20 ms.
	if got := waits[len(waits)/2]; got > harness.Allow(leapcell.SuspendAfter+20*time.Millisecond) {
		t.Errorf("suspended %s after the last byte, want %s", got, leapcell.SuspendAfter)
	}

	var before, after count
	s.Read(t, "/counter", &before)
	harness.Eventually(t, 5*time.Second, "the idle instance is suspended", group.Frozen)
	used := group.CPU(t)
	time.Sleep(2 * time.Second) // the length of the measurement
	if more := group.CPU(t) - used; more != 0 {
		t.Errorf("it used %s of CPU while it was suspended", more)
	}
	s.Read(t, "/counter", &after)
	if made, idle := after.Count-before.Count, time.Duration(after.At-before.At); made > int64(idle/time.Millisecond)/2 {
		t.Errorf("its background thread counted to %d in %s idle", made, idle)
	}
}

func TestMust_CP4_BusyInstanceIsNot(t *testing.T) {
	s := harness.Get(t).Probe(t, harness.Spec{})
	r := s.Get(t, "/sleep?ms=1500")
	var ticks int
	if _, err := fmt.Sscanf(r.Body, "slept, ticks=%d", &ticks); err != nil || ticks < 100 {
		t.Errorf("during a request of 1.5 s the background thread counted to %d: %q", ticks, r.Body)
	}
}

func TestMust_CP4_PersistentIsNeverSuspended(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: leapcell.Persistent, MaxInstances: 1}})
	var before, after count
	s.Read(t, "/counter", &before)
	time.Sleep(2 * time.Second) // the length of the measurement
	s.Read(t, "/counter", &after)
	if made := after.Count - before.Count; made < 200 {
		t.Errorf("the background thread counted to %d in 2 s", made)
	}
}

// The clause is a number; the bench measures it. Here: no error, and nothing like a restart.
func TestMust_CP5_ResumeAddsNoErrorAndHardlyTime(t *testing.T) {
	s := harness.Get(t).Probe(t, harness.Spec{})
	group := s.Inside(t, instanceOf(t, s)).Cgroup()
	visit := func() time.Duration {
		begin := time.Now()
		if r := s.Get(t, "/"); r.Status != http.StatusOK || r.Err != nil {
			t.Fatalf("%d %q %v", r.Status, r.Body, r.Err)
		}
		return time.Since(begin)
	}
	var warm, resumed []time.Duration
	for range 40 {
		harness.Eventually(t, 5*time.Second, "the idle instance is suspended", group.Frozen)
		resumed = append(resumed, visit())
		warm = append(warm, visit())
	}
	slices.Sort(warm)
	slices.Sort(resumed)
	t.Logf("median warm %s, resumed %s", warm[20], resumed[20])
	if added := resumed[20] - warm[20]; added > harness.Allow(5*time.Millisecond) {
		t.Errorf("resuming adds %s in the median, want 1 ms at most", added)
	}
}
