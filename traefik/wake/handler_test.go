package wake

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leapcell/leapcell"
)

func TestWarmRequestGoesToTheInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("a:1", answer("hello"))
		r.table.set("a:1")
		for range 3 {
			rec := r.get("/")
			want(t, "status", rec.Code, 200)
			want(t, "body", rec.Body.String(), "hello")
		}
		want(t, "scale calls", r.scaler.count(), 0)
		want(t, "connections", r.net.dials, 1)
		r.wantIdle(t)
		r.Close()
	})
}

func TestUnknownHostWakesNothing(t *testing.T) {
	r := newRig(t, testRoute())
	req := newRequest("GET", "/", "")
	req.Host = "nobody.leapcell.localhost"
	rec := r.do(req)
	want(t, "status", rec.Code, 404)
	want(t, "text", strings.TrimSpace(rec.Body.String()), leapcell.TextNoRoute)
	want(t, "scale calls", r.scaler.count(), 0)
}

func TestRequestWaitsForTheFirstTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		route := r.table.routes[testHost]
		r.table.change(func(t *fakeTable) { t.ready = false; t.routes = nil })
		r.net.listen("a:1", answer("hello"))
		time.AfterFunc(time.Second, func() {
			r.table.set("a:1")
			r.table.change(func(t *fakeTable) { t.ready = true; t.routes = map[string]*leapcell.Route{testHost: route} })
		})
		want(t, "status", r.get("/").Code, 200)
		r.table.change(func(t *fakeTable) { t.ready = false; t.routes = nil })
		want(t, "status without a table", r.get("/").Code, 503)
		r.Close()
	})
}

// 200 visitors on a dormant service: one wish to Nomad, all are answered.
func TestColdBurstScalesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.scaler.wake = func(int) error {
			time.AfterFunc(4*time.Millisecond, func() { r.table.set("a:1") })
			time.AfterFunc(29500*time.Microsecond, func() {
				r.net.listen("a:1", func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set(leapcell.HeaderTiming, "sandbox=12,app=5")
					time.Sleep(20 * time.Millisecond)
					io.WriteString(w, "hello")
				})
			})
			time.Sleep(2 * time.Millisecond)
			return nil
		}
		var all sync.WaitGroup
		recs := make([]*httptest.ResponseRecorder, 200)
		for i := range recs {
			all.Go(func() { recs[i] = r.get("/") })
		}
		all.Wait()
		for _, rec := range recs {
			if rec.Code != 200 || rec.Body.String() != "hello" {
				t.Fatalf("answer %d %q", rec.Code, rec.Body)
			}
		}
		want(t, "scale calls", r.scaler.count(), 1)
		want(t, "wakes", r.Counters().Wakes, 1)
		want(t, "held", r.Counters().Held, 200)
		first := recs[slices.IndexFunc(recs, func(rec *httptest.ResponseRecorder) bool {
			return strings.HasPrefix(rec.Header().Get("Server-Timing"), "queue;dur=0.0")
		})]
		want(t, "Server-Timing", first.Header().Get("Server-Timing"),
			"queue;dur=0.0, schedule;dur=30.0, sandbox;dur=12.0, app;dur=5.0, proxy;dur=3.0")
		r.wantIdle(t)
		r.Close()
	})
}

func TestHeldRequestsKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		route := testRoute()
		route.Concurrency = 1
		r := newRig(t, route)
		var order []string
		r.net.listen("a:1", func(_ http.ResponseWriter, req *http.Request) { order = append(order, req.URL.Path) })
		var all sync.WaitGroup
		var sent []string
		for i := range 20 {
			path := fmt.Sprint("/", i)
			sent = append(sent, path)
			all.Go(func() { r.get(path) })
			synctest.Wait()
		}
		want(t, "queued", r.Load()[0].Queued, 20)
		r.table.set("a:1")
		all.Wait()
		if !slices.Equal(order, sent) {
			t.Errorf("order is %v", order)
		}
		r.Close()
	})
}

func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		var all sync.WaitGroup
		for range 300 {
			all.Go(func() { want(t, "status of a held one", r.get("/").Code, 504) })
		}
		synctest.Wait()
		rec := r.get("/")
		want(t, "status over the bound", rec.Code, 503)
		want(t, "Retry-After", rec.Header().Get("Retry-After"), "1")
		want(t, "text", strings.TrimSpace(rec.Body.String()), leapcell.TextQueueFull)
		began := time.Now()
		all.Wait()
		want(t, "hold", time.Since(began), 15*time.Second)
		r.wantIdle(t)
		r.Close()
	})
}

