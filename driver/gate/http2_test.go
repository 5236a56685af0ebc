package gate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/leapcell/leapcell"
)

// echo is a service of gRPC with a call of each kind, written down as its compiler would.
var echo = grpc.ServiceDesc{
	ServiceName: "test.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Say", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.StringValue)
		if err := decode(in); err != nil {
			return nil, err
		}
		if in.Value == "fail" {
			return nil, status.Error(codes.NotFound, "no such thing")
		}
		md, _ := metadata.FromIncomingContext(ctx)
		return wrapperspb.String(fmt.Sprint(in.Value, md["x-key"], md["x-leapcell-other"])), nil
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		for {
			in := new(wrapperspb.StringValue)
			if err := s.RecvMsg(in); errors.Is(err, io.EOF) {
				s.SetTrailer(metadata.Pairs("x-sum", "42"))
				return nil
			} else if err != nil {
				return err
			}
			if err := s.SendMsg(wrapperspb.String("re: " + in.Value)); err != nil {
				return err
			}
		}
	}}},
}

// newGRPC starts a gate, with readiness and all, before a server of gRPC, and a client.
func newGRPC(t *testing.T, back net.Listener, cfg Config) (*Gate, *grpc.ClientConn) {
	t.Helper()
	front := listenTCP(t)
	cfg.Listener = front
	g := New(cfg)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		g.Close(ctx)
	})
	g.Launched(tcpApp{back.Addr().String()}, time.Now())
	<-g.Started()
	if s := g.Status(); !s.Ready {
		t.Fatalf("not ready: %+v", s)
	}
	client, err := grpc.NewClient("passthrough:"+front.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return g, client
}

func checkCalls(t *testing.T, client *grpc.ClientConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // a guard
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-key", "1", "x-leapcell-other", "forged")
	for i := range 3 {
		var out wrapperspb.StringValue
		if err := client.Invoke(ctx, "/test.Echo/Say", wrapperspb.String(fmt.Sprint("hello ", i)), &out); err != nil || out.Value != fmt.Sprintf("hello %d[1] []", i) {
			t.Fatalf("%q, %v", out.Value, err)
		}
	}
	err := client.Invoke(ctx, "/test.Echo/Say", wrapperspb.String("fail"), new(wrapperspb.StringValue))
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no such thing" {
		t.Errorf("an error of the app became %v", err)
	}
	stream, err := client.NewStream(ctx, &echo.Streams[0], "/test.Echo/Chat")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		text := fmt.Sprint("line ", i)
		if err := stream.SendMsg(wrapperspb.String(text)); err != nil {
			t.Fatal(err)
		}
		var out wrapperspb.StringValue // before the next one is sent
		if err := stream.RecvMsg(&out); err != nil || out.Value != "re: "+text {
			t.Fatalf("%q, %v", out.Value, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
		t.Errorf("the stream ended with %v", err)
	}
	if sum := stream.Trailer()["x-sum"]; len(sum) != 1 || sum[0] != "42" {
		t.Errorf("the trailers are %v", stream.Trailer())
	}
}

// A server of gRPC speaks HTTP/2 and nothing else: it is found by the second question.
func TestRQ4_GRPC(t *testing.T) {
	back := listenTCP(t)
	server := grpc.NewServer()
	server.RegisterService(&echo, nil)
	go server.Serve(back)
	defer server.Stop()
	g, client := newGRPC(t, back, Config{Mode: leapcell.TaskPersistent})
	checkCalls(t, client)
	if app := g.Stats().App; parseTarget(app).String() != app || !parseTarget(app).http2 {
		t.Errorf("the app is %q", app)
	}
	t.Run("given up by the client", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := client.NewStream(ctx, &echo.Streams[0], "/test.Echo/Chat")
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(wrapperspb.String("x")); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(new(wrapperspb.StringValue)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := g.Drain(t.Context()); err != nil {
			t.Errorf("the call goes on: %v", err)
		}
	})
}

