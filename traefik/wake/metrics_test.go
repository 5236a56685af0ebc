package wake

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leapcell/leapcell"
)

// notebook is an Observer that keeps what it hears.
type notebook struct {
	mu     sync.Mutex
	visits []Visit
	woke   []string
}

func (n *notebook) Visited(v *Visit) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.visits = append(n.visits, *v)
}

func (n *notebook) Woke(route *leapcell.Route) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.woke = append(n.woke, route.Deployment)
}

// one gives the only visit and forgets it.
func (n *notebook) one(t *testing.T) Visit {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.visits) != 1 {
		t.Fatalf("%d visits were told of, want 1: %+v", len(n.visits), n.visits)
	}
	v := n.visits[0]
	n.visits = nil
	return v
}

func observedRig(t *testing.T, route *leapcell.Route) (*rig, *notebook) {
	r := newRig(t, route)
	n := &notebook{}
	r.cfg.Observer = n
	return r, n
}

func TestEachVisitIsToldOnce(t *testing.T) {
	route := testRoute()
	route.Ignore = leapcell.Ignore{Paths: []string{"/up"}}
	r, notes := observedRig(t, route)
	r.net.listen("a:1", func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			w.Header().Set(leapcell.HeaderError, string(leapcell.CodeRequestTimeout))
			w.WriteHeader(504)
		}
		io.WriteString(w, "hello")
	})
	r.table.set("a:1")
	other := newRequest("GET", "/", "")
	other.Host = "nobody"
	long := newRequest("GET", "/", "")
	long.Header.Set("A", strings.Repeat("a", leapcell.MaxHeaderBytes))
	for _, c := range []struct {
		name    string
		req     *http.Request
		status  int
		bytes   int64
		refused string
		route   bool
	}{
		{"answered", newRequest("GET", "/", ""), 200, 5, "", true},
		{"refused by the gate", newRequest("GET", "/slow", ""), 504, 5, "request_timeout", true},
		{"ignored while it is awake", newRequest("GET", "/up", ""), 204, 0, "ignored", true},
		{"unknown host", other, 404, int64(len(leapcell.TextNoRoute) + 1), "no_route", false},
		{"over a limit", long, 431, int64(len(refuseHeader.text) + 1), "header_too_long", false},
	} {
		rec := r.do(c.req)
		v := notes.one(t)
		want(t, c.name+": status", v.Status, c.status)
		want(t, c.name+": status that was seen", rec.Code, c.status)
		want(t, c.name+": bytes", v.Bytes, c.bytes)
		want(t, c.name+": bytes that were seen", int64(rec.Body.Len()), c.bytes)
		want(t, c.name+": reason", v.Refused, c.refused)
		want(t, c.name+": has a route", v.Route != nil, c.route)
		want(t, c.name+": aborted", v.Aborted, false)
		want(t, c.name+": instance", v.Instance != "", c.status == 200 || c.status == 504)
	}
}

func TestAColdVisitIsToldWithItsPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, notes := observedRig(t, testRoute())
		r.net.listen("a:1", func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(30 * time.Millisecond)
			w.Header().Set(leapcell.HeaderTiming, "sandbox=20,app=10")
		})
		r.scaler.wake = func(int) error {
			time.AfterFunc(5*time.Millisecond, func() { r.table.set("a:1") })
			return nil
		}
		r.get("/")
		v := notes.one(t)
		want(t, "cold", v.Cold && v.Timed && v.Held, true)
		want(t, "phases", v.Phases, Phases{Schedule: 5 * time.Millisecond, Sandbox: 20 * time.Millisecond, App: 10 * time.Millisecond})
		want(t, "took", v.Took, 35*time.Millisecond)
		want(t, "wakes", strings.Join(notes.woke, " "), testDeployment)
		r.Close()
	})
}

func TestAVisitThatEndsEarlyIsTold(t *testing.T) {
	r, notes := observedRig(t, testRoute())
	r.net.raw("a:1", func(c net.Conn) {
		defer c.Close()
		buf := make([]byte, 4<<10)
		c.Read(buf)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
	})
	r.table.set("a:1")
	t.Run("the instance breaks off", func(t *testing.T) {
		func() {
			defer func() {
				if err, ok := recover().(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					t.Errorf("it ended with %v, want an abort", err)
				}
			}()
			r.get("/")
		}()
		v := notes.one(t)
		want(t, "status", v.Status, 200)
		want(t, "bytes", v.Bytes, 4)
		want(t, "aborted and broken", v.Aborted && v.Broken, true)
		want(t, "reason", v.Refused, reasonBroken)
	})
	t.Run("the visitor leaves the queue", func(t *testing.T) {
		r.table.set()
		req := newRequest("GET", "/", "")
		ctx, leave := context.WithCancel(req.Context())
		r.scaler.wake = func(int) error { leave(); return nil }
		rec := httptest.NewRecorder()
		r.ServeHTTP(rec, req.WithContext(ctx))
		v := notes.one(t)
		want(t, "status", v.Status, StatusGone)
		want(t, "reason", v.Refused, reasonLeft)
		want(t, "cold without phases", v.Cold && !v.Timed, true)
	})
	t.Run("the visitor leaves in the middle", func(t *testing.T) {
		req := newRequest("GET", "/", "")
		ctx, leave := context.WithCancel(req.Context())
		r.net.raw("b:1", func(c net.Conn) {
			defer c.Close()
			buf := make([]byte, 4<<10)
			c.Read(buf)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
			leave()
			c.Read(buf) // until the edge hangs up
		})
		r.table.set("b:1")
		r.do(req.WithContext(ctx))
		v := notes.one(t)
		want(t, "status", v.Status, 200)
		want(t, "aborted, not broken", v.Aborted && !v.Broken, true)
	})
}
