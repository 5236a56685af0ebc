package wake

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leapcell/leapcell"
)

func plainRoute() *leapcell.Route {
	r := testRoute()
	r.Mode, r.DormantAfter = leapcell.Persistent, leapcell.Duration(10*time.Minute)
	r.Plain = &leapcell.PlainJob{Job: "app", Group: "web", Port: "http", Count: 1}
	return r
}

// fakeJobs are Jobs made of one route.
type fakeJobs struct {
	mu      sync.Mutex
	route   *leapcell.Route
	failing bool
	claims  []time.Time // when
	slept   []time.Time
	until   time.Time // of another edge
	err     error
	asleep  func() // called by Sleep
}

func (j *fakeJobs) Routes() []*leapcell.Route { return []*leapcell.Route{j.route} }
func (j *fakeJobs) Failing(string) bool       { j.mu.Lock(); defer j.mu.Unlock(); return j.failing }
func (j *fakeJobs) fail(yes bool)             { j.mu.Lock(); defer j.mu.Unlock(); j.failing = yes }

func (j *fakeJobs) Claim(context.Context, *leapcell.Route, time.Time) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.claims = append(j.claims, time.Now())
	return j.err
}

func (j *fakeJobs) Sleep(context.Context, *leapcell.Route) (time.Time, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.until.After(time.Now()) || j.err != nil {
		return j.until, j.err
	}
	j.slept = append(j.slept, time.Now())
	if j.asleep != nil {
		j.asleep()
	}
	return time.Time{}, nil
}

func (j *fakeJobs) sleeps() int { j.mu.Lock(); defer j.mu.Unlock(); return len(j.slept) }

// jobRig is a rig with one plain job. The test ends it itself: it runs on fake time.
func jobRig(route *leapcell.Route) (*rig, *fakeJobs) {
	r := &rig{table: newFakeTable(route), scaler: &fakeScaler{}, net: newFakeNet()}
	jobs := &fakeJobs{route: route}
	jobs.asleep = func() { r.table.set() }
	r.Handler = New(Config{Table: r.table, Scaler: r.scaler, Jobs: jobs, Dial: r.net.dial, QueueLimit: 300})
	return r, jobs
}

func TestPlainJobWakesOnceAndSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, jobs := jobRig(plainRoute())
		defer r.Close()
		r.scaler.wake = func(int) error {
			r.table.set("a:1")
			time.AfterFunc(time.Second, func() { r.net.listen("a:1", answer("hello")) })
			return nil
		}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				rec := r.get("/")
				want(t, "status", rec.Code, 200)
				want(t, "body", rec.Body.String(), "hello")
			})
		}
		all.Wait()
		want(t, "calls of the scaler", r.scaler.count(), 1)
		last := time.Now()
		time.Sleep(10*time.Minute - time.Second)
		want(t, "sleeps before its time", jobs.sleeps(), 0)
		time.Sleep(2 * time.Second)
		want(t, "sleeps", jobs.sleeps(), 1)
		want(t, "slept after", jobs.slept[0].Sub(last), 10*time.Minute)
		want(t, "status after the sleep", r.get("/").Code, 200)
		want(t, "calls of the scaler", r.scaler.count(), 2)
	})
}

func TestPlainJobWithoutVisitorsSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, jobs := jobRig(plainRoute())
		defer r.Close()
		r.net.listen("a:1", answer("hello"))
		r.table.set("a:1")
		time.Sleep(10*time.Minute + time.Second)
		want(t, "sleeps", jobs.sleeps(), 1)
		want(t, "claims", len(jobs.claims), 0)
	})
}

func TestBusyPlainJobStaysAwake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, jobs := jobRig(plainRoute())
		defer r.Close()
		r.net.listen("a:1", func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(35 * time.Minute)
			io.WriteString(w, "late")
		})
		r.table.set("a:1")
		want(t, "body", r.get("/").Body.String(), "late")
		want(t, "sleeps", jobs.sleeps(), 0)
		for i, at := range jobs.claims { // each before the former one leaves less than the idle time
			if i > 0 && at.Sub(jobs.claims[i-1]) > 10*time.Minute+time.Second {
				t.Errorf("a claim came %s after the former", at.Sub(jobs.claims[i-1]))
			}
		}
		want(t, "claims", len(jobs.claims), 4)
		time.Sleep(11 * time.Minute)
		want(t, "sleeps", jobs.sleeps(), 1)
	})
}

