package gate

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

var errBodyTooLarge = errors.New("request body is over the limit")

// upload is the body of a request on its way from the visitor. It is read by one goroutine
// at a time.
type upload struct {
	visitor http.ResponseController
	left    int64         // bytes that may still come
	rest    int64         // announced bytes that have not come yet; negative: not announced
	idle    time.Duration // longest pause; 0: none
	armed   time.Time     // when the deadline for the pause was set
	abort   func()        // wakes who waits for the app, if somebody does; set before the first Read
	sent    chan error    // one value when all of it was written to the app; made by who sends it

	complete atomic.Bool
	failure  atomic.Pointer[error]

	mu     sync.Mutex // held by Read
	body   io.Reader
	closed bool
	http1  bool // the visitor's protocol
}

func (p *passage) upload() *upload {
	if p.r.Body == nil || p.r.Body == http.NoBody || p.r.ContentLength == 0 {
		return nil
	}
	u := &upload{visitor: *http.NewResponseController(p.w), body: p.r.Body, http1: p.r.ProtoMajor == 1,
		left: p.g.cfg.MaxRequestBytes, rest: p.r.ContentLength}
	if p.g.serverless() {
		u.idle = p.g.cfg.BodyIdle
	}
	return u
}

// Read gives what came of the body. Its error, if it is not io.EOF, ends the exchange.
func (u *upload) Read(b []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if now := time.Now(); u.idle > 0 && now.Sub(u.armed) > u.idle/16 {
		u.armed = now
		_ = u.visitor.SetReadDeadline(now.Add(u.idle))
	}
	// Go's reader of chunks fills what it is given: with more than this it would wait for
	// bytes of a body that is over the limit already.
	n, err := u.body.Read(b[:min(int64(len(b)), u.left+1)])
	u.left -= int64(n)
	if u.rest > 0 {
		u.rest -= int64(n)
	}
	if u.left < 0 {
		n, err = 0, errBodyTooLarge
	}
	switch {
	case err == io.EOF || err == nil && u.rest == 0:
		u.complete.Store(true)
		if !u.armed.IsZero() {
			_ = u.visitor.SetReadDeadline(time.Time{}) // the server goes on to listen whether the visitor leaves
			u.armed = time.Time{}
		}
	case err != nil:
		failure := err // of its own: so only errors are allocated
		u.failure.Store(&failure)
		if u.abort != nil {
			u.abort()
		}
	}
	return n, err
}

// Close is for whoever was given the body to send; it belongs to the server.
func (u *upload) Close() error { return nil }

// stop ends the reading of a body of which the rest is not wanted, and returns when nobody
// reads any more. The server will look for the end of it for a moment.
func (u *upload) stop() {
	if u.complete.Load() {
		return
	}
	_ = u.visitor.SetReadDeadline(time.Unix(1, 0)) // wakes a Read that waits
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	_ = u.visitor.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
}

// problem is what to say when the visitor's side failed; nil if it did not.
func (u *upload) problem() *refusal {
	err := u.failure.Load()
	switch {
	case err == nil:
		return nil
	case errors.Is(*err, errBodyTooLarge):
		return bodyTooLarge
	case errors.Is(*err, os.ErrDeadlineExceeded):
		return bodyStalled
	case !u.http1, errors.Is(*err, io.ErrUnexpectedEOF), errors.Is(*err, http.ErrBodyReadAfterClose), errors.As(*err, new(*net.OpError)):
		return clientGone
	}
	return bodyMalformed
}
