package edge

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/routes"
	"github.com/leapcell/leapcell/traefik/wake"
)

// admin answers /ping and /metrics on a listener of its own, which visitors cannot reach.
type admin struct {
	listener net.Listener // nil: switched off
	handler  *wake.Handler
	table    *routes.Table
}

func newAdmin(address string, handler *wake.Handler, table *routes.Table) (*admin, error) {
	a := &admin{handler: handler, table: table}
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
	mux.HandleFunc("GET /metrics", a.metrics)
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

// metrics writes the Prometheus text format.
func (a *admin) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	write := func(kind, name, help string, value int64) {
		fmt.Fprintf(w, "# HELP leapcell_edge_%s %s\n# TYPE leapcell_edge_%s %s\nleapcell_edge_%s %d\n", name, help, name, kind, name, value)
	}
	c := a.handler.Counters()
	write("counter", "requests_total", "Requests that found a service.", c.Requests)
	write("counter", "wakes_total", "Calls for the first instance of a deployment.", c.Wakes)
	write("counter", "held_total", "Requests that waited for an instance or for a place on one.", c.Held)
	write("counter", "retries_total", "Requests that moved on before an instance took them.", c.Retries)
	write("counter", "rejected_total", "Requests refused by a limit or after waiting in vain.", c.Rejected)
	write("counter", "broken_total", "Exchanges in which the connection to a gate failed.", c.Broken)
	var inFlight, queued int64
	for _, s := range a.handler.Load() {
		inFlight += int64(s.InFlight)
		queued += int64(s.Queued)
	}
	hosts, deployments := a.table.Sizes()
	write("gauge", "in_flight", "Requests on instances.", inFlight)
	write("gauge", "queued", "Requests that wait.", queued)
	write("gauge", "hosts", "Host names with a route.", int64(hosts))
	write("gauge", "deployments_running", "Deployments with an instance.", int64(deployments))
}
