package gate

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

const (
	// keepAlive is how long an idle connection to the app is kept. Frameworks close theirs
	// after 2 s (gunicorn) or 5 s (Node, uvicorn), and do so in the very moment in which a
	// suspended app resumes: we must always be the first, or a POST could be lost.
	keepAlive = time.Second
	// continueTimeout is how long a body waits for an app that was asked whether it wants
	// it, and says nothing: many do not know the question.
	continueTimeout = time.Second
	// smallBody is read whole before a connection is taken: so it is written in one piece
	// with the head, and a slow visitor keeps no connection of the app waiting.
	smallBody = 4 << 10
)

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
	raw    syscall.RawConn // nil in tests
	look   func(uintptr)   // poll, made once: alive is called for each request
	fds    [1]unix.PollFd
	quiet  bool
	in     *bufio.Reader
	out    *bufio.Writer
	since  time.Time // idle since
	left   int64     // bytes that the response's head may still take; negative: no limit
	expire func()    // ends what waits for the connection
	until  instant   // the deadline that the lane has set
	wanted chan bool // the app's word on a body that it was asked about; nil if it was not
}

var (
	errTooBig     = errors.New("response is over the limit")
	errHeadTooBig = errors.New("response head is over the limit")
	errNotHTTP    = errors.New("the app's answer breaks the rules of HTTP")
	errNotWanted  = errors.New("the app answered without the request's body")
)

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
	return c.raw.Control(c.look) == nil && c.quiet
}

// poll asks the kernel whether there is anything to read, be it the end.
func (c *appConn) poll(fd uintptr) {
	c.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}
	n, err := unix.Poll(c.fds[:], 0)
	c.quiet = n == 0 && err == nil || err == unix.EINTR
}

// get gives an idle connection or a new one.
func (u *upstream) get(ctx context.Context) (*appConn, error) {
	if c := u.kept(); c != nil {
		return c, nil
	}
	conn, err := u.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &appConn{Conn: conn}
	c.in, c.out = bufio.NewReaderSize(c, laneBuffer), bufio.NewWriter(conn)
	c.expire = func() { _ = conn.SetDeadline(time.Unix(1, 0)) }
	if s, ok := conn.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
		c.look = c.poll
	}
	return c, nil
}

// kept gives an idle connection, nil if there is none.
func (u *upstream) kept() *appConn {
	for {
		u.mu.Lock()
		n := len(u.idle)
		if n == 0 {
			u.mu.Unlock()
			return nil
		}
		c := u.idle[n-1]
		u.idle[n-1] = nil
		u.idle = u.idle[:n-1]
		u.mu.Unlock()
		if time.Since(c.since) < keepAlive && c.alive() {
			return c
		}
		_ = c.Close()
	}
}

// put keeps a connection for the next request.
func (u *upstream) put(c *appConn) {
	c.since, c.wanted = time.Now(), nil
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

// send writes the request. A small body goes in one piece with the head; a larger one
// follows in the background, because an app may answer before it has read it all.
func (c *appConn) send(p *passage) error {
	asks := p.up != nil && p.small == nil && p.expects()
	c.writeHead(p, asks)
	if p.up == nil || p.small != nil {
		_, _ = c.out.Write(p.small) // the buffer keeps the first error
		return c.out.Flush()
	}
	if asks {
		c.wanted = make(chan bool, 1)
	}
	up, r, wanted := p.up, p.r, c.wanted
	up.abort, up.sent = func() { _ = c.Close() }, make(chan error, 1)
	go func() {
		err := c.out.Flush()
		if err == nil && wanted != nil {
			err = await(wanted)
		}
		if err == nil {
			err = c.sendBody(up, r)
		}
		up.sent <- err
	}()
	return nil
}

func await(wanted <-chan bool) error {
	timer := time.NewTimer(continueTimeout)
	defer timer.Stop()
	select {
	case ok := <-wanted:
		if !ok {
			return errNotWanted
		}
	case <-timer.C:
	}
	return nil
}

// writeHead writes request line and headers into the buffer. Values cannot hold a line
// break: the server refuses them.
func (c *appConn) writeHead(p *passage, asks bool) {
	r, w := p.r, c.out
	write := func(name, value string) {
		_, _ = w.WriteString(name)
		_, _ = w.WriteString(": ")
		_, _ = w.WriteString(value)
		_, _ = w.WriteString("\r\n")
	}
	_, _ = w.WriteString(r.Method)
	_ = w.WriteByte(' ')
	_, _ = w.WriteString(requestTarget(r))
	_, _ = w.WriteString(" HTTP/1.1\r\n")
	write("Host", r.Host)
	passes(r.Header, write)
	switch {
	case p.up != nil && r.ContentLength < 0:
		write("Transfer-Encoding", "chunked")
		for name := range r.Trailer {
			if !platforms(name) {
				write("Trailer", name)
			}
		}
	case p.up != nil:
		_, _ = w.WriteString("Content-Length: ")
		_, _ = w.Write(append(strconv.AppendInt(w.AvailableBuffer(), r.ContentLength, 10), "\r\n"...))
	case len(r.Header["Content-Length"]) > 0 || r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch:
		write("Content-Length", "0")
	}
	if asks {
		write("Expect", "100-continue")
	}
	switch {
	case p.upgrade != "" && wantsTrailers(r.Header):
		write("Connection", "Upgrade, TE")
		write("Upgrade", p.upgrade)
		write("Te", "trailers")
	case p.upgrade != "":
		write("Connection", "Upgrade")
		write("Upgrade", p.upgrade)
	case wantsTrailers(r.Header):
		write("Te", "trailers")
	}
	_, _ = w.WriteString("\r\n")
}

// requestTarget is the path as the visitor wrote it.
func requestTarget(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") || r.RequestURI == "*" {
		return r.RequestURI
	}
	return r.URL.RequestURI() // it was in absolute form
}

