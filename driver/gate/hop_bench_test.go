package gate

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// BenchmarkHop counts what one request allocates on its way: visitor and app are loops over
// bytes that allocate nothing. "server" is net/http's server alone, which the gate stands on,
// "reverseproxy" what the standard library offers in the gate's place.
func BenchmarkHop(b *testing.B) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: Sun, 22 Nov 2026 06:00:00 GMT\r\nContent-Length: 5\r\n\r\nhello"
	const rest = " / HTTP/1.1\r\nHost: app.example\r\nUser-Agent: bench\r\nAccept: */*\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n" +
		"X-Forwarded-Host: app.example\r\nX-Request-Id: 0123456789abcdef0123456789abcdef\r\n"
	for method, request := range map[string]string{"GET": "GET" + rest + "\r\n", "POST": "POST" + rest + "Content-Length: 100\r\n\r\n" + string(bytes.Repeat([]byte("x"), 100))} {
		app := listenTCP(b)
		go serveBytes(app, len(request), answer)
		b.Run(method+"/server", func(b *testing.B) {
			l := listenTCP(b)
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Content-Type"] = plain
				io.WriteString(w, "hello")
			})}
			go server.Serve(l)
			defer server.Close()
			visitAgain(b, l, request)
		})
		b.Run(method+"/reverseproxy", func(b *testing.B) {
			l := listenTCP(b)
			proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: app.Addr().String()})
			proxy.Transport = &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
			server := &http.Server{Handler: proxy}
			go server.Serve(l)
			defer server.Close()
			visitAgain(b, l, request)
		})
		for _, mode := range []leapcell.TaskMode{leapcell.TaskServerless, leapcell.TaskPersistent} {
			b.Run(method+"/gate/"+string(mode), func(b *testing.B) {
				l := listenTCP(b)
				g := New(Config{Listener: l, Mode: mode, Instance: "alloc-1"})
				defer g.Close(context.Background())
				g.Adopt(tcpApp{app.Addr().String()}, time.Now(), false, app.Addr().String())
				visitAgain(b, l, request)
			})
		}
	}
}

var plain = []string{"text/plain"}

// serveBytes answers each request that comes with the same bytes. A request may be longer
// than it was by the length of what a proxy adds: it is over when nothing more comes at once.
func serveBytes(l net.Listener, least int, answer string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			buf, out := make([]byte, 8<<10), []byte(answer)
			for {
				for n := 0; n == 0 || n < least-40 && !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")); {
					m, err := conn.Read(buf[n:])
					if err != nil {
						return
					}
					n += m
				}
				if _, err := conn.Write(out); err != nil {
					return
				}
			}
		}()
	}
}

// visitAgain sends the request again and again and reads answers, which all have the same length.
func visitAgain(b *testing.B, l net.Listener, request string) {
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	out, in := []byte(request), make([]byte, 8<<10)
	length := 0
	ask := func() {
		if _, err := conn.Write(out); err != nil {
			b.Fatal(err)
		}
		for n := 0; n == 0 || n < length || length == 0 && !bytes.HasSuffix(in[:n], []byte("hello")); {
			m, err := conn.Read(in[n:])
			if err != nil {
				b.Fatal(err)
			}
			n += m
			if n >= length && bytes.HasSuffix(in[:n], []byte("hello")) {
				length = n
			}
		}
	}
	ask()
	b.ReportAllocs()
	for b.Loop() {
		ask()
	}
}
