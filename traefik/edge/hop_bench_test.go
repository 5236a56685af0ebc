package edge

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"syscall"
	"testing"
	"time"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/proxy/httputil"
	"github.com/traefik/traefik/v3/pkg/server/service"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

// BenchmarkHop counts what one request costs and allocates on its way through an edge:
// visitor and gate are loops over bytes that allocate nothing. "server" is net/http's server
// alone, "front" Traefik's entry point before a handler that answers by itself, "traefik"
// Traefik's own proxy, "chain" the middleware without any server.
func BenchmarkHop(b *testing.B) {
	const request = "GET / HTTP/1.1\r\nHost: app.leapcell.localhost\r\nUser-Agent: bench\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\r\n"
	const answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: Sun, 22 Nov 2026 06:00:00 GMT\r\nX-Leapcell-Instance: a\r\nContent-Length: 5\r\n\r\nhello"
	gate, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer gate.Close()
	go answerBytes(gate, answer)
	target := gate.Addr().String()

	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = []string{"text/plain"}
		io.WriteString(w, "hello")
	})
	table := &fixedTable{changed: make(chan struct{}), instances: []leapcell.Instance{{ID: "a", Address: target}},
		route: leapcell.Route{ServiceID: "s", Deployment: "d", Concurrency: leapcell.MaxConcurrency}}
	ours := wake.New(wake.Config{Table: table, Scaler: table})
	defer ours.Close()
	transports := service.NewTransportManager(nil)
	transports.Update(map[string]*dynamic.ServersTransport{"default@internal": {MaxIdleConnsPerHost: 200}})
	theirs, err := httputil.NewProxyBuilder(transports, nil).Build("default@internal", &url.URL{Scheme: "http", Host: target}, true, false, 0)
	if err != nil {
		b.Fatal(err)
	}

	b.Run("server", func(b *testing.B) {
		s := httptest.NewServer(hello)
		defer s.Close()
		askBytes(b, s.Listener.Addr().String(), request)
	})
	for _, one := range []struct {
		name    string
		handler http.Handler
	}{{"front", hello}, {"traefik", theirs}, {"wake", ours}} {
		b.Run(one.name, func(b *testing.B) {
			address, _ := startFront(b, Config{}, one.handler)
			askBytes(b, address, request)
		})
	}
}

// answerBytes answers each request, which has no body, with the same bytes.
func answerBytes(l net.Listener, answer string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			buf, out, n := make([]byte, 8<<10), []byte(answer), 0
			for {
				m, err := conn.Read(buf[n:])
				if err != nil {
					return
				}
				if n += m; !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
					continue
				}
				n = 0
				if _, err := conn.Write(out); err != nil {
					return
				}
			}
		}()
	}
}

// askBytes sends the request again and again over one connection.
func askBytes(b *testing.B, address, request string) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	out, in := []byte(request), make([]byte, 8<<10)
	ask := func() {
		if _, err := conn.Write(out); err != nil {
			b.Fatal(err)
		}
		for n := 0; n == 0 || !bytes.HasSuffix(in[:n], []byte("hello")); {
			m, err := conn.Read(in[n:])
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
	}
	ask()
	b.ReportAllocs()
	before := cpuTime()
	for b.Loop() {
		ask()
	}
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op") // of visitor and gate too
}

// cpuTime is what this process has used: on a busy machine it says more than the clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