// An app that speaks both gets calls of gRPC over HTTP/2 and everything else over HTTP/1.1.
func TestRQ4_GRPCBesideHTTP1(t *testing.T) {
	back := listenTCP(t)
	calls := grpc.NewServer()
	calls.RegisterService(&echo, nil)
	var got [3]atomic.Int32 // by major version
	app := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got[r.ProtoMajor].Add(1)
		if r.ProtoMajor == 2 {
			calls.ServeHTTP(w, r)
		}
	})}
	app.Protocols.SetHTTP1(true)
	app.Protocols.SetUnencryptedHTTP2(true)
	go app.Serve(back)
	defer app.Close()
	g, client := newGRPC(t, back, Config{Mode: leapcell.TaskPersistent})
	checkCalls(t, client)
	before := got[2].Load()
	res, err := http.Get("http://" + g.cfg.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if before != 5 || got[2].Load() != before || got[1].Load() != 2 { // the probe is one
		t.Errorf("%d requests over HTTP/2, %d over HTTP/1.1", got[2].Load(), got[1].Load())
	}
}

// Over HTTP/1.1, as edges come, to an app of HTTP/2: bodies, trailers and hints.
func TestHTTP1ToHTTP2(t *testing.T) {
	back := listenTCP(t)
	app := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/large" {
			w.Header().Set("Link", "</a>")
			w.WriteHeader(103)
		}
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(w, "%s %s %s %s %s", r.Proto, r.Host, r.RequestURI, b, r.Trailer.Get("X-Checked"))
		w.Header().Set("X-Sum", "42")
	})}
	app.Protocols.SetUnencryptedHTTP2(true)
	go app.Serve(back)
	defer app.Close()
	front := listenTCP(t)
	g := New(Config{Listener: front, Mode: leapcell.TaskPersistent, MaxRequestBytes: 1000})
	defer g.Close(context.Background())
	g.Launched(tcpApp{back.Addr().String()}, time.Now())
	<-g.Started()
	x := &wire{t: t, address: front.Addr().String()}
	v := x.connect()
	v.say("POST /a%2Fb?c HTTP/1.1\r\nHost: visitor.example\r\nTransfer-Encoding: chunked\r\nTrailer: X-Checked\r\n\r\n5\r\nhello\r\n0\r\nX-Checked: yes\r\n\r\n")
	if res, err := http.ReadResponse(v.in, nil); err != nil || res.StatusCode != 103 || res.Header.Get("Link") != "</a>" {
		t.Fatalf("%+v, %v", res, err)
	}
	res := v.want(200, "HTTP/2.0 visitor.example /a%2Fb?c hello yes")
	if res.Trailer.Get("X-Sum") != "42" {
		t.Errorf("trailers %v", res.Trailer)
	}
	v = x.connect()
	v.say(head("POST /large HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + "7d0\r\n" + fmt.Sprintf("%02000d", 0) + "\r\n0\r\n\r\n")
	res, _, err := v.hear("POST")
	if err != nil || res.StatusCode != 413 {
		t.Errorf("a body over the limit: %+v, %v", res, err)
	}
}

// What an app does that is not ready yet: it hangs up, or says something else.
func TestProbeOfHTTP2(t *testing.T) {
	for name, c := range map[string]struct {
		first, second string
		want, http2   bool
	}{
		"HTTP/1.1":            {"HTTP/1.1 404 Not Found\r\n\r\n", "", true, false},
		"settings at once":    {"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00", "\x00\x00\x00\x04\x00\x00\x00\x00\x00", true, true},
		"hangs up, then both": {"", "\x00\x00\x00\x04\x00\x00\x00\x00\x00", true, true},
		"hangs up":            {"", "", false, false},
		"another protocol":    {"220 mail.example ESMTP\r\n", "220 mail.example ESMTP\r\n", false, false},
		"a frame of others":   {"\x00\x00\x00\x08\x00\x00\x00\x00\x00", "", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			back := listenTCP(t)
			go func() {
				for {
					conn, err := back.Accept()
					if err != nil {
						return
					}
					in := bufio.NewReader(conn)
					if b, _ := in.Peek(3); string(b) == "PRI" {
						io.ReadFull(in, make([]byte, len(http2Question)))
						io.WriteString(conn, c.second)
					} else {
						http.ReadRequest(in)
						io.WriteString(conn, c.first)
					}
					conn.Close()
				}
			}()
			app, ok := answers(t.Context(), tcpApp{back.Addr().String()}, back.Addr().String())
			if ok != c.want || ok && app.http2 != c.http2 {
				t.Errorf("%v, %+v", ok, app)
			}
		})
	}
}
