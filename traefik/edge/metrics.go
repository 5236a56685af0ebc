package edge

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

const (
	// otherServices stands for the services above the limit, noService for requests that
	// found none. IDs of services end in eight characters of their own: neither is one.
	otherServices = "other"
	noService     = "none"

	// A service that was silent for staleAfter gives its label up when another one wants it;
	// that is looked at once per sweepPause, because it needs a lock.
	staleAfter = time.Hour
	sweepPause = time.Minute
)

var (
	startBuckets   = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	requestBuckets = append(startBuckets[:len(startBuckets):len(startBuckets)], 60, 300, 900)

	classes = [...]string{"other", "1xx", "2xx", "3xx", "4xx", "5xx"}
	// phaseNames are the phases of a cold request, in order of time.
	phaseNames = [...]string{"queue", "schedule", "sandbox", "app", "proxy"}
)

// knownReasons bound the label "reason": what answers behind the edge may write what it wants
// into the header that the edge takes it from.
var knownReasons = func() map[string]bool {
	out := map[string]bool{}
	for _, r := range wake.Reasons() {
		out[r] = true
	}
	for _, c := range []leapcell.Code{leapcell.CodeInvalid, leapcell.CodeTooLarge, leapcell.CodeUnavailable, leapcell.CodeInternal,
		leapcell.CodePortNotListening, leapcell.CodeStartExited, leapcell.CodeStartFailed, leapcell.CodeRequestTimeout,
		leapcell.CodeResponseTooLarge, leapcell.CodeUpgradeForbidden, leapcell.CodeInstanceCrashed} {
		out[string(c)] = true
	}
	return out
}()

// figures are the Prometheus metrics of an edge. A request costs one lookup in a map that is
// never changed, one counter and one histogram; the rest is for what is rare.
type figures struct {
	registry *prometheus.Registry
	limit    int // of services with a label of their own

	requests, refused, wakes, held, retries, broken, aborted *prometheus.CounterVec
	duration, phases                                         *prometheus.HistogramVec

	none, other *serviceFigures
	// services are copied to be changed.
	services atomic.Pointer[map[string]*serviceFigures]
	mu       sync.Mutex   // of those that change services
	sweep    atomic.Int64 // not before then again; ns since 1970
}

// serviceFigures are those of one service, found once.
type serviceFigures struct {
	name                           string
	requests                       [len(classes)]prometheus.Counter
	warm, cold                     prometheus.Observer
	phases                         [len(phaseNames)]prometheus.Observer
	held, retries, broken, aborted prometheus.Counter
	seen                           atomic.Int64 // the last request, give or take a second; ns since 1970
}

// newFigures makes the metrics of an edge; limit bounds the services with a label of their own.
func newFigures(limit int) *figures {
	f := &figures{registry: prometheus.NewRegistry(), limit: limit}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "leapcell_edge_" + name, Help: help}, labels)
		f.registry.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "leapcell_edge_" + name, Help: help, Buckets: buckets}, labels)
		f.registry.MustRegister(v)
		return v
	}
	f.requests = counter("requests_total", "Requests by class of their status; 4xx has those whose visitor left before an answer.", "service", "code")
	f.refused = counter("refused_total", "Requests that the edge or a gate answered instead of the app, by reason.", "service", "reason")
	f.wakes = counter("cold_starts_total", "Calls for the first instance of a deployment.", "service")
	f.held = counter("held_total", "Requests that waited for an instance or for a place on one.", "service")
	f.retries = counter("retries_total", "Moves of a request to another instance before one took it.", "service")
	f.broken = counter("broken_total", "Requests whose connection to the instance failed after they were sent.", "service")
	f.aborted = counter("aborted_total", "Answers of which the visitor did not get all.", "service")
	f.duration = histogram("request_duration_seconds", "Time from the request to the end of its answer by an instance, by whether it waited for a start (WebSocket left out).",
		requestBuckets, "service", "start")
	f.phases = histogram("cold_start_phase_seconds", "Phases of requests that waited for a start; together the time to the first byte.",
		startBuckets, "service", "phase")
	f.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	f.none, f.other = f.service(noService), f.service(otherServices)
	f.services.Store(&map[string]*serviceFigures{})
	return f
}

// service looks all figures of a label up.
func (f *figures) service(name string) *serviceFigures {
	s := &serviceFigures{name: name,
		warm: f.duration.WithLabelValues(name, "warm"), cold: f.duration.WithLabelValues(name, "cold"),
		held: f.held.WithLabelValues(name), retries: f.retries.WithLabelValues(name),
		broken: f.broken.WithLabelValues(name), aborted: f.aborted.WithLabelValues(name)}
	f.wakes.WithLabelValues(name)
	for i, class := range classes {
		s.requests[i] = f.requests.WithLabelValues(name, class)
	}
	for i, phase := range phaseNames {
		s.phases[i] = f.phases.WithLabelValues(name, phase)
	}
	return s
}

// of gives the figures that a route counts for at the time now.
func (f *figures) of(route *leapcell.Route, now time.Time) *serviceFigures {
	if route == nil {
		return f.none
	}
	services := *f.services.Load()
	s, ok := services[route.ServiceID]
	if !ok {
		if len(services) >= f.limit && now.UnixNano() < f.sweep.Load() {
			return f.other
		}
		s = f.add(route.ServiceID, now)
	}
	if last := s.seen.Load(); now.UnixNano()-last > int64(time.Second) {
		s.seen.Store(now.UnixNano())
	}
	return s
}

