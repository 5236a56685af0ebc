package gate

import (
	"container/list"
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapcell/leapcell"
)

// Backend is the instance behind a gate.
type Backend interface {
	// Dial opens a TCP connection to address from inside the instance's network namespace.
	Dial(ctx context.Context, address string) (net.Conn, error)
	// Freeze suspends the CPU of the whole instance; Thaw undoes it. Both return when it is
	// done, are called one at a time, and are short: requests wait for them.
	Freeze() error
	Thaw() error
}

// Config is what a gate needs. Zero durations and limits take the contract's values.
type Config struct {
	Instance string // sent as HeaderInstance
	Listener net.Listener
	Mode     leapcell.TaskMode
	Port     int       // where the app listens inside
	Begin    time.Time // when the start was asked for; the zero time means now

	Concurrency    int // requests in flight in the app; more wait
	QueueLimit     int // requests that may wait
	StartTimeout   time.Duration
	RequestTimeout time.Duration
	SuspendAfter   time.Duration // idle time before the app is suspended
	// BodyIdle is the longest pause in which nothing of a body moves on the visitor's
	// side, in serverless mode: who stalls must not keep an instance awake.
	BodyIdle time.Duration

	MaxRequestBytes  int64
	MaxResponseBytes int64 // serverless only

	Meter Meter
	// Naps is told of each suspension, and of each resumption that a request caused, with the
	// gate's lock held: it must not block or call the gate. Nil is nobody.
	Naps func(suspended bool)
	Log  *slog.Logger

	laneWait time.Duration // see the constant
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.StartTimeout, leapcell.StartTimeout)
	set(&c.RequestTimeout, leapcell.RequestTimeout)
	set(&c.SuspendAfter, 20*time.Millisecond)
	set(&c.BodyIdle, leapcell.BodyIdleTimeout)
	set(&c.laneWait, laneWait)
	c.SuspendAfter = min(c.SuspendAfter, leapcell.SuspendAfter)
	if c.Port == 0 {
		c.Port = leapcell.DefaultPort
	}
	if c.Concurrency <= 0 {
		c.Concurrency = leapcell.DefaultConcurrency
	}
	if c.QueueLimit <= 0 {
		c.QueueLimit = leapcell.QueueLimit
	}
	if c.MaxRequestBytes <= 0 {
		c.MaxRequestBytes = leapcell.MaxRequestBytes
	}
	if c.MaxResponseBytes <= 0 {
		c.MaxResponseBytes = leapcell.MaxResponseBytes
	}
	if c.Begin.IsZero() {
		c.Begin = time.Now()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// State is where a gate stands.
//
//	           Launched, probe answered
//	Starting ──────────────────────────► Ready ◄─────► (suspended: frozen and nothing in flight)
//	   │  │                                │ │
//	   │  └── Fail, Exited, start timeout ─┼─┴─ Exited ──► Failed ──┐
//	   │                                   │                        │ Close
//	   └────────────── Drain ──────────────┴──► Draining ───────────┴──► Stopped
//
// Held requests leave Starting by being passed on (Ready), answered 502 with the reason
// (Failed) or sent elsewhere by 503 and HeaderGone (Draining). After a crash of an app that
// was ready, waiting ones are sent elsewhere too: only those it worked on fail. [LI5] So are
// those that wait for the start of an app that somebody else killed.
type State int

// The states of a gate.
const (
	Starting State = iota
	Ready
	Draining
	Failed
	Stopped
)

// String is the state's name in logs and stats.
func (s State) String() string {
	return [...]string{"starting", "ready", "draining", "failed", "stopped"}[s]
}

// Gate is the listener of one instance. All methods may be called at any time from any
// goroutine.
type Gate struct {
	cfg      Config
	server   *http.Server
	upstream *upstream
	http2    http2Upstream
	header   []string               // value of HeaderInstance, shared by all answers
	app      atomic.Pointer[target] // what answered the probe
	egress   atomic.Int64           // body bytes sent, ever
	cancel   context.CancelFunc     // ends the probe

	listener *pausable
	lanes    *lanes
	left     atomic.Bool   // the instance is in another gate's hands, see Leave
	conns    atomic.Int64  // open connections
	alone    chan struct{} // of one: the last connection was closed
	over     chan struct{} // closed when left and nothing is open any more

	started chan struct{} // closed on leaving Starting
	idle    chan struct{} // closed when draining or failed and nothing is in flight
	drained bool          // Drain was called

	mu        sync.Mutex // everything below; never held while a request is in the app
	state     State
	backend   Backend
	failure   leapcell.GateStatus // why it failed
	killed    bool                // while it started, see Killed
	wasReady  bool
	launched  time.Time // process start
	ready     time.Time
	inFlight  int
	waiting   list.List // of *waiter, oldest first
	frozen    bool
	awake     int  // reasons to stay awake that are no requests, see Awake
	paused    bool // another process is about to take the instance over
	idleSince time.Time
	timer     *time.Timer // runs suspend; armed says whether it will
	armed     bool
	busySince time.Time // begin of the present busy span, see meter
	busyMS    int64     // what of it is counted
	counts    Stats     // the counters only

	inLane     int           // requests in flight of which the server does not know
	lanesEmpty chan struct{} // closed when there are none; nil if nobody waits for that
}

// New makes a gate and begins to accept on cfg.Listener, which it closes in the end.
// Requests are held until Launched, Fail, Exited or Drain is called.
func New(cfg Config) *Gate {
	cfg = cfg.withDefaults()
	g := &Gate{
		cfg:      cfg,
		header:   []string{cfg.Instance},
		listener: &pausable{Listener: cfg.Listener},
		over:     make(chan struct{}),
		started:  make(chan struct{}),
		idle:     make(chan struct{}),
		alone:    make(chan struct{}, 1),
		cancel:   func() {},
	}
	g.timer = time.AfterFunc(time.Hour, g.suspend)
	g.timer.Stop()
	g.upstream = newUpstream(g.dial)
	g.http2.transport = newHTTP2(g.dial)
	g.server = &http.Server{
		Handler:   g,
		Protocols: new(http.Protocols),
		// OPTIONS * is for the app to answer.
		DisableGeneralOptionsHandler: true,
		// Far above the sum of line and headers, so that RQ3 is answered by us with the
		// right status, and not by the server with one for all.
		MaxHeaderBytes:    1 << 20,
		ReadHeaderTimeout: 30 * time.Second,
		// Longer than edges keep idle connections, so that it is they who close them: a
		// request can then never meet a connection that is being closed here.
		IdleTimeout: 5 * time.Minute,
		ConnState:   g.connState,
		ConnContext: withLane,
		ErrorLog:    slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	// Edges speak HTTP/1.1. HTTP/2 is for whoever has a load balancer of their own before
	// the gate and gRPC behind it.
	g.server.Protocols.SetHTTP1(true)
	g.server.Protocols.SetUnencryptedHTTP2(true)
	g.lanes = &lanes{Listener: g.listener, g: g, open: map[*lane]bool{}}
	go func() { _ = g.server.Serve(g.lanes) }()
	return g
}

// Launched says that the app's process exists since startedAt, behind b: probing begins.
func (g *Gate) Launched(b Backend, startedAt time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.backend, g.launched = b, startedAt
	if g.state != Starting {
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), startedAt.Add(g.cfg.StartTimeout))
	g.cancel = cancel
	go g.probe(ctx, b)
}

// Adopt is Launched for an app that was ready already before this gate was made: requests
// pass at once. frozen says whether it is suspended; app is [Stats].App of the former gate.
func (g *Gate) Adopt(b Backend, startedAt time.Time, frozen bool, app string) {
	g.mu.Lock()
	g.backend, g.launched, g.frozen = b, startedAt, frozen
	g.mu.Unlock()
	g.becomeReady(parseTarget(app))
}

// Fail says that the instance could not be started; it does nothing once it is ready.
func (g *Gate) Fail(code leapcell.Code, message string) {
	g.fail(leapcell.GateStatus{Code: code, Message: message}, false)
}

// Exited says that the app's process is gone, with a message for the owner.
func (g *Gate) Exited(exitCode int, message string) {
	g.fail(leapcell.GateStatus{Code: leapcell.CodeStartExited, Message: message, ExitCode: &exitCode}, true)
}

// Killed is Exited for an app that did not end by itself, nor by want of memory: that says
// nothing about whether it can start. Who waits for the start is sent elsewhere.
func (g *Gate) Killed(exitCode int, message string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.killed = g.state == Starting
	g.enterFailed(leapcell.GateStatus{Code: leapcell.CodeUnavailable, Message: message, ExitCode: &exitCode}, true)
}

func (g *Gate) fail(s leapcell.GateStatus, crash bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.enterFailed(s, crash)
}

// enterFailed is fail. The caller holds mu.
func (g *Gate) enterFailed(s leapcell.GateStatus, crash bool) {
	if g.state != Starting && (g.state != Ready || !crash) {
		return
	}
	if g.state == Ready {
		s.Code = leapcell.CodeInstanceCrashed
	}
	g.failure = s
	g.enterState(Failed)
}

// enterState moves to a state that takes no requests and answers those that wait. The
// caller holds mu.
func (g *Gate) enterState(s State) {
	if g.state == Starting {
		close(g.started)
	}
	g.cancel()
	g.state = s
	for w := g.next(); w != nil; w = g.next() {
		w.result <- g.refusal()
	}
	if g.inFlight == 0 {
		g.closeIdle()
	}
}

// becomeReady is called by the probe when the app answered.
func (g *Gate) becomeReady(app target) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != Starting {
		return
	}
	g.app.Store(&app)
	g.state, g.wasReady, g.ready = Ready, true, time.Now()
	close(g.started)
	for g.inFlight < g.cfg.Concurrency {
		w := g.next()
		if w == nil {
			break
		}
		w.result <- g.admit()
	}
	if g.inFlight == 0 {
		g.goIdle(g.ready)
	}
}

