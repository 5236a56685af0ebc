package main

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// crowd is how many visitors come at once to one service that sleeps.
const crowd = 200

// burst wakes many services at the same moment, and one service for many visitors.
func burst(s *session, c config) ([]result, error) {
	services, err := s.probes(c.services, func(int) harness.Spec { return harness.Spec{} })
	if err != nil {
		return nil, err
	}
	s.Logf("%d services are deployed", c.services)
	var out []result
	for _, n := range []int{1, 5, 25, 100} {
		if n > c.services {
			break
		}
		samples := sums{}
		rounds := max(3, c.n/n)
		for range rounds {
			asleep(s, services[:n])
			slowest, each := wakeAll(s, services[:n])
			samples.add("all", slowest)
			for _, d := range each {
				samples.add("each", d)
			}
		}
		out = append(out, result{Runtime: fmt.Sprintf("%d at once", n), Figures: samples.summaries()})
	}
	visitors, err := crowdOf(s, services[0], max(3, c.n/10))
	return append(out, visitors), err
}

// asleep makes sure that none of the services has an instance.
func asleep(s *session, services []*harness.Service) {
	var all errgroup.Group
	all.SetLimit(leapcell.NomadCalls) // the platform needs connections of the same address
	for _, service := range services {
		all.Go(func() error { return caught(func() error { service.ToZero(s); return nil }) })
	}
	must(s, all.Wait())
}

// wakeAll visits each service once, all at the same time.
func wakeAll(s *session, services []*harness.Service) (slowest time.Duration, each []time.Duration) {
	var all sync.WaitGroup
	each = make([]time.Duration, len(services))
	errs := make([]error, len(services))
	begin := time.Now()
	for i, service := range services {
		all.Go(func() {
			r, err := service.Visit(s.ctx, s.p.HTTP, "/")
			each[i] = time.Since(begin)
			if err != nil || r.Status != 200 || r.Err != nil {
				errs[i] = fmt.Errorf("%s answered %d %.200q %v %v", service.Name, r.Status, r.Body, r.Err, err)
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		must(s, err)
	}
	return slices.Max(each), each
}

// crowdOf lets a crowd come to one service that sleeps, and counts what is started for it.
func crowdOf(s *session, service *harness.Service, rounds int) (result, error) {
	service.Set(s, leapcell.Settings{MaxInstances: 10})
	samples, starts := sums{}, 0
	for range rounds {
		asleep(s, []*harness.Service{service})
		before := len(service.AllAllocs(s))
		same := make([]*harness.Service, crowd)
		for i := range same {
			same[i] = service
		}
		slowest, each := wakeAll(s, same)
		samples.add("all", slowest)
		for _, d := range each {
			samples.add("each", d)
		}
		starts += len(service.AllAllocs(s)) - before
	}
	return result{Runtime: fmt.Sprintf("%d visitors", crowd), Figures: samples.summaries(),
		Other: map[string]float64{"instances started a crowd": float64(starts) / float64(rounds)}}, nil
}
