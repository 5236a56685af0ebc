package gate

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leapcell/leapcell"
)

// dial is a visitor's connection, in memory and on fake time.
func (f *fixture) dial() net.Conn {
	f.t.Helper()
	conn, err := f.front.dial(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return conn
}

// wantIdle checks that nothing is left of a request: no place, and soon no CPU.
func (f *fixture) wantIdle() {
	f.t.Helper()
	time.Sleep(leapcell.SuspendAfter)
	synctest.Wait()
	s := f.gate.Stats()
	if s.InFlight != 0 || s.Waiting != 0 {
		f.t.Errorf("%d in flight, %d waiting", s.InFlight, s.Waiting)
	}
	if f.gate.serverless() && !f.app.isFrozen() {
		f.t.Error("the instance is not suspended")
	}
}

// A body of which nothing comes any more keeps nobody awake; one that comes slowly is taken.
func TestRQ3_StalledBody(t *testing.T) {
	for name, head := range map[string]string{
		"announced": "Content-Length: 100000",
		"small":     "Content-Length: 10",
		"chunked":   "Transfer-Encoding: chunked",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cancelled := make(chan struct{}, 1)
				f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
					if _, err := io.ReadAll(r.Body); err != nil {
						cancelled <- struct{}{}
					}
				})
				f.ready()
				conn := f.dial()
				go io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\n"+head+"\r\n\r\n2\r\nab")
				begin := time.Now()
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil || res.StatusCode != 408 || !res.Close {
					t.Fatalf("%+v, %v", res, err)
				}
				if took := time.Since(begin); took != leapcell.BodyIdleTimeout {
					t.Errorf("it was held for %s", took)
				}
				if name != "small" { // of which nothing goes to the app before it is there
					<-cancelled
				}
				f.wantIdle()
			})
		})
	}
	t.Run("slow", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				fmt.Fprint(w, len(b), err)
			})
			f.ready()
			conn := f.dial()
			go func() {
				io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n")
				for range 10 {
					time.Sleep(leapcell.BodyIdleTimeout * 3 / 4)
					io.WriteString(conn, strings.Repeat("x", 1000))
				}
			}()
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("%+v, %v", res, err)
			}
			if b, err := io.ReadAll(res.Body); err != nil || string(b) != "10000 <nil>" {
				t.Errorf("%q, %v", b, err)
			}
			f.wantIdle()
		})
	})
	t.Run("persistent", func(t *testing.T) { // streams may pause for as long as a request may take
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, Config{Mode: leapcell.TaskPersistent}, func(w http.ResponseWriter, r *http.Request) {
				io.ReadAll(r.Body)
			})
			f.ready()
			conn := f.dial()
			go io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nab")
			begin := time.Now()
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || res.StatusCode != 504 || time.Since(begin) != leapcell.RequestTimeout {
				t.Fatalf("%+v, %v after %s", res, err, time.Since(begin))
			}
			f.wantIdle()
		})
	})
}

// A visitor who takes nothing of the answer keeps nobody awake either.
func TestStalledReader(t *testing.T) {
	for name, c := range map[string]struct {
		mode  leapcell.TaskMode
		limit time.Duration
	}{"serverless": {leapcell.TaskServerless, leapcell.BodyIdleTimeout}, "persistent": {leapcell.TaskPersistent, leapcell.RequestTimeout}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, Config{Mode: c.mode}, func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == leapcell.ProbePath {
						return
					}
					io.WriteString(w, strings.Repeat("x", 1<<20))
				})
				f.ready()
				conn := f.dial()
				io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				time.Sleep(c.limit - time.Second)
				synctest.Wait()
				if n := f.gate.Stats().InFlight; n != 1 {
					t.Fatalf("%d in flight before the time is over", n)
				}
				time.Sleep(time.Second)
				f.wantIdle()
				if b, err := io.ReadAll(conn); err == nil && len(b) > 1<<20 {
					t.Error("the answer looks whole")
				}
			})
		})
	}
}

func TestSlowHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.ready()
		conn := f.dial()
		go func() {
			for _, line := range []string{"GET / HTTP/1.1\r\n", "Host: a\r\n", "X-1: 1\r\n", "X-2: 2\r\n", "X-3: 3\r\n"} {
				if _, err := io.WriteString(conn, line); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		}()
		begin := time.Now()
		if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
			t.Errorf("%q, %v", b, err)
		}
		if took := time.Since(begin); took > 31*time.Second {
			t.Errorf("a head that does not end was read for %s", took)
		}
		time.Sleep(time.Minute) // the writer has noticed
		f.wantIdle()
	})
}

