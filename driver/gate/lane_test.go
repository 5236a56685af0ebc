package gate

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// TestLanePassesBytes: what the lane passes is as it was written, which the server's way would not
// leave so. It shows that requests really take the lane.
func TestLanePassesBytes(t *testing.T) {
	heads := make(chan string, 2)
	front := &idleListener{Listener: listenTCP(t), reads: make(chan struct{}, 9)}
	x := newWire(t, Config{Listener: front, laneWait: time.Minute}, func(conn net.Conn, in *bufio.Reader) {
		for {
			var said strings.Builder
			for line := ""; line != "\r\n"; {
				var err error
				if line, err = in.ReadString('\n'); err != nil {
					return
				}
				said.WriteString(line)
			}
			heads <- said.String()
			io.WriteString(conn, "HTTP/1.1 200 Fine\r\nx-b: 2\r\nKeep-Alive: timeout=5\r\nx-a: 1\r\nConnection: keep-alive\r\ncontent-length: 2\r\n\r\nok")
		}
	})
	v := x.connect()
	ask := "GET /%41?b HTTP/1.1\r\nhost: a\r\nx-z: 1\r\n" + leapcell.HeaderInstance + ": alloc-1\r\nX-y: 2\r\n\r\n"
	v.say(ask)
	<-front.reads     // of this request
	v.want(200, "ok") // makes the connection to the app
	<-heads
	<-front.reads // the server has finished and waits for the next
	v.say(ask)
	if got, want := <-heads, "GET /%41?b HTTP/1.1\r\nhost: a\r\nx-z: 1\r\nX-y: 2\r\n\r\n"; got != want {
		t.Errorf("the app got %q, want %q", got, want)
	}
	var said strings.Builder
	for line := ""; line != "\r\n"; {
		line, _ = v.in.ReadString('\n')
		if !strings.HasPrefix(line, "Date: ") {
			said.WriteString(line)
		}
	}
	if got, want := said.String(), "HTTP/1.1 200 OK\r\n"+leapcell.HeaderInstance+": alloc-1\r\nx-b: 2\r\nx-a: 1\r\ncontent-length: 2\r\n\r\n"; got != want {
		t.Errorf("the visitor got %q, want %q", got, want)
	}
}

// idleListener tells when a connection of it is read from with room for a whole request, which
// the lane does between requests only.
type idleListener struct {
	net.Listener
	reads chan struct{}
}

func (l *idleListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return &idleConn{Conn: conn, reads: l.reads}, err
}

type idleConn struct {
	net.Conn
	reads chan struct{}
}

func (c *idleConn) Read(p []byte) (int, error) {
	if len(p) >= firstRead {
		select {
		case c.reads <- struct{}{}:
		default:
		}
	}
	return c.Conn.Read(p)
}

