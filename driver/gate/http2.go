package gate

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leapcell/leapcell"
)

// Apps get HTTP/1.1 unless they speak nothing but HTTP/2, as gRPC servers do: that shows in
// the probe. Calls of gRPC go over HTTP/2 also to apps that speak both, which is asked when
// the first one comes. Between edge and gate it is HTTP/1.1 all the same: a chunked body in
// each direction at the same time and trailers at the end are all that HTTP/2 has for one
// request, and nothing is put into one connection that could fail together.

// target is where the app answered the probe, and how.
type target struct {
	address string
	http2   bool // it speaks nothing else
}

const http2Scheme = "h2c://"

// String is what parseTarget reads: the address alone, or with a scheme before it.
func (t target) String() string {
	if t.http2 {
		return http2Scheme + t.address
	}
	return t.address
}

func parseTarget(s string) target {
	address, found := strings.CutPrefix(s, http2Scheme)
	return target{address, found}
}

// http2Upstream is the gate's client of an app that speaks HTTP/2 without TLS.
type http2Upstream struct {
	transport *http.Transport
	spoken    atomic.Int32 // by an app that answered HTTP/1.1: see spokenUnknown
}

const (
	spokenUnknown int32 = iota // nobody has asked yet
	spokenYes
	spokenNo
)

func newHTTP2(dial func(ctx context.Context) (net.Conn, error)) *http.Transport {
	t := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		Protocols:          new(http.Protocols),
		DisableCompression: true,
		// Like HTTP/1.1 connections: none is left when the app may be suspended for long.
		IdleConnTimeout:        keepAlive,
		MaxResponseHeaderBytes: leapcell.MaxResponseHeadersBytes,
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}

// wantsHTTP2 reports whether the request goes to the app over HTTP/2.
func (g *Gate) wantsHTTP2(r *http.Request) bool {
	t := g.app.Load()
	if t.http2 || !isGRPC(r.Header) {
		return t.http2
	}
	switch g.http2.spoken.Load() {
	case spokenYes:
		return true
	case spokenNo:
		return false
	}
	g.mu.Lock()
	b := g.backend
	g.mu.Unlock()
	said, err := ask(r.Context(), b, t.address, http2Question)
	if err != nil {
		return false // it could not be asked: the next request tries again
	}
	spoken := isSettings(said)
	if spoken {
		g.http2.spoken.Store(spokenYes)
	} else {
		g.http2.spoken.Store(spokenNo)
	}
	return spoken
}

// isGRPC reports whether the request is a call of gRPC proper: gRPC-Web is made for HTTP/1.1.
func isGRPC(h http.Header) bool {
	ct := h["Content-Type"]
	if len(ct) == 0 {
		return false
	}
	rest, found := strings.CutPrefix(ct[0], "application/grpc")
	return found && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

func (p *passage) overHTTP2() {
	ctx, cancel := context.WithDeadline(p.r.Context(), p.end)
	defer cancel()
	if p.up != nil {
		p.up.abort = cancel
	}
	hints := &hints{p: p}
	p.invite()
	res, err := p.g.http2.transport.RoundTrip(p.outgoing(ctx, hints))
	hints.end()
	if err != nil {
		cancel() // before the answer: the body may still be on its way
		p.refuse(p.explain(err))
		p.settle(refused)
		return
	}
	defer res.Body.Close()
	if no := p.judge(res); no != nil {
		cancel()
		p.refuse(no)
		p.settle(refused)
		return
	}
	if res.Body != http.NoBody && (len(res.Trailer) > 0 || isGRPC(res.Header)) {
		// HTTP/1.1 has trailers in chunked answers only.
		delete(res.Header, "Content-Length")
	}
	result := p.answer(res)
	cancel()
	p.settle(result)
}

// hints passes interim answers on. The client calls it from a goroutine of its own, perhaps
// also when a request has failed already.
type hints struct {
	p    *passage
	mu   sync.Mutex
	over bool
}

func (h *hints) pass(status int, header textproto.MIMEHeader) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over && status != http.StatusContinue && !inform(h.p.w, h.p.r, status, http.Header(header)) {
		return context.Canceled
	}
	return nil
}

func (h *hints) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
}

// outgoing is the request as the HTTP/2 client wants it.
func (p *passage) outgoing(ctx context.Context, hints *hints) *http.Request {
	r := p.r
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: hints.pass})
	header := http.Header{}
	passes(r.Header, func(name, value string) { header[name] = append(header[name], value) })
	if wantsTrailers(r.Header) {
		header["Te"] = []string{"trailers"}
	}
	if _, ok := header["User-Agent"]; !ok {
		header["User-Agent"] = nil // keeps the client from adding its own
	}
	out := &http.Request{
		Method: r.Method, Host: r.Host, Header: header, ContentLength: r.ContentLength,
		URL: &url.URL{Scheme: "http", Host: "app", Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery},
	}
	for name := range r.Trailer {
		if platforms(name) {
			delete(r.Trailer, name)
		}
	}
	if p.up != nil {
		out.Body, out.Trailer = p.up, r.Trailer // the server fills the map at the end of the body
	}
	return out.WithContext(ctx)
}

// A client's side of a new HTTP/2 connection (RFC 9113, 3.4): the preface and its settings,
// which are none.
const http2Question = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// isSettings reports whether head is the beginning of a SETTINGS frame, which is what an
// HTTP/2 server says first (RFC 9113, 3.4 and 6.5).
func isSettings(head []byte) bool {
	if len(head) < 9 {
		return false
	}
	length := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	return head[3] == 4 && head[4] == 0 && head[5]|head[6]|head[7]|head[8] == 0 && length%6 == 0 && length <= 16<<10
}

var errSilent = errors.New("the app accepted the connection and said nothing")

// ask connects, writes a question and reads the first bytes of what is said to it: nine, or
// fewer if the connection is closed before. An error means that the app could not be asked,
// or said nothing in its time.
func ask(ctx context.Context, b Backend, address, question string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	conn, err := b.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write([]byte(question)); err != nil {
		return nil, nil // it hung up already
	}
	head := make([]byte, 9)
	n := 0
	for n < len(head) {
		m, err := conn.Read(head[n:])
		n += m
		if err != nil {
			break
		}
	}
	if n == 0 && ctx.Err() != nil {
		return nil, errSilent
	}
	return head[:n], nil
}
