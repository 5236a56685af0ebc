package gate

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// wire is a gate on a real socket before an app on a real socket: what is tested with it are
// bytes.
type wire struct {
	t       *testing.T
	gate    *Gate
	address string

	mu   sync.Mutex
	seen []seenRequest
}

// seenRequest is what came to the app.
type seenRequest struct {
	line    string
	host    string
	header  http.Header
	length  int64
	body    string
	err     error
	trailer http.Header
}

// newWire starts both. app serves one connection of the gate; nil stands for one that
// remembers each request and answers "ok".
func newWire(t *testing.T, cfg Config, app func(conn net.Conn, in *bufio.Reader)) *wire {
	t.Helper()
	x := &wire{t: t}
	if app == nil {
		app = x.record
	}
	back := listenTCP(t)
	go func() {
		for {
			conn, err := back.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				app(conn, bufio.NewReader(conn))
			}()
		}
	}()
	if cfg.Listener == nil {
		cfg.Listener = listenTCP(t)
	}
	cfg.Instance = "alloc-1"
	if cfg.Mode == "" {
		cfg.Mode = leapcell.TaskServerless
	}
	x.address = cfg.Listener.Addr().String()
	x.gate = New(cfg)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // connections that a test left open are ended
		x.gate.Close(ctx)
	})
	x.gate.Adopt(tcpApp{back.Addr().String()}, time.Now(), false, back.Addr().String())
	return x
}

func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// record reads requests one after the other and answers each.
func (x *wire) record(conn net.Conn, in *bufio.Reader) {
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		x.mu.Lock()
		x.seen = append(x.seen, seenRequest{r.Method + " " + r.RequestURI, r.Host, r.Header, r.ContentLength, string(body), err, r.Trailer})
		x.mu.Unlock()
		if err != nil {
			return
		}
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.RequestURI), r.RequestURI)
	}
}

func (x *wire) requests() []seenRequest {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.seen
}

// visitor is a connection to the gate.
type visitor struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

func (x *wire) connect() *visitor {
	x.t.Helper()
	conn, err := net.Dial("tcp", x.address)
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // a guard: a test that hangs says where
	return &visitor{conn, x.t, bufio.NewReader(conn)}
}

func (v *visitor) say(text string) {
	v.t.Helper()
	if _, err := io.WriteString(v, text); err != nil {
		v.t.Fatal(err)
	}
}

