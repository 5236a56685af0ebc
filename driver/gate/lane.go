package gate

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
)

const (
	// laneWait is how long the lane waits for the app. Nobody watches meanwhile whether the
	// visitor leaves; it is set anew when less than half of it is left.
	laneWait = 20 * time.Millisecond
	// laneBuffer bounds an answer in the lane, head and body. It is the buffer of a connection
	// to the app, of which an instance that is suspended has none.
	laneBuffer = 8 << 10
	// firstRead is the server's buffer for requests.
	firstRead = 4 << 10
	// laneArmed is how long a deadline on the visitor's side is left as it is.
	laneArmed = time.Minute
)

// lane is a visitor's connection, below the server that reads from it. When the server waits
// for a request and a plain one comes, a GET that is there in one piece, for an app that is
// ready and gives a short answer of announced length soon, then the lane passes it on by
// itself, byte for byte, and the server never hears of it. With whatever else comes the
// server does what it does, also when half of it is done: the request was sent to the app
// already and the answer is long, chunked, late or odd. So there is one place for all that
// HTTP has, and what nearly all requests are costs half.
//
// A request in the lane counts as one in flight, is metered, and thaws the app as any other.
type lane struct {
	net.Conn
	g *Gate

	// These belong to the server's goroutine of the connection.
	fresh     bool    // what is read next is the beginning of a request
	off       bool    // it is not for us any more: HTTP/2, another protocol, or requests that do not wait for answers
	stray     bool    // the server has read the beginning of the next request itself
	patient   bool    // the last request was all that there was: the next one begins with the next bytes
	ahead     []byte  // read already, and for the server
	begun     *begun  // what the server is to go on with
	readUntil instant // deadlines on the connection that the lane has set
	sendUntil instant

	mu      sync.Mutex
	busy    bool // a request is in the lane
	closing bool // Close was called
	early   bool // the last answer came before the end of what the visitor sends
}

// begun is a request that holds a place in the app.
type begun struct {
	conn *appConn // it was sent over; nil if it was not sent yet
}

// instant is a deadline that is set anew only now and then.
type instant struct{ at time.Time }

// renew sets the deadline to d from now if less than d-slack is left of it.
func (i *instant) renew(now time.Time, d, slack time.Duration, set func(time.Time) error) {
	if i.at.Sub(now) < d-slack {
		i.at = now.Add(d)
		_ = set(i.at) // fails on a closed connection only, which whoever uses it will see
	}
}

type laneKey struct{}

// lanes makes a lane of each connection, and knows those that are open.
type lanes struct {
	net.Listener
	g *Gate

	mu   sync.Mutex
	open map[*lane]bool
}

// Accept implements net.Listener.
func (s *lanes) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l := &lane{Conn: conn, g: s.g, fresh: true}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[l] = true
	return l, nil
}

func (s *lanes) forget(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, l)
}

// cut ends what is left. The server does not know any more of those connections that it
// closed while a request was in the lane.
func (s *lanes) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.open {
		_ = l.Conn.Close()
	}
}

func withLane(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, laneKey{}, conn)
}

// state is told by the server what it does with the connection.
func (l *lane) state(s http.ConnState) {
	if l.off {
		return // HTTP/2 tells of its connections from several goroutines
	}
	switch s {
	case http.StateIdle:
		l.answeredEarly(false) // the server has read the rest
		l.fresh = l.patient && !l.stray
		l.stray = false
	case http.StateHijacked:
		l.off = true
		l.g.lanes.forget(l)
	}
	if s != http.StateActive {
		l.drop()
	}
}

// drop ends what the server would not go on with.
func (l *lane) drop() {
	if b := l.take(); b != nil {
		if b.conn != nil {
			_ = b.conn.Close()
		}
		l.g.leave()
	}
}

// take gives what the server is to go on with, nil for nothing.
func (l *lane) take() *begun {
	b := l.begun
	if b != nil {
		l.begun = nil
		l.g.mu.Lock()
		l.g.lanesLeft()
		l.g.mu.Unlock()
	}
	return b
}

