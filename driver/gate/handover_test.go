package gate

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// theOther is the new gate's side as the old one sees it through a socket.
type theOther struct {
	gate *Gate

	mu       sync.Mutex
	holds    int
	releases int
}

func (o *theOther) Hold() error {
	o.mu.Lock()
	o.holds++
	o.mu.Unlock()
	return o.gate.Hold()
}

func (o *theOther) Release() error {
	o.mu.Lock()
	o.releases++
	o.mu.Unlock()
	o.gate.Release()
	return nil
}

// pass gives the listening socket of g to a new gate, as two processes do.
func pass(t *testing.T, g *Gate) net.Listener {
	t.Helper()
	raw, err := g.Socket()
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	raw.Control(func(fd uintptr) {
		copied, dup := unix.Dup(int(fd))
		if err = dup; err != nil {
			return
		}
		f := os.NewFile(uintptr(copied), "socket")
		defer f.Close()
		l, err = net.FileListener(f)
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// handed is an instance whose gate is changed while it runs.
type handed struct {
	t        *testing.T
	backend  *handedBackend
	old, new *Gate
	other    *theOther
	address  string
}

// handedBackend is an app on a local listener that knows whether it is frozen.
type handedBackend struct {
	app string

	mu     sync.Mutex
	frozen bool
}

func (b *handedBackend) Dial(ctx context.Context, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", b.app)
}
func (b *handedBackend) set(v bool) error { b.mu.Lock(); defer b.mu.Unlock(); b.frozen = v; return nil }
func (b *handedBackend) Freeze() error    { return b.set(true) }
func (b *handedBackend) Thaw() error      { return b.set(false) }
func (b *handedBackend) isFrozen() bool   { b.mu.Lock(); defer b.mu.Unlock(); return b.frozen }

func newHanded(t *testing.T, app http.HandlerFunc) *handed {
	t.Helper()
	inside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &handedBackend{app: inside.Addr().String()}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != leapcell.ProbePath && b.isFrozen() {
			t.Error("a request reached a suspended instance")
		}
		app(w, r)
	})}
	go server.Serve(inside)
	t.Cleanup(func() { server.Close() })
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &handed{t: t, backend: b, address: outside.Addr().String()}
	h.old = New(Config{Instance: "i", Listener: outside, SuspendAfter: 5 * time.Millisecond})
	t.Cleanup(func() { closeGate(h.old) })
	h.old.Launched(b, time.Now())
	<-h.old.Started()
	return h
}

func closeGate(g *Gate) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	g.Close(ctx)
}

// change is the handover: what comes between Pause and Leave takes no time here.
func (h *handed) change() (busy bool) {
	h.old.Pause()
	h.new = New(Config{Instance: "i", Listener: pass(h.t, h.old), SuspendAfter: 5 * time.Millisecond})
	h.t.Cleanup(func() { closeGate(h.new) })
	h.other = &theOther{gate: h.new}
	busy = h.old.Leave(h.other)
	h.new.Adopt(h.backend, time.Now(), h.backend.isFrozen(), h.old.Stats().App)
	if busy {
		if err := h.new.Hold(); err != nil {
			h.t.Error(err)
		}
	}
	return busy
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// talk asks on a connection of its own and keeps it.
func talk(t *testing.T, conn net.Conn, in *bufio.Reader, path string) *http.Response {
	t.Helper()
	io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 || string(b) != "hello" {
		t.Fatalf("%d %q %v", res.StatusCode, b, err)
	}
	return res
}

func dialGate(t *testing.T, address string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, bufio.NewReader(conn)
}

func TestGateChangesUnderOpenConnections(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	h := newHanded(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(begun)
			<-release
		}
		io.WriteString(w, "hello")
	})
	idle, idleIn := dialGate(t, h.address)
	talk(t, idle, idleIn, "/")
	slow := make(chan string, 1)
	go func() {
		res, err := http.Get("http://" + h.address + "/slow")
		if err != nil {
			slow <- err.Error()
			return
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		slow <- string(b)
	}()
	<-begun
	if !h.change() {
		t.Error("the old gate has a request in flight and says that it has none")
	}
	fresh, freshIn := dialGate(t, h.address)
	talk(t, fresh, freshIn, "/")
	if n := h.new.Stats().InFlight; n != 1 || h.new.Stats().Suspended {
		t.Errorf("%d in flight at the new gate: the old one's request does not count", n)
	}
	close(release)
	if body := <-slow; body != "hello" {
		t.Errorf("the request in flight got %q", body)
	}
	eventually(t, "suspension by the new gate", func() bool { return h.new.Stats().Suspended && h.backend.isFrozen() })
	// The connection that was idle brings one more request: the old gate has it woken.
	if res := talk(t, idle, idleIn, "/"); !res.Close {
		t.Error("the old gate keeps the connection")
	}
	h.other.mu.Lock()
	if h.other.holds != 1 {
		t.Errorf("asked %d times to be kept awake, want 1", h.other.holds)
	}
	h.other.mu.Unlock()
	eventually(t, "suspension after it", h.backend.isFrozen)
	http.DefaultClient.CloseIdleConnections()
	<-h.old.Over()
}

