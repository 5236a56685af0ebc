package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/platform"
	"github.com/leapcell/leapcell/test/harness"
)

// routes measures whether an edge that knows many services is slower or larger for it.
func routes(s *session, c config) ([]result, error) {
	service := s.p.Probe(s, harness.Spec{})
	edge := s.p.Parts("leapcell-edge", "")
	if len(edge) != 1 {
		return nil, fmt.Errorf("%d edges are running, not one", len(edge))
	}
	var out []result
	known, before := 1, int64(0)
	for _, n := range slices.Compact([]int{10, min(1000, c.routes), c.routes}) {
		if err := fill(s, known, n); err != nil {
			return nil, err
		}
		known = n
		samples := sums{}
		for range c.n {
			service.ToZero(s)
			took, _ := s.visit(service)
			samples.add("cold", took)
			took, _ = s.visit(service)
			samples.add("warm", took)
		}
		memory := pss(s, edge[0].PID)
		r := result{Runtime: fmt.Sprintf("%d routes", n), Figures: samples.summaries(), Other: map[string]float64{"edge, MB": float64(memory) / (1 << 20)}}
		if before > 0 {
			r.Other["edge, bytes a route"] = float64(memory-before) / float64(n-10)
		} else {
			before = memory
		}
		out = append(out, r)
	}
	return out, nil
}

// fill writes the routes of services that are nowhere, until there are n.
func fill(s *session, from, n int) error {
	route := leapcell.Route{
		Service: "nowhere", Mode: leapcell.Serverless, Concurrency: 50, MaxInstances: 10, MaxInFlight: 1000,
		Namespace: platform.Namespace, StartTimeout: leapcell.Duration(10 * time.Second), DormantAfter: leapcell.Duration(30 * time.Minute),
	}
	id := func(i int) string { return fmt.Sprintf("nowhere-%d-default-abcdefgh", i) }
	s.Cleanup(func() {
		_ = eachOf(from, n, func(i int) error { return unput(s, route.Namespace, id(i)) }) // the platform may be gone
	})
	err := eachOf(from, n, func(i int) error {
		r := route
		r.ServiceID, r.Deployment = id(i), fmt.Sprintf("nowhere-%d-1", i)
		r.Hosts = []string{r.ServiceID + "." + s.p.Config.Domain}
		return put(s, r)
	})
	if err != nil {
		return err
	}
	last := id(n-1) + "." + s.p.Config.Domain
	harness.Eventually(s, time.Minute, "the edge has read the last route", func() bool {
		// Known, but not in Nomad: 502. Not known: 404.
		status := ask(s, last)
		return status != 0 && status != http.StatusNotFound
	})
	return nil
}

// eachOf does f for from..n-1, several at a time.
func eachOf(from, n int, f func(i int) error) error {
	var all errgroup.Group
	all.SetLimit(8)
	for i := from; i < n; i++ {
		all.Go(func() error { return f(i) })
	}
	return all.Wait()
}

// pss is the proportional set size of a process, in bytes.
func pss(s *session, pid int) int64 {
	kib, _ := harness.Process{PID: pid}.Memory()
	if kib == 0 {
		s.Fatalf("process %d has no Pss line", pid)
	}
	return kib << 10
}

// ask gives the status that a host's root page has at the edge; 0: it could not be asked.
func ask(s *session, host string) int {
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://"+host+"/", nil)
	must(s, err)
	resp, err := s.p.HTTP.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// put writes a route.
func put(s *session, r leapcell.Route) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, _, err = s.p.Nomad.Variables().Update(&nomad.Variable{
		Namespace: r.Namespace, Path: leapcell.RoutesPrefix + r.ServiceID, Items: nomad.VariableItems{leapcell.VariableItem: string(b)},
	}, (&nomad.WriteOptions{Namespace: r.Namespace}).WithContext(s.ctx))
	return err
}

// unput takes a route away, also when the session is over.
func unput(s *session, namespace, serviceID string) error {
	_, err := s.p.Nomad.Variables().Delete(leapcell.RoutesPrefix+serviceID, &nomad.WriteOptions{Namespace: namespace})
	return err
}
