package edge

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

// watch is all by which an edge can be watched. What is switched off is nil and costs nothing.
type watch struct {
	figures   *figures
	accessLog *accessLog
	traces    *traces
}

func newWatch(ctx context.Context, cfg Config) (*watch, error) {
	w := &watch{}
	var err error
	if cfg.AdminListen != "" {
		w.figures = newFigures(cfg.MetricsServices)
	}
	if cfg.AccessLog != "" {
		if w.accessLog, err = openAccessLog(cfg.AccessLog, cfg.Log); err != nil {
			return nil, err
		}
	}
	if cfg.Traces != "" {
		if w.traces, err = newTraces(ctx, cfg.Traces, cfg.ID, cfg.Log); err != nil {
			w.close(cfg.Log)
			return nil, err
		}
	}
	return w, nil
}

// observer gives one for all, nil for none.
func (w *watch) observer() wake.Observer {
	var all observers
	if w.figures != nil {
		all = append(all, w.figures)
	}
	if w.traces != nil {
		all = append(all, w.traces)
	}
	if w.accessLog != nil {
		all = append(all, w.accessLog)
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return all
}

// metrics answers scrapes, nil if there are none.
func (w *watch) metrics(load loads, table sizes) http.Handler {
	if w.figures == nil {
		return nil
	}
	w.figures.registry.MustRegister(&state{figures: w.figures, load: load, table: table})
	if w.accessLog != nil {
		w.figures.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "leapcell_edge_access_log_lost_total",
			Help: "Lines that could not be written to the access log."}, func() float64 { return float64(w.accessLog.lost.Load()) }))
	}
	return w.figures.handler()
}

// close is called when no request is left.
func (w *watch) close(log *slog.Logger) {
	if w.traces != nil {
		if err := w.traces.Close(); err != nil {
			log.Warn("the last spans are lost", "error", err)
		}
	}
	if w.accessLog != nil {
		if err := w.accessLog.Close(); err != nil {
			log.Warn("the access log was not closed", "error", err)
		}
	}
}

// observers tells several what happens.
type observers []wake.Observer

// Visited tells each.
func (o observers) Visited(v *wake.Visit) {
	for _, one := range o {
		one.Visited(v)
	}
}

// Woke tells each.
func (o observers) Woke(route *leapcell.Route) {
	for _, one := range o {
		one.Woke(route)
	}
}
