package gate

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leapcell/leapcell"
)

// listener accepts in-memory connections, which fake time understands.
type listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newListener() *listener { return &listener{conns: make(chan net.Conn), done: make(chan struct{})} }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *listener) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.done:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// app is an instance made of a handler. While it is frozen nothing may be written to it:
// each connection checks that. Its handlers do not begin before it is thawed.
type app struct {
	t       *testing.T
	handler http.Handler
	address string // where it listens; "" is 127.0.0.1:8080

	mu      sync.Mutex
	thawed  chan struct{} // closed when it is; nil while it is not frozen
	l       *listener     // nil: not listening
	server  *http.Server
	frozen  bool
	freezes int
	thawErr error
	dials   []time.Time
}

func (a *app) listen() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.l = newListener()
	a.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		thawed := a.thawed
		a.mu.Unlock()
		if thawed != nil { // sent before, and given up by the visitor
			select {
			case <-thawed:
			case <-r.Context().Done():
				return
			}
		}
		a.handler.ServeHTTP(w, r)
	})}
	go a.server.Serve(a.l)
}

func (a *app) crash() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.server.Close()
	a.l = nil
}

func (a *app) Dial(ctx context.Context, address string) (net.Conn, error) {
	a.mu.Lock()
	l, want := a.l, a.address
	a.dials = append(a.dials, time.Now())
	a.mu.Unlock()
	if want == "" {
		want = "127.0.0.1:8080"
	}
	if l == nil || address != want {
		return nil, syscall.ECONNREFUSED
	}
	conn, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &watchedConn{conn, a}, nil
}

type watchedConn struct {
	net.Conn
	a *app
}

func (c *watchedConn) Write(b []byte) (int, error) {
	if c.a.isFrozen() {
		c.a.t.Errorf("%q was sent to a frozen app", b)
	}
	return c.Conn.Write(b)
}

func (a *app) Freeze() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.frozen {
		a.t.Error("frozen twice")
	}
	a.frozen, a.thawed = true, make(chan struct{})
	a.freezes++
	return nil
}

func (a *app) Thaw() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.thawErr != nil {
		return a.thawErr
	}
	if !a.frozen {
		a.t.Error("thawed without being frozen")
	}
	a.frozen = false
	if a.thawed != nil {
		close(a.thawed)
		a.thawed = nil
	}
	return nil
}

func (a *app) isFrozen() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.frozen }

// fixture is a gate with a client in front and an app behind.
type fixture struct {
	t      *testing.T
	gate   *Gate
	app    *app
	front  *listener
	client *http.Client
}

func newFixture(t *testing.T, cfg Config, handler http.HandlerFunc) *fixture {
	front := newListener()
	cfg.Listener = front
	if cfg.Mode == "" {
		cfg.Mode = leapcell.TaskServerless
	}
	cfg.Instance = "alloc-1"
	f := &fixture{t: t, gate: New(cfg), app: &app{t: t, handler: handler}, front: front}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return front.dial(ctx) }, ExpectContinueTimeout: time.Second}
	f.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		f.gate.Close(context.Background())
		if f.app.server != nil {
			f.app.server.Close()
		}
		time.Sleep(10 * time.Second) // of fake time: handlers that sleep come to their end
	})
	return f
}

// ready launches the app and waits until the gate says so.
func (f *fixture) ready() {
	f.app.listen()
	f.gate.Launched(f.app, time.Now())
	<-f.gate.Started()
	if s := f.gate.Status(); !s.Ready {
		f.t.Fatalf("the gate is not ready: %+v", s)
	}
}

type answer struct {
	status int
	body   string
	header http.Header
	err    error
}

func (f *fixture) do(r *http.Request) answer {
	res, err := f.client.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, string(b), res.Header, err}
}

func request(method, path string, body io.Reader, header ...string) *http.Request {
	r, err := http.NewRequest(method, "http://gate"+path, body)
	if err != nil {
		panic(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
	}
	return r
}

func (f *fixture) get(path string) answer { return f.do(request("GET", path, nil)) }

func (f *fixture) want(a answer, status int, body string) {
	f.t.Helper()
	if a.err != nil || a.status != status || strings.TrimSpace(a.body) != body {
		f.t.Fatalf("answer is %d %q, error %v; want %d %q", a.status, a.body, a.err, status, body)
	}
}

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }

func TestHoldsUntilTheAppListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		got := make(chan answer, 2)
		go func() { got <- f.get("/") }()
		go func() { got <- f.do(request("GET", "/", nil, leapcell.HeaderProbe, "1")) }()
		time.Sleep(300 * time.Millisecond)
		f.gate.Launched(f.app, time.Now())
		time.Sleep(200 * time.Millisecond)
		select {
		case a := <-got:
			t.Fatalf("answered before the app listened: %+v", a)
		default:
		}
		f.app.listen()
		for range 2 {
			a := <-got
			if a.status != 200 || a.header.Get(leapcell.HeaderInstance) != "alloc-1" {
				t.Fatalf("got %+v", a)
			}
			if timing := a.header.Get(leapcell.HeaderTiming); !strings.HasPrefix(timing, "sandbox=300.0,app=20") {
				t.Errorf("timing is %q", timing)
			}
		}
		if a := f.get("/"); a.header.Get(leapcell.HeaderTiming) != "" {
			t.Error("a warm answer carries the timing of the start")
		}
	})
}

func TestLC4_ProbesOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		begin := time.Now()
		f.gate.Launched(f.app, begin)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		f.app.mu.Lock()
		defer f.app.mu.Unlock()
		last := begin
		if first := f.app.dials[0].Sub(begin); first > 2*time.Millisecond {
			t.Errorf("first probe after %s", first)
		}
		for _, at := range f.app.dials {
			limit := 10 * time.Millisecond
			if at.Sub(begin) > time.Second {
				limit = 50 * time.Millisecond
			}
			if pause := at.Sub(last); pause > limit {
				t.Fatalf("pause of %s at %s", pause, at.Sub(begin))
			}
			last = at
		}
	})
}

func TestLC3_FindsTheAppOnIPv6AndWithAnyStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == leapcell.ProbePath {
				w.WriteHeader(500)
				return
			}
			hello(w, r)
		})
		f.app.address = "[::1]:8080"
		f.ready()
		f.want(f.get("/"), 200, "hello")
	})
}

func TestLC5_NotListening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{StartTimeout: 3 * time.Second, Port: 3000}, hello)
		begin := time.Now()
		f.gate.Launched(f.app, begin)
		got := make(chan answer, 1)
		go func() { got <- f.do(request("GET", "/", nil, leapcell.HeaderProbe, "1")) }()
		text := "Port Some(3000) is not being listened to by the service"
		a := f.get("/")
		f.want(a, 502, text)
		if code := a.header.Get(leapcell.HeaderError); code != string(leapcell.CodePortNotListening) {
			t.Errorf("code is %q", code)
		}
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("took %s", took)
		}
		var status leapcell.GateStatus
		a = <-got
		if err := json.Unmarshal([]byte(a.body), &status); err != nil || a.status != 502 || status.Ready || status.Message != text {
			t.Errorf("probe got %+v, %v", a, err)
		}
	})
}

func TestLC6_ExitBeforeListening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.gate.Launched(f.app, time.Now())
		time.AfterFunc(time.Second, func() { f.gate.Exited(3, "exited with code 3") })
		a := f.get("/")
		f.want(a, 502, leapcell.TextStartFailed)
		if strings.Contains(a.body, "code 3") || a.header.Get(leapcell.HeaderError) != string(leapcell.CodeStartExited) {
			t.Errorf("visitor got %+v", a)
		}
		var status leapcell.GateStatus
		a = f.do(request("GET", "/", nil, leapcell.HeaderProbe, "1"))
		if err := json.Unmarshal([]byte(a.body), &status); err != nil || status.ExitCode == nil || *status.ExitCode != 3 || status.Message != "exited with code 3" {
			t.Errorf("owner got %+v", a)
		}
	})
}

func TestSandboxThatCannotBeMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		time.AfterFunc(time.Second, func() { f.gate.Fail(leapcell.CodeStartFailed, "no such image") })
		f.want(f.get("/"), 502, leapcell.TextStartFailed)
	})
}

func TestRQ5_HoldIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{QueueLimit: 2, StartTimeout: time.Second}, hello)
		got := make(chan answer, 2)
		for range 2 {
			go func() { got <- f.get("/") }()
		}
		synctest.Wait()
		a := f.get("/")
		f.want(a, 503, leapcell.TextQueueFull)
		if a.header.Get("Retry-After") != "1" || a.header.Get(leapcell.HeaderGone) != "" {
			t.Errorf("headers %v", a.header)
		}
		begin := time.Now()
		f.want(<-got, 503, leapcell.TextStartTimeout)
		if took := time.Since(begin); took != time.Second+leapcell.HoldGrace {
			t.Errorf("held for %s", took)
		}
		f.want(<-got, 503, leapcell.TextStartTimeout)
	})
}

func TestCP4_SuspendsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{SuspendAfter: 20 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				time.Sleep(time.Second)
			}
			hello(w, r)
		})
		f.ready()
		time.Sleep(25 * time.Millisecond)
		synctest.Wait()
		if !f.app.isFrozen() {
			t.Fatal("not suspended after the start")
		}
		for range 3 {
			f.want(f.get("/"), 200, "hello")
			if f.app.isFrozen() {
				t.Fatal("suspended too early")
			}
			time.Sleep(45 * time.Millisecond)
			if !f.app.isFrozen() {
				t.Fatal("not suspended after a request")
			}
		}
		go f.get("/slow")
		time.Sleep(500 * time.Millisecond)
		if f.app.isFrozen() {
			t.Fatal("suspended during a request")
		}
		time.Sleep(time.Second)
		s := f.gate.Stats()
		if !s.Suspended || s.Suspensions != 5 || s.Requests != 4 || s.ComputeMS != 1000 || s.EgressBytes != 20 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestCP6_PersistentIsNeverSuspended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{Mode: leapcell.TaskPersistent}, hello)
		f.ready()
		f.get("/")
		time.Sleep(time.Hour)
		if f.app.freezes != 0 {
			t.Errorf("suspended %d times", f.app.freezes)
		}
	})
}

func TestNotSuspendedWhileABodyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/stream" {
				for range 5 {
					io.WriteString(w, "tick\n")
					w.(http.Flusher).Flush()
					time.Sleep(time.Second)
				}
			}
		})
		f.ready()
		res, err := f.client.Get("http://gate/stream")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		lines := bufio.NewReader(res.Body)
		begin := time.Now()
		for i := range 5 {
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if late := time.Since(begin) - time.Duration(i)*time.Second; late > 50*time.Millisecond {
				t.Errorf("line %d was held back for %s", i, late)
			}
			if f.app.isFrozen() {
				t.Fatal("suspended while streaming")
			}
		}
	})
}

func TestRQ1_OneRequestTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{RequestTimeout: time.Second}, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/never":
				<-r.Context().Done()
			case "/half":
				io.WriteString(w, "half")
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			default:
				time.Sleep(900 * time.Millisecond)
				hello(w, r)
			}
		})
		f.ready()
		other := make(chan answer, 1)
		go func() { other <- f.get("/") }()
		a := f.get("/never")
		f.want(a, 504, "Request timed out after 15 minutes")
		f.want(<-other, 200, "hello")
		if a := f.get("/half"); a.err == nil {
			t.Errorf("a cut answer looks complete: %+v", a)
		}
	})
}

