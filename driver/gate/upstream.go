package gate

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// keepAlive is how long an idle connection to the app is kept. Frameworks close theirs
// after 2 s (gunicorn) or 5 s (Node, uvicorn), and do so in the very moment in which a
// suspended app resumes: we must always be the first, or a POST could be lost.
const keepAlive = time.Second

// upstream is the gate's client of the app. It is not an http.Transport for one reason of
// principle and one of speed: a transport repeats GETs on its own when a connection breaks,
// so that a request that crashes the app would crash its replacement as well [RQ6, LI5]; and
// it hands each request through two more goroutines.
type upstream struct {
	dial func(ctx context.Context) (net.Conn, error)

	mu    sync.Mutex
	idle  []*appConn // the one used last is last
	timer *time.Timer
	armed bool
	shut  bool
}

func newUpstream(dial func(ctx context.Context) (net.Conn, error)) *upstream {
	u := &upstream{dial: dial}
	u.timer = time.AfterFunc(time.Hour, u.expire)
	u.timer.Stop()
	return u
}

// appConn is one connection to the app. It serves one request at a time.
type appConn struct {
	net.Conn
	raw   syscall.RawConn // nil in tests
	in    *bufio.Reader
	out   *bufio.Writer
	since time.Time // idle since
	left  int64     // bytes that the response's head may still take; negative: no limit
	sent  chan error
	body  *bodyReader
}

var errHeadTooBig = errors.New("response head is over the limit")

// Read counts while a response's head is read.
func (c *appConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, errHeadTooBig
	}
	if c.left > 0 && int64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.Conn.Read(p)
	if c.left > 0 {
		c.left -= int64(n)
	}
	return n, err
}

// alive reports whether an idle connection can be used: the app has neither closed it nor
// said anything on it.
func (c *appConn) alive() bool {
	if c.raw == nil {
		return true
	}
	open := false
	err := c.raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		open = err == unix.EAGAIN || err == unix.EINTR
	})
	return err == nil && open
}

// get gives an idle connection or a new one.
func (u *upstream) get(ctx context.Context) (*appConn, error) {
	for {
		u.mu.Lock()
		n := len(u.idle)
		if n == 0 {
			u.mu.Unlock()
			break
		}
		c := u.idle[n-1]
		u.idle[n-1] = nil
		u.idle = u.idle[:n-1]
		u.mu.Unlock()
		if time.Since(c.since) < keepAlive && c.alive() {
			return c, nil
		}
		_ = c.Close()
	}
	conn, err := u.dial(ctx)
	if err != nil {
		return nil, &dialError{err}
	}
	c := &appConn{Conn: conn}
	c.in, c.out = bufio.NewReader(c), bufio.NewWriter(conn)
	if s, ok := conn.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
	}
	return c, nil
}

// put keeps a connection for the next request.
func (u *upstream) put(c *appConn) {
	c.since, c.sent, c.body = time.Now(), nil, nil
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.shut {
		_ = c.Close()
		return
	}
	u.idle = append(u.idle, c)
	if !u.armed {
		u.armed = true
		u.timer.Reset(keepAlive)
	}
}

// expire closes what has been idle for too long. Its timer is not touched by requests.
func (u *upstream) expire() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.armed = false
	old := 0
	for old < len(u.idle) && time.Since(u.idle[old].since) >= keepAlive {
		_ = u.idle[old].Close()
		old++
	}
	u.idle = append(u.idle[:0], u.idle[old:]...)
	clear(u.idle[len(u.idle):cap(u.idle)])
	if len(u.idle) > 0 && !u.shut {
		u.armed = true
		u.timer.Reset(keepAlive - time.Since(u.idle[0].since))
	}
}

func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.shut = true
	u.timer.Stop()
	for _, c := range u.idle {
		_ = c.Close()
	}
	u.idle = nil
}

// bodyReader remembers that the visitor's side failed, which is not the app's fault.
type bodyReader struct {
	io.ReadCloser
	c      *appConn
	failed atomic.Pointer[error] // set before the connection is closed
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.failed.Store(&err)
		_ = b.c.Close() // wakes who waits for an answer
	}
	return n, err
}

// send writes the request: a body in the background, because an app may answer before it
// has read it all.
func (c *appConn) send(r *http.Request) error {
	if r.Body == nil {
		if err := r.Write(c.out); err != nil {
			return err
		}
		return c.out.Flush()
	}
	c.body = &bodyReader{ReadCloser: r.Body, c: c}
	r.Body = c.body
	c.sent = make(chan error, 1)
	go func(sent chan<- error) {
		err := r.Write(c.out)
		if err == nil {
			err = c.out.Flush()
		}
		sent <- err
	}(c.sent)
	return nil
}

// receive reads the head of the response. Interim ones are for clients that wait for them,
// which the edge is not.
func (c *appConn) receive(r *http.Request) (*http.Response, error) {
	c.left = leapcell.MaxResponseHeadersBytes
	defer func() { c.left = -1 }()
	for {
		res, err := http.ReadResponse(c.in, r)
		switch {
		case err != nil && c.body != nil && c.body.failed.Load() != nil:
			return nil, *c.body.failed.Load()
		case err != nil && c.left == 0:
			return nil, errHeadTooBig
		case err != nil:
			return nil, err
		case res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols:
			return res, nil
		}
	}
}

// reusable reports whether the next request may follow: this one was written and read
// whole, and the app keeps the connection.
func (c *appConn) reusable(res *http.Response) bool {
	if res.Close || c.in.Buffered() > 0 || res.StatusCode == http.StatusSwitchingProtocols {
		return false
	}
	if c.sent == nil {
		return true
	}
	select {
	case err := <-c.sent:
		return err == nil
	default:
		return false
	}
}
