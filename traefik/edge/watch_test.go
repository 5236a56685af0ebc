package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

// watched is an edge with all by which it can be watched, before an app that a test writes.
type watched struct {
	t       *testing.T
	address string
	log     string // the access log's file
	metrics http.Handler
	stop    func() // the edge has ended, with all that it had to say
}

// noTable has fixed sizes.
type noTable struct{}

func (noTable) Sizes() (int, int, int)               { return 3, 2, 1 }
func (noTable) Ages() (time.Duration, time.Duration) { return time.Second, 2 * time.Second }

func startWatched(t *testing.T, cfg Config, app http.HandlerFunc) *watched {
	t.Helper()
	instance := httptest.NewServer(app)
	t.Cleanup(instance.Close)
	w := &watched{t: t, log: filepath.Join(t.TempDir(), "access.log")}
	cfg.AccessLog, cfg.AdminListen, cfg.MetricsServices, cfg.ID, cfg.Drain = w.log, "somewhere", 10, "e1", 10*time.Second
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	watch, err := newWatch(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	table := &fixedTable{changed: make(chan struct{}), instances: []leapcell.Instance{{ID: "alloc-1", Address: instance.Listener.Addr().String()}},
		route: leapcell.Route{ServiceID: "app-id", Deployment: "app-1", Concurrency: 10, Ignore: leapcell.Ignore{Paths: []string{"/up"}}}}
	handler := wake.New(wake.Config{Table: table, Scaler: table, Observer: watch.observer()})
	w.metrics = watch.metrics(handler, noTable{})
	address, stopFront := startFront(t, cfg, handler, watch.traces)
	w.address = address
	var stopped bool
	w.stop = func() {
		if !stopped {
			stopped = true
			stopFront()
			handler.Close()
			watch.close(cfg.Log)
		}
	}
	t.Cleanup(w.stop)
	return w
}

func (w *watched) get(path string, header ...string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequest("GET", "http://"+w.address+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = "app.test"
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (w *watched) scrape() string {
	w.t.Helper()
	rec := httptest.NewRecorder()
	w.metrics.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != 200 {
		w.t.Fatalf("the scrape got %d: %s", rec.Code, rec.Body)
	}
	return rec.Body.String()
}

// coldOnce is an app behind a gate that says, once, how long the start took.
func coldOnce() http.HandlerFunc {
	cold := true
	return func(w http.ResponseWriter, r *http.Request) {
		if cold {
			w.Header().Set(leapcell.HeaderTiming, "sandbox=0.002,app=0.001")
			cold = false
		}
		w.Header().Set("Seen", r.Header.Get("Traceparent"))
		if r.URL.Path == "/no" {
			w.Header().Set(leapcell.HeaderError, "an app may write anything here")
			w.WriteHeader(502)
			return
		}
		io.WriteString(w, "hello")
	}
}

func TestMetricsOfAnEdge(t *testing.T) {
	w := startWatched(t, Config{}, coldOnce())
	for _, path := range []string{"/", "/", "/no", "/up"} {
		io.Copy(io.Discard, w.get(path).Body)
	}
	got := w.scrape()
	for _, line := range []string{
		`leapcell_edge_requests_total{code="2xx",service="app-id"} 3`,
		`leapcell_edge_requests_total{code="5xx",service="app-id"} 1`,
		`leapcell_edge_refused_total{reason="other",service="app-id"} 1`,
		`leapcell_edge_refused_total{reason="ignored",service="app-id"} 1`,
		`leapcell_edge_request_duration_seconds_count{service="app-id",start="cold"} 1`,
		`leapcell_edge_request_duration_seconds_count{service="app-id",start="warm"} 2`,
		`leapcell_edge_cold_start_phase_seconds_count{phase="proxy",service="app-id"} 1`,
		`leapcell_edge_cold_starts_total{service="app-id"} 0`,
		`leapcell_edge_retries_total{service="app-id"} 0`,
		`leapcell_edge_in_flight{service="app-id"} 0`,
		`leapcell_edge_queued{service="app-id"} 0`,
		`leapcell_edge_routes 3`, `leapcell_edge_deployments_running 2`, `leapcell_edge_instances 1`,
		`leapcell_edge_table_age_seconds{table="instances"} 2`,
		`leapcell_edge_access_log_lost_total 0`,
	} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("the scrape has no line %s", line)
		}
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(got, "\n"+name+" ") {
			t.Errorf("the scrape has no %s", name)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "leapcell_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func visitOf(service string, at time.Time) *wake.Visit {
	return &wake.Visit{Request: httptest.NewRequest("GET", "/", nil), Arrived: at, Route: &leapcell.Route{ServiceID: service}, Status: 200, Instance: "a"}
}

func TestServicesAboveTheLimitShareALabel(t *testing.T) {
	f := newFigures(2)
	now := time.Now()
	count := func(service string) int {
		rec := httptest.NewRecorder()
		f.handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
		n := -1
		for line := range strings.Lines(rec.Body.String()) {
			fmt.Sscanf(line, `leapcell_edge_requests_total{code="2xx",service="`+service+`"} %d`, &n)
		}
		return n
	}
	for i := range 100 {
		f.Visited(visitOf(fmt.Sprint("s", i), now))
		f.Woke(&leapcell.Route{ServiceID: fmt.Sprint("s", i)})
	}
	f.Visited(visitOf("s1", now.Add(2*staleAfter)))
	for service, want := range map[string]int{"s0": 1, "s1": 2, "s2": -1, "s99": -1, "other": 98} {
		if got := count(service); got != want {
			t.Errorf("%s has %d requests, want %d", service, got, want)
		}
	}
	// s0 was silent for long: who wants its label gets it. s1 was not.
	for range 2 {
		f.Visited(visitOf("new", now.Add(2*staleAfter)))
	}
	f.Visited(visitOf("late", now.Add(2*staleAfter)))
	for service, want := range map[string]int{"s0": -1, "s1": 2, "new": 2, "late": -1, "other": 99} {
		if got := count(service); got != want {
			t.Errorf("later %s has %d requests, want %d", service, got, want)
		}
	}
}

// accessLine is what is read of a line.
type accessLine struct {
	Time                                      time.Time
	RequestID, Service, Deployment, Instance  string
	RequestMethod, RequestHost, RequestPath   string
	DownstreamStatus                          int
	DownstreamContentSize, Duration           int64
	Cold, Aborted                             bool
	Phases                                    map[string]int64
	RetryAttempts                             int
	Refused, TraceId, RequestProtocol, Client string
}

func (w *watched) lines() []accessLine {
	w.t.Helper()
	b, err := os.ReadFile(w.log)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []accessLine
	for line := range strings.Lines(string(b)) {
		var l accessLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			w.t.Fatalf("line %q: %v", line, err)
		}
		out = append(out, l)
	}
	return out
}

func TestAccessLogIsComplete(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	cold := coldOnce()
	w := startWatched(t, Config{}, func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/half":
			rw.Header().Set("Content-Length", "100")
			io.WriteString(rw, "half")
			rw.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/long":
			close(inside)
			select {
			case <-leave:
			case <-r.Context().Done():
			}
		default:
			cold(rw, r)
		}
	})
	io.Copy(io.Discard, w.get("/a%20b?secret=1", "X-Request-Id", "mine").Body)
	io.Copy(io.Discard, w.get("/up").Body)
	if _, err := io.ReadAll(w.get("/half").Body); err == nil {
		t.Error("half an answer passed for a whole one")
	}
	ctx, give := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+w.address+"/long", nil)
	gone := make(chan error, 1)
	go func() { _, err := http.DefaultClient.Do(req); gone <- err }()
	<-inside
	give()
	if err := <-gone; err == nil {
		t.Error("the visitor who left got an answer")
	}
	w.stop() // waits for the last request
	close(leave)

	lines := w.lines()
	if len(lines) != 4 {
		t.Fatalf("%d lines, want 4: %+v", len(lines), lines)
	}
	first := lines[0]
	if first.Time.IsZero() || first.Duration <= 0 || len(first.Phases) != len(phaseNames) {
		t.Errorf("the first line is %+v", first)
	}
	first.Time, first.Duration, first.Phases, first.Client = time.Time{}, 0, nil, ""
	if want := (accessLine{RequestID: "mine", Service: "app-id", Deployment: "app-1", Instance: "alloc-1", RequestMethod: "GET", RequestHost: "app.test",
		RequestPath: "/a%20b", RequestProtocol: "HTTP/1.1", DownstreamStatus: 200, DownstreamContentSize: 5, Cold: true}); !same(first, want) {
		t.Errorf("the first line is\n%+v, want\n%+v", first, want)
	}
	if l := lines[1]; l.DownstreamStatus != 204 || l.Refused != "ignored" || l.Cold {
		t.Errorf("the ignored request is %+v", l)
	}
	if l := lines[2]; l.DownstreamStatus != 200 || l.DownstreamContentSize != 4 || !l.Aborted || l.Refused == "" {
		t.Errorf("the half answer is %+v", l)
	}
	if l := lines[3]; l.DownstreamStatus != wake.StatusGone || l.Refused == "" || l.RequestMethod != "POST" {
		t.Errorf("the visitor who left is %+v", l)
	}
}

