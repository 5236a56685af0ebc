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
	r := newReporter(Config{ID: "e/1", APIAddr: api.URL, APIToken: "t", Log: slog.New(slog.NewTextHandler(&log, nil))}, handler, routesAt(7))
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

// routesAt is a table of routes that stays at an index.
type routesAt uint64

func (r routesAt) RoutesIndex() uint64      { return uint64(r) }
func (r routesAt) Changed() <-chan struct{} { return nil }
