package gate

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// tcpApp is an app on the host's own loopback.
type tcpApp struct{ address string }

func (a tcpApp) Dial(ctx context.Context, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", a.address)
}
func (tcpApp) Freeze() error { return nil }
func (tcpApp) Thaw() error   { return nil }

func benchmark(b *testing.B, cfg Config, parallel bool, between func(g *Gate)) {
	appL, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(hello)}
	go server.Serve(appL)
	defer server.Close()
	target := appL.Addr().String()
	var g *Gate
	if cfg.Mode != "" {
		cfg.Listener, err = net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		target = cfg.Listener.Addr().String()
		g = New(cfg)
		defer g.Close(context.Background())
		g.Launched(tcpApp{appL.Addr().String()}, time.Now())
		<-g.Started()
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	ask := func() {
		res, err := client.Get("http://" + target)
		if err != nil {
			b.Error(err)
			return
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	ask()
	b.ReportAllocs()
	b.ResetTimer()
	if parallel {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				ask()
			}
		})
		return
	}
	for b.Loop() {
		if between != nil {
			b.StopTimer()
			between(g)
			b.StartTimer()
		}
		ask()
	}
}

// What the gate adds is the difference between these and the two Direct ones: client,
// server and app share the cores.
func BenchmarkDirect(b *testing.B)         { benchmark(b, Config{}, false, nil) }
func BenchmarkDirectParallel(b *testing.B) { benchmark(b, Config{}, true, nil) }

func BenchmarkWarm(b *testing.B) {
	benchmark(b, Config{Mode: leapcell.TaskServerless}, false, nil)
}

func BenchmarkWarmParallel(b *testing.B) {
	benchmark(b, Config{Mode: leapcell.TaskServerless}, true, nil)
}

// BenchmarkResume is a request to a suspended app; the freezer itself costs nothing here.
func BenchmarkResume(b *testing.B) {
	benchmark(b, Config{Mode: leapcell.TaskServerless, SuspendAfter: 50 * time.Microsecond}, false, func(g *Gate) {
		for !g.Stats().Suspended {
			time.Sleep(100 * time.Microsecond)
		}
	})
}
