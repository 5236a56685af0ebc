package main

import (
	"fmt"

	"github.com/leapcell/leapcell/test/harness"
)

// phases of a cold start, as Server-Timing names them.
var phases = []string{"queue", "schedule", "sandbox", "app", "proxy"}

// cold compares a start from zero allocations, through the edge to the last byte, with the
// start of the same app in the same image without a platform.
func cold(s *session, c config) ([]result, error) {
	services := make([]*harness.Service, len(c.runtimes))
	spawners := make([]*bare, len(c.runtimes))
	for i, name := range c.runtimes {
		services[i] = s.deploy(name)
		s.visit(services[i])
		spawners[i] = newBare(s, services[i])
	}
	samples := make([]sums, len(c.runtimes))
	for n := range c.n + 2 { // the first two fill caches
		for i, service := range services {
			service.ToZero(s)
			took, reply := s.visit(service)
			alone, err := spawners[i].spawn(s.ctx)
			if err != nil {
				return nil, fmt.Errorf("%s without a platform: %w", c.runtimes[i], err)
			}
			if n < 2 {
				samples[i] = sums{}
				continue
			}
			samples[i].add("cold", took)
			samples[i].add("bare", alone)
			seen := timing(reply.Header.Get("Server-Timing"))
			for _, phase := range phases {
				if d, ok := seen[phase]; ok {
					samples[i].add(phase, d)
				}
			}
		}
		if n%10 == 9 {
			s.Logf("%d of %d", n+1, c.n+2)
		}
	}
	var out []result
	for i, name := range c.runtimes {
		f := samples[i].summaries()
		out = append(out, result{Runtime: name, Figures: f, Ratio: f["cold"].P50 / f["bare"].P50, Added: f["cold"].P50 - f["bare"].P50})
	}
	return out, nil
}

// resume compares a request to a suspended instance with one to a warm one.
func resume(s *session, c config) ([]result, error) {
	var out []result
	for _, name := range c.runtimes {
		service := s.deploy(name)
		s.visit(service)
		members := harness.Members(service.Allocs(s)[0].ID)
		if len(members) == 0 {
			return nil, fmt.Errorf("%s: no process of its instance is on this machine", name)
		}
		group := members[0].Cgroup()
		samples := sums{}
		for n := range c.n + 2 {
			harness.Eventually(s, suspendLimit, "the idle instance is suspended", group.Frozen)
			resumed, _ := s.visit(service)
			warm, _ := s.visit(service)
			if n >= 2 {
				samples.add("resumed", resumed)
				samples.add("warm", warm)
			}
		}
		f := samples.summaries()
		out = append(out, result{Runtime: name, Figures: f, Added: f["resumed"].P50 - f["warm"].P50})
	}
	return out, nil
}
