package gate

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/leapcell/leapcell"
)

// ServeHTTP takes one request through limits, hold and suspension to the app.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header()[leapcell.HeaderInstance] = g.header
	if meant := r.Header[leapcell.HeaderInstance]; len(meant) > 0 && meant[0] != g.cfg.Instance {
		g.refuse(w, gone)
		return
	}
	if _, ok := r.Header[leapcell.HeaderProbe]; ok {
		g.answerProbe(w, r)
		return
	}
	upgrade := upgradeType(r)
	if refused := g.check(r, upgrade); refused != nil {
		g.refuse(w, refused)
		return
	}
	waited, refused := g.enter(r.Context())
	if refused != nil {
		g.refuse(w, refused)
		return
	}
	defer g.leave()
	if waited {
		g.mu.Lock()
		w.Header()[leapcell.HeaderTiming] = []string{g.timing()}
		g.mu.Unlock()
	}
	if upgrade != "" && !g.serverless() {
		g.upgrades.ServeHTTP(w, r)
		return
	}
	g.pass(w, r)
}

// upgradeType is the protocol that the visitor asks to change to; "" is none. An offer of
// HTTP/2 may be passed over, as every server may do.
func upgradeType(r *http.Request) string {
	if len(r.Header["Upgrade"]) == 0 || !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade") {
		return ""
	}
	t := strings.ToLower(r.Header["Upgrade"][0])
	if t == "h2c" {
		return ""
	}
	return t
}

// check applies the limits that can be known from the request's head. [RQ3, RQ4]
func (g *Gate) check(r *http.Request, upgrade string) *refusal {
	if upgrade == "websocket" && g.serverless() {
		return upgradeForbidden
	}
	if len(r.Method)+len(r.RequestURI)+len(" HTTP/1.1 ") > leapcell.MaxRequestLineBytes {
		return lineTooLong
	}
	total := len(r.Host) + len("Host: \r\n")
	for name, values := range r.Header {
		for _, value := range values {
			n := len(name) + len(value) + len(": \r\n")
			if n > leapcell.MaxHeaderBytes {
				return headerTooLong
			}
			total += n
		}
	}
	switch {
	case total > leapcell.MaxHeadersBytes:
		return headersTooLong
	case r.ContentLength > g.cfg.MaxRequestBytes:
		return bodyTooLarge
	}
	return nil
}

// pass sends the request to the app and its answer back.
func (g *Gate) pass(w http.ResponseWriter, r *http.Request) {
	c, err := g.upstream.get(r.Context())
	if err != nil {
		g.refuse(w, g.explain(r, err))
		return
	}
	// The deadline on the connection is that of the request [RQ1]; a visitor who leaves
	// brings it forward.
	_ = c.SetDeadline(time.Now().Add(g.cfg.RequestTimeout))
	leave := context.AfterFunc(r.Context(), func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	res, whole := g.exchange(w, r, c)
	if leave() && whole && c.reusable(res) && c.SetDeadline(time.Time{}) == nil {
		g.upstream.put(c)
		return
	}
	_ = c.Close()
	if res != nil && !whole {
		// Too late for a status. The visitor must not take what it has for the whole.
		panic(http.ErrAbortHandler)
	}
}

// exchange has the request answered over c. res is nil when the gate gave the answer; whole
// says that the app's answer was passed on to its end.
func (g *Gate) exchange(w http.ResponseWriter, r *http.Request, c *appConn) (res *http.Response, whole bool) {
	out := g.outgoing(w, r)
	err := c.send(out)
	if err == nil {
		res, err = c.receive(out)
	}
	if err != nil {
		_ = c.Close() // before the answer: the body may still be on its way
		g.refuse(w, g.explain(r, err))
		return nil, false
	}
	limit := g.responseLimit()
	switch {
	case res.StatusCode < 200 || res.StatusCode > 999:
		g.refuse(w, badResponse)
		return nil, false
	case limit > 0 && res.ContentLength > limit && r.Method != http.MethodHead:
		g.refuse(w, responseTooBig)
		return nil, false
	}
	copyHeader(w.Header(), res.Header)
	announceTrailers(w.Header(), res.Trailer)
	w.WriteHeader(res.StatusCode)
	if g.stream(w, res, limit) != nil {
		return res, false
	}
	copyTrailers(w.Header(), res.Trailer)
	return res, true
}

// outgoing turns the server's request into the one for the app. The header map is taken
// over and changed: nobody else reads it.
func (g *Gate) outgoing(w http.ResponseWriter, r *http.Request) *http.Request {
	out := new(*r)
	out.URL = &url.URL{Scheme: "http", Host: "app", Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery}
	out.RequestURI = ""
	out.Close = false
	if r.ContentLength == 0 {
		out.Body = nil
	} else if r.ContentLength < 0 {
		out.Body = http.MaxBytesReader(w, r.Body, g.cfg.MaxRequestBytes)
	}
	trailers := httpguts.HeaderValuesContainsToken(r.Header["Te"], "trailers")
	removeHopByHop(out.Header)
	removePlatform(out.Header)
	if trailers {
		out.Header["Te"] = []string{"trailers"}
	}
	// The server says "100 Continue" itself, when the body begins to be read.
	delete(out.Header, "Expect")
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = nil // keeps Go from adding its own
	}
	return out
}

