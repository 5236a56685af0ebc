package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

const (
	mixedServices = 10
	mixedRate     = 300 // requests a second, over all services
	slowestAnswer = 5 * time.Second
	slowestStart  = 10 * time.Second
	smallest      = 10      // bytes of an answer
	largest       = 5 << 20 // of those
)

// mixed plays an ordinary bad day: services that start in up to ten seconds and answer in
// up to five, with up to 5 MB, and in the middle of it a deploy, a rollback, a change of
// variables, a scale to zero and a drained node. Not one request may fail.
func mixed(s *session, c config) ([]result, error) {
	services := make([]*harness.Service, mixedServices)
	for i := range services {
		delay := slowestStart * time.Duration(i) / (mixedServices - 1)
		services[i] = s.p.Probe(s, harness.Spec{
			Settings: leapcell.Settings{MemoryMB: 512, StartTimeout: leapcell.Duration(30 * time.Second)},
			Env:      map[string]string{"LISTEN_DELAY": delay.String()},
		})
	}
	s.Logf("%d services are live", len(services))
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	var events sync.WaitGroup
	events.Go(func() {
		defer catch(s)
		misfortunes(ctx, s, services, c.last)
	})
	samples, failures := visitAll(ctx, s, services, c.last)
	cancel()
	events.Wait()
	for _, f := range failures[:min(len(failures), 20)] {
		s.Logf("failed: %s", f)
	}
	out := result{Runtime: "ten services", Figures: samples.summaries(), Other: map[string]float64{
		"requests": float64(len(samples["total"])), "failed": float64(len(failures)),
	}}
	if len(failures) > 0 {
		return []result{out}, fmt.Errorf("%d of %d requests failed", len(failures), len(samples["total"]))
	}
	return []result{out}, nil
}

// catch ends a session from another goroutine than its own.
func catch(s *session) {
	if r := recover(); r != nil {
		stop, ok := r.(stopped)
		if !ok {
			panic(r)
		}
		s.Errorf("%v", stop.err)
	}
}

// visitAll sends the load and gives what each request took beyond the app's own pause.
func visitAll(ctx context.Context, s *session, services []*harness.Service, last time.Duration) (sums, []string) {
	transport := &http.Transport{MaxIdleConnsPerHost: 500, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.p.Config.EdgeAddress())
		}}
	defer transport.CloseIdleConnections()
	attacker := vegeta.NewAttacker(vegeta.Client(&http.Client{Transport: transport, Timeout: 90 * time.Second}))
	defer context.AfterFunc(ctx, func() { attacker.Stop() })()
	target := func(t *vegeta.Target) error {
		pause := time.Duration(rand.Int64N(int64(slowestAnswer)))
		// As many around each size: sizes of answers are spread over magnitudes.
		size := int(smallest * math.Pow(float64(largest)/smallest, rand.Float64()))
		t.Method = http.MethodGet
		t.URL = fmt.Sprintf("http://%s/big?chunked=1&bytes=%d&pause=%d", services[rand.IntN(len(services))].Host, size, pause.Milliseconds())
		return nil
	}
	samples, failures := sums{}, []string(nil)
	for r := range attacker.Attack(target, vegeta.Rate{Freq: mixedRate, Per: time.Second}, last, "mixed") {
		samples.add("total", r.Latency)
		var pause int64
		var size, bytes int
		for i := len(r.URL) - 1; i >= 0; i-- {
			if r.URL[i] == '?' {
				_, _ = fmt.Sscanf(r.URL[i:], "?chunked=1&bytes=%d&pause=%d", &size, &pause)
				break
			}
		}
		bytes = int(r.BytesIn)
		samples.add("beyond the app's pause", max(0, r.Latency-time.Duration(pause)*time.Millisecond))
		if r.Code != http.StatusOK || r.Error != "" || bytes != size {
			failures = append(failures, fmt.Sprintf("%s after %s: %d %s, %d of %d bytes, %s",
				r.Timestamp.Format("15:04:05.000"), r.Latency.Round(time.Millisecond), r.Code, r.Error, bytes, size, r.URL))
		}
	}
	return samples, failures
}

// misfortunes happen one after the other, spread over the time.
func misfortunes(ctx context.Context, s *session, services []*harness.Service, last time.Duration) {
	events := []struct {
		what string
		do   func()
	}{
		{"a deploy", func() {
			services[1].Change(map[string]string{"version": "2"})
			services[1].Deploy(s)
		}},
		{"a rollback", func() {
			s.p.Must(s, "rollback", services[1].Name)
		}},
		{"new variables", func() { services[2].SetEnv(s, map[string]string{"COLOUR": "blue"}) }},
		{"a scale to zero", func() { services[3].Scale(s, 0) }},
		{"a drained node", func() { drainNode(ctx, s) }},
	}
	step := last / time.Duration(len(events)+1)
	for _, e := range events {
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return
		}
		begin := time.Now()
		e.do()
		s.Logf("%s %s took %s", begin.Format("15:04:05"), e.what, time.Since(begin).Round(time.Millisecond))
	}
}

// drainNode takes everything off the only node, and gives the node back.
func drainNode(ctx context.Context, s *session) {
	nodes, _, err := s.p.Nomad.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	must(s, err)
	options := (&nomad.WriteOptions{}).WithContext(ctx)
	for _, node := range nodes {
		_, err := s.p.Nomad.Nodes().UpdateDrain(node.ID, &nomad.DrainSpec{Deadline: time.Second}, false, options)
		must(s, err)
	}
	// Until every instance was told to go; they still finish what they have.
	harness.Eventually(s, time.Minute, "the node is drained", func() bool {
		allocs, _, err := s.p.Nomad.Allocations().List((&nomad.QueryOptions{}).WithContext(ctx))
		return err == nil && !slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool {
			return a.DesiredStatus == nomad.AllocDesiredStatusRun && a.ClientStatus == nomad.AllocClientStatusRunning
		})
	})
	for _, node := range nodes {
		_, err := s.p.Nomad.Nodes().UpdateDrain(node.ID, nil, true, options)
		must(s, err)
	}
}
