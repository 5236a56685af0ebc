package main

import (
	"fmt"
	"os"
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
		samples, used := sums{}, usage{}
		rounds := max(3, c.n/n)
		for range rounds {
			asleep(s, services[:n])
			used.begin(s)
			wakeAll(s, services[:n], samples)
			used.end(s)
		}
		out = append(out, result{Runtime: fmt.Sprintf("%d at once", n), Figures: samples.summaries(), Other: used.each(rounds * n)})
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

// usage adds up the CPU time of the platform's parts, and of the machine, over several bursts.
type usage struct{ before, sum map[string]time.Duration }

func (u *usage) begin(s *session) { u.before = burstTimes(s) }

func (u *usage) end(s *session) {
	if u.sum == nil {
		u.sum = map[string]time.Duration{}
	}
	for name, now := range burstTimes(s) {
		u.sum[name] += now - u.before[name]
	}
}

// each is what one start of n took.
func (u *usage) each(n int) map[string]float64 {
	out := map[string]float64{}
	for name, d := range u.sum {
		out["CPU ms a start, "+name] = float64(d.Milliseconds()) / float64(n)
	}
	return out
}

// burstTimes are those of the parts of the platform, of all processes together, and of waiting for
// the disk.
func burstTimes(s *session) map[string]time.Duration {
	times := map[string]time.Duration{}
	for name, pid := range parts(s) {
		times[name] = cpuTime(s, pid)
	}
	b, err := os.ReadFile("/proc/stat")
	must(s, err)
	var user, nice, system, idle, wait, irq, soft int64
	if _, err := fmt.Sscanf(string(b), "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &soft); err != nil {
		s.Fatalf("/proc/stat: %v", err)
	}
	times["all processes"] = time.Duration(user+nice+system+irq+soft) * 10 * time.Millisecond
	times["idle while the disk works"] = time.Duration(wait) * 10 * time.Millisecond
	times["idle"] = time.Duration(idle) * 10 * time.Millisecond
	return times
}

// wakeAll visits each service once, all at the same time, and adds how long each took, its phases,
// and the slowest.
func wakeAll(s *session, services []*harness.Service, samples sums) {
	var all sync.WaitGroup
	each := make([]time.Duration, len(services))
	headers := make([]string, len(services))
	errs := make([]error, len(services))
	begin := time.Now()
	for i, service := range services {
		all.Go(func() {
			r, err := service.Visit(s.ctx, s.p.HTTP, "/")
			each[i] = time.Since(begin)
			headers[i] = r.Header.Get("Server-Timing")
			if err != nil || r.Status != 200 || r.Err != nil {
				errs[i] = fmt.Errorf("%s answered %d %.200q %v %v", service.Name, r.Status, r.Body, r.Err, err)
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		must(s, err)
	}
	samples.add("all", slices.Max(each))
	for i, d := range each {
		samples.add("each", d)
		samples.addPhases(headers[i])
	}
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
		wakeAll(s, same, samples)
		starts += len(service.AllAllocs(s)) - before
	}
	return result{Runtime: fmt.Sprintf("%d visitors", crowd), Figures: samples.summaries(),
		Other: map[string]float64{"instances started a crowd": float64(starts) / float64(rounds)}}, nil
}
