package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

func TestReporterSaysOnceThatTheAPIIsAway(t *testing.T) {
	var log bytes.Buffer
	status, reports := 500, 0
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var got leapcell.EdgeReport
		b, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(b, &got); err != nil || got.Edge != "e/1" || got.RoutesIndex != 7 || r.URL.EscapedPath() != "/v1/edges/e%2F1/report" {
			t.Errorf("report %s to %s: %v", b, r.URL, err)
		}
		reports++
		w.WriteHeader(status)
	}))
	defer api.Close()
	handler := wake.New(wake.Config{Table: &fixedTable{}})
	defer handler.Close()
	r := newReporter(Config{ID: "e/1", APIToken: "t", Log: slog.New(slog.NewTextHandler(&log, nil))}, api.URL, handler, routesAt(7))
	services := []leapcell.EdgeService{{ServiceID: "s", Requests: 1}}
	for _, status = range []int{500, 500, 204, 204, 500} {
		r.report(context.Background(), services)
	}
	if got := strings.Count(log.String(), "\n"); reports != 5 || got != 3 {
		t.Errorf("%d reports, %d log lines, want 5 and 3:\n%s", reports, got, log.String())
	}
	if r.sent["s"] != services[0] {
		t.Errorf("remembered %+v", r.sent)
	}
}

// TestEveryControlPlaneHears: one that never answers and one that is not there keep nobody waiting.
func TestEveryControlPlaneHears(t *testing.T) {
	heard := make(chan string, 64)
	listening := func(name string) string {
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var got leapcell.EdgeReport
			if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
				t.Error(err)
			}
			for _, s := range got.Services {
				if s.Requests == 1 {
					select {
					case heard <- name:
					default:
					}
				}
			}
			w.WriteHeader(http.StatusNoContent)
		}))
		t.Cleanup(api.Close)
		return api.URL
	}
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer silent.Close()
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer app.Close()
	table := &fixedTable{changed: make(chan struct{}), instances: []leapcell.Instance{{ID: "a", Address: app.Listener.Addr().String()}},
		route: leapcell.Route{ServiceID: "s", Deployment: "d"}}
	handler := wake.New(wake.Config{Table: table, Scaler: table})
	defer handler.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		reportLoad(ctx, Config{ID: "e", Log: slog.New(slog.DiscardHandler),
			APIAddrs: []string{silent.URL, "http://127.0.0.1:1", listening("first"), listening("second")}}, handler, routesAt(0))
	}()
	handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://app.example/", nil))
	for missing := map[string]bool{"first": true, "second": true}; len(missing) > 0; {
		delete(missing, <-heard)
	}
	cancel()
	<-done
}

func TestReporterForgetsServicesThatAreNoMore(t *testing.T) {
	r := &reporter{sent: map[string]leapcell.EdgeService{"gone": {ServiceID: "gone"}, "s": {ServiceID: "s", Requests: 3}}}
	r.forget([]leapcell.EdgeService{{ServiceID: "s", Requests: 4}, {ServiceID: "new"}})
	if len(r.sent) != 1 || r.sent["s"].Requests != 3 {
		t.Errorf("remembered %+v", r.sent)
	}
}

// routesAt is a table of routes that stays at an index.
type routesAt uint64

func (r routesAt) RoutesIndex() uint64      { return uint64(r) }
func (r routesAt) Changed() <-chan struct{} { return nil }
