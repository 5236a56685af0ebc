package contract

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// wire is a visitor's connection to the edge, byte by byte.
type wire struct {
	net.Conn
	t    *testing.T
	in   *bufio.Reader
	host string
}

func connect(t *testing.T, s *harness.Service) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", harness.Get(t).Config.EdgeAddress())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute)) // a guard
	return &wire{conn, t, bufio.NewReader(conn), s.Host}
}

// say sends a request line, the Host, further lines and a body.
func (w *wire) say(line, body string, more ...string) {
	w.t.Helper()
	lines := append([]string{line, "Host: " + w.host}, more...)
	if _, err := io.WriteString(w, strings.Join(lines, "\r\n")+"\r\n\r\n"+body); err != nil {
		w.t.Logf("the edge stopped reading: %v", err) // it may refuse early
	}
}

// hear reads the next answer to the end; method is the request's.
func (w *wire) hear(method string) (*http.Response, string) {
	w.t.Helper()
	res, err := http.ReadResponse(w.in, &http.Request{Method: method})
	if err != nil {
		w.t.Fatalf("no answer: %v", err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Logf("the answer %s broke off: %v", res.Status, err)
	}
	return res, string(b)
}

func (w *wire) want(status int) string {
	w.t.Helper()
	res, body := w.hear("GET")
	if res.StatusCode != status {
		w.t.Errorf("the answer is %s %.200q, want %d", res.Status, body, status)
	}
	return body
}

// ends reports whether the edge closes the connection and says nothing more.
func (w *wire) ends() bool {
	b, err := io.ReadAll(w.in)
	timeout, ok := err.(net.Error)
	return len(b) == 0 && !(ok && timeout.Timeout())
}

// overHTTP2 is a visitor's client that speaks HTTP/2 from the first byte.
func overHTTP2(t *testing.T) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", harness.Get(t).Config.EdgeAddress())
	}}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestMust_RQ3_Sizes(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, mode leapcell.Mode, s *harness.Service) {
		fill := func(line string, n int) string { return line + strings.Repeat("x", n-len(line)-len("\r\n")) }
		target := func(n int) string {
			return "GET /status?code=200&" + strings.Repeat("x", n-len("GET /status?code=200& HTTP/1.1")) + " HTTP/1.1"
		}
		// All headers, with their line ends and the Host.
		headers := func(total int) []string {
			var lines []string
			for rest := total - len("Host: \r\n") - len(s.Host); rest > 0; {
				n := min(rest, 8<<10)
				if left := rest - n; left > 0 && left < 100 {
					n -= 100
				}
				lines = append(lines, fill(fmt.Sprintf("X-%d: ", len(lines)), n))
				rest -= n
			}
			return lines
		}
		const get = "GET /status?code=200 HTTP/1.1"
		for name, c := range map[string]struct {
			line string
			more []string
			want int
		}{
			"request line of 16 KB":            {target(16 << 10), nil, 200},
			"request line of 16 KB and a byte": {target(16<<10 + 1), nil, 414},
			"request line of 300 KB":           {target(300 << 10), nil, 414},
			"header of 16 KB":                  {get, []string{fill("X: ", 16<<10)}, 200},
			"header of 16 KB and a byte":       {get, []string{fill("X: ", 16<<10+1)}, 431},
			"headers of 64 KB":                 {get, headers(64 << 10), 200},
			"headers of 64 KB and a byte":      {get, headers(64<<10 + 1), 431},
			"headers of 2 MB":                  {get, headers(2 << 20), 431},
		} {
			w := connect(t, s)
			w.say(c.line, "", c.more...)
			if res, body := w.hear("GET"); res.StatusCode != c.want {
				t.Errorf("%s: %s %.200q, want %d", name, res.Status, body, c.want)
			}
		}
		if r := s.Get(t, "/headers?bytes=30000"); r.Status != 200 || r.Err != nil {
			t.Errorf("response headers of 30,000 bytes: %d %.200q %v", r.Status, r.Body, r.Err)
		}
		if r := s.Get(t, "/headers?bytes=33000"); r.Status != http.StatusBadGateway || !strings.Contains(r.Body, "32 KB") {
			t.Errorf("response headers of 33,000 bytes: %d %.200q", r.Status, r.Body)
		}
		checkBodies(t, s)
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func checkBodies(t *testing.T, s *harness.Service) {
	t.Helper()
	const most = leapcell.MaxRequestBytes
	for name, c := range map[string]struct{ size, announced, want int64 }{
		"100 MB":                      {most, most, 200},
		"100 MB in chunks":            {most, -1, 200},
		"100 MB and a byte":           {most + 1, most + 1, 413},
		"100 MB and a byte in chunks": {most + 1, -1, 413},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Host+"/drain", io.LimitReader(zeros{}, c.size))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = c.announced
		res, err := harness.Get(t).HTTP.Do(req)
		if err != nil {
			t.Errorf("a body of %s: %v", name, err)
			continue
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if int64(res.StatusCode) != c.want || c.want == 200 && string(b) != fmt.Sprintf("HTTP/1.1 %d <nil>\n", c.size) {
			t.Errorf("a body of %s: %s %.200q, want %d", name, res.Status, b, c.want)
		}
	}
}

// A body of which nothing comes any more must not keep a serverless instance awake.
func TestMust_RQ3_StalledBody(t *testing.T) {
	t.Parallel()
	harness.Quick(t)
	s := harness.Get(t).Probe(t, harness.Spec{})
	w := connect(t, s)
	w.say("POST /wait HTTP/1.1", "half", "Content-Length: 100000")
	harness.Eventually(t, aMinute, "the app has the request", func() bool { return counts(t, s).Entered == 1 })
	res, body := w.hear("POST")
	if res.StatusCode != http.StatusRequestTimeout || !res.Close {
		t.Errorf("the answer is %s %q, close %v", res.Status, body, res.Close)
	}
	harness.Eventually(t, 10*time.Second, "the app's request is over", func() bool { return counts(t, s).Aborted == 1 })
	harness.Eventually(t, 10*time.Second, "the instance is suspended", s.Inside(t, instanceOf(t, s)).Cgroup().Frozen)
}

type counted struct{ Entered, Aborted int }

func counts(t *testing.T, s *harness.Service) counted {
	t.Helper()
	var c counted
	s.Read(t, "/wait?count=1", &c)
	return c
}

func TestMust_RQ3_FramingIsUnambiguous(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		const smuggled = "GET /seen?name=smuggled HTTP/1.1\r\nHost: %s\r\n\r\n"
		behind := fmt.Sprintf(smuggled, s.Host)
		for name, c := range map[string]struct {
			more []string
			body string
			want int
		}{
			"chunks and a length":    {[]string{"Content-Length: 4", "Transfer-Encoding: chunked"}, "0\r\n\r\n", 200},
			"two lengths":            {[]string{"Content-Length: 4", "Content-Length: 5"}, "hello", 400},
			"unknown coding":         {[]string{"Transfer-Encoding: xchunked"}, "0\r\n\r\n", 501},
			"two codings":            {[]string{"Transfer-Encoding: chunked", "Transfer-Encoding: identity"}, "0\r\n\r\n", 501},
			"space before the colon": {[]string{"Transfer-Encoding : chunked"}, "0\r\n\r\n", 400},
			"bare LF after a size":   {[]string{"Transfer-Encoding: chunked"}, "5\nhello\r\n0\r\n\r\n", 400},
			"size that is none":      {[]string{"Transfer-Encoding: chunked"}, "zz\r\nhello\r\n0\r\n\r\n", 400},
			"chunk longer than said": {[]string{"Transfer-Encoding: chunked"}, "2\r\nhello\r\n0\r\n\r\n", 400},
			"NUL in a header":        {[]string{"X: a\x00b"}, "", 400},
		} {
			w := connect(t, s)
			w.say("POST /drain HTTP/1.1", c.body+behind, c.more...)
			res, body := w.hear("POST")
			if res.StatusCode != c.want {
				t.Errorf("%s: %s %.200q, want %d", name, res.Status, body, c.want)
			}
			if !w.ends() {
				t.Errorf("%s: the connection stays open", name)
			}
		}
		var names []string
		if s.Read(t, "/seen", &names); len(names) > 0 {
			t.Errorf("the app got what was behind a request: %v", names)
		}
		w := connect(t, s) // and one after the other, in one piece, it works
		w.say("GET /drain HTTP/1.1", "POST /drain HTTP/1.1\r\nHost: "+s.Host+"\r\nContent-Length: 5\r\n\r\nhelloGET /drain HTTP/1.1\r\nHost: "+s.Host+"\r\n\r\n")
		for _, want := range []string{"HTTP/1.1 0 <nil>\n", "HTTP/1.1 5 <nil>\n", "HTTP/1.1 0 <nil>\n"} {
			if got := w.want(200); got != want {
				t.Errorf("pipelined: %q, want %q", got, want)
			}
		}
	})
}

