package contract

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// reported is how long figures may be on their way: nodes report each five seconds.
const reported = 30 * time.Second

func usageOf(t *testing.T, s *harness.Service) leapcell.Usage {
	t.Helper()
	var u leapcell.ServiceUsage
	if err := harness.Get(t).API.Call(t.Context(), http.MethodGet, "/v1/services/"+s.ID+"/usage", nil, &u); err != nil {
		t.Fatalf("usage of %s: %v", s.Name, err)
	}
	var sum leapcell.Usage
	for _, h := range u.Hours {
		sum.Requests += h.Requests
		sum.ComputeMS += h.ComputeMS
		sum.EgressBytes += h.EgressBytes
		sum.RunningMS += h.RunningMS
	}
	if sum.Requests != u.Total.Requests || sum.ComputeMS != u.Total.ComputeMS || sum.EgressBytes != u.Total.EgressBytes || sum.RunningMS != u.Total.RunningMS {
		t.Errorf("the hours %+v are not the total %+v", u.Hours, u.Total)
	}
	return u.Total
}

// settled is the usage once that many requests were reported.
func settled(t *testing.T, s *harness.Service, requests int64) leapcell.Usage {
	t.Helper()
	var u leapcell.Usage
	harness.Eventually(t, reported, fmt.Sprintf("%d requests are in the usage", requests), func() bool {
		u = usageOf(t, s)
		return u.Requests >= requests
	})
	return u
}

func TestMust_BI1_ComputeTimeIsTheTimeWithARequest(t *testing.T) {
	t.Parallel()
	const memory = 256
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{MemoryMB: memory, MaxInstances: 1}})
	s.Get(t, "/")
	start := settled(t, s, 1)

	t.Run("one after the other", func(t *testing.T) {
		begin := time.Now()
		for range 5 {
			s.Get(t, "/sleep?ms=200")
		}
		wall := time.Since(begin)
		u := settled(t, s, start.Requests+5)
		// Each request is a span of its own at most, and each is rounded up.
		if ms := u.ComputeMS - start.ComputeMS; ms < 1000 || ms > wall.Milliseconds()+5 {
			t.Errorf("five requests of 200 ms within %s are %d ms of compute time", wall, ms)
		}
		start = u
	})
	t.Run("overlapping ones count once", func(t *testing.T) {
		var all sync.WaitGroup
		begin := time.Now()
		for range 10 {
			all.Go(func() { s.Get(t, "/sleep?ms=1000") })
		}
		all.Wait()
		wall := time.Since(begin)
		u := settled(t, s, start.Requests+10)
		if ms := u.ComputeMS - start.ComputeMS; ms < 1000 || ms > wall.Milliseconds()+10 {
			t.Errorf("ten requests of 1 s within %s are %d ms of compute time", wall, ms)
		}
		start = u
	})
	t.Run("idle time is free", func(t *testing.T) {
		time.Sleep(3 * time.Second) // of idleness
		s.Get(t, "/")
		u := settled(t, s, start.Requests+1)
		if ms := u.ComputeMS - start.ComputeMS; ms < 1 || ms >= 3000 {
			t.Errorf("one request after 3 s of idleness is %d ms of compute time", ms)
		}
		if want := float64(u.ComputeMS) / 1000 * memory / 1024; math.Abs(u.GBSeconds-want) > 1e-6 || u.RunningMS != 0 {
			t.Errorf("%d ms of compute time and %d ms running at %d MB are %f GB-seconds, want %f", u.ComputeMS, u.RunningMS, memory, u.GBSeconds, want)
		}
	})
}

func TestMust_BI2_PersistentIsWallTimeRunning(t *testing.T) {
	const memory = 256
	before := time.Now()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: leapcell.Persistent, MemoryMB: memory, MinInstances: 1, MaxInstances: 1}})
	live := time.Now()
	s.Get(t, "/sleep?ms=1000")
	s.Get(t, "/sleep?ms=1000")
	settled(t, s, 2)
	killOne(t, "nomad-driver-leapcell", "supervisor") // it runs on meanwhile, and that counts
	harness.Eventually(t, aMinute, "it answers again", func() bool {
		r, err := s.Visit(t.Context(), harness.Get(t).HTTP, "/")
		return err == nil && r.Status == http.StatusOK
	})
	ran := time.Since(live)
	var u leapcell.Usage
	harness.Eventually(t, reported, "its running time is reported", func() bool {
		u = usageOf(t, s)
		return u.RunningMS >= ran.Milliseconds()
	})
	if most := time.Since(before); u.RunningMS > most.Milliseconds() {
		t.Errorf("it ran for %d ms, and there were %s in all", u.RunningMS, most)
	}
	if want := float64(u.RunningMS) / 1000 * memory / 1024; math.Abs(u.GBSeconds-want) > 1e-6 || u.ComputeMS != 0 {
		t.Errorf("%d ms running and %d ms of compute time at %d MB are %f GB-seconds, want %f", u.RunningMS, u.ComputeMS, memory, u.GBSeconds, want)
	}
}

