package edge

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/routes"
)

// admin answers /ping and /metrics on a listener of its own, which visitors cannot reach.
type admin struct {
	listener net.Listener // nil: switched off
	metrics  http.Handler
	table    *routes.Table
}

func newAdmin(address string, metrics http.Handler, table *routes.Table) (*admin, error) {
	a := &admin{metrics: metrics, table: table}
	if address == "" {
		return a, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnavailable, err, "cannot listen on "+address)
	}
	a.listener = l
	return a, nil
}

func (a *admin) run(ctx context.Context) {
	if a.listener == nil {
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", a.ping)
	mux.Handle("GET /metrics", a.metrics)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	_ = server.Serve(a.listener) // ends with Close
}

// ping says 200 when the edge knows where to send visitors.
func (a *admin) ping(w http.ResponseWriter, _ *http.Request) {
	if !a.table.Ready() {
		http.Error(w, "Nomad was not read yet", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