// hear reads the next answer. Its body is read to the end.
func (v *visitor) hear(method string) (*http.Response, string, error) {
	res, err := http.ReadResponse(v.in, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(res.Body)
	return res, string(b), err
}

// want reads an answer and compares.
func (v *visitor) want(status int, body string) *http.Response {
	v.t.Helper()
	res, got, err := v.hear("GET")
	if err != nil {
		v.t.Fatal(err)
	}
	if res.StatusCode != status || strings.TrimSpace(got) != body {
		v.t.Fatalf("the answer is %d %q, want %d %q", res.StatusCode, got, status, body)
	}
	return res
}

// closed reports whether the gate has nothing more to say and closes the connection.
func (v *visitor) closed() bool {
	rest, err := io.ReadAll(v.in)
	if len(rest) > 0 {
		v.t.Errorf("more was said: %q", rest)
	}
	var timeout net.Error
	return !(asError(err, &timeout) && timeout.Timeout())
}

func asError(err error, target *net.Error) bool {
	e, ok := err.(net.Error)
	if ok {
		*target = e
	}
	return ok
}

// head builds a request with the given lines; %d-style arguments are not interpreted.
func head(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

const smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

// Requests whose end could be seen in two places, or whose lines in two ways. A refusal
// closes the connection, and what came behind the request is never taken for another one.
func TestFraming(t *testing.T) {
	chunked := func(body string) string {
		return head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + body + smuggled
	}
	for name, c := range map[string]struct {
		say    string
		status int
		body   string // as the app gets it, if it gets it
		open   bool   // the connection stays
	}{
		"chunks and a length":       {head("POST / HTTP/1.1", "Host: a", "Content-Length: 4", "Transfer-Encoding: chunked") + "5\r\nhello\r\n0\r\n\r\n" + smuggled, 200, "hello", false},
		"length before chunks":      {head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Content-Length: 4") + "0\r\n\r\n" + smuggled, 200, "", false},
		"two lengths":               {head("POST / HTTP/1.1", "Host: a", "Content-Length: 5", "Content-Length: 6") + "hello!" + smuggled, 400, "", false},
		"the same length twice":     {head("POST / HTTP/1.1", "Host: a", "Content-Length: 5", "Content-Length: 5") + "hello", 200, "hello", true},
		"list of lengths":           {head("POST / HTTP/1.1", "Host: a", "Content-Length: 5, 5") + "hello" + smuggled, 400, "", false},
		"length with sign":          {head("POST / HTTP/1.1", "Host: a", "Content-Length: +5") + "hello" + smuggled, 400, "", false},
		"negative length":           {head("POST / HTTP/1.1", "Host: a", "Content-Length: -1") + smuggled, 400, "", false},
		"hexadecimal length":        {head("POST / HTTP/1.1", "Host: a", "Content-Length: 0x5") + "hello" + smuggled, 400, "", false},
		"length without number":     {head("POST / HTTP/1.1", "Host: a", "Content-Length:") + smuggled, 400, "", false},
		"unknown coding":            {head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: xchunked") + "0\r\n\r\n" + smuggled, 501, "", false},
		"coding that is none":       {head("POST / HTTP/1.1", "Host: a", "Content-Length: 5", "Transfer-Encoding: identity") + "hello" + smuggled, 501, "", false},
		"two codings":               {head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip, chunked") + "0\r\n\r\n" + smuggled, 501, "", false},
		"two lines of codings":      {head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Transfer-Encoding: identity") + "0\r\n\r\n" + smuggled, 501, "", false},
		"vertical tab":              {head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: \x0bchunked") + "0\r\n\r\n" + smuggled, 400, "", false},
		"space before the colon":    {head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding : chunked") + "0\r\n\r\n" + smuggled, 400, "", false},
		"coding in HTTP/1.0":        {head("POST / HTTP/1.0", "Connection: keep-alive", "Content-Length: 5", "Transfer-Encoding: chunked") + "hello" + smuggled, 200, "hello", false},
		"coding in capitals":        {head("POST / HTTP/1.1", "Host: a", "TRANSFER-ENCODING: CHUNKED") + "5\r\nhello\r\n0\r\n\r\n" + smuggled, 200, "hello", false},
		"chunk extensions":          {chunked("5;a=\"b\";c\r\nhello\r\n0;d\r\n\r\n"), 200, "hello", false},
		"size that is no number":    {chunked("zz\r\nhello\r\n0\r\n\r\n"), 400, "", false},
		"size with prefix":          {chunked("0x5\r\nhello\r\n0\r\n\r\n"), 400, "", false},
		"negative size":             {chunked("-5\r\nhello\r\n0\r\n\r\n"), 400, "", false},
		"size over 64 bits":         {chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"), 400, "", false},
		"empty size":                {chunked("\r\nhello\r\n0\r\n\r\n"), 400, "", false},
		"bare LF after a size":      {chunked("5\nhello\r\n0\r\n\r\n"), 400, "", false},
		"bare CR in a size":         {chunked("5\r;\r\nhello\r\n0\r\n\r\n"), 400, "", false},
		"chunk longer than said":    {chunked("5\r\nhello!\r\n0\r\n\r\n"), 400, "", false},
		"trailer without end":       {chunked("0\r\nX: " + strings.Repeat("x", 8<<10) + "\r\n\r\n"), 400, "", false},
		"folded line":               {head("GET / HTTP/1.1", "Host: a", "X-Folded: a", "  b"), 200, "", true},
		"bare LF in the head":       {"GET / HTTP/1.1\nHost: a\n\n", 200, "", true},
		"bare CR in a value":        {head("GET / HTTP/1.1", "Host: a", "X: a\rb") + smuggled, 400, "", false},
		"NUL in a value":            {head("GET / HTTP/1.1", "Host: a", "X: a\x00b") + smuggled, 400, "", false},
		"name that is none":         {head("GET / HTTP/1.1", "Host: a", "X(y): b") + smuggled, 400, "", false},
		"line without colon":        {head("GET / HTTP/1.1", "Host: a", "X") + smuggled, 400, "", false},
		"no host":                   {head("GET / HTTP/1.1") + smuggled, 400, "", false},
		"two hosts":                 {head("GET / HTTP/1.1", "Host: a", "Host: b") + smuggled, 400, "", false},
		"no version":                {"GET /\r\n\r\n" + smuggled, 400, "", false},
		"unknown version":           {head("GET / HTTP/3.0", "Host: a") + smuggled, 505, "", false},
		"half of HTTP/2's preface":  {"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + smuggled, 505, "", false},
		"method that is none":       {head("GE(T / HTTP/1.1", "Host: a") + smuggled, 400, "", false},
		"control character in path": {head("GET /\x7f HTTP/1.1", "Host: a") + smuggled, 400, "", false},
		"target of another kind":    {head("GET mailto:a HTTP/1.1", "Host: a"), 400, "", true},
		"asterisk of no options":    {head("GET * HTTP/1.1", "Host: a"), 400, "", true},
		"CONNECT":                   {head("CONNECT a:443 HTTP/1.1", "Host: a:443"), 405, "", true},
		"unknown expectation":       {head("POST / HTTP/1.1", "Host: a", "Content-Length: 5", "Expect: wonders") + "hello" + smuggled, 417, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newWire(t, Config{}, nil)
			v := x.connect()
			v.say(c.say)
			res, _, err := v.hear("POST")
			// After a refusal by net/http itself the connection may be reset.
			if res == nil || res.StatusCode != c.status {
				t.Fatalf("the answer is %+v, %v; want %d", res, err, c.status)
			}
			if c.open {
				v.say("GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
				v.want(200, "/next")
			} else if !v.closed() {
				t.Error("the connection stays open")
			}
			for _, r := range x.requests() {
				if strings.Contains(r.line, "smuggled") {
					t.Errorf("the app got %q", r.line)
				}
				if r.line == "POST /" && c.status == 200 && (r.body != c.body || r.err != nil) {
					t.Errorf("the app got the body %q (%v), want %q", r.body, r.err, c.body)
				}
				if r.line == "POST /" && c.status != 200 && r.err == nil {
					t.Errorf("the app got a whole request with body %q", r.body)
				}
				if f := r.header["X-Folded"]; len(f) > 0 && f[0] != "a b" {
					t.Errorf("the folded line became %q", f)
				}
				if r.length > 0 && r.header.Get("Transfer-Encoding") != "" {
					t.Error("the app got both a length and a coding")
				}
			}
		})
	}
}

// What an edge sends in chunks does not cost its connection.
func TestEdgesKeepTheirConnections(t *testing.T) {
	x := newWire(t, Config{}, nil)
	v := x.connect()
	for range 3 {
		v.say(head("POST / HTTP/1.1", "Host: a", "X-Leapcell-Instance: alloc-1", "Transfer-Encoding: chunked", "Expect: 100-continue"))
		if res, err := http.ReadResponse(v.in, nil); err != nil || res.StatusCode != 100 {
			t.Fatalf("%+v, %v", res, err)
		}
		v.say("5\r\nhello\r\n0\r\n\r\n")
		v.want(200, "/")
	}
	for _, r := range x.requests() {
		if r.body != "hello" || r.header.Get("Expect") != "" || r.header.Get("X-Leapcell-Instance") != "" {
			t.Errorf("the app got %+v", r)
		}
	}
}

func TestPipelining(t *testing.T) {
	x := newWire(t, Config{}, nil)
	v := x.connect()
	v.say("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n" +
		"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" +
		"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n")
	for _, want := range []string{"/1", "/2", "/3"} {
		v.want(200, want)
	}
	if got := x.requests(); len(got) != 3 || got[1].body != "hello" {
		t.Errorf("the app got %+v", got)
	}
}

func TestRequestTargets(t *testing.T) {
	for name, c := range map[string]struct{ line, host, want, wantHost string }{
		"kept as it is":  {"GET /a%2Fb//c/../d?x=%20&y|{} HTTP/1.1", "a", "GET /a%2Fb//c/../d?x=%20&y|{}", "a"},
		"absolute form":  {"GET http://other.example/p?q HTTP/1.1", "ignored", "GET /p?q", "other.example"},
		"asterisk":       {"OPTIONS * HTTP/1.1", "a", "OPTIONS *", "a"},
		"two slashes":    {"GET //evil.example/ HTTP/1.1", "a", "GET //evil.example/", "a"},
		"empty query":    {"GET /? HTTP/1.1", "a", "GET /?", "a"},
		"unknown method": {"BREW /pot HTTP/1.1", "a", "BREW /pot", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newWire(t, Config{}, nil)
			v := x.connect()
			v.say(head(c.line, "Host: "+c.host))
			if res, _, err := v.hear("GET"); err != nil || res.StatusCode != 200 {
				t.Fatal(res, err)
			}
			if got := x.requests()[0]; got.line != c.want || got.host != c.wantHost {
				t.Errorf("the app got %q for %q, want %q for %q", got.line, got.host, c.want, c.wantHost)
			}
		})
	}
}

func TestRQ3_ExactSizes(t *testing.T) {
	line := func(n int) string {
		return head("GET /"+strings.Repeat("x", n-len("GET / HTTP/1.1"))+" HTTP/1.1", "Host: a")
	}
	header := func(n int) string {
		return head("GET / HTTP/1.1", "Host: a", "X: "+strings.Repeat("x", n-len("X: \r\n")))
	}
	headers := func(n int, more ...string) string {
		lines := append([]string{"GET / HTTP/1.1", "Host: a"}, more...)
		n -= len("Host: a\r\n")
		for i := 0; n > 0; i++ {
			size := min(n, 10<<10)
			if rest := n - size; rest > 0 && rest < 20 {
				size -= 20
			}
			name := fmt.Sprintf("X-%d: ", i)
			lines = append(lines, name+strings.Repeat("x", size-len(name)-len("\r\n")))
			n -= size
		}
		return head(lines...)
	}
	post := func(n int) string {
		return head("POST / HTTP/1.1", "Host: a", fmt.Sprintf("Content-Length: %d", n)) + strings.Repeat("x", n)
	}
	chunks := func(n int) string {
		var b strings.Builder
		b.WriteString(head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked"))
		for n > 0 {
			size := min(n, 700)
			fmt.Fprintf(&b, "%x\r\n%s\r\n", size, strings.Repeat("x", size))
			n -= size
		}
		return b.String() + "0\r\n\r\n"
	}
	for name, c := range map[string]struct {
		say  string
		want int
	}{
		"request line of 16 KB":              {line(16 << 10), 200},
		"request line of 16 KB and a byte":   {line(16<<10 + 1), 414},
		"request line of 300 KB":             {line(300 << 10), 414},
		"header of 16 KB":                    {header(16 << 10), 200},
		"header of 16 KB and a byte":         {header(16<<10 + 1), 431},
		"headers of 64 KB":                   {headers(64 << 10), 200},
		"headers of 64 KB and a byte":        {headers(64<<10 + 1), 431},
		"64 KB and what edges add":           {headers(64<<10, "X-Forwarded-For: 192.0.2.1", "X-Request-Id: x", "X-Leapcell-Instance: alloc-1"), 200},
		"headers of 2 MB":                    {headers(2 << 20), 431},
		"body of the limit":                  {post(10_000), 200},
		"body of the limit and a byte":       {post(10_001), 413},
		"chunks of the limit":                {chunks(10_000), 200},
		"chunks of the limit and a byte":     {chunks(10_001), 413},
		"one chunk that claims to be larger": {head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + "7fffffffffffffff\r\n" + strings.Repeat("x", 20_000), 413},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newWire(t, Config{MaxRequestBytes: 10_000}, nil)
			v := x.connect()
			go io.WriteString(v, c.say) // it may be refused before all of it is taken
			res, body, err := v.hear("GET")
			if err != nil || res.StatusCode != c.want {
				t.Fatalf("the answer is %+v %q, %v; want %d", res, body, err, c.want)
			}
			for _, r := range x.requests() {
				if c.want != 200 && r.err == nil {
					t.Errorf("the app got a whole request all the same: %s", r.line[:10])
				}
			}
		})
	}
}

func TestRQ3_ResponseHeaders(t *testing.T) {
	const status = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
	for n, want := range map[int]int{32 << 10: 200, 32<<10 + 1: 502, 200 << 10: 502} {
		x := newWire(t, Config{}, func(conn net.Conn, in *bufio.Reader) {
			if _, err := http.ReadRequest(in); err == nil {
				var b bytes.Buffer
				b.WriteString(status)
				for rest := n - len(status) - 2; rest > 0; {
					size := min(rest, 4000)
					if left := rest - size; left > 0 && left < 10 {
						size -= 10
					}
					b.WriteString("X: " + strings.Repeat("x", size-5) + "\r\n")
					rest -= size
				}
				b.WriteString("\r\nok")
				conn.Write(b.Bytes())
			}
		})
		v := x.connect()
		v.say(head("GET / HTTP/1.1", "Host: a"))
		res, body, err := v.hear("GET")
		if err != nil || res.StatusCode != want {
			t.Errorf("a head of %d bytes: %+v %q %v, want %d", n, res, body, err, want)
		}
		if want == 502 && !strings.Contains(body, "32 KB") {
			t.Errorf("the text is %q", body)
		}
	}
}

// Answers of apps that break the rules, and what a visitor gets for them.
func TestAnswersOfTheApp(t *testing.T) {
	for name, c := range map[string]struct {
		method, answer string
		status         int
		body           string
		cut            bool // the answer must not look whole
	}{
		"no HTTP":                    {"GET", "hello\r\n\r\n", 502, badResponse.text, false},
		"status that is none":        {"GET", "HTTP/1.1 2000 OK\r\n\r\n", 502, badResponse.text, false},
		"status below all":           {"GET", "HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n", 502, badResponse.text, false},
		"header without colon":       {"GET", "HTTP/1.1 200 OK\r\nX\r\n\r\n", 502, badResponse.text, false},
		"two lengths":                {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502, "", false},
		"unknown coding":             {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\nab", 502, "", false},
		"nothing":                    {"GET", "", 502, leapcell.TextCrashed, false},
		"half a head":                {"GET", "HTTP/1.1 200 OK\r\nContent-Le", 502, badResponse.text, false},
		"protocol nobody asked for":  {"GET", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 502, badResponse.text, false},
		"endless interim answers":    {"GET", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 2000), 502, headersTooBig.text, false},
		"length and chunks":          {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, "ok", false},
		"up to the end":              {"GET", "HTTP/1.0 200 OK\r\n\r\nall of it", 200, "all of it", false},
		"body shorter than said":     {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", 200, "half", true},
		"chunks without end":         {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", 200, "half", true},
		"chunk of no size":           {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n", 200, "half", true},
		"body longer than said":      {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, and more", 200, "ok", false},
		"HEAD with a length":         {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 200, "", false},
		"HEAD over the limit":        {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n", 200, "", false},
		"HEAD with a body":           {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", 200, "", false},
		"nothing new":                {"GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 1000\r\n\r\n", 304, "", false},
		"nothing new, with a body":   {"GET", "HTTP/1.1 304 Not Modified\r\n\r\nbody", 304, "", false},
		"no content":                 {"GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", false},
		"unknown status":             {"GET", "HTTP/1.1 299 Unheard of\r\nContent-Length: 2\r\n\r\nok", 299, "ok", false},
		"no type, which stays so":    {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", 200, "<html>", false},
		"forged header of ours":      {"GET", "HTTP/1.1 200 OK\r\nX-Leapcell-Gone: 1\r\nContent-Length: 2\r\n\r\nok", 200, "ok", false},
		"forged trailer of ours":     {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Leapcell-Gone\r\n\r\n2\r\nok\r\n0\r\nX-Leapcell-Gone: 1\r\n\r\n", 200, "ok", false},
		"error before the body came": {"POST", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403, "no", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newWire(t, Config{}, func(conn net.Conn, in *bufio.Reader) {
				// It hangs up only where the answer says or needs it: a request could meet it.
				hangsUp := c.cut || c.status == 502 || strings.HasPrefix(c.answer, "HTTP/1.0")
				for first := true; first || !hangsUp; first = false {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					if r.URL.Path == "/next" {
						io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n/next")
					} else {
						io.WriteString(conn, c.answer)
					}
				}
			})
			v := x.connect()
			v.say(head(c.method+" / HTTP/1.1", "Host: a"))
			res, body, err := v.hear(c.method)
			for err == nil && res.StatusCode < 200 {
				res, body, err = v.hear(c.method)
			}
			if c.cut {
				if err == nil {
					t.Errorf("an answer that broke off looks whole: %+v %q", res, body)
				}
				return
			}
			if err != nil || res.StatusCode != c.status || c.body != "" && strings.TrimSpace(body) != c.body {
				t.Fatalf("the answer is %+v %q %v; want %d %q", res, body, err, c.status, c.body)
			}
			if res.Header.Get(leapcell.HeaderGone) != "" || res.Trailer.Get(leapcell.HeaderGone) != "" {
				t.Error("the app's forgery reached the edge")
			}
			if name == "no type, which stays so" && res.Header.Get("Content-Type") != "" {
				t.Errorf("the type was guessed: %s", res.Header.Get("Content-Type"))
			}
			if c.method == "HEAD" && name == "HEAD with a length" && res.ContentLength != 1000 {
				t.Errorf("the length of HEAD is %d", res.ContentLength)
			}
			v.say("GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
			v.want(200, "/next") // nothing of the former answer is in it
		})
	}
}

func TestTrailersBothWays(t *testing.T) {
	for name, announced := range map[string]bool{"announced": true, "not announced": false} {
		t.Run(name, func(t *testing.T) {
			got := make(chan http.Header, 1)
			announce := func(name string) string {
				if announced {
					return "Trailer: " + name + "\r\n"
				}
				return ""
			}
			x := newWire(t, Config{}, func(conn net.Conn, in *bufio.Reader) {
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, r.Body)
				got <- r.Trailer
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"+announce("X-Sum")+"\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n")
			})
			v := x.connect()
			v.say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + announce("X-Checked, X-Leapcell-Gone") +
				"\r\n5\r\nhello\r\n0\r\nX-Checked: yes\r\nX-Leapcell-Gone: 1\r\n\r\n")
			res := v.want(200, "ok")
			if sum := res.Trailer.Get("X-Sum"); sum != "42" {
				t.Errorf("the visitor got the trailers %v", res.Trailer)
			}
			if trailer := <-got; trailer.Get("X-Checked") != "yes" || len(trailer) != 1 {
				t.Errorf("the app got the trailers %v", trailer)
			}
		})
	}
}

func TestEarlyHints(t *testing.T) {
	for version, want := range map[string][]int{"HTTP/1.1": {103, 103, 200}, "HTTP/1.0": {200}} {
		x := newWire(t, Config{}, func(conn net.Conn, in *bufio.Reader) {
			if _, err := http.ReadRequest(in); err == nil {
				io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: X\r\nX: 1\r\nX-Leapcell-Gone: 1\r\n\r\n"+
					"HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
		v := x.connect()
		v.say(head("GET / "+version, "Host: a"))
		for i, status := range want {
			res, body, err := v.hear("GET")
			if err != nil || res.StatusCode != status {
				t.Fatalf("%s, answer %d: %+v %v, want %d", version, i, res, err, status)
			}
			if status == 103 && (res.Header.Get("Link") != fmt.Sprintf("</%c.css>", 'a'+i) || res.Header.Get("X") != "" || res.Header.Get(leapcell.HeaderGone) != "") {
				t.Errorf("hints: %v", res.Header)
			}
			if status == 200 && (body != "ok" || res.Header.Get("Link") != "" || res.Header.Get(leapcell.HeaderInstance) == "") {
				t.Errorf("the answer after the hints: %v %q", res.Header, body)
			}
		}
	}
}

// The question of 100 Continue is the app's to answer, if it was the visitor who asked.
func TestExpectContinue(t *testing.T) {
	ask := head("POST / HTTP/1.1", "Host: a", "Content-Length: 5", "Expect: 100-continue")
	t.Run("the app refuses", func(t *testing.T) {
		more := make(chan int, 1)
		x := newWire(t, Config{}, func(conn net.Conn, in *bufio.Reader) {
			r, err := http.ReadRequest(in)
			if err != nil || r.Header.Get("Expect") == "" {
				return
			}
			io.WriteString(conn, "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
			rest, _ := io.ReadAll(in)
			more <- len(rest)
		})
		v := x.connect()
		v.say(ask)
		v.want(417, "no")
		if n := <-more; n != 0 {
			t.Errorf("the app got %d bytes of the body", n)
		}
	})
	t.Run("the app wants it", func(t *testing.T) {
		x := newWire(t, Config{}, func(conn net.Conn, in *bufio.Reader) {
			r, err := http.ReadRequest(in)
			if err != nil || r.Header.Get("Expect") == "" {
				return
			}
			io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
		})
		v := x.connect()
		v.say(ask)
		if res, err := http.ReadResponse(v.in, nil); err != nil || res.StatusCode != 100 {
			t.Fatalf("%+v, %v", res, err)
		}
		v.say("hello")
		v.want(200, "hello")
	})
	t.Run("the app does not know the question", func(t *testing.T) {
		x := newWire(t, Config{}, nil)
		v := x.connect()
		v.say(ask)
		if res, err := http.ReadResponse(v.in, nil); err != nil || res.StatusCode != 100 {
			t.Fatalf("%+v, %v", res, err)
		}
		v.say("hello")
		v.want(200, "/")
		if r := x.requests()[0]; r.body != "hello" {
			t.Errorf("the app got %+v", r)
		}
	})
	t.Run("through an edge", func(t *testing.T) {
		for header, want := range map[string]string{"X-Other: 1": "", leapcell.HeaderExpect + ": 100-continue": "100-continue"} {
			x := newWire(t, Config{}, nil)
			v := x.connect()
			v.say(head("POST / HTTP/1.1", "Host: a", "Content-Length: 5", "Expect: 100-continue", leapcell.HeaderInstance+": alloc-1", header))
			if res, err := http.ReadResponse(v.in, nil); err != nil || res.StatusCode != 100 {
				t.Fatalf("%+v, %v", res, err)
			}
			v.say("hello")
			v.want(200, "/")
			if got := x.requests()[0].header.Get("Expect"); got != want {
				t.Errorf("with %s the app was asked %q, want %q", header, got, want)
			}
		}
	})
}

// Body and answer may pass each other.
func TestBothDirectionsAtOnce(t *testing.T) {
	x := newWire(t, Config{Mode: leapcell.TaskPersistent}, func(conn net.Conn, in *bufio.Reader) {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(conn, "%x\r\n%s\n\r\n", len(lines.Text())+1, lines.Text())
		}
		io.WriteString(conn, "0\r\n\r\n")
	})
	v := x.connect()
	v.say(head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked"))
	res, err := http.ReadResponse(v.in, &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(res.Body)
	for i := range 5 {
		want := fmt.Sprintf("line %d\n", i)
		v.say(fmt.Sprintf("%x\r\n%s\r\n", len(want), want))
		if got, err := lines.ReadString('\n'); err != nil || got != want {
			t.Fatalf("%q, %v; want %q before the next line was sent", got, err, want)
		}
	}
	v.say("0\r\n\r\n")
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

// An edge keeps the body back until the gate asks for it: the gate does, also when the app
// begins its answer before it reads.
func TestAnswerBeforeTheBodyThroughAnEdge(t *testing.T) {
	x := newWire(t, Config{Mode: leapcell.TaskPersistent}, func(conn net.Conn, in *bufio.Reader) {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(conn, "%x\r\n%s\r\n0\r\n\r\n", len(b), b)
	})
	for range 100 {
		v := x.connect()
		v.say(head("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Expect: 100-continue", leapcell.HeaderInstance+": alloc-1"))
		if res, err := http.ReadResponse(v.in, nil); err != nil || res.StatusCode != http.StatusContinue {
			t.Fatalf("the first word is %+v, %v", res, err)
		}
		v.say("5\r\nhello\r\n0\r\n\r\n")
		v.want(200, "hello")
		v.Close()
	}
}

func TestRQ7_NamesThatLookAlike(t *testing.T) {
	x := newWire(t, Config{}, nil)
	v := x.connect()
	v.say(head("GET / HTTP/1.1", "Host: a", "x-LEAPCELL-other: 1", "X_Leapcell_Other: 1", "X_Forwarded_For: 1", "x-forwarded_proto: 1",
		"X_REQUEST_ID: 1", "My_Own: kept", "Connection: close, X-Hop", "X-Hop: 1", "Keep-Alive: 1", "Proxy-Connection: x", "X-Kept: yes"))
	v.want(200, "/")
	got := x.requests()[0].header
	for name := range got {
		switch name {
		case "My_own", "X-Kept":
		default:
			t.Errorf("the app got %s: %s", name, got[name])
		}
	}
	if len(got) != 2 {
		t.Errorf("the app got %v", got)
	}
}

// TestLI3_KeptConnectionsOutliveTheDrain: a request that is on its way over a kept connection
// when the instance is told to stop is answered, and goes elsewhere; it is not lost.
func TestLI3_KeptConnectionsOutliveTheDrain(t *testing.T) {
	x := newWire(t, Config{}, nil)
	during, after := x.connect(), x.connect()
	for _, v := range []*visitor{during, after} {
		v.say(head("GET / HTTP/1.1", "Host: a"))
		v.want(200, "/")
	}
	if err := x.gate.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	gone := func(v *visitor) {
		v.say(head("GET / HTTP/1.1", "Host: a"))
		res, _, err := v.hear("GET")
		if err != nil || res.StatusCode != 503 || res.Header.Get(leapcell.HeaderGone) != "1" || !res.Close {
			t.Errorf("got %+v, %v", res, err)
		}
	}
	gone(during)
	closed := make(chan struct{})
	go func() { x.gate.Close(context.Background()); close(closed) }()
	gone(after)
	during.Close()
	after.Close()
	<-closed // and does not wait for long when nobody is connected
}
