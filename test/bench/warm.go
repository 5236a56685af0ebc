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
// that each does.
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
	ways := []struct{ name, address string }{
		{"direct", app}, {"traefik", plain}, {"leapcell", s.p.Config.EdgeAddress()},
	}
	instance := service.Allocs(s)[0].ID
	samples, peaks, costs := sums{}, map[string][]float64{}, map[string][]float64{}
	for n := range c.shots + 1 { // the first fills pools and caches
		for _, way := range ways {
			h, err := fire(s.ctx, shot{address: way.address, host: service.Host, path: "/", rate: warmRate, last: c.shot})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", way.name, err)
			}
			before := cpuTimes(s, instance)
			most, err := fire(s.ctx, shot{address: way.address, host: service.Host, path: "/", workers: peakVisits, last: c.shot / 2})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", way.name, err)
			}
			if n == 0 {
				continue
			}
			for _, d := range h.latencies {
				samples.add(way.name, d)
			}
			peaks[way.name] = append(peaks[way.name], most.rate)
			for part, spent := range cpuTimes(s, instance) {
				if us := float64(spent-before[part]) / float64(time.Microsecond) / float64(len(most.latencies)); us > 0.5 {
					name := "CPU of " + part + " a request, " + way.name + ", us"
					costs[name] = append(costs[name], us)
				}
			}
		}
		s.Logf("%d of %d", n, c.shots)
	}
	out := result{Runtime: "go", Figures: samples.summaries()}
	out.Added = out.Figures["leapcell"].P50 - out.Figures["traefik"].P50
	out.Other = map[string]float64{
		"added over Traefik, p99 ms": out.Figures["leapcell"].P99 - out.Figures["traefik"].P99,
		"peak of the app, rps":       mean(peaks["direct"]),
		"peak through Traefik, rps":  mean(peaks["traefik"]),
		"peak through leapcell, rps": mean(peaks["leapcell"]),
		"share of Traefik's peak":    mean(peaks["leapcell"]) / mean(peaks["traefik"]),
	}
	for name, us := range costs {
		out.Other[name] = mean(us)
	}
	return []result{out}, nil
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