func same(a, b accessLine) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

// fullDisk takes nothing as long as it is full.
type fullDisk struct{ full bool }

func (f *fullDisk) Write(p []byte) (int, error) {
	if f.full {
		return 0, errors.New("no space left")
	}
	return len(p), nil
}
func (f *fullDisk) Close() error { return nil }

func TestAFullDiskCostsLinesAndIsSaidOnce(t *testing.T) {
	var said strings.Builder
	disk := &fullDisk{full: true}
	a := &accessLog{out: disk, log: slog.New(slog.NewTextHandler(&said, nil))}
	for range 3 {
		a.Visited(visitOf("s", time.Now()))
	}
	disk.full = false
	for range 3 {
		a.Visited(visitOf("s", time.Now()))
	}
	if a.lost.Load() != 3 || strings.Count(said.String(), "\n") != 2 {
		t.Errorf("%d lines are lost, and it was said: %s", a.lost.Load(), said.String())
	}
}

// What visitors write into a line must not make another line, or another field.
func TestAccessLineStaysALine(t *testing.T) {
	texts := []string{"", `","Cold":true,"x":"`, "\u2028{}", "\xff\xfe", strings.Repeat("\"", 2*longestText), strings.Repeat("ü", longestText)}
	for c := range 256 {
		texts = append(texts, "a"+string([]byte{byte(c)})+"b")
	}
	for _, text := range texts {
		r := httptest.NewRequest("GET", "/", nil)
		r.Method, r.Host, r.RequestURI, r.RemoteAddr, r.Proto = text, text, "/"+text, text, text
		r.Header["X-Request-Id"] = []string{text}
		line := appendLine(nil, &wake.Visit{Request: r, Status: 200})
		if strings.Count(string(line), "\n") != 1 {
			t.Fatalf("not one line: %q", line)
		}
		var got map[string]any
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if got["DownstreamStatus"] != 200.0 || got["Cold"] != false || len(got) != 12 {
			t.Fatalf("the line has other fields: %q", line)
		}
	}
}