// Drain takes no new requests and waits until those in flight are done, or ctx is. [LI3]
// Requests that still wait are sent elsewhere.
func (g *Gate) Drain(ctx context.Context) error {
	g.mu.Lock()
	if g.state == Starting || g.state == Ready {
		g.thaw() // whoever drains is about to signal the app
		g.enterState(Draining)
	}
	g.drained = true
	g.mu.Unlock()
	// Idle connections stay: a request may be on its way over one of them, and would be lost.
	select {
	case <-g.idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops listening and ends what is left, after giving answers that are being
// written until ctx is done. It returns when nothing of the gate runs any more. For a moment
// it leaves it to the edges to close their connections.
func (g *Gate) Close(ctx context.Context) {
	g.mu.Lock()
	if g.state == Starting || g.state == Ready {
		g.enterState(Draining)
	}
	drained, gone := g.drained, g.wasReady || g.killed
	g.mu.Unlock()
	switch {
	case drained:
		g.awaitGoodbyes(ctx, goodbye)
	case gone:
		g.awaitGoodbyes(ctx, lastWords)
	}
	g.awaitLanes(ctx)
	if g.server.Shutdown(ctx) != nil {
		_ = g.server.Close()
	}
	g.lanes.cut()
	g.upstream.close()
	g.http2.transport.CloseIdleConnections()
	g.mu.Lock()
	g.state = Stopped
	g.timer.Stop()
	g.mu.Unlock()
}

// goodbye is how long edges get to close their connections to an instance that stops. They
// hear of it by Nomad's event stream within milliseconds, or by the answer to a request.
const goodbye = 500 * time.Millisecond

// lastWords is how long a gate whose app has crashed answers on connections that edges keep:
// a request is on its way over some of them, and the answer to the first tells an edge to
// send no more. On a machine with too little time for all, edges need tens of milliseconds for
// what is on its way; Nomad starts the next instance half a second later at the earliest.
const lastWords = 200 * time.Millisecond

// awaitGoodbyes waits until no connection is left, for at most limit.
func (g *Gate) awaitGoodbyes(ctx context.Context, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for g.conns.Load() > 0 {
		select {
		case <-g.alone:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// Started is closed when the gate left Starting: Status then says where to.
func (g *Gate) Started() <-chan struct{} { return g.started }

// Status is what a probe request is told.
func (g *Gate) Status() leapcell.GateStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == Failed {
		return g.failure
	}
	return leapcell.GateStatus{Ready: g.state == Ready}
}

// Stats is what an instance did so far.
type Stats struct {
	State       string        `json:"state"`
	InFlight    int           `json:"inFlight"`
	Waiting     int           `json:"waiting"`
	Suspended   bool          `json:"suspended"`
	App         string        `json:"app,omitempty"` // what answered the probe, for [Gate.Adopt]
	Sandbox     time.Duration `json:"sandbox"`       // from the order to start to the process
	Start       time.Duration `json:"start"`         // from the process to LC3
	Requests    int64         `json:"requests"`
	ComputeMS   int64         `json:"computeMS"` // overlapping requests once, each span rounded up [BI1]
	EgressBytes int64         `json:"egressBytes"`
	Suspensions int64         `json:"suspensions"`
}

// Stats is a snapshot.
func (g *Gate) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.counts
	s.State, s.InFlight, s.Waiting = g.state.String(), g.inFlight, g.waiting.Len()
	s.Suspended, s.EgressBytes = g.frozen, g.egress.Load()
	if a := g.app.Load(); a != nil {
		s.App = a.String()
	}
	if !g.launched.IsZero() {
		s.Sandbox = max(g.launched.Sub(g.cfg.Begin), 0)
		if g.wasReady {
			s.Start = g.ready.Sub(g.launched)
		}
	}
	return s
}

func (g *Gate) closeIdle() {
	select {
	case <-g.idle:
	default:
		close(g.idle)
	}
}

func (g *Gate) serverless() bool { return g.cfg.Mode != leapcell.TaskPersistent }
