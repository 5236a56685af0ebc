package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

const (
	warmRate   = 1000 // requests a second
	peakVisits = 64   // at once
)

// warm compares a request through edge and gate with one through Traefik's own proxy to the
// same app, and with no proxy at all: at a rate that all of them manage, and at the most
// that each does. Then it does so again with an edge that knows many routes.
func warm(s *session, c config) ([]result, error) {
	service := s.p.Probe(s, harness.Spec{Settings: leapcell.Settings{
		MemoryMB: 2 * 1769, Concurrency: leapcell.MaxConcurrency, MaxInstances: 1, // two cores, like the others
	}})
	s.visit(service)
	app, stopApp := newBare(s, service).serve(s)
	defer stopApp()
	plain, stopPlain, err := plainTraefik(s, app)
	if err != nil {
		return nil, err
	}
	defer stopPlain()
	var out []result
	for _, n := range slices.Compact([]int{1, max(1, c.warmRoutes)}) {
		if n > 1 {
			if err := fill(s, 1, n); err != nil {
				return out, err
			}
		}
		w := ways{
			s: s, c: c, service: service, instance: service.Allocs(s)[0].ID,
			addresses: [...][2]string{{"direct", app}, {"traefik", plain}, {"leapcell", s.p.Config.EdgeAddress()}},
			samples:   sums{}, peaks: map[string][]float64{}, costs: map[string][]float64{},
		}
		for round := range c.shots + 1 { // the first fills pools and caches
			if err := w.round(round > 0); err != nil {
				return out, err
			}
			s.Logf("%d of %d", round, c.shots)
		}
		out = append(out, w.result(fmt.Sprintf("%d routes", n)))
	}
	return out, nil
}

// ways lead to the same app; a request takes one of them.
type ways struct {
	s         *session
	c         config
	service   *harness.Service
	instance  string
	addresses [3][2]string // name, address

	samples      sums
	peaks, costs map[string][]float64
}

// round sends load over each way.
func (w *ways) round(counts bool) error {
	for _, way := range w.addresses {
		name, sh := way[0], shot{address: way[1], host: w.service.Host, path: "/", last: w.c.shot}
		sh.rate = warmRate
		h, err := fire(w.s.ctx, sh)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		before := cpuTimes(w.s, w.instance)
		sh.rate, sh.workers, sh.last = 0, peakVisits, w.c.shot/2
		most, err := fire(w.s.ctx, sh)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if !counts {
			continue
		}
		for _, d := range h.latencies {
			w.samples.add(name, d)
		}
		w.peaks[name] = append(w.peaks[name], most.rate)
		for part, spent := range cpuTimes(w.s, w.instance) {
			if us := float64(spent-before[part]) / float64(time.Microsecond) / float64(len(most.latencies)); us > 0.5 {
				what := "CPU of " + part + " a request, " + name + ", us"
				w.costs[what] = append(w.costs[what], us)
			}
		}
	}
	return nil
}

func (w *ways) result(name string) result {
	out := result{Runtime: name, Figures: w.samples.summaries()}
	out.Added = out.Figures["leapcell"].P50 - out.Figures["traefik"].P50
	out.Other = map[string]float64{
		"added over Traefik, p99 ms": out.Figures["leapcell"].P99 - out.Figures["traefik"].P99,
		"peak of the app, rps":       mean(w.peaks["direct"]),
		"peak through Traefik, rps":  mean(w.peaks["traefik"]),
		"peak through leapcell, rps": mean(w.peaks["leapcell"]),
		"share of Traefik's peak":    mean(w.peaks["leapcell"]) / mean(w.peaks["traefik"]),
	}
	for what, us := range w.costs {
		out.Other[what] = mean(us)
	}
	return out
}

// cpuTimes is what those that take part have used so far. The app that runs on its own has the
// environment of the one in the instance.
func cpuTimes(s *session, instance string) map[string]time.Duration {
	out := map[string]time.Duration{}
	for name, all := range map[string][]harness.Process{
		"the app":        harness.Members(instance),
		"the client":     {{PID: os.Getpid()}},
		"the edge":       s.p.Parts("leapcell-edge", ""),
		"the supervisor": s.p.Parts("nomad-driver-leapcell", "supervisor"),
		"plain Traefik":  harness.Processes(func(p harness.Process) bool { return slices.Contains(p.Args(), "-plain") }),
	} {
		for _, p := range all {
			out[name] += cpuTime(s, p.PID)
		}
	}
	return out
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(max(len(v), 1))
}

// plainTraefik runs Traefik's entry point with Traefik's own proxy to address behind it, in
// a process of its own as the edge is.
func plainTraefik(s *session, target string) (address string, stop func(), err error) {
	address = freeAddress(s)
	ctx, cancel := context.WithCancel(s.ctx)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-plain", address+"="+target)
	if err := cmd.Start(); err != nil {
		cancel()
		return "", nil, err
	}
	stop = func() { cancel(); _ = cmd.Wait() } // "killed"
	if err := answers(s, address); err != nil {
		stop()
		return "", nil, fmt.Errorf("plain Traefik: %w", err)
	}
	return address, stop, nil
}