// explain turns an error on the way to the app into the answer for it.
func (g *Gate) explain(r *http.Request, err error) *refusal {
	var tooBig *http.MaxBytesError
	var dial *dialError
	switch {
	case r.Context().Err() != nil:
		return clientGone
	case errors.As(err, &tooBig):
		return bodyTooLarge
	case errors.As(err, &dial):
		g.cfg.Log.Warn("instance refuses connections", "instance", g.cfg.Instance, "error", err)
		return gone
	case errors.Is(err, os.ErrDeadlineExceeded):
		return requestTimeout
	case errors.Is(err, errHeadTooBig):
		return headersTooBig
	case strings.Contains(err.Error(), "malformed"):
		return badResponse
	}
	g.cfg.Log.Debug("instance gave no answer", "instance", g.cfg.Instance, "error", err)
	return crashed
}

func (g *Gate) responseLimit() int64 {
	if g.serverless() {
		return g.cfg.MaxResponseBytes
	}
	return 0
}

var errTooBig = errors.New("response is over the limit")

// stream copies the body as it comes. What is over the limit is noticed before the byte
// that crosses it has left. [RQ2, RQ4]
func (g *Gate) stream(w http.ResponseWriter, res *http.Response, limit int64) error {
	if res.ContentLength == 0 || res.Body == http.NoBody {
		return nil
	}
	flush := res.ContentLength < 0
	if flush {
		_ = http.NewResponseController(w).Flush() // the head of an event stream may be all there is for long
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var sent int64
	for {
		n, err := res.Body.Read(*buf)
		if n > 0 {
			sent += int64(n)
			if limit > 0 && sent > limit {
				return errTooBig
			}
			if _, err := w.Write((*buf)[:n]); err != nil {
				return err
			}
			g.egress.Add(int64(n))
			if flush && err == nil {
				if err := http.NewResponseController(w).Flush(); err != nil {
					return err
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

type bufferPool struct{}

func (bufferPool) Get() []byte  { return *buffers.Get().(*[]byte) }
func (bufferPool) Put(b []byte) { buffers.Put(&b) }

// hopByHop are the headers that speak about one connection only. [RQ7]
var hopByHop = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

func removeHopByHop(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// removePlatform takes away our own headers: an app that could send HeaderGone would have
// its requests repeated elsewhere.
func removePlatform(h http.Header) {
	for name := range h {
		if strings.HasPrefix(name, leapcell.HeaderPrefix) {
			delete(h, name)
		}
	}
}

func copyHeader(dst, src http.Header) {
	removeHopByHop(src)
	for name, values := range src {
		if !strings.HasPrefix(name, leapcell.HeaderPrefix) {
			dst[name] = values
		}
	}
}

func announceTrailers(h, trailers http.Header) {
	for name := range trailers {
		h.Add("Trailer", name)
	}
}

func copyTrailers(h, trailers http.Header) {
	announced := len(h["Trailer"])
	for name, values := range trailers {
		if announced != len(trailers) {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
}

// dialError marks that no connection to the app could be made: no byte was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dial connects to the app where it answered the probe. Apps that replace their workers
// may not listen for a moment: half a second is given to them, unless they exit.
func (g *Gate) dial(ctx context.Context) (net.Conn, error) {
	g.mu.Lock()
	b := g.backend
	g.mu.Unlock()
	address := *g.app.Load()
	for wait := time.Millisecond; ; wait *= 2 {
		conn, err := b.Dial(ctx, address)
		if err == nil {
			return conn, nil
		}
		g.mu.Lock()
		dead := g.state == Failed
		g.mu.Unlock()
		if dead || wait > 256*time.Millisecond {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// newUpgrader makes the proxy for connections that leave HTTP. They have no time limit.
func newUpgrader(g *Gate) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", "app"
			p.Out.Host = p.In.Host
			for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"} {
				if v, ok := p.In.Header[name]; ok {
					p.Out.Header[name] = v
				}
			}
			removePlatform(p.Out.Header)
		},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := g.dial(ctx)
				if err != nil {
					return nil, &dialError{err}
				}
				return conn, nil
			},
			DisableKeepAlives: true, DisableCompression: true, // no reuse: so it repeats nothing either
			MaxResponseHeaderBytes: leapcell.MaxResponseHeadersBytes,
		},
		BufferPool: bufferPool{},
		ModifyResponse: func(res *http.Response) error {
			removePlatform(res.Header)
			return nil
		},
		ErrorLog: slog.NewLogLogger(g.cfg.Log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			g.refuse(w, g.explain(r, err))
		},
		FlushInterval: -1,
	}
}