// killOne ends the one process of the platform with this name with -9.
func killOne(t *testing.T, executable, command string) {
	t.Helper()
	found := harness.Get(t).Parts(executable, command)
	if len(found) != 1 {
		t.Fatalf("%d processes %s %s of the platform, want 1", len(found), executable, command)
	}
	if err := syscall.Kill(found[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, executable+" is dead", func() bool { return !found[0].Alive() })
}

// crowd visits a service and knows what each visit came to.
type crowd struct {
	stop context.CancelFunc
	all  sync.WaitGroup

	mu           sync.Mutex
	whole, other int
	bytes        int64 // of whole answers
}

func visitors(t *testing.T, s *harness.Service, paths ...string) *crowd {
	ctx, stop := context.WithCancel(context.Background())
	c := &crowd{stop: stop}
	for _, path := range paths {
		c.all.Go(func() {
			visitor := harness.Get(t).Visitor()
			defer visitor.CloseIdleConnections()
			for ctx.Err() == nil {
				r, err := s.Visit(context.Background(), visitor, path)
				c.mu.Lock()
				if err == nil && r.Err == nil && r.Status == http.StatusOK {
					c.whole++
					c.bytes += int64(len(r.Body))
				} else {
					c.other++
				}
				c.mu.Unlock()
			}
		})
	}
	t.Cleanup(c.end)
	return c
}

func (c *crowd) end() { c.stop(); c.all.Wait() }

func (c *crowd) answered() int { c.mu.Lock(); defer c.mu.Unlock(); return c.whole }

// goOn waits until n more visits were answered.
func (c *crowd) goOn(t *testing.T, n int) {
	t.Helper()
	want := c.answered() + n
	harness.Eventually(t, aMinute, fmt.Sprintf("%d visits are answered", want), func() bool { return c.answered() >= want })
}

// logged is what the edge's access log says about a host.
type logged struct {
	answered, other       int64
	bytes, bytesWithOther int64
}

func readAccessLog(t *testing.T, file, host string) logged {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var l logged
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var line struct {
			RequestHost           string
			DownstreamStatus      int
			DownstreamContentSize int64
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil || line.RequestHost != host {
			continue
		}
		l.bytesWithOther += line.DownstreamContentSize
		if line.DownstreamStatus == http.StatusOK {
			l.answered++
			l.bytes += line.DownstreamContentSize
		} else {
			l.other++
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestMust_BI3_MetersAreTheSumOfTheAccessLog(t *testing.T) {
	p := harness.Get(t)
	log := filepath.Join(p.Config.StateDir, "logs", "access.log")
	setLog(t, log)
	t.Cleanup(func() { setLog(lasting{t}, "") })
	s := p.Probe(t, harness.Spec{Settings: leapcell.Settings{MaxInstances: 1}})
	begin := time.Now()
	c := visitors(t, s, "/", "/sleep?ms=30", "/big?bytes=100000", "/big?bytes=3000000", "/sleep?ms=5")
	c.goOn(t, 100)
	killOne(t, "nomad-driver-leapcell", "supervisor")
	c.goOn(t, 100)
	killOne(t, "leapcelld", "")
	c.goOn(t, 100) // what is counted now, nobody takes in
	setLog(t, log) // brings the control plane back
	c.goOn(t, 50)
	c.end()
	wall := time.Since(begin)

	l := readAccessLog(t, log, s.Host)
	t.Logf("visitors: %d answered, %d not; access log: %+v", c.whole, c.other, l)
	if l.answered < int64(c.whole) || l.bytes < c.bytes {
		t.Errorf("visitors got %d answers of %d bytes, the access log has %+v", c.whole, c.bytes, l)
	}
	u := settled(t, s, int64(c.whole))
	// The node reports what is left within seconds; then it must stay as it is.
	harness.Eventually(t, reported, "the last report is in", func() bool {
		then := u
		time.Sleep(6 * time.Second) // longer than between two reports
		u = usageOf(t, s)
		return u == then
	})
	t.Logf("usage: %+v", u)
	// Requests in flight at the kill got no answer: the log knows them, the meters may.
	if u.Requests < int64(c.whole) || u.Requests > l.answered+l.other {
		t.Errorf("%d requests were counted, %d were answered and %d were not", u.Requests, c.whole, l.other)
	}
	if u.EgressBytes < c.bytes || u.EgressBytes > l.bytesWithOther+l.other*3_000_000 {
		t.Errorf("%d bytes were counted, visitors got %d", u.EgressBytes, c.bytes)
	}
	if int(l.other) == 0 && l.answered == int64(c.whole) && (u.Requests != l.answered || u.EgressBytes != l.bytes) {
		t.Errorf("nothing was in flight at the kill, and the meters are not the sum of the log")
	}
	if u.ComputeMS <= 0 || u.ComputeMS > wall.Milliseconds() {
		t.Errorf("%d ms of compute time were counted within %s", u.ComputeMS, wall)
	}
	if u.ColdStarts < 1 || u.BuildSeconds <= 0 || u.RunningMS != 0 {
		t.Errorf("counted apart: %+v", u)
	}
	var shown leapcell.ServiceUsage
	p.JSON(t, &shown, "usage", s.Name)
	if shown.Total.Requests != u.Requests || !strings.HasPrefix(shown.ServiceID, s.Name) {
		t.Errorf("leapcell usage shows %+v", shown)
	}
}

// setLog has the edge write its access log to a file, and brings up what is down.
func setLog(t testing.TB, file string) {
	t.Helper()
	if r := harness.Get(t).CLI(t, "up", "--no-sample", "--set", "leapcell-edge.access-log="+file); r.Code != 0 {
		t.Fatalf("leapcell up: exit code %d\n%s", r.Code, r.Output)
	}
}

// lasting is a test whose context is not over when it is being cleaned up.
type lasting struct{ testing.TB }

func (lasting) Context() context.Context { return context.Background() }
