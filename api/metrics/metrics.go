package metrics

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/deploy"
	"github.com/leapcell/leapcell/api/wake"
)

// otherServices stands for those above the limit; IDs of services end in eight characters of
// their own and are never that.
const otherServices = "other"

// callBuckets are in seconds.
var callBuckets = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 60}

// Scaler is api/wake's.
type Scaler interface{ Figures() wake.Figures }

// Usage is what nodes metered since this process was started, by service.
type Usage interface {
	Counted() map[string]leapcell.Counters
}

// Images are those of the registry, and what was collected of them since this process was started.
type Images interface {
	Collections() deploy.Collections
}

// Config is what [New] needs.
type Config struct {
	Scaler   Scaler
	Usage    Usage
	Images   Images
	Services int // with a label of their own; the first that are heard of
}

// Metrics are all there are of a control plane. Its methods may be called at any time.
type Metrics struct {
	cfg      Config
	registry *prometheus.Registry
	calls    *prometheus.CounterVec
	took     *prometheus.HistogramVec

	mu    sync.Mutex
	known map[string]bool // services with a label
}

// New makes them.
func New(cfg Config) *Metrics {
	m := &Metrics{cfg: cfg, registry: prometheus.NewRegistry(), known: map[string]bool{}}
	m.calls = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "leapcelld_api_requests_total",
		Help: "API calls by route and class of the status."}, []string{"route", "code"})
	m.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "leapcelld_api_request_duration_seconds",
		Help: "Time of API calls, streams included.", Buckets: callBuckets}, []string{"route"})
	m.registry.MustRegister(m.calls, m.took, m,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Called counts an API call; route is its pattern, "" for none.
func (m *Metrics) Called(route string, status int, took time.Duration) {
	if route == "" {
		route = "none"
	}
	m.calls.WithLabelValues(route, strconv.Itoa(status/100)+"xx").Inc()
	m.took.WithLabelValues(route).Observe(took.Seconds())
}

// ServeHTTP answers scrapes.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("leapcelld_"+name, help, labels, nil)
}

var (
	leadingDesc   = desc("scaler_leading", "1 if this control plane sizes the services, 0 if another one does.")
	edgesDesc     = desc("scaler_edges", "Edges that reported lately.")
	changesDesc   = desc("scaler_changes_total", "Changes of a deployment's number of instances by the scaler.", "direction")
	failuresDesc  = desc("scaler_failures_total", "Changes that Nomad or the store did not take.")
	instancesDesc = desc("instances", "Instances of deployments that visitors may reach; only at the leader.", "service", "state")

	collectionsDesc = desc("image_collections_total", "Times that images which no deployment needs were collected.", "result")
	collectedDesc   = desc("images_collected_total", "What was removed of images.", "what")
	freedDesc       = desc("images_freed_bytes_total", "Bytes that removing images freed.")
	imagesDesc      = desc("images_bytes", "Bytes of all images after the last collection.")

	usageDescs = []struct {
		desc *prometheus.Desc
		of   func(leapcell.Counters) float64
	}{
		{desc("usage_requests_total", "Requests that nodes metered.", "service"), func(c leapcell.Counters) float64 { return float64(c.Requests) }},
		{desc("usage_compute_seconds_total", "Time with a request in flight in serverless instances.", "service"), func(c leapcell.Counters) float64 { return float64(c.ComputeMS) / 1000 }},
		{desc("usage_running_seconds_total", "Running time of persistent instances.", "service"), func(c leapcell.Counters) float64 { return float64(c.RunningMS) / 1000 }},
		{desc("usage_build_seconds_total", "Time of builds.", "service"), func(c leapcell.Counters) float64 { return float64(c.BuildMS) / 1000 }},
		{desc("usage_egress_bytes_total", "Bytes of response bodies and WebSockets.", "service"), func(c leapcell.Counters) float64 { return float64(c.EgressBytes) }},
		{desc("usage_cold_starts_total", "Instances that were started and came to listen.", "service"), func(c leapcell.Counters) float64 { return float64(c.ColdStarts) }},
	}
)

// Describe is of the collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{leadingDesc, edgesDesc, changesDesc, failuresDesc, instancesDesc, collectionsDesc, collectedDesc, freedDesc, imagesDesc} {
		out <- d
	}
	for _, u := range usageDescs {
		out <- u.desc
	}
}

// Collect reads scaler and usage at a scrape.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	f := m.cfg.Scaler.Figures()
	leading := 0.0
	if f.Leading {
		leading = 1
	}
	gauge(leadingDesc, leading)
	gauge(edgesDesc, float64(f.Edges))
	counter(changesDesc, float64(f.Out), "out")
	counter(changesDesc, float64(f.In), "in")
	counter(changesDesc, float64(f.Dormant), "dormant")
	counter(failuresDesc, float64(f.Failed))

	images := m.cfg.Images.Collections()
	counter(collectionsDesc, float64(images.Done), "done")
	counter(collectionsDesc, float64(images.Failed), "failed")
	counter(collectedDesc, float64(images.Images), "image")
	counter(collectedDesc, float64(images.Freed.Manifests), "manifest")
	counter(collectedDesc, float64(images.Freed.Blobs), "blob")
	counter(collectedDesc, float64(images.Freed.Uploads), "upload")
	counter(freedDesc, float64(images.Freed.Bytes))
	gauge(imagesDesc, float64(images.Freed.Kept))

	sizes := map[string]wake.Size{}
	for id, size := range f.Instances {
		sum := sizes[m.label(id)]
		sizes[m.label(id)] = wake.Size{Wanted: sum.Wanted + size.Wanted, Ready: sum.Ready + size.Ready}
	}
	for label, size := range sizes {
		gauge(instancesDesc, float64(size.Wanted), label, "wanted")
		gauge(instancesDesc, float64(size.Ready), label, "ready")
	}
	usage := map[string]leapcell.Counters{}
	for id, c := range m.cfg.Usage.Counted() {
		usage[m.label(id)] = usage[m.label(id)].Plus(c)
	}
	for label, c := range usage {
		for _, u := range usageDescs {
			counter(u.desc, u.of(c), label)
		}
	}
}

// label is the service's own as long as there are some.
func (m *Metrics) label(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.known[id] {
		if len(m.known) >= m.cfg.Services {
			return otherServices
		}
		m.known[id] = true
	}
	return id
}