func TestRQ2_ResponseTooBig(t *testing.T) {
	const limit = 100 << 10
	handler := func(w http.ResponseWriter, r *http.Request) {
		size := limit
		if strings.Contains(r.URL.Path, "over") {
			size++
		}
		if strings.Contains(r.URL.Path, "announced") {
			w.Header().Set("Content-Length", fmt.Sprint(size))
		}
		io.WriteString(w, strings.Repeat("x", size))
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{MaxResponseBytes: limit}, handler)
		f.ready()
		for _, path := range []string{"/", "/announced"} {
			if a := f.get(path); a.status != 200 || len(a.body) != limit || a.err != nil {
				t.Errorf("%s: %d, %d bytes, %v", path, a.status, len(a.body), a.err)
			}
		}
		f.want(f.get("/announced-over"), 502, "Response is bigger than the maximum allowed size")
		if a := f.get("/over"); a.err == nil {
			t.Errorf("a cut answer looks complete: %d, %d bytes", a.status, len(a.body))
		}
		if a := f.do(request("HEAD", "/announced-over", nil)); a.status != 200 {
			t.Errorf("HEAD got %d", a.status)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{MaxResponseBytes: limit, Mode: leapcell.TaskPersistent}, handler)
		f.ready()
		if a := f.get("/over"); a.status != 200 || len(a.body) != limit+1 {
			t.Errorf("persistent: %d, %d bytes", a.status, len(a.body))
		}
	})
}

func TestRQ3_Sizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{MaxRequestBytes: 1000}, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if r.URL.Path == "/big-header" {
				w.Header().Set("X", strings.Repeat("x", 40<<10))
			}
		})
		f.ready()
		many := func() (h []string) {
			for i := range 9 {
				h = append(h, fmt.Sprintf("H%d", i), strings.Repeat("x", 8<<10))
			}
			return h
		}
		for name, c := range map[string]struct {
			r    *http.Request
			want int
		}{
			"line":           {request("GET", "/"+strings.Repeat("x", 16<<10), nil), 414},
			"line that fits": {request("GET", "/"+strings.Repeat("x", 15<<10), nil), 200},
			"header":         {request("GET", "/", nil, "X", strings.Repeat("x", 16<<10)), 431},
			"headers":        {request("GET", "/", nil, many()...), 431},
			"body":           {request("POST", "/", strings.NewReader(strings.Repeat("x", 1001))), 413},
			"body in chunks": {request("POST", "/", io.MultiReader(strings.NewReader(strings.Repeat("x", 1001)))), 413},
			"body that fits": {request("POST", "/", io.MultiReader(strings.NewReader(strings.Repeat("x", 1000)))), 200},
			"response":       {request("GET", "/big-header", nil), 502},
		} {
			if a := f.do(c.r); a.status != c.want {
				t.Errorf("%s: %d %v, want %d", name, a.status, a.err, c.want)
			}
		}
	})
}

func TestRQ4_Upgrades(t *testing.T) {
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket"}
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.ready()
		a := f.do(request("GET", "/", nil, upgrade...))
		f.want(a, 501, leapcell.TextUpgradeForbidden)
		a = f.do(request("GET", "/", nil, "Connection", "Upgrade, HTTP2-Settings", "Upgrade", "h2c", "Http2-Settings", "x"))
		f.want(a, 200, "hello") // an offer that may be passed over
	})
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{Mode: leapcell.TaskPersistent, RequestTimeout: time.Second}, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "websocket" {
				hello(w, r)
				return
			}
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			rw.Flush()
			line, _ := rw.ReadString('\n')
			io.WriteString(rw, "echo "+line)
			rw.Flush()
		})
		f.ready()
		res, err := f.client.Do(request("GET", "/", nil, upgrade...))
		if err != nil || res.StatusCode != 101 {
			t.Fatal(res, err)
		}
		conn := res.Body.(io.ReadWriteCloser)
		defer conn.Close()
		time.Sleep(time.Minute) // no limit for these
		io.WriteString(conn, "hi\n")
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "echo hi\n" {
			t.Errorf("%q, %v", line, err)
		}
	})
}