// TestLaneAndServerTakeTurns: on one connection, in any order, each request gets its answer and
// is counted once.
func TestLaneAndServerTakeTurns(t *testing.T) {
	const long = laneBuffer + 1
	slow := make(chan struct{})
	var meter countingMeter
	x := newWire(t, Config{Meter: &meter}, func(conn net.Conn, in *bufio.Reader) {
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(r.Body)
			switch r.URL.Path {
			case "/plain":
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain")
			case "/last":
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nlast")
				return
			case "/chunked":
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nchunked\r\n0\r\n\r\n")
			case "/halves":
				io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Le")
				io.WriteString(conn, "ngth: 6\r\n\r\nhal")
				io.WriteString(conn, "ves")
			case "/long":
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", long, strings.Repeat("x", long))
			case "/slow":
				<-slow
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")
			case "/missing":
				io.WriteString(conn, "HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nmissing")
			case "/none":
				io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
			case "/body":
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			}
		}
	})
	v := x.connect()
	requests, egress := int64(0), int64(0)
	for _, path := range strings.Fields(`plain plain body plain chunked plain plain slow plain long plain missing plain last plain halves
		plain none plain body body plain chunked chunked slow slow long long plain`) {
		method, body, status, want := "GET", "", 200, path
		switch path {
		case "body":
			method, body = "POST", "Content-Length: 4\r\n"
		case "slow":
			go func() { // after the lane has given up
				time.Sleep(2 * laneWait)
				slow <- struct{}{}
			}()
		case "missing":
			status = 404
		case "none":
			status, want = 204, ""
		case "long":
			want = strings.Repeat("x", long)
		}
		v.say(method + " /" + path + " HTTP/1.1\r\nHost: a\r\n" + leapcell.HeaderInstance + ": alloc-1\r\n" + body + "\r\n")
		if body != "" {
			v.say("body")
		}
		if path == "halves" {
			if res, _, err := v.hear("GET"); err != nil || res.StatusCode != 103 {
				t.Fatalf("%+v, %v", res, err)
			}
		}
		v.want(status, want)
		requests, egress = requests+1, egress+int64(len(want))
		if n := meter.requests.Load(); n != requests || meter.egress.Load() != egress {
			t.Fatalf("after %s: %d requests and %d bytes counted, not %d and %d", path, n, meter.egress.Load(), requests, egress)
		}
	}
	if err := x.gate.Drain(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestLaneAnswersBeforeItCloses: to the server a connection with a request in the lane is idle, and
// it closes idle connections when it ends.
func TestLaneAnswersBeforeItCloses(t *testing.T) {
	for name, end := range map[string]func(g *Gate){
		"drain": func(g *Gate) { _ = g.Drain(context.Background()); g.Close(context.Background()) },
		"close": func(g *Gate) { g.Close(context.Background()) },
	} {
		for _, late := range []time.Duration{0, 2 * laneWait} {
			t.Run(fmt.Sprint(name, late), func(t *testing.T) {
				asked := make(chan bool, 2)
				answer := make(chan struct{})
				x := newWire(t, Config{}, func(conn net.Conn, in *bufio.Reader) {
					for {
						if _, err := http.ReadRequest(in); err != nil {
							return
						}
						asked <- true
						<-answer
						io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
					}
				})
				v := x.connect()
				v.say(head("GET / HTTP/1.1", "Host: a"))
				<-asked
				answer <- struct{}{}
				v.want(200, "ok")
				v.say(head("GET / HTTP/1.1", "Host: a"))
				<-asked
				done := make(chan struct{})
				go func() { end(x.gate); close(done) }()
				for x.gate.Stats().State == Ready.String() {
					time.Sleep(time.Millisecond) // there is no event for "has begun to end"
				}
				time.Sleep(late)
				answer <- struct{}{}
				v.want(200, "ok")
				if !v.closed() {
					t.Error("the connection stays open")
				}
				<-done
			})
		}
	}
}

// TestLaneGivesThePlaceBack: of a visitor who leaves while the app works.
func TestLaneGivesThePlaceBack(t *testing.T) {
	asked := make(chan bool, 2)
	x := newWire(t, Config{}, func(conn net.Conn, in *bufio.Reader) {
		for n := 0; ; n++ {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			asked <- true
			if n == 0 {
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		}
	})
	v := x.connect()
	v.say(head("GET / HTTP/1.1", "Host: a"))
	<-asked
	v.want(200, "ok")
	v.say(head("GET / HTTP/1.1", "Host: a"))
	<-asked
	v.Close()
	if err := x.gate.Drain(context.Background()); err != nil { // returns when nothing is in flight
		t.Error(err)
	}
}

// FuzzPlainRequest: what the lane takes, the server would take, and the app gets the same.
func FuzzPlainRequest(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /a%2Fb//c?x=%20&y HTTP/1.1\r\nhost: [::1]:80\r\nX-Leapcell-Instance: alloc-1\r\nAccept: \t*/*  \r\nx-\xff: 1\r\nX: \xff\r\n\r\nGET",
		"GET / HTTP/1.1\r\nHost: a\r\nX-Leapcell-Gone: 1\r\nx_forwarded_for: 1\r\n folded\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nProxy-Authorization: b\r\nTE: trailers\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n",
	} {
		f.Add([]byte(seed))
	}
	g := fuzzGate(leapcell.TaskServerless)
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, ok := parsePlainRequest(b, "alloc-1")
		if !ok {
			return
		}
		in := bufio.NewReader(bytes.NewReader(b))
		r, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("the server does not take it: %v", err)
		}
		if r.ContentLength != 0 || r.Close || upgradeType(r) != "" || r.ProtoMinor != 1 {
			t.Errorf("more than a GET: %+v", r)
		}
		if no := g.check(r, ""); no != nil {
			t.Errorf("the server refuses it: %+v", no)
		}
		if rest, _ := io.ReadAll(in); !bytes.Equal(rest, plain.rest) {
			t.Errorf("the rest is %q, not %q", plain.rest, rest)
		}
		if got := r.Header.Get(leapcell.HeaderInstance); got != "" && got != "alloc-1" || (got != "") != plain.fromEdge() {
			t.Errorf("it is meant for %q", got)
		}
		sent := append(bytes.Clone(plain.head[:plain.from]), plain.head[plain.to:]...)
		got, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(sent)))
		if err != nil {
			t.Fatalf("the app cannot read it: %v in %q", err, sent)
		}
		want := http.Header{}
		passes(r.Header, func(name, value string) { want[name] = append(want[name], value) })
		if got.RequestURI != r.RequestURI || got.Host != r.Host || !reflect.DeepEqual(got.Header, want) {
			t.Errorf("the app gets %q", sent)
		}
	})
}

// FuzzPlainAnswer: what the lane takes for an answer is one, and the visitor gets the same as by
// the server's way.
func FuzzPlainAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 404\r\ncontent-length: 0\r\nConnection: close\r\nKeep-Alive: timeout=5\r\nDate: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nContent-Length: +5\r\nX-Leapcell-Gone: 1\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: a\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: X-A\r\nX-A: 1\r\n\r\nab",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for cut := range b { // whatever comes first, the rest does not change what was said of it
			if a, said := parsePlainAnswer(b[:cut]); said == complete && a.length > cut {
				t.Fatalf("%d bytes of %d are all", a.length, cut)
			}
		}
		a, said := parsePlainAnswer(b)
		if said != complete {
			return
		}
		res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), &http.Request{Method: "GET"})
		if err != nil {
			t.Fatalf("it cannot be read: %v", err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil || !bytes.Equal(body, a.body) || res.StatusCode != a.status || res.Close != a.last {
			t.Errorf("%+v is read as %+v, %q, %v", a, res, body, err)
		}
		want := http.Header{}
		copyHeader(want, res.Header)
		passed := append([]byte("HTTP/1.1 200 OK\r\n"), a.appendHeaders(nil)...)
		got, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(append(passed, "\r\n"...))), nil)
		if err != nil || !maps.EqualFunc(got.Header, want, func(x, y []string) bool { return reflect.DeepEqual(x, y) }) {
			t.Errorf("the visitor gets %q, %v; want %v", passed, err, want)
		}
		if a.dated != (len(want["Date"]) > 0) {
			t.Errorf("dated: %t", a.dated)
		}
	})
}