// What HTTP has beside a request and an answer comes through unharmed.
func TestMust_RQ4_HTTPComesThrough(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		t.Run("interim answers", func(t *testing.T) {
			w := connect(t, s)
			w.say("GET /hints HTTP/1.1", "")
			if res, _ := w.hear("GET"); res.StatusCode != 103 || res.Header.Get("Link") == "" {
				t.Errorf("%s %v", res.Status, res.Header)
			}
			w.want(200)
		})
		t.Run("trailers", func(t *testing.T) {
			w := connect(t, s)
			w.say("POST /trailers HTTP/1.1", "5\r\nhello\r\n0\r\nX-Checked: yes\r\n\r\n", "Transfer-Encoding: chunked", "Trailer: X-Checked", "TE: trailers")
			res, body := w.hear("POST")
			if res.Trailer.Get("X-Sum") != "42" || !strings.Contains(body, `"X-Checked":["yes"]`) {
				t.Errorf("the app got %s and sent %v", body, res.Trailer)
			}
		})
		t.Run("answers without a body", func(t *testing.T) {
			w := connect(t, s)
			for _, c := range []struct {
				method, path string
				status       int
			}{{"HEAD", "/big?bytes=1000", 200}, {"GET", "/status?code=204", 204}, {"GET", "/status?code=304", 304}, {"GET", "/status?code=418", 418}} {
				w.say(c.method+" "+c.path+" HTTP/1.1", "")
				res, body := w.hear(c.method)
				if res.StatusCode != c.status || body != "" || c.method == "HEAD" && res.ContentLength != 1000 || c.method != "HEAD" && res.Header.Get("Etag") == "" {
					t.Errorf("%s %s: %s, length %d, %q, %v", c.method, c.path, res.Status, res.ContentLength, body, res.Header)
				}
			}
		})
		t.Run("100 Continue is the app's to say", func(t *testing.T) {
			w := connect(t, s)
			w.say("POST /status?code=417 HTTP/1.1", "", "Content-Length: 5", "Expect: 100-continue")
			w.want(417) // and not 100 first
			w = connect(t, s)
			w.say("POST /drain HTTP/1.1", "", "Content-Length: 5", "Expect: 100-continue")
			if res, err := http.ReadResponse(w.in, nil); err != nil || res.StatusCode != 100 {
				t.Fatalf("%+v %v", res, err)
			}
			if _, err := io.WriteString(w, "hello"); err != nil {
				t.Fatal(err)
			}
			if got := w.want(200); got != "HTTP/1.1 5 <nil>\n" {
				t.Errorf("%q", got)
			}
		})
		t.Run("a visitor who leaves", func(t *testing.T) {
			before := counts(t, s)
			w := connect(t, s)
			w.say("GET /wait HTTP/1.1", "")
			harness.Eventually(t, aMinute, "the app has the request", func() bool { return counts(t, s).Entered == before.Entered+1 })
			w.Close()
			harness.Eventually(t, 10*time.Second, "the app's request is cancelled", func() bool { return counts(t, s).Aborted == before.Aborted+1 })
		})
		t.Run("answers that are none", func(t *testing.T) {
			for answer, want := range map[string]int{
				"hello\r\n\r\n": 502, "": 502, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab": 502,
				"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n": 502,
				"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more":                       200,
			} {
				if r := s.Get(t, "/raw?answer="+url.QueryEscape(answer)); r.Status != want || r.Err != nil {
					t.Errorf("%q: %d %q %v, want %d", answer, r.Status, r.Body, r.Err, want)
				}
			}
			r := s.Get(t, "/raw?answer="+url.QueryEscape("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"))
			if r.Err == nil && r.Status != http.StatusBadGateway { // which it is if nothing had left yet
				t.Errorf("an answer that broke off looks whole: %d %q", r.Status, r.Body)
			}
		})
		t.Run("HTTP/2 of the visitor", func(t *testing.T) {
			res, err := overHTTP2(t).Post("http://"+s.Host+"/drain", "text/plain", strings.NewReader("hello"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if b, _ := io.ReadAll(res.Body); res.ProtoMajor != 2 || string(b) != "HTTP/1.1 5 <nil>\n" {
				t.Errorf("%s %s %q", res.Proto, res.Status, b)
			}
		})
	})
}

