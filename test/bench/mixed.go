package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

const (
	mixedRate     = 300              // requests a second, over all services
	slowestAnswer = 5 * time.Second  // at most a tenth of the load's time
	slowestStart  = 10 * time.Second // likewise
	smallest      = 10               // bytes of a body
	largest       = 5 << 20          // of those
)

// mixed plays an ordinary bad day: services that start in up to ten seconds and answer in
// up to five, with up to 5 MB, and in the middle of it a deploy, a rollback, a change of
// variables, a scale to zero and a drained node. Not one request may fail.
func mixed(s *session, c config) ([]result, error) {
	second := s.p.SecondNode(s, "")
	start, answer := min(slowestStart, c.last/10), min(slowestAnswer, c.last/10)
	services, err := s.probes(c.mixed, func(i int) harness.Spec {
		return harness.Spec{
			Settings: leapcell.Settings{MemoryMB: 512, StartTimeout: leapcell.Duration(30 * time.Second)},
			Env:      map[string]string{"LISTEN_DELAY": (start * time.Duration(i) / time.Duration(c.mixed-1)).String()},
		}
	})
	if err != nil {
		return nil, err
	}
	s.Logf("%d services are live", len(services))
	var events []event
	var happening sync.WaitGroup
	happening.Go(func() {
		if err := caught(func() error { events = misfortunes(s, services, second, c.last); return nil }); err != nil {
			s.Errorf("%v", err)
		}
	})
	l := load{edges: []string{s.p.Config.EdgeAddress()}, rate: mixedRate, last: c.last, seed: s.seed, next: func(r *rand.Rand) request {
		q := request{service: services[r.IntN(len(services))], bytes: anySize(r, largest), upload: r.IntN(5) == 0}
		if !q.upload {
			q.pause = time.Duration(r.Int64N(int64(answer)))
		}
		return q
	}}
	visits := l.run(s.ctx)
	happening.Wait() // the last of them may take longer than what is left of a short load
	s.chart = timeline("mixed", visits, events)
	for _, e := range events {
		s.note("%s: %s, took %s", e.at.UTC().Format("15:04:05"), e.what, e.end.Sub(e.at).Round(time.Millisecond))
	}
	out := result{Runtime: fmt.Sprintf("%d services", len(services)), Figures: latencies(visits).summaries(), Other: map[string]float64{
		"requests": float64(len(visits)), "failed requests": float64(len(failures(visits))),
	}}
	return []result{out}, tell(s, failures(visits), len(visits))
}

// tell says what failed; it is an error if anything did.
func tell(s *session, failed []visit, of int) error {
	for _, v := range failed[:min(len(failed), 20)] {
		s.note("failed: %s", v)
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d requests failed", len(failed), of)
	}
	return nil
}

// misfortunes happen one after the other, spread over the time.
func misfortunes(s *session, services []*harness.Service, second string, last time.Duration) (happened []event) {
	events := []struct {
		what string
		do   func()
	}{
		{"a deploy", func() {
			services[1].Change(map[string]string{"version": "2"})
			services[1].Deploy(s)
		}},
		{"a rollback", func() { s.p.Must(s, "rollback", services[1].Name) }},
		{"new variables", func() { services[2].SetEnv(s, map[string]string{"COLOUR": "blue"}) }},
		{"a scale to zero", func() { services[3%len(services)].Scale(s, 0) }},
		{"a drained node", func() { drainNode(s, second) }},
	}
	step := last / time.Duration(len(events)+1)
	begin := time.Now()
	for i, e := range events {
		select {
		case <-time.After(time.Until(begin.Add(time.Duration(i+1) * step))):
		case <-s.ctx.Done():
			s.Errorf("%s did not happen any more", e.what)
			return happened
		}
		at := time.Now()
		e.do()
		happened = append(happened, event{at, time.Now(), e.what})
		s.Logf("%s %s took %s", at.Format("15:04:05"), e.what, time.Since(at).Round(time.Millisecond))
	}
	return happened
}

// drainNode takes everything off a node, as before its maintenance, and gives it back.
func drainNode(s *session, node string) {
	options, query := (&nomad.WriteOptions{}).WithContext(s.ctx), (&nomad.QueryOptions{}).WithContext(s.ctx)
	_, err := s.p.Nomad.Nodes().UpdateDrain(node, &nomad.DrainSpec{Deadline: time.Minute}, false, options)
	must(s, err)
	moved := 0
	// Until every instance was told to go and another took its place; the old ones still
	// finish what they have.
	harness.Eventually(s, 2*time.Minute, "the node is drained", func() bool {
		allocs, _, err := s.p.Nomad.Nodes().Allocations(node, query)
		moved = len(allocs)
		return err == nil && !slices.ContainsFunc(allocs, func(a *nomad.Allocation) bool {
			return a.DesiredStatus == nomad.AllocDesiredStatusRun &&
				(a.ClientStatus == nomad.AllocClientStatusPending || a.ClientStatus == nomad.AllocClientStatusRunning)
		})
	})
	s.note("the drained node had had %d instances", moved)
	_, err = s.p.Nomad.Nodes().UpdateDrain(node, nil, true, options)
	must(s, err)
}