// sendBody copies the body as it comes.
func (c *appConn) sendBody(up *upload, r *http.Request) error {
	chunked := r.ContentLength < 0
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := up.Read(*buf)
		if n > 0 {
			if chunked {
				c.writeChunk((*buf)[:n])
			} else {
				_, _ = c.out.Write((*buf)[:n])
			}
			if ferr := c.out.Flush(); ferr != nil { // it has the first error of all writes
				return ferr
			}
		}
		if err == io.EOF || err == nil && !chunked && up.complete.Load() {
			break
		}
		if err != nil {
			return err
		}
	}
	if !chunked {
		return nil
	}
	_, _ = c.out.WriteString("0\r\n")
	for name, values := range r.Trailer { // the server fills it at the end of the body
		for _, value := range values {
			if !platforms(name) && !hopByHop(name) {
				_, _ = c.out.WriteString(name + ": " + value + "\r\n")
			}
		}
	}
	_, _ = c.out.WriteString("\r\n")
	return c.out.Flush()
}

func (c *appConn) writeChunk(b []byte) {
	var size [20]byte
	_, _ = c.out.Write(append(strconv.AppendUint(size[:0], uint64(len(b)), 16), "\r\n"...))
	_, _ = c.out.Write(b)
	_, _ = c.out.WriteString("\r\n")
}

// receive reads the head of the response and passes interim ones on.
func (c *appConn) receive(p *passage) (*http.Response, error) {
	c.left = leapcell.MaxResponseHeadersBytes - int64(c.in.Buffered())
	defer func() { c.left = -1 }()
	for {
		res, err := http.ReadResponse(c.in, p.r)
		switch {
		case err != nil && c.left == 0:
			return nil, errHeadTooBig
		case err != nil:
			return nil, err
		case res.StatusCode == http.StatusContinue:
			c.decide(true)
		case res.StatusCode == http.StatusSwitchingProtocols:
			if p.upgrade == "" || !strings.EqualFold(res.Header.Get("Upgrade"), p.upgrade) {
				return nil, errNotHTTP
			}
			return res, nil
		case res.StatusCode > 100 && res.StatusCode < 200:
			if !inform(p.w, p.r, res.StatusCode, res.Header) {
				return nil, context.Canceled
			}
		default:
			c.decide(false)
			return res, nil
		}
	}
}

// decide tells the sender of the body what the app said first.
func (c *appConn) decide(wanted bool) {
	if c.wanted != nil {
		select {
		case c.wanted <- wanted:
		default:
		}
	}
}

// reusable reports whether the next request may follow: this one was written and read
// whole, and the app keeps the connection.
func (c *appConn) reusable(p *passage, res *http.Response) bool {
	if res.Close || c.in.Buffered() > 0 {
		return false
	}
	if p.up == nil || p.small != nil {
		return true
	}
	select {
	case err := <-p.up.sent:
		return err == nil
	default:
		return false
	}
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}
