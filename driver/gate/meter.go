package gate

import (
	"bufio"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/leapcell/leapcell"
)

// Meter counts what an instance is charged for. Its methods are called on the way of every
// request, by several goroutines at a time: they must not block. [BI1, BI3]
type Meter interface {
	// Request counts one request that the app worked on: before the last byte of its answer
	// is handed to the connection, or when its visitor has given up.
	Request()
	// Compute adds whole milliseconds in which at least one request was in flight. Before
	// an answer is complete, the time up to then has been added.
	Compute(ms int64)
	// Egress adds bytes of answers before they are handed to the connection. Negative ones
	// take back what could not be handed over.
	Egress(bytes int64)
}

// begin starts a busy span: the time until no request is in flight any more. The caller
// holds mu.
func (g *Gate) begin(now time.Time) { g.busySince, g.busyMS = now, 0 }

// meter counts the busy span up to now, rounded up. Requests that overlap share the span, so
// that nothing is counted twice; and as it is called before an answer is complete, a kill -9
// after an answer loses nothing of it. The caller holds mu, with a request in flight.
func (g *Gate) meter(now time.Time) {
	if g.left.Load() {
		return // the new gate holds the instance for us, and counts that
	}
	ms := int64((now.Sub(g.busySince) + time.Millisecond - 1) / time.Millisecond)
	more := ms - g.busyMS
	if more <= 0 {
		return
	}
	g.busyMS = ms
	g.counts.ComputeMS += more
	if g.cfg.Meter != nil && g.serverless() { // persistent instances are charged for wall time [BI2]
		g.cfg.Meter.Compute(more)
	}
}

// sent counts bytes of an answer.
func (g *Gate) sent(bytes int64) {
	g.egress.Add(bytes)
	if g.cfg.Meter != nil {
		g.cfg.Meter.Egress(bytes)
	}
}

// visit is a request that holds a place in the app, from its visitor's side: it watches the
// answer pass, and has the request counted before the last byte does.
type visit struct {
	http.ResponseWriter
	gate      *Gate
	rest      int64 // bytes until the announced end of the body; negative: not announced
	elsewhere bool  // not answered here: the edge asks another instance
	counted   bool
}

// visit begins to watch the answer. The caller holds a place and gives it back by end.
func (g *Gate) visit(w http.ResponseWriter) *visit {
	return &visit{ResponseWriter: w, gate: g, rest: -1}
}

// WriteHeader implements http.ResponseWriter.
func (v *visit) WriteHeader(status int) {
	if status >= http.StatusOK {
		h := v.Header()
		_, v.elsewhere = h[leapcell.HeaderGone]
		if length := h["Content-Length"]; len(length) == 1 {
			if n, err := strconv.ParseInt(length[0], 10, 64); err == nil {
				v.rest = n
			}
		}
	}
	v.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter. An answer without announced length, or one that the
// server still holds back, ends with the handler: end is called before.
func (v *visit) Write(p []byte) (int, error) {
	if v.rest > 0 {
		if v.rest -= int64(len(p)); v.rest <= 0 {
			v.count()
		}
	}
	v.gate.sent(int64(len(p)))
	n, err := v.ResponseWriter.Write(p)
	if n < len(p) {
		v.gate.sent(int64(n - len(p)))
	}
	return n, err
}

// Unwrap lets an http.ResponseController reach the server's own writer.
func (v *visit) Unwrap() http.ResponseWriter { return v.ResponseWriter }

// Hijack gives the connection to a WebSocket, whose bytes count as well.
func (v *visit) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(v.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &countedConn{conn, v.gate}, rw, nil
}

// count counts the request, once.
func (v *visit) count() {
	if v.counted || v.elsewhere {
		return
	}
	v.counted = true
	v.gate.countRequest(time.Now())
}

// countRequest counts a request that is about to be answered whole.
func (g *Gate) countRequest(now time.Time) {
	g.mu.Lock()
	g.meter(now)
	g.counts.Requests++
	g.mu.Unlock()
	if g.cfg.Meter != nil {
		g.cfg.Meter.Request()
	}
}

// end gives the place back. What the server has not sent yet it sends afterwards.
func (v *visit) end() {
	v.count()
	v.gate.leave()
}

// countedConn counts what goes to the visitor.
type countedConn struct {
	net.Conn
	gate *Gate
}

// Write implements net.Conn.
func (c *countedConn) Write(p []byte) (int, error) {
	c.gate.sent(int64(len(p)))
	n, err := c.Conn.Write(p)
	if n < len(p) {
		c.gate.sent(int64(n - len(p)))
	}
	return n, err
}

// CloseWrite tells the visitor that nothing more comes, where the connection can.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}
