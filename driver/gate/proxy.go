package gate

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/leapcell/leapcell"
)

// ServeHTTP takes one request through limits, hold and suspension to the app.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header()[leapcell.HeaderInstance] = g.header
	meant := r.Header[leapcell.HeaderInstance]
	begun := g.begunInLane(r)
	if len(meant) > 0 && meant[0] != g.cfg.Instance {
		g.refuse(w, gone)
		return
	}
	if _, ok := r.Header[leapcell.HeaderProbe]; ok {
		g.answerProbe(w, r)
		return
	}
	upgrade := upgradeType(r)
	if upgrade == "" && g.left.Load() || len(meant) == 0 && dubiousFraming(r) {
		// After a handover the next request is for the gate that has the socket now.
		w.Header()["Connection"] = closing
	}
	if begun != nil {
		g.goOn(w, r, begun)
		return
	}
	if refused := g.check(r, upgrade); refused != nil {
		g.refuse(w, refused)
		return
	}
	waited, refused := g.enter(r.Context())
	if refused != nil {
		g.refuse(w, refused)
		return
	}
	v := g.visit(w)
	defer v.end()
	if waited {
		g.mu.Lock()
		w.Header()[leapcell.HeaderTiming] = []string{g.timing()}
		g.mu.Unlock()
	}
	g.pass(v, r, upgrade)
}

var closing = []string{"close"}

// dubiousFraming reports whether the end of the request may be seen elsewhere by another
// server in the chain: a chunked one may have had a Content-Length as well, one of HTTP/1.0
// a Transfer-Encoding. Go's server removes what it does not follow, so that this cannot be
// seen any more; RFC 9112 (6.1) wants the connection closed after both. Edges are known to
// send neither.
func dubiousFraming(r *http.Request) bool {
	return r.ProtoMajor == 1 && (len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1))
}

// upgradeType is the protocol that the visitor asks to change to, "" for none. An offer to
// go on in another kind of HTTP may be passed over, as every server may do, and Java's
// client makes one each time.
func upgradeType(r *http.Request) string {
	lines := r.Header["Upgrade"]
	if len(lines) == 0 || !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1 || !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade") {
		return ""
	}
	for _, line := range lines {
		for protocol := range strings.SplitSeq(line, ",") {
			protocol = strings.Trim(protocol, " \t")
			name, _, _ := strings.Cut(protocol, "/")
			switch strings.ToLower(name) {
			case "", "h2c", "h2", "http", "tls":
			default:
				return protocol
			}
		}
	}
	return ""
}

// check applies the limits that can be known from the request's head. [RQ3, RQ4]
func (g *Gate) check(r *http.Request, upgrade string) *refusal {
	switch {
	case r.Method == http.MethodConnect:
		return connectForbidden
	case r.Method == "PRI" && r.ProtoMajor == 2: // Go's server leaves broken prefaces to us
		return badPreface
	case !strings.HasPrefix(r.RequestURI, "/") && r.URL.Host == "" && (r.RequestURI != "*" || r.Method != http.MethodOptions):
		return badTarget // none of the forms of RFC 9112, 3.2
	}
	if upgrade != "" && g.serverless() {
		return upgradeForbidden
	}
	if len(r.Method)+len(r.RequestURI)+len("  HTTP/1.1") > leapcell.MaxRequestLineBytes {
		return lineTooLong
	}
	total := len(r.Host) + len("Host: \r\n")
	for name, values := range r.Header {
		added := addedByEdge(name)
		for _, value := range values {
			n := len(name) + len(value) + len(": \r\n")
			switch {
			case added:
			case n > leapcell.MaxHeaderBytes:
				return headerTooLong
			default:
				total += n
			}
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

// explain turns an error on the way to the app into the answer for it.
func (p *passage) explain(err error) *refusal {
	var dial *dialError
	switch {
	case p.up != nil && p.up.problem() != nil:
		return p.up.problem()
	case p.r.Context().Err() != nil:
		return clientGone
	case errors.As(err, &dial):
		p.g.cfg.Log.Warn("instance refuses connections", "instance", p.g.cfg.Instance, "error", err)
		return gone
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return requestTimeout
	case errors.Is(err, errHeadTooBig), strings.Contains(err.Error(), "header list larger"):
		return headersTooBig
	case strings.Contains(err.Error(), "malformed"), errors.Is(err, errNotHTTP):
		return badResponse
	}
	p.g.cfg.Log.Debug("instance gave no answer", "instance", p.g.cfg.Instance, "error", err)
	return crashed
}

// judge refuses answers that must not reach a visitor.
func (p *passage) judge(res *http.Response) *refusal {
	limit := p.g.responseLimit()
	switch {
	case res.StatusCode < 200 && res.StatusCode != http.StatusSwitchingProtocols || res.StatusCode > 999:
		return badResponse
	case limit > 0 && res.ContentLength > limit && p.r.Method != http.MethodHead:
		return responseTooBig
	}
	return nil
}

// responseLimit is in bytes; 0 is none. [RQ2]
func (g *Gate) responseLimit() int64 {
	if g.serverless() {
		return g.cfg.MaxResponseBytes
	}
	return 0
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
	address := g.app.Load().address
	for wait := time.Millisecond; ; wait *= 2 {
		conn, err := b.Dial(ctx, address)
		if err == nil {
			return conn, nil
		}
		g.mu.Lock()
		dead := g.state == Failed
		g.mu.Unlock()
		if dead || wait > 256*time.Millisecond {
			return nil, &dialError{err}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
