package metrics

import (
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/deploy"
	"github.com/leapcell/leapcell/api/registry"
	"github.com/leapcell/leapcell/api/wake"
)

type fixed struct {
	figures wake.Figures
	usage   map[string]leapcell.Counters
}

func (f *fixed) Figures() wake.Figures { return f.figures }
func (f *fixed) Collections() deploy.Collections {
	return deploy.Collections{Done: 10, Failed: 11, Images: 12, Freed: registry.Freed{Manifests: 13, Blobs: 14, Uploads: 15, Bytes: 16, Kept: 17}}
}
func (f *fixed) Counted() map[string]leapcell.Counters { return f.usage }

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	rec := httptest.NewRecorder()
	m.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != 200 {
		t.Fatalf("the scrape got %d: %s", rec.Code, rec.Body)
	}
	return rec.Body.String()
}

func TestMetrics(t *testing.T) {
	f := &fixed{figures: wake.Figures{Leading: true, Edges: 2, Out: 3, In: 4, Dormant: 5, Failed: 6,
		Instances: map[string]wake.Size{"app": {Wanted: 2, Ready: 1}}},
		usage: map[string]leapcell.Counters{"app": {Requests: 7, ComputeMS: 1500, RunningMS: 2500, BuildMS: 500, EgressBytes: 8, ColdStarts: 9}}}
	m := New(Config{Scaler: f, Usage: f, Images: f, Services: 10})
	m.Called("/v1/services", 200, time.Millisecond)
	m.Called("", 404, time.Millisecond)
	got := scrape(t, m)
	for _, line := range []string{
		`leapcelld_scaler_leading 1`, `leapcelld_scaler_edges 2`, `leapcelld_scaler_failures_total 6`,
		`leapcelld_scaler_changes_total{direction="out"} 3`, `leapcelld_scaler_changes_total{direction="in"} 4`,
		`leapcelld_scaler_changes_total{direction="dormant"} 5`,
		`leapcelld_instances{service="app",state="wanted"} 2`, `leapcelld_instances{service="app",state="ready"} 1`,
		`leapcelld_usage_requests_total{service="app"} 7`, `leapcelld_usage_compute_seconds_total{service="app"} 1.5`,
		`leapcelld_usage_running_seconds_total{service="app"} 2.5`, `leapcelld_usage_build_seconds_total{service="app"} 0.5`,
		`leapcelld_usage_egress_bytes_total{service="app"} 8`, `leapcelld_usage_cold_starts_total{service="app"} 9`,
		`leapcelld_image_collections_total{result="done"} 10`, `leapcelld_image_collections_total{result="failed"} 11`,
		`leapcelld_images_collected_total{what="image"} 12`, `leapcelld_images_collected_total{what="manifest"} 13`,
		`leapcelld_images_collected_total{what="blob"} 14`, `leapcelld_images_collected_total{what="upload"} 15`,
		`leapcelld_images_freed_bytes_total 16`, `leapcelld_images_bytes 17`,
		`leapcelld_api_requests_total{code="2xx",route="/v1/services"} 1`, `leapcelld_api_requests_total{code="4xx",route="none"} 1`,
		`leapcelld_api_request_duration_seconds_count{route="none"} 1`,
	} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("the scrape has no line %s", line)
		}
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "leapcelld_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestServicesAboveTheLimitShareALabel(t *testing.T) {
	f := &fixed{usage: map[string]leapcell.Counters{"a": {Requests: 1}}}
	m := New(Config{Scaler: f, Usage: f, Images: f, Services: 1})
	scrape(t, m) // a has the label
	f.usage = map[string]leapcell.Counters{"a": {Requests: 1}, "b": {Requests: 2}, "c": {Requests: 3}}
	f.figures = wake.Figures{Leading: true, Instances: map[string]wake.Size{"b": {Wanted: 1}, "c": {Wanted: 1, Ready: 1}}}
	got := scrape(t, m)
	for _, line := range []string{
		`leapcelld_usage_requests_total{service="a"} 1`, `leapcelld_usage_requests_total{service="other"} 5`,
		`leapcelld_instances{service="other",state="wanted"} 2`, `leapcelld_instances{service="other",state="ready"} 1`,
	} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("the scrape has no line %s", line)
		}
	}
	if strings.Contains(got, `"b"`) || strings.Contains(got, `"c"`) {
		t.Errorf("services above the limit have labels:\n%s", got)
	}
}

var metricName = regexp.MustCompile(`leapcelld_[a-z_]+`)

// What the manual and the dashboard ask for must exist.
func TestDocumentedMetricsExist(t *testing.T) {
	f := &fixed{figures: wake.Figures{Leading: true, Instances: map[string]wake.Size{"a": {}}}, usage: map[string]leapcell.Counters{"a": {}}}
	m := New(Config{Scaler: f, Usage: f, Images: f, Services: 1})
	m.Called("/", 200, 0)
	have := map[string]bool{}
	for _, name := range metricName.FindAllString(scrape(t, m), -1) {
		have[name] = true
	}
	for _, file := range []string{"../../docs/operations.md", "../../docs/grafana.json"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		names := metricName.FindAllString(string(b), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric: the test looks in the wrong place", file)
		}
		for _, name := range names {
			if !have[name] && name != "leapcelld_usage_" { // all of these
				t.Errorf("%s names %s, which the control plane does not have", file, name)
			}
		}
	}
}