func TestMust_RQ4_UpgradeAndStreams(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, mode leapcell.Mode, s *harness.Service) {
		w := connect(t, s)
		w.say("GET /ws HTTP/1.1", "", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
		res, err := http.ReadResponse(w.in, &http.Request{Method: "GET"})
		if err != nil {
			t.Fatal(err)
		}
		if mode == leapcell.Serverless {
			b, _ := io.ReadAll(res.Body)
			if res.StatusCode != http.StatusNotImplemented || !strings.Contains(string(b), "persistent mode") {
				t.Errorf("a WebSocket got %s %q", res.Status, b)
			}
			w = connect(t, s) // an offer that is passed over
			w.say("GET /drain HTTP/1.1", "", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
			w.want(200)
		} else {
			if res.StatusCode != 101 || res.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
				t.Fatalf("a WebSocket got %s %v", res.Status, res.Header)
			}
			for range 3 {
				frame := []byte{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58} // "Hello", of RFC 6455
				back := make([]byte, len(frame))
				if _, err := w.Write(frame); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(w.in, back); err != nil || !bytes.Equal(frame, back) {
					t.Fatalf("% x came back, %v", back, err)
				}
			}
			checkDuplex(t, s)
		}
		checkEvents(t, s)
	})
}

// checkEvents: each event is there before the next is made.
func checkEvents(t *testing.T, s *harness.Service) {
	t.Helper()
	w := connect(t, s)
	w.say("GET /events?n=4&ms=700 HTTP/1.1", "")
	res, err := http.ReadResponse(w.in, &http.Request{Method: "GET"})
	if err != nil || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatal(res, err)
	}
	lines := bufio.NewScanner(res.Body)
	var at []time.Time
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data:") {
			at = append(at, time.Now())
		}
	}
	// Of 2.1 s between first and last; held back, they would come together.
	if len(at) != 4 || at[3].Sub(at[0]) < time.Second {
		t.Errorf("%d events, %v", len(at), at)
	}
}

