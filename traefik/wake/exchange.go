package wake

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapcell/leapcell"
)

// exchange sends the request to the gate of a slot and passes the answer on. It returns
// true if nothing of the request was taken, so that it may be sent elsewhere [RQ6].
//
// Why not httputil.ReverseProxy over http.Transport: the transport sends a GET again by
// itself when a kept connection breaks after the request was written, keeps two goroutines
// a connection and hands each request over between them. Here one goroutine writes and
// reads, and it is known at each point what was sent.
func (h *Handler) exchange(w http.ResponseWriter, r *http.Request, s *service, got *slot, c *call) (moveOn bool) {
	conn, err := h.connect(r.Context(), got.in)
	if err != nil {
		if r.Context().Err() != nil {
			return false
		}
		s.avoid(got.in, false)
		return true
	}
	x := &exchange{h: h, w: w, r: r, conn: conn, slot: got, call: c, service: s}
	// A visitor who leaves ends the exchange: what blocks on the connection returns.
	stop := context.AfterFunc(r.Context(), func() { conn.SetDeadline(time.Unix(1, 0)) })
	c.visit.Instance = got.in.id
	result := x.run()
	if !stop() {
		x.keep = false // its deadline is in the past
	}
	if x.keep {
		got.in.put(conn)
	} else {
		conn.Close()
	}
	switch result {
	case gateGone:
		s.avoid(got.in, true)
		return true
	case gateBroke:
		c.visit.Aborted = x.answered
		if r.Context().Err() != nil {
			return false
		}
		h.sums.broken.Add(1)
		c.visit.Broken, c.visit.Refused = true, reasonBroken
		h.cfg.Log.Warn("the connection to an instance broke", "service", s.id, "instance", got.in.id,
			"request", r.Header.Get(headerRequestID), "answered", x.answered, "error", x.err)
		if x.answered {
			panic(http.ErrAbortHandler) // the visitor must not take the half for the whole
		}
		x.refuseBroken()
	}
	return false
}

// connect gives a kept connection or a new one. An error means that nothing was sent.
func (h *Handler) connect(ctx context.Context, in *instance) (*gateConn, error) {
	if conn := in.get(); conn != nil {
		return conn, nil
	}
	conn, err := h.cfg.Dial(ctx, in.address)
	if err != nil {
		return nil, err
	}
	return newGateConn(conn), nil
}

type result int

const (
	exchanged result = iota // the answer was passed on
	gateGone                // nothing was taken: it may go elsewhere
	gateBroke               // the connection failed; err says why
)

// exchange is one request on one connection.
type exchange struct {
	h       *Handler
	w       http.ResponseWriter
	r       *http.Request
	conn    *gateConn
	slot    *slot
	call    *call
	service *service

	keep     bool // the connection may serve again
	answered bool // the visitor has got the head of the answer
	err      error
	body     *bodyWriter // nil as long as the gate did not want the body
}

func (x *exchange) fail(err error) result {
	x.err = err
	return gateBroke
}

func (x *exchange) run() result {
	protocol := x.call.protocol
	hasBody := x.r.Body != nil && x.r.Body != http.NoBody && x.r.ContentLength != 0
	if err := x.writeHead(hasBody); err != nil {
		return x.fail(err)
	}
	if hasBody && x.slot.in.plain {
		x.body = startBody(x.conn, x.r)
	}
	for {
		resp, err := http.ReadResponse(x.conn.r, x.r)
		if err != nil {
			return x.fail(err)
		}
		switch {
		case resp.StatusCode == http.StatusContinue:
			if hasBody && x.body == nil {
				x.body = startBody(x.conn, x.r)
			}
		case resp.StatusCode == http.StatusSwitchingProtocols:
			if protocol == "" {
				return x.fail(errors.New("the instance changed the protocol without being asked"))
			}
			return x.switchProtocols(resp, protocol)
		case resp.StatusCode < 200:
			if !x.passInformation(resp) {
				return x.fail(context.Canceled)
			}
		case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get(leapcell.HeaderGone) != "" && x.body == nil && !x.slot.in.plain:
			return gateGone
		default:
			return x.passAnswer(resp, hasBody)
		}
	}
}