func TestGateOverWithoutConnections(t *testing.T) {
	h := newHanded(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	eventually(t, "suspension", h.backend.isFrozen)
	if h.change() {
		t.Error("an idle gate says that it is busy")
	}
	<-h.old.Over()
	conn, in := dialGate(t, h.address)
	talk(t, conn, in, "/")
}

// An operator's command belongs to the old supervisor, and keeps the instance awake there.
func TestCommandOutlastsTheChange(t *testing.T) {
	h := newHanded(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	release, err := h.old.Awake()
	if err != nil {
		t.Fatal(err)
	}
	if !h.change() {
		t.Error("the old gate forgets the command")
	}
	conn, in := dialGate(t, h.address)
	talk(t, conn, in, "/")
	if h.backend.isFrozen() {
		t.Error("suspended under a command")
	}
	select {
	case <-h.old.Over():
		t.Error("over, with a command")
	default:
	}
	release()
	<-h.old.Over()
	eventually(t, "suspension", h.backend.isFrozen)
}

// A handover that does not come about: connections that came meanwhile are served.
func TestGatePauseAndResume(t *testing.T) {
	h := newHanded(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	h.old.Pause()
	conn, in := dialGate(t, h.address) // into the kernel's queue
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	h.old.Pause() // twice is once
	h.old.Resume()
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 200 || res.Close {
		t.Fatalf("%+v, %v", res, err)
	}
	io.Copy(io.Discard, res.Body)
	eventually(t, "suspension", h.backend.isFrozen)
}

func TestDrainWaitsForTheOldGate(t *testing.T) {
	h := newHanded(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	idle, idleIn := dialGate(t, h.address)
	talk(t, idle, idleIn, "/")
	h.change()
	if err := h.new.Hold(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if h.new.Drain(ctx) == nil {
		t.Error("drained with a request in flight at the old gate")
	}
	h.new.Release()
	if err := h.new.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	// What comes on the old connection now is sent elsewhere.
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	res, err := http.ReadResponse(idleIn, nil)
	if err != nil || res.StatusCode != 503 || res.Header.Get(leapcell.HeaderGone) == "" {
		t.Errorf("%+v, %v", res, err)
	}
	if b, _ := io.ReadAll(res.Body); !strings.Contains(string(b), "stopping") {
		t.Errorf("%q", b)
	}
}

func TestStartDecidedByBothGates(t *testing.T) {
	inside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &handedBackend{app: inside.Addr().String()} // accepts, but does not answer yet
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	old := New(Config{Instance: "i", Listener: outside, SuspendAfter: 5 * time.Millisecond})
	defer closeGate(old)
	old.Launched(b, time.Now())
	conn, in := dialGate(t, outside.Addr().String())
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	eventually(t, "a request that waits", func() bool { return old.Stats().Waiting == 1 })
	old.Pause()
	fresh := New(Config{Instance: "i", Listener: pass(t, old), SuspendAfter: 5 * time.Millisecond})
	defer closeGate(fresh)
	if !old.Leave(&theOther{gate: fresh}) {
		t.Error("a gate in the start must keep the instance awake until it knows")
	}
	fresh.Launched(b, time.Now())
	if err := fresh.Hold(); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })}
	go server.Serve(inside)
	defer server.Close()
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%+v, %v", res, err)
	}
	<-fresh.Started()
	io.Copy(io.Discard, res.Body)
	eventually(t, "suspension once both know", b.isFrozen)
}