func TestPlainJobOfAnotherEdgeStaysAwake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, jobs := jobRig(plainRoute())
		defer r.Close()
		jobs.until = time.Now().Add(time.Hour)
		r.net.listen("a:1", answer("hello"))
		r.table.set("a:1")
		time.Sleep(time.Hour - time.Second)
		want(t, "sleeps", jobs.sleeps(), 0)
		want(t, "status", r.get("/").Code, 200) // it was held back for the moment of asking only
		time.Sleep(10*time.Minute + time.Second)
		want(t, "sleeps", jobs.sleeps(), 1)
	})
}

func TestPlainJobThatMayNotSleepServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, jobs := jobRig(plainRoute())
		defer r.Close()
		jobs.err = errors.New("denied")
		r.net.listen("a:1", answer("hello"))
		r.table.set("a:1")
		time.Sleep(11 * time.Minute)
		want(t, "status", r.get("/").Code, 200)
		jobs.mu.Lock()
		jobs.err = nil
		jobs.mu.Unlock()
		time.Sleep(11 * time.Minute)
		want(t, "sleeps", jobs.sleeps(), 1)
	})
}

func TestPlainJobThatNeverSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		route := plainRoute()
		route.DormantAfter = 0
		r, jobs := jobRig(route)
		defer r.Close()
		r.net.listen("a:1", answer("hello"))
		r.table.set("a:1")
		want(t, "status", r.get("/").Code, 200)
		time.Sleep(1000 * time.Hour)
		want(t, "sleeps", jobs.sleeps(), 0)
	})
}

func TestPlainJobThatFailsIsBackedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, jobs := jobRig(plainRoute())
		defer r.Close()
		r.scaler.wake = func(n int) error {
			if n == 1 {
				r.table.set("a:1")
				time.AfterFunc(time.Second, func() { jobs.fail(true); r.table.set() })
			}
			return nil
		}
		began := time.Now()
		want(t, "who waited", r.get("/").Code, 502)
		want(t, "waited", time.Since(began), time.Second)
		rec := r.get("/")
		want(t, "who came next", rec.Code, 503)
		want(t, "Retry-After", rec.Header().Get("Retry-After"), "1")
		time.Sleep(time.Second)
		jobs.fail(false) // Nomad has started it again, and now it works
		r.net.listen("b:1", answer("hello"))
		r.table.set("b:1")
		want(t, "after it works", r.get("/").Code, 200)
	})
}

func TestPlainJobThatNeverListensIsBackedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := jobRig(plainRoute())
		defer r.Close()
		r.table.set("a:1")
		want(t, "who waited", r.get("/").Code, 504)
		want(t, "who came next", r.get("/").Code, 503)
		r.net.listen("a:1", answer("hello"))
		time.Sleep(time.Minute)
		want(t, "once it listens", r.get("/").Code, 200)
	})
}

func TestPlainJobIsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		route := plainRoute()
		route.Plain.Probe = "/health"
		r, _ := jobRig(route)
		defer r.Close()
		ready := time.Now().Add(3 * time.Second)
		r.net.listen("a:1", func(w http.ResponseWriter, req *http.Request) {
			switch {
			case req.URL.Path == "/health" && req.Host == testHost && time.Now().Before(ready):
				w.WriteHeader(503)
			case req.URL.Path != "/health" && time.Now().Before(ready):
				t.Error("a request came before the probe was answered")
			}
		})
		r.table.set("a:1")
		want(t, "status", r.get("/").Code, 200)
	})
}

func TestPlainAppGetsNothingOfOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := jobRig(plainRoute())
		defer r.Close()
		r.net.listen("a:1", func(w http.ResponseWriter, req *http.Request) {
			for name := range req.Header {
				if strings.HasPrefix(name, leapcell.HeaderPrefix) || name == "Expect" {
					t.Errorf("the app got %s", name)
				}
			}
			b, _ := io.ReadAll(req.Body)
			w.Header().Set(leapcell.HeaderGone, "1")
			w.Header().Set(leapcell.HeaderError, string(leapcell.CodeStartFailed))
			w.WriteHeader(503)
			w.Write(b)
		})
		r.table.set("a:1")
		for range 2 { // what a gate would say means nothing here
			rec := r.do(newRequest("POST", "/", "body"))
			want(t, "status", rec.Code, 503)
			want(t, "body", rec.Body.String(), "body")
			want(t, "our header", rec.Header().Get(leapcell.HeaderGone), "")
		}
		want(t, "retries", r.Counters().Retries, 0)
	})
}

func TestPlainAppIsSentARequestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := jobRig(plainRoute())
		defer r.Close()
		var got atomic.Int32
		r.net.raw("a:1", func(c net.Conn) {
			defer c.Close()
			if n, _ := c.Read(make([]byte, 4096)); n > 0 {
				got.Add(1)
			}
		})
		r.table.set("a:1")
		want(t, "status", r.get("/").Code, 502)
		want(t, "requests that the app got", got.Load(), 1)
	})
}
