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
	"sync"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

const (
	reportGap  = 250 * time.Millisecond // between two reports of changes
	reportFull = 5 * time.Second        // between two reports of everything
	reportWait = 2 * time.Second        // for one to be taken
)

// reportLoad tells every control plane what load this edge sees, until ctx ends. Each hears
// all of it, so that whichever is to scale can begin at once; and one that is slow or away
// keeps the others waiting for nothing.
func reportLoad(ctx context.Context, cfg Config, load *wake.Handler, table routeTable) {
	var all sync.WaitGroup
	defer all.Wait()
	var reporters []*reporter
	for _, api := range cfg.APIAddrs {
		r := newReporter(cfg, api, load, table)
		reporters = append(reporters, r)
		all.Go(func() { r.run(ctx) })
	}
	forget := time.NewTicker(reportFull)
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-forget.C:
			load.Load() // lets go of services that are no more, also where nobody is told
			continue
		case <-load.LoadChanged():
		}
		for _, r := range reporters {
			select {
			case r.changed <- struct{}{}:
			default: // it has that to do already
			}
		}
		select {
		case <-time.After(reportGap):
		case <-ctx.Done():
			return
		}
	}
}

// reporter tells one control plane. Nothing on the request path waits for it, and an API that
// is down costs scaling decisions only.
type reporter struct {
	edge    string
	url     string
	token   string
	load    *wake.Handler
	table   routeTable
	http    *http.Client
	log     *slog.Logger
	changed chan struct{} // the load may have changed

	sent    map[string]leapcell.EdgeService
	routes  uint64 // index of the routes in the last report that was taken
	failing bool
}

// routeTable says how far the routes were read.
type routeTable interface {
	RoutesIndex() uint64
	Changed() <-chan struct{}
}

func newReporter(cfg Config, api string, load *wake.Handler, table routeTable) *reporter {
	return &reporter{edge: cfg.ID, url: api + "/v1/edges/" + url.PathEscape(cfg.ID) + "/report", token: cfg.APIToken,
		load: load, table: table, http: &http.Client{Timeout: reportWait}, log: cfg.Log.With("api", api),
		changed: make(chan struct{}, 1), sent: map[string]leapcell.EdgeService{}}
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
			services := r.load.Load()
			r.forget(services)
			r.report(ctx, services)
		case <-r.changed:
			if changes := r.changes(); len(changes) > 0 {
				r.report(ctx, changes)
			}
		}
	}
}

// forget lets go of what was said of services that are no more.
func (r *reporter) forget(services []leapcell.EdgeService) {
	known := make(map[string]leapcell.EdgeService, len(services))
	for _, s := range services {
		if before, ok := r.sent[s.Key()]; ok {
			known[s.Key()] = before
		}
	}
	r.sent = known
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