// add gives a service a label, in exchange for one of a service that was silent for long if
// there are no more.
func (f *figures) add(id string, now time.Time) *serviceFigures {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := *f.services.Load()
	if s, ok := before[id]; ok {
		return s
	}
	next := make(map[string]*serviceFigures, len(before)+1)
	full := len(before) >= f.limit
	for name, s := range before {
		if full && now.UnixNano()-s.seen.Load() > int64(staleAfter) {
			f.forget(name)
			continue
		}
		next[name] = s
	}
	s := f.other
	if len(next) < f.limit {
		s = f.service(id)
		s.seen.Store(now.UnixNano())
		next[id] = s
	} else {
		f.sweep.Store(now.Add(sweepPause).UnixNano())
	}
	f.services.Store(&next)
	return s
}

func (f *figures) forget(name string) {
	label := prometheus.Labels{"service": name}
	for _, v := range []interface {
		DeletePartialMatch(prometheus.Labels) int
	}{f.requests, f.refused, f.wakes, f.held, f.retries, f.broken, f.aborted, f.duration, f.phases} {
		v.DeletePartialMatch(label)
	}
}

// Visited counts a request.
func (f *figures) Visited(v *wake.Visit) {
	s := f.of(v.Route, v.Arrived)
	class := v.Status / 100
	if class >= len(classes) {
		class = 0
	}
	s.requests[class].Inc()
	if v.Instance != "" && v.Status != http.StatusSwitchingProtocols {
		if v.Cold {
			s.cold.Observe(v.Took.Seconds())
		} else {
			s.warm.Observe(v.Took.Seconds())
		}
	}
	if v.Timed {
		for i, d := range phaseTimes(v.Phases) {
			s.phases[i].Observe(d.Seconds())
		}
	}
	if v.Held {
		s.held.Inc()
	}
	if v.Retries > 0 {
		s.retries.Add(float64(v.Retries))
	}
	if v.Broken {
		s.broken.Inc()
	}
	if v.Aborted {
		s.aborted.Inc()
	}
	if v.Refused != "" {
		reason := v.Refused
		if !knownReasons[reason] {
			reason = "other"
		}
		f.refused.WithLabelValues(s.name, reason).Inc()
	}
}

// phaseTimes are the times of phaseNames.
func phaseTimes(p wake.Phases) [len(phaseNames)]time.Duration {
	return [...]time.Duration{p.Queue, p.Schedule, p.Sandbox, p.App, p.Proxy}
}

// Woke counts a call for a first instance.
func (f *figures) Woke(route *leapcell.Route) {
	f.wakes.WithLabelValues(f.of(route, time.Now()).name).Inc()
}

// handler answers scrapes.
func (f *figures) handler() http.Handler {
	return promhttp.HandlerFor(f.registry, promhttp.HandlerOpts{})
}

// loads is who knows what goes on at the moment.
type loads interface{ Load() []leapcell.EdgeService }

// sizes is who knows how much the tables have, and how old they are.
type sizes interface {
	Sizes() (hosts, deployments, instances int)
	Ages() (routes, instances time.Duration)
}

var (
	inFlightDesc    = prometheus.NewDesc("leapcell_edge_in_flight", "Requests on instances.", []string{"service"}, nil)
	queuedDesc      = prometheus.NewDesc("leapcell_edge_queued", "Requests that wait.", []string{"service"}, nil)
	hostsDesc       = prometheus.NewDesc("leapcell_edge_routes", "Host names with a route.", nil, nil)
	deploymentsDesc = prometheus.NewDesc("leapcell_edge_deployments_running", "Deployments with an instance.", nil, nil)
	instancesDesc   = prometheus.NewDesc("leapcell_edge_instances", "Instances that requests can go to.", nil, nil)
	ageDesc         = prometheus.NewDesc("leapcell_edge_table_age_seconds", "Time since Nomad said last what routes or instances there are; a minute is normal.", []string{"table"}, nil)
)

// state is a collector of what is, rather than of what was.
type state struct {
	figures *figures
	load    loads
	table   sizes
}

// Describe is of the collector.
func (s *state) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{inFlightDesc, queuedDesc, hostsDesc, deploymentsDesc, instancesDesc, ageDesc} {
		out <- d
	}
}

// Collect reads the state at a scrape.
func (s *state) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	type load struct{ inFlight, queued int }
	byName := map[string]load{otherServices: {}}
	services := *s.figures.services.Load()
	for _, one := range s.load.Load() {
		name := otherServices
		if _, ok := services[one.ServiceID]; ok {
			name = one.ServiceID
		}
		sum := byName[name]
		byName[name] = load{sum.inFlight + one.InFlight, sum.queued + one.Queued}
	}
	for name, sum := range byName {
		gauge(inFlightDesc, float64(sum.inFlight), name)
		gauge(queuedDesc, float64(sum.queued), name)
	}
	hosts, deployments, instances := s.table.Sizes()
	routes, others := s.table.Ages()
	gauge(hostsDesc, float64(hosts))
	gauge(deploymentsDesc, float64(deployments))
	gauge(instancesDesc, float64(instances))
	gauge(ageDesc, routes.Seconds(), "routes")
	gauge(ageDesc, others.Seconds(), "instances")
}
