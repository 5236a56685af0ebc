package wake

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

// said is a connection whose other side has said everything already.
type said struct {
	in  io.Reader
	out bytes.Buffer
}

func (s *said) Read(b []byte) (int, error)     { return s.in.Read(b) }
func (s *said) Write(b []byte) (int, error)    { return s.out.Write(b) }
func (*said) Close() error                     { return nil }
func (*said) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*said) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*said) SetDeadline(time.Time) error      { return nil }
func (*said) SetReadDeadline(time.Time) error  { return nil }
func (*said) SetWriteDeadline(time.Time) error { return nil }

// fuzzExchange is one with what a gate, or a plain app, has said.
func fuzzExchange(w http.ResponseWriter, r *http.Request, answer []byte, plain bool) (*exchange, *said) {
	h := New(Config{Table: newFakeTable(), Scaler: &fakeScaler{}})
	conn := &said{in: bytes.NewReader(answer)}
	in := &instance{id: "alloc-1", plain: plain}
	return &exchange{h: h, w: w, r: r, conn: newGateConn(conn), slot: &slot{in: in}, call: &call{arrived: time.Now()}, service: newService(h, "s")}, conn
}

// FuzzRequest: whatever is taken for a request goes on as exactly one, with the same target, and
// with nothing of the platform's that a visitor has written.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /a%2Fb//c?x=%20 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nX-Leapcell-Instance: other\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\nTE: trailers\r\n\r\n0\r\n\r\n",
		"GET http://b/c HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, Upgrade\r\nUpgrade: websocket\r\nX-Hop: 1\r\nX-Request-Id: a b\r\n\r\n",
		"OPTIONS * HTTP/1.0\r\nx-leapcell-gone: 1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Add([]byte("GET a:b HTTP/1.1\r\nHost: a\r\n\r\n"), false)
	f.Fuzz(func(t *testing.T, raw []byte, plain bool) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil || strings.ContainsAny(r.Host, "\x00\r\n ") || strings.ContainsAny(r.Method, " \r\n") || checkLimits(r) != nil {
			return // the server looks after the first
		}
		for name := range r.Header {
			if strings.Trim(name, "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
				return // and after this
			}
		}
		r.RemoteAddr = "192.0.2.9:1"
		x, conn := fuzzExchange(httptest.NewRecorder(), r, nil, plain)
		prepare(r, x.call)
		hasBody := r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
		if err := x.writeHead(hasBody); err != nil {
			t.Fatal(err)
		}
		out := bufio.NewReader(bytes.NewReader(conn.out.Bytes()))
		got, err := http.ReadRequest(out)
		if err != nil {
			t.Fatalf("the gate cannot read it: %v in %q", err, conn.out.Bytes())
		}
		if got.Method != r.Method || got.Host != r.Host || strings.HasPrefix(r.RequestURI, "/") && got.RequestURI != r.RequestURI {
			t.Errorf("%s %s for %s became %s %s for %s", r.Method, r.RequestURI, r.Host, got.Method, got.RequestURI, got.Host)
		}
		if (got.ContentLength != 0) != hasBody {
			t.Errorf("a body of %d bytes is announced", got.ContentLength)
		}
		if _, err := out.Peek(1); err == nil {
			t.Errorf("behind the head: %q", conn.out.Bytes())
		}
		for name, values := range got.Header {
			ours := name == leapcell.HeaderInstance && !plain && values[0] == "alloc-1" || name == leapcell.HeaderExpect && !plain
			if strings.HasPrefix(name, leapcell.HeaderPrefix) && (!ours || len(values) != 1) {
				t.Errorf("the gate got %s: %q", name, values)
			}
		}
		if ids := got.Header[headerRequestID]; len(ids) != 1 || !saneRequestID(ids[0]) {
			t.Errorf("the request's ID is %q", ids)
		}
	})
}

// FuzzAnswer: whatever an instance says, the visitor gets one answer without what only neighbours
// say to each other, or none that looks whole.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Leapcell-Timing: sandbox=1,app=2\r\n\r\nhello",
		"HTTP/1.1 503 Gone\r\nX-Leapcell-Gone: 1\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n5\r\nhello\r\n0\r\nX-A: 1\r\nX-Leapcell-Gone: 1\r\n\r\n",
		"HTTP/1.0 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\nup to the end",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, raw []byte, plain bool) {
		w := httptest.NewRecorder()
		x, _ := fuzzExchange(finals{w}, httptest.NewRequest("GET", "/", nil), raw, plain)
		defer x.h.Close()
		switch x.run() {
		case gateGone:
			if plain || x.answered {
				t.Error("a request that was taken would be sent again")
			}
		case gateBroke:
			if x.err == nil || x.keep {
				t.Errorf("it broke with %v, and is kept: %t", x.err, x.keep)
			}
		case exchanged:
			if w.Code < 200 || w.Code > 999 {
				t.Errorf("the status is %d", w.Code)
			}
			for name := range w.Header() {
				name = strings.TrimPrefix(name, http.TrailerPrefix)
				if strings.HasPrefix(http.CanonicalHeaderKey(name), leapcell.HeaderPrefix) {
					t.Errorf("the visitor got %s", name)
				}
				switch name {
				case "Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Proxy-Authenticate":
					t.Errorf("the visitor got %s", name)
				}
			}
		default:
			t.Error("no result")
		}
		if errors.Is(x.err, io.EOF) && len(raw) > 0 && x.answered && x.keep {
			t.Error("a connection at its end is kept")
		}
	})
}

// finals is a recorder that knows of interim answers.
type finals struct{ *httptest.ResponseRecorder }

func (f finals) WriteHeader(status int) {
	if status >= 200 {
		f.ResponseRecorder.WriteHeader(status)
	}
}
