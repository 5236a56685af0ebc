package edge

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/proxy/httputil"
	"github.com/traefik/traefik/v3/pkg/server/service"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

// fixedTable is a table of one host with one instance.
type fixedTable struct {
	route     leapcell.Route
	instances []leapcell.Instance
	changed   chan struct{}
}

func (f *fixedTable) Ready() bool                                 { return true }
func (f *fixedTable) Route(string, string) *leapcell.Route        { return &f.route }
func (f *fixedTable) Instances(string) []leapcell.Instance        { return f.instances }
func (f *fixedTable) Changed() <-chan struct{}                    { return f.changed }
func (f *fixedTable) Wake(context.Context, *leapcell.Route) error { return nil }

// BenchmarkProxy compares what the wake middleware adds with Traefik's own proxy behind the
// same entry point, and with no edge at all.
func BenchmarkProxy(b *testing.B) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	defer app.Close()
	target := app.Listener.Addr().String()

	table := &fixedTable{changed: make(chan struct{}), instances: []leapcell.Instance{{ID: "a", Address: target}},
		route: leapcell.Route{ServiceID: "s", Deployment: "d", Concurrency: leapcell.MaxConcurrency}}
	ours := wake.New(wake.Config{Table: table, Scaler: table})
	defer ours.Close()
	log, err := openAccessLog(filepath.Join(b.TempDir(), "access.log"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	metered := wake.New(wake.Config{Table: table, Scaler: table, Observer: newFigures(100)})
	defer metered.Close()
	logged := wake.New(wake.Config{Table: table, Scaler: table, Observer: observers{newFigures(100), log}})
	defer logged.Close()

	transports := service.NewTransportManager(nil)
	transports.Update(map[string]*dynamic.ServersTransport{"default@internal": {MaxIdleConnsPerHost: 200}})
	theirs, err := httputil.NewProxyBuilder(transports, nil).Build("default@internal", &url.URL{Scheme: "http", Host: target}, true, false, 0)
	if err != nil {
		b.Fatal(err)
	}

	run := func(address string) func(*testing.B) {
		return func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, "tcp", address)
				}}}
			defer client.CloseIdleConnections()
			b.SetParallelism(8)
			b.ReportAllocs()
			var once sync.Once
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					resp, err := client.Get("http://app.leapcell.localhost/")
					if err != nil || resp.StatusCode != 200 {
						once.Do(func() { b.Errorf("%v %v", resp, err) })
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		}
	}
	wakeAddress, _ := startFront(b, Config{}, ours)
	plainAddress, _ := startFront(b, Config{}, theirs)
	b.Run("direct", run(target))
	b.Run("traefik", run(plainAddress))
	b.Run("wake", run(wakeAddress))
	meteredAddress, _ := startFront(b, Config{}, metered)
	b.Run("wake+metrics", run(meteredAddress))
	loggedAddress, _ := startFront(b, Config{}, logged)
	b.Run("wake+metrics+log", run(loggedAddress))
}

// BenchmarkObservers is what one request costs to be counted and written down.
func BenchmarkObservers(b *testing.B) {
	log, err := openAccessLog(filepath.Join(b.TempDir(), "access.log"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	for name, o := range map[string]wake.Observer{"metrics": newFigures(100), "log": log} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			v := visitOf("s", time.Now())
			for b.Loop() {
				o.Visited(v)
			}
		})
	}
}