// writeHead sends the request line and headers. A body is announced and waits until the
// gate wants it, so that a gate which is gone has consumed nothing of it.
func (x *exchange) writeHead(hasBody bool) error {
	r, w := x.r, x.conn.w
	// The request target as the visitor sent it: paths are passed unchanged.
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") && target != "*" {
		target = r.URL.RequestURI() // absolute form, or HTTP/2 without one
	}
	w.WriteString(r.Method)
	w.WriteByte(' ')
	w.WriteString(target)
	w.WriteString(" HTTP/1.1\r\n")
	writeField(w, "Host", r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			writeField(w, name, v)
		}
	}
	if !x.slot.in.plain {
		writeField(w, leapcell.HeaderInstance, x.slot.in.id)
	}
	if x.call.protocol != "" {
		writeField(w, "Connection", "Upgrade")
		writeField(w, "Upgrade", x.call.protocol)
	}
	if x.call.trailers {
		writeField(w, "Te", "trailers")
	}
	switch {
	case hasBody && r.ContentLength > 0:
		writeField(w, "Content-Length", strconv.FormatInt(r.ContentLength, 10))
	case hasBody:
		writeField(w, "Transfer-Encoding", "chunked")
		for name := range r.Trailer {
			writeField(w, "Trailer", name)
		}
	case r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch:
		writeField(w, "Content-Length", "0")
	}
	if hasBody && !x.slot.in.plain { // plain apps need not know this
		writeField(w, "Expect", "100-continue")
		if x.call.expects {
			writeField(w, leapcell.HeaderExpect, "100-continue")
		}
	}
	w.WriteString("\r\n")
	return w.Flush() // bufio keeps the first error
}

type stringWriter interface{ WriteString(string) (int, error) }

// writeField writes one header. Go's server lets no line break in; HTTP/2 and earlier
// middlewares are not taken at their word.
func writeField(w stringWriter, name, value string) {
	if strings.ContainsAny(value, "\r\n\x00") || strings.ContainsAny(name, "\r\n\x00: ") {
		return
	}
	w.WriteString(name)
	w.WriteString(": ")
	w.WriteString(value)
	w.WriteString("\r\n")
}

// passInformation passes an interim answer on, Early Hints for example. What is set already
// belongs to the final one. False says that the visitor left: nothing of w may be touched any
// more, because Go's HTTP/2 server may then still be writing from the map of headers.
func (x *exchange) passInformation(resp *http.Response) bool {
	if !x.r.ProtoAtLeast(1, 1) {
		return true // HTTP/1.0 does not know them
	}
	head := x.w.Header()
	final := maps.Clone(head)
	clear(head)
	dropHopByHop(resp.Header)
	dropPlatform(resp.Header)
	maps.Copy(head, resp.Header)
	x.w.WriteHeader(resp.StatusCode)
	if x.r.Context().Err() != nil {
		return false
	}
	clear(head)
	maps.Copy(head, final)
	return true
}