// checkDuplex: each line is answered before the next is sent.
func checkDuplex(t *testing.T, s *harness.Service) {
	t.Helper()
	w := connect(t, s)
	w.say("POST /duplex HTTP/1.1", "", "Transfer-Encoding: chunked")
	res, err := http.ReadResponse(w.in, &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(res.Body)
	for i := range 3 {
		fmt.Fprintf(w, "2\r\n%d\n\r\n", i)
		if got, err := lines.ReadString('\n'); err != nil || got != fmt.Sprintf("re: %d\n", i) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	io.WriteString(w, "0\r\n\r\n")
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

// compiled builds a package of this module as an app.
func compiled(t *testing.T, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "app")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Dir, cmd.Env = harness.Get(t).Root, append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compiling %s: %v\n%s", pkg, err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// From a client of gRPC over HTTP/2 through edge and gate to a server of gRPC.
func TestMust_RQ4_GRPC(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{
		Settings: leapcell.Settings{Mode: leapcell.Persistent, BuildCommand: "chmod 755 app", StartCommand: "exec ./app"},
		Files:    map[string]string{"app": compiled(t, "./test/apps/grpc")},
	})
	client, err := grpc.NewClient("passthrough:"+p.Config.EdgeAddress(), grpc.WithAuthority(s.Host), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), aMinute)
	defer cancel()
	for i := range 20 {
		var out wrapperspb.StringValue
		text := fmt.Sprint("hello ", i)
		if err := client.Invoke(ctx, "/test.Echo/Say", wrapperspb.String(text), &out); err != nil || out.Value != "re: "+text {
			t.Fatalf("a call: %q, %v", out.Value, err)
		}
	}
	err = client.Invoke(ctx, "/test.Echo/Say", wrapperspb.String("fail"), new(wrapperspb.StringValue))
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no such thing" {
		t.Errorf("an error of the app became %v", err)
	}
	stream, err := client.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Chat")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		text := fmt.Sprint("line ", i)
		var out wrapperspb.StringValue
		if err := stream.SendMsg(wrapperspb.String(text)); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&out); err != nil || out.Value != "re: "+text {
			t.Fatalf("a stream: %q, %v", out.Value, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
		t.Errorf("the stream ended with %v", err)
	}
	if sum := stream.Trailer()["x-sum"]; len(sum) != 1 || sum[0] != "42" {
		t.Errorf("its trailers are %v", stream.Trailer())
	}
}