// Who leaves ends the request: in the queue, in the app, in the middle of a body or answer.
func TestAbortedVisitors(t *testing.T) {
	for name, say := range map[string]string{
		"waiting for an answer": "GET /wait HTTP/1.1\r\nHost: a\r\n\r\n",
		"in the answer":         "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n",
		"in the body":           "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nab",
		"in a chunk":            "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nab",
		"both at once":          "POST /stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				entered, cancelled := make(chan struct{}), make(chan struct{})
				f := newFixture(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
					switch r.URL.Path {
					case "/wait":
						close(entered)
						<-r.Context().Done()
					case "/stream":
						http.NewResponseController(w).EnableFullDuplex()
						close(entered)
						for r.Context().Err() == nil {
							if _, err := io.WriteString(w, "tick\n"); err != nil {
								break
							}
							w.(http.Flusher).Flush()
							time.Sleep(time.Second)
						}
					case "/read":
						close(entered)
						io.Copy(io.Discard, r.Body)
					default:
						return
					}
					close(cancelled)
				})
				f.ready()
				conn := f.dial()
				go io.Copy(io.Discard, conn)
				io.WriteString(conn, say)
				<-entered
				conn.Close()
				<-cancelled
				f.wantIdle()
			})
		})
	}
	t.Run("in the queue", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, Config{}, hello)
			conn := f.dial()
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			synctest.Wait()
			if n := f.gate.Stats().Waiting; n != 1 {
				t.Fatalf("%d wait", n)
			}
			conn.Close()
			synctest.Wait()
			if n := f.gate.Stats().Waiting; n != 0 {
				t.Errorf("%d wait", n)
			}
		})
	})
}

// Those who wait get their turn in the order in which they came.
func TestRQ5_Order(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		f := newFixture(t, Config{Concurrency: 1}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != leapcell.ProbePath {
				got = append(got, r.URL.Path)
				time.Sleep(time.Millisecond)
			}
		})
		answers := make(chan answer, 50)
		var want []string
		for i := range cap(answers) {
			path := fmt.Sprintf("/%d", i)
			want = append(want, path)
			go func() { answers <- f.get(path) }()
			synctest.Wait() // it is in the queue
		}
		f.ready()
		for range cap(answers) {
			if a := <-answers; a.status != 200 {
				t.Fatalf("%+v", a)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the order was %v", got)
		}
	})
}

func TestRQ4_WebSocketBytes(t *testing.T) {
	handshake := head("GET /chat HTTP/1.1", "Host: a", "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "X-Leapcell-Other: 1")
	app := func(conn net.Conn, in *bufio.Reader) {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if r.Header.Get("Upgrade") == "" || r.URL.Path == "/no" {
			io.WriteString(conn, "HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno")
			return
		}
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: y\r\n\r\nfirst")
		io.Copy(conn, in)
		io.WriteString(conn, "last")
	}
	t.Run("echo", func(t *testing.T) {
		x := newWire(t, Config{Mode: leapcell.TaskPersistent}, app)
		v := x.connect()
		v.say(handshake + "early") // before the answer: it must not be lost
		res, err := http.ReadResponse(v.in, nil)
		if err != nil || res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Accept") != "y" || res.Header.Get(leapcell.HeaderInstance) == "" {
			t.Fatalf("%+v, %v", res, err)
		}
		v.say(" and late")
		if err := v.Conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(v.in); err != nil || string(b) != "firstearly and latelast" {
			t.Errorf("%q, %v", b, err)
		}
		if err := x.gate.Drain(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Run("refused by the app", func(t *testing.T) {
		x := newWire(t, Config{Mode: leapcell.TaskPersistent}, app)
		v := x.connect()
		v.say(strings.Replace(handshake, "/chat", "/no", 1))
		v.want(426, "no")
	})
	t.Run("serverless", func(t *testing.T) {
		x := newWire(t, Config{}, app)
		for protocol, want := range map[string]int{"websocket": 501, "WebSocket": 501, "irc/6.9, h2c": 501, "h2c": 426, "TLS/1.3, HTTP/2.0": 426} {
			v := x.connect()
			v.say(strings.Replace(handshake, "websocket", protocol, 1))
			res, body, err := v.hear("GET")
			if err != nil || res.StatusCode != want {
				t.Errorf("%s: %+v, %v; want %d", protocol, res, err, want)
			}
			if want == 501 && !strings.Contains(body, "persistent mode") {
				t.Errorf("the text is %q", body)
			}
		}
	})
}