// passAnswer passes the final answer on, streaming.
func (x *exchange) passAnswer(resp *http.Response, hasBody bool) result {
	defer resp.Body.Close()
	firstByte := time.Now()
	if x.slot.in.plain {
		dropPlatform(resp.Header) // only a gate may say such things
	}
	code := resp.Header.Get(leapcell.HeaderError)
	timing, gateFailed := resp.Header.Get(leapcell.HeaderTiming), code != ""
	x.service.heard(x.slot.in, leapcell.Code(code))
	if x.call.cold && !gateFailed {
		x.service.served()
	}
	x.setHead(resp)
	visit := &x.call.visit
	visit.Status, visit.Refused = resp.StatusCode, code
	if x.call.cold || timing != "" {
		visit.Cold, visit.Timed = true, !gateFailed
		visit.Phases = coldPhases(x.call, x.slot, parseTiming(timing), firstByte)
		x.w.Header().Add("Server-Timing", visit.Phases.String())
	}
	if hasBody && x.r.ProtoMajor == 1 && (x.body == nil || !x.body.read.Load()) {
		// The answer came first: what follows on the visitor's connection is not known to
		// be a request. And net/http would wait for the rest before it sends the answer.
		x.w.Header()["Connection"] = []string{"close"}
	}
	x.answered = true
	x.w.WriteHeader(resp.StatusCode)
	if err := x.copyBody(resp); err != nil {
		return x.fail(err)
	}
	dropPlatform(resp.Trailer)
	for name, values := range resp.Trailer {
		for _, v := range values {
			x.w.Header().Add(http.TrailerPrefix+name, v)
		}
	}
	x.keep = !resp.Close && (!hasBody || x.body != nil && x.body.done()) && x.conn.r.Buffered() == 0
	return exchanged
}

func (x *exchange) setHead(resp *http.Response) {
	dropHopByHop(resp.Header)
	dropPlatform(resp.Header)
	head := x.w.Header()
	for name, values := range resp.Header {
		head[name] = values
	}
	if len(resp.Trailer) > 0 {
		names := make([]string, 0, len(resp.Trailer))
		for name := range resp.Trailer {
			names = append(names, name)
		}
		head["Trailer"] = []string{strings.Join(names, ", ")}
	}
	if _, ok := head[headerRequestID]; !ok {
		head[headerRequestID] = x.r.Header[headerRequestID]
	}
}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copyBody passes the body on as it comes: it flushes whenever the next read would have to
// wait for the gate.
func (x *exchange) copyBody(resp *http.Response) error {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	flusher, _ := x.w.(http.Flusher)
	if flusher != nil && resp.ContentLength != 0 && x.conn.r.Buffered() == 0 {
		flusher.Flush() // the head of an event stream may be all there is for long
	}
	pace := pacer{visitor: http.NewResponseController(x.w)}
	for first := true; ; first = false {
		n, err := resp.Body.Read(buf[:])
		if n > 0 {
			if !first || resp.ContentLength < 0 {
				pace.begin()
			}
			n, werr := x.w.Write(buf[:n])
			x.call.visit.Bytes += int64(n)
			if werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if flusher != nil && x.conn.r.Buffered() == 0 {
			flusher.Flush()
			pace.rest()
		}
	}
}

// stallTimeout is how long a visitor may take nothing of an answer that is ready for it: who
// stalls would keep a place on the instance.
const stallTimeout = time.Minute

// pacer sets a deadline while an answer is being written, and lifts it while there is
// nothing to write: over HTTP/2 it would end the answer then. Where a middleware hides the
// connection it does nothing.
type pacer struct {
	visitor *http.ResponseController
	armed   time.Time
}

func (p *pacer) begin() {
	if now := time.Now(); now.Sub(p.armed) > stallTimeout/16 {
		p.armed = now
		_ = p.visitor.SetWriteDeadline(now.Add(stallTimeout))
	}
}

func (p *pacer) rest() {
	if !p.armed.IsZero() {
		p.armed = time.Time{}
		_ = p.visitor.SetWriteDeadline(time.Time{})
	}
}

// refuseBroken answers a request whose connection to the gate failed after it was sent.
func (x *exchange) refuseBroken() {
	if x.r.ProtoMajor == 1 && x.body != nil && !x.body.read.Load() {
		x.w.Header()["Connection"] = []string{"close"}
	}
	if x.body != nil && x.body.malformed.Load() {
		x.call.refuse(refuseBody, x.w, x.r)
		return
	}
	x.call.refuse(refuseCrashed, x.w, x.r)
}

// switchProtocols joins the visitor's connection and the gate's (WebSocket).
func (x *exchange) switchProtocols(resp *http.Response, protocol string) result {
	if got := resp.Header.Get("Upgrade"); !strings.EqualFold(got, protocol) {
		return x.fail(errors.New("the instance changed to another protocol than it was asked for"))
	}
	visitor, buffered, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return x.fail(err)
	}
	defer visitor.Close()
	x.answered = true
	x.call.visit.Status = resp.StatusCode
	visitor.SetDeadline(time.Time{})
	dropHopByHop(resp.Header)
	dropPlatform(resp.Header)
	out := buffered.Writer
	out.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	for name, values := range resp.Header {
		for _, v := range values {
			writeField(out, name, v)
		}
	}
	writeField(out, "Connection", "Upgrade")
	writeField(out, "Upgrade", protocol)
	out.WriteString("\r\n")
	if err := out.Flush(); err != nil {
		return exchanged
	}

	// The instance ends it: when its side is over, so is the connection. A visitor's end
	// is passed on, and the instance may still answer.
	var up sync.WaitGroup
	up.Go(func() {
		_, err := io.Copy(x.conn, buffered.Reader)
		half, ok := x.conn.Conn.(interface{ CloseWrite() error })
		if err != nil || !ok || half.CloseWrite() != nil {
			x.conn.Close()
		}
	})
	x.call.visit.Bytes, _ = io.Copy(visitor, x.conn.r)
	visitor.Close()
	x.conn.Close()
	up.Wait()
	return exchanged
}