func TestMaxInFlightIs429(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		route := testRoute()
		route.MaxInFlight = 2
		r := newRig(t, route)
		release := make(chan struct{})
		r.net.listen("a:1", func(http.ResponseWriter, *http.Request) { <-release })
		r.table.set("a:1")
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() { want(t, "status", r.get("/").Code, 200) })
		}
		synctest.Wait()
		want(t, "third", r.get("/").Code, 429)
		close(release)
		all.Wait()
		r.wantIdle(t)
		r.Close()
	})
}

func TestLeastInFlightWithinConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		route := testRoute()
		route.Concurrency = 3
		r := newRig(t, route)
		release := make(chan struct{})
		count := map[string]int{}
		var mu sync.Mutex
		for _, a := range []string{"a:1", "b:1"} {
			r.net.listen(a, func(http.ResponseWriter, *http.Request) {
				mu.Lock()
				count[a]++
				mu.Unlock()
				<-release
			})
		}
		r.table.set("a:1", "b:1")
		var all sync.WaitGroup
		for range 7 {
			all.Go(func() { r.get("/") })
			synctest.Wait()
		}
		mu.Lock()
		want(t, "on a", count["a:1"], 3)
		want(t, "on b", count["b:1"], 3)
		mu.Unlock()
		want(t, "queued", r.Load()[0].Queued, 1)
		close(release)
		all.Wait()
		want(t, "scale calls", r.scaler.count(), 0)
		r.Close()
	})
}

// A gate that is gone has taken nothing: the request, with its body, goes elsewhere.
func TestGoneMovesOnWithTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.raw("a:1", func(c net.Conn) { // says gone without reading the body
			defer c.Close()
			br := bufio.NewReader(c)
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			want(t, "Expect", req.Header.Get("Expect"), "100-continue")
			io.WriteString(c, "HTTP/1.1 503 Gone\r\n"+leapcell.HeaderGone+": 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		})
		var got string
		r.net.listen("b:1", func(w http.ResponseWriter, req *http.Request) {
			b, _ := io.ReadAll(req.Body)
			got = string(b)
		})
		r.table.set("a:1")
		var all sync.WaitGroup
		all.Go(func() { want(t, "status", r.do(newRequest("POST", "/", "the whole body")).Code, 200) })
		synctest.Wait()
		r.table.set("b:1")
		all.Wait()
		want(t, "body", got, "the whole body")
		want(t, "retries", r.Counters().Retries, 1)
		r.wantIdle(t)
		r.Close()
	})
}

func TestDialErrorMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("a:1", answer("a"))
		r.net.listen("b:1", answer("b"))
		r.table.set("a:1")
		want(t, "first", r.get("/").Body.String(), "a")
		s, _ := r.services.Load("app-id")
		in := s.(*service).instances[0]
		in.idle[0].Close()
		in.idle = nil
		r.net.close("a:1")
		r.table.set("a:1", "b:1")
		for range 4 {
			want(t, "after a went away", r.get("/").Body.String(), "b")
		}
		r.Close()
	})
}

// After the first byte a request is never sent again, whatever its method.
func TestNoRetryAfterBytesWereSent(t *testing.T) {
	for _, method := range []string{"GET", "POST"} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, testRoute())
			seen := 0
			r.net.raw("a:1", func(c net.Conn) {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					seen++
				}
			})
			r.table.set("a:1")
			rec := r.do(newRequest(method, "/", ""))
			want(t, "status", rec.Code, 502)
			want(t, "text", strings.TrimSpace(rec.Body.String()), leapcell.TextCrashed)
			want(t, "requests seen", seen, 1)
			want(t, "broken", r.Counters().Broken, 1)
			r.wantIdle(t)
			r.Close()
		})
	}
}

func TestCutAnswerAbortsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.raw("a:1", func(c net.Conn) {
			defer c.Close()
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
		})
		r.table.set("a:1")
		defer r.Close()
		defer r.wantIdle(t)
		defer func() {
			if e := recover(); e != http.ErrAbortHandler {
				t.Errorf("recovered %v, want the abort", e)
			}
		}()
		r.get("/")
	})
}

func TestVisitorLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			rec := r.do(newRequest("GET", "/", "").WithContext(ctx))
			want(t, "written", rec.Body.Len(), 0)
		})
		synctest.Wait()
		want(t, "queued", r.Load()[0].Queued, 1)
		cancel()
		all.Wait()
		synctest.Wait() // the pump has ended too, or the bubble would not
		r.wantIdle(t)
		r.Close()
	})
}

func TestVisitorLeavesAnInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		left := make(chan struct{})
		r.net.raw("a:1", func(c net.Conn) {
			br := bufio.NewReader(c)
			http.ReadRequest(br)
			br.ReadByte() // returns when the edge closes
			close(left)
		})
		r.table.set("a:1")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		r.do(newRequest("GET", "/", "").WithContext(ctx))
		<-left
		want(t, "broken", r.Counters().Broken, 0)
		r.wantIdle(t)
		r.Close()
	})
}

// When a start fails, its 502 is passed on, and Nomad is not asked again for a while: it
// restarts by itself.
func TestFailedStartIsPassedOnOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("a:1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(leapcell.HeaderError, string(leapcell.CodeStartExited))
			w.WriteHeader(502)
			io.WriteString(w, leapcell.TextStartFailed)
		})
		r.scaler.wake = func(int) error { r.table.set("a:1"); return nil }
		rec := r.get("/")
		want(t, "status", rec.Code, 502)
		want(t, "text", rec.Body.String(), leapcell.TextStartFailed)
		want(t, "platform header", rec.Header().Get(leapcell.HeaderError), "")
		r.table.set()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		r.do(newRequest("GET", "/", "").WithContext(ctx))
		want(t, "scale calls", r.scaler.count(), 1)
		r.Close()
	})
}

// A service that answered and was then scaled to zero is woken at once.
func TestWakesAgainAtOnceAfterScaleIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("a:1", answer("hello"))
		r.scaler.wake = func(int) error { r.table.set("a:1"); return nil }
		for i := range 3 {
			began := time.Now()
			want(t, "status", r.get("/").Code, 200)
			want(t, "time", time.Since(began), 0)
			want(t, "scale calls", r.scaler.count(), i+1)
			r.table.set()
		}
		r.Close()
	})
}

func TestScalerErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("a:1", answer("hello"))
		r.scaler.wake = func(n int) error {
			if n < 3 {
				return errors.New("no leader")
			}
			r.table.set("a:1")
			return nil
		}
		want(t, "status after two errors", r.get("/").Code, 200)
		want(t, "scale calls", r.scaler.count(), 3)
		r.Close()

		r = newRig(t, testRoute())
		r.scaler.wake = func(int) error { return leapcell.Errorf(leapcell.CodeNotFound, "no job") }
		want(t, "status without a job", r.get("/").Code, 502)
		r.Close()
	})
}

// Requests that wait while another deployment goes live are served by that one.
func TestHeldRequestFollowsTheRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("b:1", answer("new"))
		var all sync.WaitGroup
		all.Go(func() { want(t, "body", r.get("/").Body.String(), "new") })
		synctest.Wait()
		next := testRoute()
		next.Deployment = "app-2"
		r.table.change(func(t *fakeTable) {
			t.routes[testHost] = next
			t.instances["app-2"] = []leapcell.Instance{{ID: "n", Address: "b:1"}}
		})
		all.Wait()
		r.table.change(func(t *fakeTable) { delete(t.routes, testHost) })
		want(t, "after the service was deleted", r.get("/").Code, 404)
		r.wantIdle(t)
		want(t, "services remembered", len(r.Load()), 0)
		r.Close()
	})
}

func TestDeletedServiceEndsItsQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		var all sync.WaitGroup
		all.Go(func() { want(t, "status", r.get("/").Code, 404) })
		synctest.Wait()
		r.table.change(func(t *fakeTable) { delete(t.routes, testHost) })
		all.Wait()
		r.Close()
	})
}

// A second instance takes its share although the first is not full.
func TestNewInstanceTakesItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("a:1", answer("a"))
		r.table.set("a:1")
		r.get("/")
		r.table.set("a:1", "b:1")
		r.get("/")
		time.Sleep(time.Second) // nobody waits for it meanwhile
		r.net.listen("b:1", answer("b"))
		time.Sleep(time.Second)
		got := map[string]int{}
		for range 10 {
			got[r.get("/").Body.String()]++
		}
		want(t, "at a", got["a"], 5)
		want(t, "at b", got["b"], 5)
		r.Close()
	})
}