func TestRQ7_Headers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen http.Header
		var host, uri string
		f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
			seen, host, uri = r.Header.Clone(), r.Host, r.RequestURI
			w.Header().Set("Connection", "X-Private")
			w.Header().Set("X-Private", "1")
			w.Header().Set(leapcell.HeaderGone, "1")
			w.Header().Set(leapcell.HeaderInstance, "forged")
			w.Header().Add("Set-Cookie", "a=1")
			w.Header().Add("Set-Cookie", "b=2")
			w.WriteHeader(418)
		})
		f.ready()
		r := request("GET", "/a%2Fb//c?x=%20&y", nil, "Connection", "X-Secret", "X-Secret", "1", "Te", "gzip",
			"X-Request-Id", "id-1", "X-Forwarded-For", "1.2.3.4", "Traceparent", "00-1", "X-Leapcell-Other", "1")
		r.Host = "visitor.example"
		a := f.do(r)
		if a.status != 418 || len(a.header["Set-Cookie"]) != 2 || a.header.Get(leapcell.HeaderInstance) != "alloc-1" {
			t.Errorf("answer %+v", a)
		}
		for _, name := range []string{"X-Private", leapcell.HeaderGone} {
			if a.header.Get(name) != "" {
				t.Errorf("%s reached the edge", name)
			}
		}
		for _, name := range []string{"X-Secret", "Te", "Connection", "X-Leapcell-Other"} {
			if seen.Get(name) != "" {
				t.Errorf("%s reached the app", name)
			}
		}
		for _, name := range []string{"X-Request-Id", "X-Forwarded-For", "Traceparent"} {
			if seen.Get(name) == "" {
				t.Errorf("%s did not reach the app", name)
			}
		}
		if host != "visitor.example" || uri != "/a%2Fb//c?x=%20&y" {
			t.Errorf("host %q, uri %q", host, uri)
		}
	})
}

func TestTrailers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			hello(w, r)
			w.Header().Set("X-Sum", "42")
		})
		f.ready()
		res, err := f.client.Get("http://gate/")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err != nil || string(b) != "hello" || res.Trailer.Get("X-Sum") != "42" {
			t.Errorf("%q, %v, %v", b, err, res.Trailer)
		}
	})
}

func TestRQ8_ConcurrencyIsAQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int32
		f := newFixture(t, Config{Concurrency: 2}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == leapcell.ProbePath {
				return
			}
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(time.Second)
			now.Add(-1)
			hello(w, r)
		})
		f.ready()
		begin := time.Now()
		got := make(chan answer, 6)
		for range 6 {
			go func() { got <- f.get("/") }()
		}
		for range 6 {
			f.want(<-got, 200, "hello")
		}
		if took := time.Since(begin); most.Load() != 2 || took != 3*time.Second {
			t.Errorf("%d at once, %s", most.Load(), took)
		}
		if s := f.gate.Stats(); s.ComputeMS != 3000 || s.Requests != 6 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestLI3_Drain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{Concurrency: 1}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == leapcell.ProbePath {
				return
			}
			time.Sleep(2 * time.Second)
			hello(w, r)
		})
		f.ready()
		busy, queued := make(chan answer, 1), make(chan answer, 1)
		go func() { busy <- f.get("/") }()
		synctest.Wait()
		go func() { queued <- f.get("/") }()
		synctest.Wait()
		drained := make(chan error, 1)
		go func() { drained <- f.gate.Drain(context.Background()) }()
		synctest.Wait()
		for _, a := range []answer{f.get("/"), <-queued} {
			if a.status != 503 || a.header.Get(leapcell.HeaderGone) != "1" {
				t.Errorf("a new request got %+v", a)
			}
		}
		select {
		case <-drained:
			t.Fatal("drained with a request in flight")
		default:
		}
		f.want(<-busy, 200, "hello")
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if a := f.do(request("GET", "/", nil, leapcell.HeaderProbe, "1")); a.status != 503 || a.header.Get(leapcell.HeaderGone) == "" {
			t.Errorf("probe got %+v", a)
		}
	})
}

func TestDrainReadsNothingOfTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.ready()
		if err := f.gate.Drain(context.Background()); err != nil {
			t.Fatal(err)
		}
		read := false
		body := readerFunc(func(p []byte) (int, error) { read = true; return 0, io.EOF })
		a := f.do(request("POST", "/", body, "Expect", "100-continue"))
		if a.header.Get(leapcell.HeaderGone) == "" || read {
			t.Errorf("got %+v, body read: %v", a, read)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestDrainIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != leapcell.ProbePath {
				<-r.Context().Done()
			}
		})
		f.ready()
		got := make(chan answer, 1)
		go func() { got <- f.get("/") }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := f.gate.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("drain: %v", err)
		}
		f.app.crash()
		f.want(<-got, 502, leapcell.TextCrashed)
	})
}