// bodyWriter sends the visitor's body while the answer may come already.
type bodyWriter struct {
	finished  chan struct{}
	read      atomic.Bool // to its end
	malformed atomic.Bool // it could not be read
	written   bool        // all of it; once finished
}

// answerTimeout is how long an answer may take once the gate stopped reading the body.
const answerTimeout = 5 * time.Second

func startBody(conn *gateConn, r *http.Request) *bodyWriter {
	b := &bodyWriter{finished: make(chan struct{})}
	// What it needs is taken now: it may outlive the request by a moment.
	body, trailer, length := r.Body, r.Trailer, r.ContentLength
	go func() {
		defer close(b.finished)
		switch err := b.write(conn, body, length, trailer); {
		case err == nil:
			b.written = true
		case b.malformed.Load():
			conn.Close() // the gate must not take the half for the whole; whoever reads the answer learns it
		default:
			// The gate hung up, having answered without reading everything: the answer is
			// there to be read.
			conn.SetReadDeadline(time.Now().Add(answerTimeout))
		}
	}()
	return b
}

func (b *bodyWriter) write(conn *gateConn, body io.Reader, length int64, trailer http.Header) error {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	var w io.Writer = conn.w
	var chunks io.WriteCloser
	chunked := length < 0
	if chunked {
		chunks = httputil.NewChunkedWriter(conn.w)
		w = chunks
	} else {
		body = io.LimitReader(body, length)
	}
	var sent int64
	for {
		n, err := body.Read(buf[:])
		if err == io.EOF && !chunked && sent+int64(n) != length {
			err = io.ErrUnexpectedEOF
		}
		switch {
		case err == io.EOF, !chunked && sent+int64(n) == length:
			b.read.Store(true)
		case err != nil:
			b.malformed.Store(true)
			return err
		}
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			if werr := conn.w.Flush(); werr != nil {
				return werr
			}
			sent += int64(n)
		}
		if b.read.Load() {
			break
		}
	}
	if !chunked {
		return nil
	}
	chunks.Close()
	for name, values := range trailer { // filled in by net/http at the end of the body
		for _, v := range values {
			writeField(conn.w, textproto.CanonicalMIMEHeaderKey(name), v)
		}
	}
	conn.w.WriteString("\r\n")
	return conn.w.Flush()
}

// done reports whether the whole body was sent.
func (b *bodyWriter) done() bool {
	select {
	case <-b.finished:
		return b.written
	default:
		return false
	}
}
