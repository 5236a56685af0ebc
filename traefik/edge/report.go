package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

const (
	reportGap  = 250 * time.Millisecond // between two reports of changes
	reportFull = 5 * time.Second        // between two reports of everything
	reportWait = 2 * time.Second        // for one to be taken
)

// reporter tells the control plane what load this edge sees. Nothing on the request path
// waits for it, and an API that is down costs scaling decisions only.
type reporter struct {
	edge  string
	url   string // empty: nowhere
	token string
	load  *wake.Handler
	table routeTable
	http  *http.Client
	log   *slog.Logger

	sent    map[string]leapcell.EdgeService
	routes  uint64 // index of the routes in the last report that was taken
	failing bool
}

// routeTable says how far the routes were read.
type routeTable interface {
	RoutesIndex() uint64
	Changed() <-chan struct{}
}

func newReporter(cfg Config, load *wake.Handler, table routeTable) *reporter {
	r := &reporter{edge: cfg.ID, token: cfg.APIToken, load: load, table: table, log: cfg.Log,
		http: &http.Client{Timeout: reportWait}, sent: map[string]leapcell.EdgeService{}}
	if cfg.APIAddr != "" {
		r.url = cfg.APIAddr + "/v1/edges/" + url.PathEscape(cfg.ID) + "/report"
	}
	return r
}

func (r *reporter) run(ctx context.Context) {
	full := time.NewTicker(reportFull)
	defer full.Stop()
	for {
		changed := r.table.Changed()
		if r.table.RoutesIndex() != r.routes && !r.failing {
			// At once: a deployment is called live when every edge has its route.
			r.report(ctx, r.changes())
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-full.C:
			r.report(ctx, r.load.Load())
		case <-r.load.LoadChanged():
			if changes := r.changes(); len(changes) > 0 {
				r.report(ctx, changes)
			}
			select {
			case <-time.After(reportGap):
			case <-ctx.Done():
				return
			}
		}
	}
}

// changes are the services whose load differs from what was reported last.
func (r *reporter) changes() []leapcell.EdgeService {
	var out []leapcell.EdgeService
	for _, s := range r.load.Load() {
		if r.sent[s.Key()] != s && !s.Plain {
			out = append(out, s)
		}
	}
	return out
}

func (r *reporter) report(ctx context.Context, services []leapcell.EdgeService) {
	if r.url == "" {
		return
	}
	services = slices.DeleteFunc(services, func(s leapcell.EdgeService) bool { return s.Plain })
	index := r.table.RoutesIndex()
	err := r.post(ctx, leapcell.EdgeReport{Edge: r.edge, RoutesIndex: index, Services: services})
	switch {
	case err == nil:
		r.routes = index
		for _, s := range services {
			r.sent[s.Key()] = s
		}
		if r.failing {
			r.log.Info("the API takes reports again")
		}
	case ctx.Err() == nil && !r.failing:
		r.log.Warn("the API does not take reports; it will be tried again", "error", err)
	}
	r.failing = err != nil
}

func (r *reporter) post(ctx context.Context, report leapcell.EdgeReport) error {
	body, err := json.Marshal(report)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+r.token)
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("report to %s: %s", r.url, resp.Status)
	}
	return nil
}
