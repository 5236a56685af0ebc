package wake

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

const (
	testHost       = "app.leapcell.localhost"
	testDeployment = "app-1"
)

func testRoute() *leapcell.Route {
	return &leapcell.Route{ServiceID: "app-id", Service: "app", Hosts: []string{testHost}, Deployment: testDeployment,
		Mode: leapcell.Serverless, Concurrency: 50, StartTimeout: leapcell.Duration(10 * time.Second)}
}

// fakeTable is a Table that a test writes.
type fakeTable struct {
	mu        sync.Mutex
	ready     bool
	routes    map[string]*leapcell.Route
	instances map[string][]leapcell.Instance
	changed   chan struct{}
}

func newFakeTable(routes ...*leapcell.Route) *fakeTable {
	t := &fakeTable{ready: true, routes: map[string]*leapcell.Route{}, instances: map[string][]leapcell.Instance{}, changed: make(chan struct{})}
	for _, r := range routes {
		for _, h := range r.Hosts {
			t.routes[h] = r
		}
	}
	return t
}

func (t *fakeTable) Ready() bool { t.mu.Lock(); defer t.mu.Unlock(); return t.ready }
func (t *fakeTable) Route(host, _ string) *leapcell.Route {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.routes[host]
}
func (t *fakeTable) Instances(deployment string) []leapcell.Instance {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.instances[deployment]
}
func (t *fakeTable) Changed() <-chan struct{} { t.mu.Lock(); defer t.mu.Unlock(); return t.changed }

// change lets f edit the table and tells everybody.
func (t *fakeTable) change(f func(t *fakeTable)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t)
	close(t.changed)
	t.changed = make(chan struct{})
}

// set makes the given addresses the instances of the test's deployment.
func (t *fakeTable) set(addresses ...string) {
	t.change(func(t *fakeTable) {
		var list []leapcell.Instance
		for _, a := range addresses {
			list = append(list, leapcell.Instance{ID: "alloc-" + a, Deployment: testDeployment, Address: a})
		}
		t.instances[testDeployment] = list
	})
}

// fakeScaler is a Scaler made of a func; it counts.
type fakeScaler struct {
	mu    sync.Mutex
	calls int
	wake  func(n int) error // n counts from 1
}

func (s *fakeScaler) Wake(context.Context, *leapcell.Route) error {
	s.mu.Lock()
	s.calls++
	n := s.calls
	s.mu.Unlock()
	if s.wake == nil {
		return nil
	}
	return s.wake(n)
}

func (s *fakeScaler) count() int { s.mu.Lock(); defer s.mu.Unlock(); return s.calls }

// fakeNet dials handlers in memory, so that tests can run on fake time.
type fakeNet struct {
	mu    sync.Mutex
	gates map[string]func(net.Conn)
	dials int
}

func newFakeNet() *fakeNet { return &fakeNet{gates: map[string]func(net.Conn){}} }

func (n *fakeNet) dial(_ context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dials++
	serve := n.gates[address]
	if serve == nil {
		return nil, errors.New("connection refused")
	}
	edge, gate := net.Pipe()
	go serve(gate)
	return edge, nil
}

// listen makes an address answer with what h says.
func (n *fakeNet) listen(address string, h http.HandlerFunc) {
	n.raw(address, func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			rec := httptest.NewRecorder()
			req.Body = &continueBody{body: req.Body, c: c, wanted: req.Header.Get("Expect") != ""}
			h(rec, req)
			io.Copy(io.Discard, req.Body)
			resp := rec.Result()
			resp.Request = req
			resp.ContentLength = int64(rec.Body.Len())
			if err := resp.Write(c); err != nil {
				return
			}
		}
	})
}

func (n *fakeNet) raw(address string, serve func(net.Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gates[address] = serve
}

func (n *fakeNet) close(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.gates, address)
}

// continueBody says 100 when the handler reads, as net/http's server does.
type continueBody struct {
	body   io.ReadCloser
	c      net.Conn
	wanted bool
}

func (b *continueBody) Read(p []byte) (int, error) {
	if b.wanted {
		b.wanted = false
		io.WriteString(b.c, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	return b.body.Read(p)
}

func (b *continueBody) Close() error { return b.body.Close() }

// rig is a handler with everything around it faked.
type rig struct {
	*Handler
	table  *fakeTable
	scaler *fakeScaler
	net    *fakeNet
}

func newRig(t *testing.T, route *leapcell.Route) *rig {
	t.Helper()
	r := &rig{table: newFakeTable(route), scaler: &fakeScaler{}, net: newFakeNet()}
	r.Handler = New(Config{Table: r.table, Scaler: r.scaler, Dial: r.net.dial, QueueLimit: 300})
	t.Cleanup(r.Close)
	return r
}

func newRequest(method, path, body string) *http.Request {
	var b io.Reader
	if body != "" {
		b = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, path, b)
	r.Host = testHost
	return r
}

func (r *rig) get(path string) *httptest.ResponseRecorder { return r.do(newRequest("GET", path, "")) }

func (r *rig) do(req *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	r.ServeHTTP(rec, req)
	return rec
}

func answer(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
}

func want[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// wantIdle checks that no count was left behind.
func (r *rig) wantIdle(t *testing.T) {
	t.Helper()
	for _, s := range r.Load() {
		if s.InFlight != 0 || s.Queued != 0 {
			t.Errorf("left behind: %+v", s)
		}
	}
}
