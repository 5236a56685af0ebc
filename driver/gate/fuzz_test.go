package gate

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// memory is a connection whose other side has said everything already.
type memory struct {
	in  io.Reader
	out bytes.Buffer
}

func (m *memory) Read(b []byte) (int, error)       { return m.in.Read(b) }
func (m *memory) Write(b []byte) (int, error)      { return m.out.Write(b) }
func (m *memory) Close() error                     { return nil }
func (m *memory) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (m *memory) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (m *memory) SetDeadline(time.Time) error      { return nil }
func (m *memory) SetReadDeadline(time.Time) error  { return nil }
func (m *memory) SetWriteDeadline(time.Time) error { return nil }

// finals is a recorder that knows of interim answers.
type finals struct{ *httptest.ResponseRecorder }

func (f finals) WriteHeader(status int) {
	if status >= 200 {
		f.ResponseRecorder.WriteHeader(status)
	}
}

func newAppConn(m *memory) *appConn {
	c := &appConn{Conn: m, left: -1, expire: func() {}}
	c.in, c.out = bufio.NewReader(c), bufio.NewWriter(m)
	return c
}

func fuzzGate(mode leapcell.TaskMode) *Gate {
	g := &Gate{cfg: Config{Mode: mode, Instance: "alloc-1", MaxRequestBytes: 1 << 10, MaxResponseBytes: 1 << 10}.withDefaults(), header: []string{"alloc-1"}}
	g.app.Store(&target{address: "127.0.0.1:8080"})
	return g
}

// FuzzRequest: whatever is taken for a request comes out as exactly one, with the same body,
// and with nothing in it that only the platform may say.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /a%2Fb//c?x=%20&y|{} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\nTrailer: X-A\r\n\r\n5;x\r\nhello\r\n0\r\nX-A: 1\r\nX-Leapcell-Gone: 1\r\n\r\nGET /next HTTP/1.1\r\n\r\n",
		"GET http://b/c HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, upgrade\r\nUpgrade: websocket\r\nX-Hop: 1\r\nTE: trailers\r\n\r\n",
		"GET / HTTP/1.0\r\nX_Leapcell_Gone: 1\r\nX-Folded: a\r\n b\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\nX: \x80\xff\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	g := fuzzGate(leapcell.TaskPersistent)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil || strings.ContainsAny(r.Host, "\x00\r\n ") {
			return
		}
		for name, values := range r.Header { // what the server looks after
			for _, v := range values {
				if strings.ContainsAny(v, "\x00\r\n") || !validName(name) {
					return
				}
			}
		}
		if g.check(r, upgradeType(r)) != nil {
			return
		}
		p := &passage{g: g, w: httptest.NewRecorder(), r: r, upgrade: upgradeType(r)}
		p.up = p.upload()
		m := &memory{in: strings.NewReader("")}
		c := newAppConn(m)
		c.writeHead(p, p.up != nil && p.expects())
		var sent error
		if sent = c.out.Flush(); p.up != nil && sent == nil {
			sent = c.sendBody(p.up, r)
		}
		checkRequest(t, r, m.out.Bytes(), sent)
	})
}

func validName(name string) bool {
	return name != "" && strings.Trim(name, "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

func checkRequest(t *testing.T, r *http.Request, out []byte, sent error) {
	t.Helper()
	in := bufio.NewReader(bytes.NewReader(out))
	got, err := http.ReadRequest(in)
	if err != nil {
		t.Fatalf("the app cannot read it: %v in %q", err, out)
	}
	if got.Method != r.Method || got.Host != r.Host || r.URL.Host == "" && got.RequestURI != r.RequestURI {
		t.Errorf("%s %s for %s became %s %s for %s", r.Method, r.RequestURI, r.Host, got.Method, got.RequestURI, got.Host)
	}
	for name := range got.Header {
		if platforms(name) && name != "Connection" && name != "Upgrade" && name != "Te" && name != "Expect" {
			t.Errorf("the app got %s", name)
		}
	}
	if len(got.TransferEncoding) > 0 && len(got.Header["Content-Length"]) > 0 {
		t.Error("a length and a coding")
	}
	body, err := io.ReadAll(got.Body)
	if (err == nil) != (sent == nil) {
		t.Fatalf("sent with %v, read with %v: %q", sent, err, body)
	}
	for name := range got.Trailer {
		if platforms(name) && len(got.Trailer[name]) > 0 {
			t.Errorf("the app got the trailer %s", name)
		}
	}
	if rest, _ := io.ReadAll(in); err == nil && len(rest) > 0 {
		t.Errorf("behind the request: %q", rest)
	}
}

// FuzzAnswer: whatever an app says, the visitor gets an answer that keeps the limits, or none
// that looks whole.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n5\r\nhello\r\n0\r\nX-A: 1\r\nX-Leapcell-Gone: 1\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.0 200 OK\r\nX-Leapcell-Gone: 1\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\nup to the end",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
		"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
	} {
		f.Add([]byte(seed), "GET")
	}
	f.Add([]byte("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"), "HEAD")
	g := fuzzGate(leapcell.TaskServerless)
	f.Fuzz(func(t *testing.T, raw []byte, method string) {
		if method != "GET" && method != "HEAD" && method != "POST" {
			return
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest(method, "/", nil)
		p := &passage{g: g, w: finals{w}, r: r, end: time.Now().Add(time.Hour)}
		defer func() {
			if v := recover(); v != nil && !errors.Is(v.(error), http.ErrAbortHandler) {
				panic(v)
			}
		}()
		c := newAppConn(&memory{in: bytes.NewReader(raw)})
		_, result := p.exchange(c)
		if result == broken {
			return
		}
		if w.Code < 200 || w.Code > 999 {
			t.Errorf("the status is %d", w.Code)
		}
		if int64(w.Body.Len()) > g.cfg.MaxResponseBytes {
			t.Errorf("%d bytes came through", w.Body.Len())
		}
		for name := range w.Header() {
			if hopByHop(name) && name != "Trailer" || platforms(strings.TrimPrefix(name, http.TrailerPrefix)) && result == whole {
				t.Errorf("the visitor got %s", name)
			}
		}
	})
}

func FuzzTarget(f *testing.F) {
	f.Add("127.0.0.1:8080", []byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	f.Add("h2c://[::1]:8080", []byte("HTTP/1.1 "))
	f.Fuzz(func(t *testing.T, s string, head []byte) {
		if got := parseTarget(s).String(); got != s {
			t.Errorf("%q became %q", s, got)
		}
		if isSettings(head) && (bytes.HasPrefix(head, []byte("HTTP/")) || len(head) < 9) {
			t.Errorf("% x passes for settings", head)
		}
	})
}