// collect is an OpenTelemetry collector as far as an edge knows it.
func collect(t *testing.T) (url string, spansOf func() []*spans.Span) {
	got := make(chan *spans.Span, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var export collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(b, &export); err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Key") != "k" {
			t.Errorf("export to %s with %v: %v", r.URL, r.Header, err)
		}
		for _, of := range export.ResourceSpans {
			for _, scope := range of.ScopeSpans {
				for _, s := range scope.Spans {
					got <- s
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, func() (out []*spans.Span) {
		for len(got) > 0 {
			out = append(out, <-got)
		}
		return out
	}
}

func TestTracesGoThroughTheEdge(t *testing.T) {
	url, exported := collect(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "key=k")
	w := startWatched(t, Config{Traces: "http/protobuf"}, coldOnce())
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	seen := w.get("/", "Traceparent", "00-"+trace+"-"+parent+"-01").Header.Get("Seen")
	other := w.get("/").Header.Get("Seen")
	unsampled := w.get("/", "Traceparent", "00-"+trace+"-"+parent+"-00").Header.Get("Seen")
	w.stop()

	byName := map[string][]*spans.Span{}
	for _, s := range exported() {
		byName[s.Name] = append(byName[s.Name], s)
	}
	if len(byName["GET"]) != 2 {
		t.Fatalf("%d spans of requests were sent, want 2: %v", len(byName["GET"]), byName)
	}
	first := byName["GET"][0]
	if fmt.Sprintf("%x", first.TraceId) != trace || fmt.Sprintf("%x", first.ParentSpanId) != parent {
		t.Errorf("the first span is %x of %x", first.ParentSpanId, first.TraceId)
	}
	if want := fmt.Sprintf("00-%s-%x-01", trace, first.SpanId); seen != want {
		t.Errorf("the app got %q, want %q", seen, want)
	}
	if want := fmt.Sprintf("00-%x-%x-01", byName["GET"][1].TraceId, byName["GET"][1].SpanId); other != want {
		t.Errorf("without a trace of the visitor's the app got %q, want %q", other, want)
	}
	if !strings.HasPrefix(unsampled, "00-"+trace+"-") || !strings.HasSuffix(unsampled, "-00") {
		t.Errorf("of a trace that is not kept the app got %q", unsampled)
	}
	about := map[string]string{}
	for _, a := range first.Attributes {
		about[a.Key] = a.Value.String()
	}
	for name, want := range map[string]string{"leapcell.service": "app-id", "leapcell.deployment": "app-1", "leapcell.instance": "alloc-1",
		"leapcell.cold": "true", "http.response.status_code": "200"} {
		if !strings.Contains(about[name], want) {
			t.Errorf("the attribute %s is %q, want %s", name, about[name], want)
		}
	}
	phases := byName["cold start: proxy"]
	if len(phases) != 1 || string(phases[0].ParentSpanId) != string(first.SpanId) || phases[0].EndTimeUnixNano > first.EndTimeUnixNano {
		t.Errorf("the phase is %v", phases)
	}
	if l := w.lines()[0]; l.TraceId != trace {
		t.Errorf("the access log has the trace %q", l.TraceId)
	}
}

func TestWithoutTracesTheHeaderPassesUnchanged(t *testing.T) {
	w := startWatched(t, Config{}, coldOnce())
	const sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if seen := w.get("/", "Traceparent", sent).Header.Get("Seen"); seen != sent {
		t.Errorf("the app got %q", seen)
	}
	if seen := w.get("/").Header.Get("Seen"); seen != "" {
		t.Errorf("the app got %q although nobody sent one", seen)
	}
}