// Apps that speak nothing but HTTP/2 are found and served, whatever the visitor speaks.
func TestMust_RQ4_AppsOfHTTP2(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: leapcell.Persistent}, Env: map[string]string{"PROBE_HTTP": "2"}})
	for name, visitor := range map[string]*http.Client{"HTTP/1.1": harness.Get(t).HTTP, "HTTP/2": overHTTP2(t)} {
		res, err := visitor.Post("http://"+s.Host+"/drain", "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || string(b) != "HTTP/2.0 5 <nil>\n" {
			t.Errorf("a visitor over %s: %s %q", name, res.Status, b)
		}
	}
}

func TestMust_RQ7_Headers(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		var got struct{ Header http.Header }
		ask := func(more ...string) *http.Response {
			t.Helper()
			w := connect(t, s)
			w.say("GET /echo HTTP/1.1", "", more...)
			res, body := w.hear("GET")
			if err := json.Unmarshal([]byte(body), &got); res.StatusCode != 200 || err != nil {
				t.Fatalf("%s %q %v", res.Status, body, err)
			}
			return res
		}
		res := ask("X-Request-Id: visitor-1", "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
			"X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: forged.example",
			"X-Leapcell-Probe: 1", "X-Leapcell-Instance: forged", "x-leapcell-anything: 1", "X_Leapcell_Anything: 1", "X_Forwarded_For: 203.0.113.9",
			"Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Proxy-Authorization: x", "TE: gzip", "X-Kept: yes")
		h := got.Header
		for name, want := range map[string]string{
			"X-Request-Id": "visitor-1", "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Forwarded-For": "127.0.0.1",
			"X-Forwarded-Proto": "http", "X-Forwarded-Host": s.Host, "X-Kept": "yes",
			"X-Hop": "", "Keep-Alive": "", "Proxy-Authorization": "", "Te": "", "Connection": "", "Upgrade": "",
		} {
			if h.Get(name) != want || len(h[name]) > 1 {
				t.Errorf("the app got %s: %q, want %q", name, h[name], want)
			}
		}
		for name := range h {
			if plain := strings.ToLower(strings.ReplaceAll(name, "_", "-")); strings.HasPrefix(plain, "x-leapcell") || plain != strings.ToLower(name) {
				t.Errorf("the app got %s: %q", name, h[name])
			}
		}
		if id := res.Header.Get("X-Request-Id"); id != "visitor-1" {
			t.Errorf("the visitor got the request id %q", id)
		}
		ask()
		if got.Header.Get("X-Request-Id") == "" {
			t.Error("a request without an id got none")
		}
		for _, name := range []string{leapcell.HeaderGone, leapcell.HeaderError, "X-Leapcell-Anything", "Keep-Alive", "Proxy-Authenticate"} {
			if r := s.Get(t, "/headers?value=1&name="+name); r.Status != 200 || r.Header.Get(name) != "" {
				t.Errorf("the app's %s: %d %v", name, r.Status, r.Header)
			}
		}
	})
}