func TestDrainThaws(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.ready()
		time.Sleep(time.Second)
		if !f.app.isFrozen() {
			t.Fatal("not suspended")
		}
		if err := f.gate.Drain(context.Background()); err != nil || f.app.isFrozen() {
			t.Errorf("%v, frozen %v", err, f.app.isFrozen())
		}
		time.Sleep(time.Second)
		if f.app.isFrozen() {
			t.Error("suspended while draining")
		}
	})
}

func TestLI5_Crash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{Concurrency: 1}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != leapcell.ProbePath {
				<-r.Context().Done()
			}
		})
		f.ready()
		busy, queued := make(chan answer, 1), make(chan answer, 1)
		go func() { busy <- f.get("/") }()
		synctest.Wait()
		go func() { queued <- f.get("/") }()
		synctest.Wait()
		f.app.crash()
		f.gate.Exited(139, "segmentation fault")
		f.want(<-busy, 502, leapcell.TextCrashed)
		if a := <-queued; a.status != 503 || a.header.Get(leapcell.HeaderGone) == "" {
			t.Errorf("a waiting request got %+v", a)
		}
	})
}

// Who kills an app while it starts says nothing about it: another instance may do.
func TestKilledDuringTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.gate.Launched(f.app, time.Now())
		held := make(chan answer, 1)
		go func() { held <- f.get("/") }()
		synctest.Wait()
		f.gate.Killed(137, "ended by signal SIGKILL")
		for _, a := range []answer{<-held, f.get("/")} {
			if a.status != 503 || a.header.Get(leapcell.HeaderGone) == "" {
				t.Errorf("got %+v", a)
			}
		}
		var status leapcell.GateStatus
		a := f.do(request("GET", "/", nil, leapcell.HeaderProbe, "1"))
		if err := json.Unmarshal([]byte(a.body), &status); err != nil || status.Code != leapcell.CodeUnavailable {
			t.Errorf("owner got %+v", a)
		}
	})
}

// What ended the app after the start was given up changes nothing about the reason.
func TestKilledAfterItDidNotListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{StartTimeout: time.Second}, hello)
		f.gate.Launched(f.app, time.Now())
		<-f.gate.Started()
		f.gate.Killed(137, "ended by signal SIGKILL")
		f.want(f.get("/"), 502, leapcell.PortNotListeningText(leapcell.DefaultPort))
	})
}

func TestRQ6_NothingIsSentTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/poison" {
				asked.Add(1)
				panic(http.ErrAbortHandler)
			}
			hello(w, r)
		})
		f.ready()
		for range 2 { // over a fresh connection, then over one that was used
			f.want(f.get("/poison"), 502, leapcell.TextCrashed)
			f.want(f.get("/"), 200, "hello")
		}
		if n := asked.Load(); n != 2 {
			t.Errorf("the app was asked %d times for 2 requests", n)
		}
	})
}

func TestIdleConnectionsAreNotKeptForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.ready()
		dials := func() int { f.app.mu.Lock(); defer f.app.mu.Unlock(); return len(f.app.dials) }
		f.get("/")
		first := dials()
		time.Sleep(keepAlive / 2)
		f.get("/")
		if dials() != first {
			t.Error("a connection was not used again")
		}
		time.Sleep(keepAlive + 1)
		f.get("/")
		if dials() != first+1 {
			t.Error("an old connection was used again")
		}
	})
}

func TestEarlyAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/upload" {
				http.Error(w, "not so big", http.StatusRequestEntityTooLarge)
				return
			}
			hello(w, r)
		})
		f.ready()
		body, more := io.Pipe() // an upload that never ends
		go func() {
			for {
				if _, err := more.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
		}()
		f.want(f.do(request("POST", "/upload", body)), 413, "not so big")
		body.Close()
		f.want(f.get("/"), 200, "hello")
		if s := f.gate.Stats(); s.InFlight != 0 {
			t.Errorf("in flight %d", s.InFlight)
		}
	})
}

func TestRefusedConnectionIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.ready()
		f.app.crash() // and nobody says so
		if a := f.get("/"); a.status != 503 || a.header.Get(leapcell.HeaderGone) == "" {
			t.Errorf("got %+v", a)
		}
		f.app.listen() // as after a reload of its workers
		f.want(f.get("/"), 200, "hello")
	})
}

func TestThawThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.ready()
		time.Sleep(time.Second)
		f.app.mu.Lock()
		f.app.thawErr = errors.New("no such cgroup")
		f.app.mu.Unlock()
		if a := f.get("/"); a.header.Get(leapcell.HeaderGone) == "" {
			t.Errorf("got %+v", a)
		}
		if s := f.gate.Stats(); s.InFlight != 0 {
			t.Errorf("in flight %d", s.InFlight)
		}
	})
}

func TestAdopt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.app.listen()
		f.app.frozen = true
		f.gate.Adopt(f.app, time.Now().Add(-time.Hour), true, "127.0.0.1:8080")
		f.want(f.get("/"), 200, "hello")
		time.Sleep(time.Second)
		if !f.app.isFrozen() {
			t.Error("not suspended again")
		}
	})
}

// TestStress has clients, suspension and time-outs meet as often as possible. The app
// itself checks that it is never asked while frozen.
func TestStress(t *testing.T) {
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &app{t: t, handler: http.HandlerFunc(hello)}
	var meter countingMeter
	g := New(Config{Listener: front, Mode: leapcell.TaskServerless, Concurrency: 3, SuspendAfter: 50 * time.Microsecond, Meter: &meter})
	defer g.Close(context.Background())
	a.listen()
	defer a.server.Close()
	g.Launched(a, time.Now())
	<-g.Started()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	var all sync.WaitGroup
	const clients, each = 8, 200
	var gone atomic.Int64
	for c := range clients {
		all.Go(func() {
			for i := range each {
				ctx, cancel := context.WithCancel(context.Background())
				if (c+i)%10 == 0 {
					time.AfterFunc(100*time.Microsecond, cancel)
				}
				r, _ := http.NewRequestWithContext(ctx, "GET", "http://"+front.Addr().String(), nil)
				res, err := client.Do(r)
				if err == nil {
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if res.StatusCode != 200 && ctx.Err() == nil {
						t.Errorf("status %d", res.StatusCode)
					}
				} else if ctx.Err() == nil {
					t.Error(err)
				} else {
					gone.Add(1)
				}
				cancel()
				if i%20 == 0 {
					time.Sleep(200 * time.Microsecond)
				}
			}
		})
	}
	all.Wait()
	if err := g.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	s := g.Stats()
	t.Logf("%d requests, %d given up, %d suspensions", s.Requests, gone.Load(), s.Suspensions)
	if s.InFlight != 0 || s.Waiting != 0 || s.Suspended || meter.requests.Load() != s.Requests || meter.compute.Load() != s.ComputeMS || meter.egress.Load() != s.EgressBytes {
		t.Errorf("stats %+v, meter %+v", s, &meter)
	}
	if s.Suspensions == 0 {
		t.Error("never suspended: nothing was tested")
	}
}

// Ports are used again at once: a request that was meant for the former owner of this one
// must not reach the app. [RQ6]
func TestRequestsForAnotherInstanceAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reached := 0
		f := newFixture(t, Config{}, func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/" {
				reached++
			}
		})
		f.ready()
		for meant, want := range map[string]int{"alloc-1": 200, "alloc-2": 503} {
			a := f.do(request("GET", "/", nil, leapcell.HeaderInstance, meant))
			if gone := a.header.Get(leapcell.HeaderGone) != ""; a.status != want || gone != (want == 503) {
				t.Errorf("meant for %s: %d, gone %v", meant, a.status, gone)
			}
		}
		if reached != 1 {
			t.Errorf("the app was reached %d times, want once", reached)
		}
	})
}