// Read gives the server what is for it.
func (l *lane) Read(p []byte) (int, error) {
	if !l.fresh {
		n, err := l.next(p)
		if n > 0 && len(p) == 1 {
			l.stray = true // how the server listens whether its visitor leaves
		}
		return n, err
	}
	b := p
	if len(b) < firstRead { // the server looks at a few bytes first, for HTTP/2 begins with some
		b = make([]byte, firstRead)
	}
	for {
		n, err := l.Conn.Read(b)
		if err == nil && n > 0 && l.express(b[:n]) {
			continue
		}
		if n == 0 {
			return 0, err
		}
		l.fresh = false
		if !l.sendUntil.at.IsZero() {
			l.sendUntil = instant{}
			_ = l.SetWriteDeadline(time.Time{})
		}
		given := n
		if len(b) != len(p) {
			given = copy(p, b[:n])
			l.ahead = b[given:n]
		}
		if given < n {
			err = nil // comes again
		}
		return given, err
	}
}

// next reads what the server has not got yet.
func (l *lane) next(p []byte) (int, error) {
	if len(l.ahead) == 0 {
		return l.Conn.Read(p)
	}
	n := copy(p, l.ahead)
	l.ahead = l.ahead[n:]
	return n, nil
}

// Close waits for the request in the lane: to the server this is an idle connection.
func (l *lane) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = true
	if l.busy {
		return nil
	}
	if l.early {
		go l.linger()
		return nil
	}
	return l.end()
}

// lingerFor is how long a visitor who still sends has to read the answer.
const lingerFor = 500 * time.Millisecond

// linger ends the connection when the visitor does, or after a moment: a connection that is
// closed over unread bytes is reset, and the visitor loses the answer with it. The server does
// so by itself, unless its reading was interrupted.
func (l *lane) linger() {
	_ = l.CloseWrite()
	_ = l.Conn.SetReadDeadline(time.Now().Add(lingerFor))
	_, _ = io.Copy(io.Discard, l.Conn)
	_ = l.end()
}

// answeredEarly says whether the visitor may be sending still when the connection is closed.
func (l *lane) answeredEarly(v bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.early = v
}

func (l *lane) end() error {
	l.g.lanes.forget(l)
	return l.Conn.Close()
}

// CloseWrite says that nothing more comes, where the connection can.
func (l *lane) CloseWrite() error {
	if half, ok := l.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// enter marks the lane as busy, unless the connection is closed.
func (l *lane) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = !l.closing
	return l.busy
}

// isClosing reports whether the answer is the connection's last.
func (l *lane) isClosing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// exit undoes enter.
func (l *lane) exit() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = false
	if l.closing {
		_ = l.end()
	}
}

// express passes the request on if it can; else the server is to have it, with what begun
// says was done already.
func (l *lane) express(b []byte) bool {
	g := l.g
	req, ok := parsePlainRequest(b, g.cfg.Instance)
	if !ok {
		l.off = l.off || bytes.HasPrefix(b, []byte("PRI"))
		return false
	}
	if len(req.rest) > 0 {
		l.off = true
		return false
	}
	if app := g.app.Load(); app == nil || app.http2 || !l.enter() {
		return false
	}
	if !g.enterLane() {
		l.exit()
		return false
	}
	now := time.Now()
	c := g.upstream.kept()
	if c == nil {
		return l.handOver(nil)
	}
	c.until.renew(now, g.cfg.laneWait, g.cfg.laneWait/2, c.SetReadDeadline)
	if c.pass(req) != nil {
		return l.handOver(c)
	}
	answer, ok := c.plainAnswer(g.responseLimit())
	if !ok {
		return l.handOver(c)
	}
	l.answer(c, answer)
	if answer.last {
		_ = c.Close()
	} else {
		g.upstream.put(c)
	}
	g.leaveLane()
	l.readUntil.renew(now, g.server.IdleTimeout, laneArmed, l.SetReadDeadline)
	l.exit()
	return true
}

