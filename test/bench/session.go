package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell/test/harness"
)

// session lets a program use what the harness made for tests: it is a test of one run.
type session struct {
	testing.TB // never called: all that the harness needs is below
	p          *harness.Platform
	ctx        context.Context
	seed       uint64
	chart      *chart            // of the report; nil for the usual one
	nodes      map[string]string // by the OCI runtime

	mu       sync.Mutex // of what is below: services are deployed side by side
	cleanups []func()
	dirs     []string
	notes    []string
	failed   []string
}

// stopped ends a session from within.
type stopped struct{ err error }

func inSession(ctx context.Context, p *harness.Platform, seed uint64, f func(*session) error) (s *session, err error) {
	s = &session{p: p, ctx: ctx, seed: seed}
	defer func() {
		for _, c := range slices.Backward(s.cleanups) {
			err = errors.Join(err, caught(func() error { c(); return nil }))
		}
		for _, d := range s.dirs {
			err = errors.Join(err, os.RemoveAll(d))
		}
		if err == nil && len(s.failed) > 0 {
			err = errors.New(strings.Join(s.failed, "; "))
		}
	}()
	return s, caught(func() error { return f(s) })
}

// caught gives what stopped the session within f as an error.
func caught(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			stop, ok := r.(stopped)
			if !ok {
				panic(r)
			}
			err = stop.err
		}
	}()
	return f()
}

// note is for whoever reads the report.
func (s *session) note(format string, args ...any) {
	s.Logf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

func (s *session) Helper()                  {}
func (s *session) Name() string             { return "bench" }
func (s *session) Failed() bool             { return false }
func (s *session) Context() context.Context { return s.ctx }
func (s *session) Fatal(args ...any)        { panic(stopped{errors.New(fmt.Sprint(args...))}) }
func (s *session) Fatalf(format string, args ...any) {
	panic(stopped{fmt.Errorf(format, args...)})
}
func (s *session) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (s *session) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *session) Errorf(format string, args ...any) {
	s.Logf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, fmt.Sprintf(format, args...))
}

func (s *session) TempDir() string {
	d, err := os.MkdirTemp("", "leapcell-bench-")
	if err != nil {
		s.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs = append(s.dirs, d)
	return d
}

// probes deploys the probe app n times, some side by side.
func (s *session) probes(n int, spec func(i int) harness.Spec) ([]*harness.Service, error) {
	services := make([]*harness.Service, n)
	var deploys errgroup.Group
	deploys.SetLimit(3) // as many builds as the platform does at a time
	for i := range services {
		deploys.Go(func() error {
			return caught(func() error { services[i] = s.p.Probe(s, spec(i)); return nil })
		})
	}
	return services, deploys.Wait()
}

// deploy brings a sample up, or the probe app, whose build fetches nothing.
func (s *session) deploy(runtime string) *harness.Service {
	if runtime == "probe" {
		return s.p.Probe(s, harness.Spec{})
	}
	name := harness.Name(s)
	s.Logf("deploying examples/%s as %s", runtime, name)
	s.p.Must(s, "deploy", filepath.Join(s.p.Root, "examples", runtime), "--name", name)
	return s.p.Adopt(s, s.p.Service(s, name))
}

// visit measures one visit, to the last byte.
func (s *session) visit(service *harness.Service) (time.Duration, harness.Reply) {
	begin := time.Now()
	r := service.Get(s, "/")
	took := time.Since(begin)
	if r.Status != 200 || r.Err != nil {
		s.Fatalf("%s answered %d %.200q %v", service.Name, r.Status, r.Body, r.Err)
	}
	return took, r
}

// summary of many samples, in milliseconds.
type summary struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// sums collects samples by name.
type sums map[string][]float64

func (m sums) add(name string, d time.Duration) {
	m[name] = append(m[name], float64(d)/float64(time.Millisecond))
}

// addPhases adds those of a Server-Timing header.
func (m sums) addPhases(header string) {
	seen := timing(header)
	for _, phase := range phases {
		if d, ok := seen[phase]; ok {
			m.add(phase, d)
		}
	}
}

func (m sums) summaries() map[string]summary {
	out := map[string]summary{}
	for name, samples := range m {
		slices.Sort(samples)
		at := func(q float64) float64 { return samples[int(math.Ceil(q*float64(len(samples))))-1] }
		out[name] = summary{len(samples), at(0.5), at(0.9), at(0.99), samples[len(samples)-1]}
	}
	return out
}

// timing reads a Server-Timing header.
func timing(header string) map[string]time.Duration {
	out := map[string]time.Duration{}
	for entry := range strings.SplitSeq(header, ",") {
		name, rest, _ := strings.Cut(strings.TrimSpace(entry), ";")
		var ms float64
		if _, err := fmt.Sscanf(strings.TrimSpace(rest), "dur=%g", &ms); err == nil {
			out[name] = time.Duration(ms * float64(time.Millisecond))
		}
	}
	return out
}
