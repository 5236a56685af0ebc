package gate

import (
	"bufio"
	"context"
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

// countingMeter adds up.
type countingMeter struct{ requests, compute, egress atomic.Int64 }

func (m *countingMeter) Request()         { m.requests.Add(1) }
func (m *countingMeter) Compute(ms int64) { m.compute.Add(ms) }
func (m *countingMeter) Egress(n int64)   { m.egress.Add(n) }

func (m *countingMeter) want(t *testing.T, requests, compute, egress int64) {
	t.Helper()
	if r, c, e := m.requests.Load(), m.compute.Load(), m.egress.Load(); r != requests || c != compute || e != egress {
		t.Errorf("counted %d requests, %d ms, %d bytes; want %d, %d, %d", r, c, e, requests, compute, egress)
	}
}

// sleeper answers after what the query says.
func sleeper(w http.ResponseWriter, r *http.Request) {
	d, _ := time.ParseDuration(r.URL.RawQuery)
	time.Sleep(d)
	hello(w, r)
}

func TestBI1_OverlappingRequestsCountOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m countingMeter
		f := newFixture(t, Config{Meter: &m}, sleeper)
		f.ready()
		var all sync.WaitGroup
		for i := range 5 { // 0 to 300 ms, 50 to 350 ms, …, 200 to 500 ms
			all.Go(func() {
				time.Sleep(time.Duration(i) * 50 * time.Millisecond)
				f.want(f.get("/?300ms"), 200, "hello")
			})
		}
		all.Wait()
		synctest.Wait()
		m.want(t, 5, 500, 25)
	})
}

func TestBI1_EachBusySpanIsRoundedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m countingMeter
		f := newFixture(t, Config{Meter: &m}, sleeper)
		f.ready()
		for range 3 {
			f.want(f.get("/?10100us"), 200, "hello")
			time.Sleep(time.Hour) // idle and suspended: free
		}
		m.want(t, 3, 33, 15)
	})
}

// Two requests back to back in one span are rounded once, not twice.
func TestBI1_OneSpanIsRoundedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m countingMeter
		f := newFixture(t, Config{Meter: &m}, sleeper)
		f.ready()
		var all sync.WaitGroup
		all.Go(func() { f.get("/?20600us") })
		all.Go(func() { f.get("/?10300us") })
		all.Wait()
		synctest.Wait()
		m.want(t, 2, 21, 10)
	})
}

func TestBI2_PersistentHasNoComputeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m countingMeter
		f := newFixture(t, Config{Meter: &m, Mode: leapcell.TaskPersistent}, sleeper)
		f.ready()
		f.want(f.get("/?300ms"), 200, "hello")
		m.want(t, 1, 0, 5)
	})
}

// What was answered is in the meter: whoever has the last byte finds the request counted,
// with its time and bytes, although the gate's handler may still be running.
func TestBI3_CountedBeforeTheLastByte(t *testing.T) {
	body := strings.Repeat("x", 3<<20)
	for name, announce := range map[string]bool{"announced": true, "chunked": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var m countingMeter
				f := newFixture(t, Config{Meter: &m}, func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(20 * time.Millisecond)
					if announce {
						w.Header().Set("Content-Length", "3145728")
					}
					io.WriteString(w, body)
				})
				f.ready()
				res, err := f.client.Do(request("GET", "/", nil))
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				if _, err := io.CopyN(io.Discard, res.Body, 1<<20); err != nil {
					t.Fatal(err)
				}
				if n := m.requests.Load(); n != 0 {
					t.Errorf("%d requests counted in the middle of the answer", n)
				}
				rest, err := io.ReadAll(res.Body)
				if err != nil || len(rest) != 2<<20 {
					t.Fatalf("%d bytes, %v", len(rest), err)
				}
				m.want(t, 1, 20, 3<<20) // at once: no waiting for the handler's end
			})
		})
	}
}

// A span that never ends, because somebody is always there, is counted as it goes.
func TestBI3_LongSpanIsCountedAsItGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m countingMeter
		f := newFixture(t, Config{Meter: &m}, sleeper)
		f.ready()
		long := make(chan answer, 1)
		go func() { long <- f.get("/?10m") }()
		time.Sleep(time.Minute)
		f.get("/?1s")
		synctest.Wait()
		m.want(t, 1, 61_000, 5)
		<-long
		synctest.Wait()
		m.want(t, 2, 600_000, 10)
	})
}

func TestBI3_RefusalsAreNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m countingMeter
		f := newFixture(t, Config{Meter: &m}, hello)
		f.ready()
		if a := f.do(request("GET", "/", nil, "X-Big", strings.Repeat("x", 20<<10))); a.status != 431 {
			t.Errorf("%+v", a)
		}
		f.app.crash()
		if a := f.get("/"); a.status != 503 || a.header.Get(leapcell.HeaderGone) != "1" {
			t.Errorf("an app that is gone: %+v", a)
		}
		if n := m.requests.Load(); n != 0 {
			t.Errorf("%d requests counted that the app never saw", n)
		}
	})
}

func TestBI3_VisitorsWhoLeaveAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m countingMeter
		f := newFixture(t, Config{Meter: &m}, sleeper)
		f.ready()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if a := f.do(request("GET", "/?5s", nil).WithContext(ctx)); a.err == nil {
			t.Errorf("%+v", a)
		}
		synctest.Wait()
		m.want(t, 1, 2000, 0)
	})
}

func TestBI3_WebSocketBytesCount(t *testing.T) {
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &app{t: t, handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return // the probe
		}
		defer conn.Close()
		io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		io.CopyN(conn, rw, 5)
	})}
	a.listen()
	defer a.server.Close()
	var m countingMeter
	g := New(Config{Listener: front, Mode: leapcell.TaskPersistent, Meter: &m})
	defer g.Close(context.Background())
	g.Adopt(a, time.Now(), false, "127.0.0.1:8080")
	conn, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	in := bufio.NewReader(conn)
	if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("%+v, %v", res, err)
	}
	io.WriteString(conn, "hello")
	if b, err := io.ReadAll(in); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	_ = conn.Close() // until then it is half open
	if err := g.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := m.egress.Load(); n != 5 {
		t.Errorf("%d bytes counted, want 5", n)
	}
}

// ownerGate is the new gate, as the one that was left reaches it.
type ownerGate struct{ *Gate }

func (o ownerGate) Release() error { o.Gate.Release(); return nil }

// While two gates serve one instance, the new one counts the time of both.
func TestBI1_HandoverCountsTimeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m countingMeter
		f := newFixture(t, Config{Meter: &m}, sleeper)
		f.ready()
		long := make(chan answer, 1)
		go func() { long <- f.get("/?10s") }()
		time.Sleep(2 * time.Second)
		f.gate.Pause()
		front := newListener()
		next := New(Config{Instance: "alloc-1", Listener: front, Mode: leapcell.TaskServerless, Meter: &m})
		defer next.Close(context.Background())
		next.Adopt(f.app, time.Now(), false, "127.0.0.1:8080")
		if f.gate.Leave(ownerGate{next}) {
			if err := next.Hold(); err != nil {
				t.Fatal(err)
			}
		}
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return front.dial(ctx) }}
		defer transport.CloseIdleConnections()
		res, err := (&http.Client{Transport: transport}).Do(request("GET", "/?5s", nil))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		f.want(<-long, 200, "hello")
		time.Sleep(time.Second)  // the old gate says that it needs the instance no more
		m.want(t, 2, 10_020, 10) // it looks each 20 ms of idleness
	})
}