// handOver lets the server go on. Should it have closed the connection meanwhile, it will do
// so again when it has answered.
func (l *lane) handOver(c *appConn) bool {
	l.begun = &begun{c}
	l.mu.Lock()
	l.busy = false
	l.mu.Unlock()
	return false
}

// answer writes what the app said, and counts it before.
func (l *lane) answer(c *appConn, a plainAnswer) {
	g := l.g
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	out := append((*buf)[:0], "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(a.status), 10)
	out = append(append(append(out, ' '), http.StatusText(a.status)...), "\r\n"...)
	out = append(out, leapcell.HeaderInstance...)
	out = append(append(append(out, ": "...), g.cfg.Instance...), "\r\n"...)
	out = a.appendHeaders(out)
	now := time.Now()
	if !a.dated {
		out = append(out, "Date: "...)
		out = append(now.UTC().AppendFormat(out, http.TimeFormat), "\r\n"...)
	}
	if l.isClosing() {
		out = append(out, "Connection: close\r\n"...)
	}
	out = append(out, "\r\n"...)
	out = append(out, a.body...)

	g.sent(int64(len(a.body)))
	g.countRequest(now)
	l.sendUntil.renew(now, 2*g.cfg.BodyIdle, g.cfg.BodyIdle, l.SetWriteDeadline)
	n, err := l.Conn.Write(out)
	if err != nil {
		g.sent(-int64(min(len(a.body), len(out)-n)))
		_ = l.Conn.Close() // the server learns it from its next Read
	}
	_, _ = c.in.Discard(a.length) // is in the buffer
}

// begunInLane gives what the lane has done for the request, nil for nothing.
func (g *Gate) begunInLane(r *http.Request) *begun {
	l, _ := r.Context().Value(laneKey{}).(*lane)
	if l == nil || r.ProtoMajor != 1 {
		return nil
	}
	b := l.take()
	_, fromEdge := r.Header[leapcell.HeaderInstance] // edges wait for each answer
	l.patient = fromEdge || b != nil
	return b
}

// enterLane takes a place if there is one at once.
func (g *Gate) enterLane() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != Ready || g.left.Load() || g.inFlight >= g.cfg.Concurrency || g.admit() != nil {
		return false
	}
	g.inLane++
	return true
}

// leaveLane gives the place back.
func (g *Gate) leaveLane() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lanesLeft()
	g.giveBack()
}

// lanesLeft counts one less in the lane. The caller holds mu.
func (g *Gate) lanesLeft() {
	g.inLane--
	if g.inLane == 0 && g.lanesEmpty != nil {
		close(g.lanesEmpty)
		g.lanesEmpty = nil
	}
}

// awaitLanes returns when no request is in the lane, or ctx is done. None may come any more.
func (g *Gate) awaitLanes(ctx context.Context) {
	g.mu.Lock()
	empty := g.lanesEmpty
	if g.inLane > 0 && empty == nil {
		empty = make(chan struct{})
		g.lanesEmpty = empty
	}
	g.mu.Unlock()
	if empty == nil {
		return
	}
	select {
	case <-empty:
	case <-ctx.Done():
	}
}

// pass sends a plain request.
func (c *appConn) pass(r plainRequest) error {
	_, _ = c.out.Write(r.head[:r.from])
	_, _ = c.out.Write(r.head[r.to:])
	return c.out.Flush() // it has the first error
}

// plainAnswer gives the answer if all of it is there in time and it is a plain one. Nothing of
// it is taken out of the buffer.
func (c *appConn) plainAnswer(limit int64) (plainAnswer, bool) {
	for have := 1; ; {
		if _, err := c.in.Peek(have); err != nil {
			return plainAnswer{}, false
		}
		have = c.in.Buffered()
		b, _ := c.in.Peek(have)
		a, verdict := parsePlainAnswer(b)
		switch {
		case verdict == odd || verdict == complete && limit > 0 && int64(len(a.body)) > limit:
			return plainAnswer{}, false
		case verdict == complete:
			return a, have == a.length
		}
		if have++; have > c.in.Size() || a.length > c.in.Size() {
			return plainAnswer{}, false
		}
		have = max(have, a.length)
	}
}
