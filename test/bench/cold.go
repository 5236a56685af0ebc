package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// phases of a cold start, as Server-Timing names them.
var phases = []string{"queue", "schedule", "sandbox", "app", "proxy"}

// sleeper is an app that can be sent to sleep and woken, beside the same app alone.
type sleeper struct {
	name    string
	job     string
	host    string
	alone   *bare
	samples sums
}

// cold compares a start from zero allocations, through the edge to the last byte, with the
// start of the same app in the same image without a platform.
func cold(s *session, c config) ([]result, error) {
	var sleepers []*sleeper
	for _, name := range c.runtimes {
		service := s.deploy(name)
		s.visit(service)
		alone := newBare(s, service)
		if len(c.launchers) < 2 {
			sleepers = append(sleepers, &sleeper{name: name, job: service.Live, host: service.Host, alone: alone})
			continue
		}
		for _, launcher := range c.launchers {
			x, err := onLauncher(s, service, launcher)
			if err != nil {
				return nil, err
			}
			x.name, x.alone = name+" "+launcher, alone
			sleepers = append(sleepers, x)
		}
	}
	for n := range c.n + 2 { // the first two fill caches
		for _, x := range sleepers {
			if n == 2 {
				x.samples = sums{}
			}
			if err := x.round(s); err != nil {
				return nil, fmt.Errorf("%s: %w", x.name, err)
			}
		}
		if n%10 == 9 {
			s.Logf("%d of %d", n+1, c.n+2)
		}
	}
	var out []result
	for _, x := range sleepers {
		f := x.samples.summaries()
		out = append(out, result{Runtime: x.name, Figures: f, Ratio: f["cold"].P50 / f["bare"].P50, Added: f["cold"].P50 - f["bare"].P50})
	}
	return out, nil
}

// onLauncher makes a copy of a service that runs on a node with that OCI runtime alone: on
// the platform's own, or on one that is brought up for it.
func onLauncher(s *session, service *harness.Service, launcher string) (*sleeper, error) {
	if s.nodes == nil {
		node, itsLauncher, err := onlyNode(s.ctx, s.p)
		if err != nil {
			return nil, err
		}
		if itsLauncher != launcher {
			return nil, fmt.Errorf("the platform's OCI runtime is %s, not %s", itsLauncher, launcher)
		}
		s.nodes = map[string]string{launcher: node}
	}
	if s.nodes[launcher] == "" {
		s.nodes[launcher] = s.p.SecondNode(s, launcher)
	}
	job, _, err := s.p.Nomad.Jobs().Info(service.Live, nil)
	if err != nil {
		return nil, err
	}
	id := service.Name + "-" + launcher
	copied, route := copyOf(service, job, id, s.p.Config.Domain)
	copied.Constraints = append(copied.Constraints, nomad.NewConstraint("${node.unique.id}", "=", s.nodes[launcher]))
	if err := s.register(s.ctx, copied, route); err != nil {
		return nil, err
	}
	return &sleeper{job: id, host: route.Hosts[0]}, s.known(s.ctx, route.Hosts[0])
}

// onlyNode is the node of a platform that has one, and what makes the sandboxes there.
func onlyNode(ctx context.Context, p *harness.Platform) (id, launcher string, err error) {
	nodes, _, err := p.Nomad.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil || len(nodes) != 1 {
		return "", "", fmt.Errorf("%d nodes, not one: %w", len(nodes), err)
	}
	node, _, err := p.Nomad.Nodes().Info(nodes[0].ID, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return "", "", err
	}
	return node.ID, node.Attributes["driver.leapcell.runtime"], nil
}

// round is one start with the platform, and one without.
func (x *sleeper) round(s *session) error {
	if err := x.zero(s); err != nil {
		return err
	}
	begin := time.Now()
	reply, err := (&harness.Service{Service: leapcell.Service{Host: x.host}}).Visit(s.ctx, s.p.HTTP, "/")
	took := time.Since(begin)
	if err != nil || reply.Status != http.StatusOK || reply.Err != nil {
		return fmt.Errorf("answered %d %.200q %v %w", reply.Status, reply.Body, reply.Err, err)
	}
	alone, err := x.alone.spawn(s.ctx)
	if err != nil {
		return fmt.Errorf("without a platform: %w", err)
	}
	if x.samples == nil {
		x.samples = sums{}
	}
	x.samples.add("cold", took)
	x.samples.add("bare", alone)
	x.samples.addPhases(reply.Header.Get("Server-Timing"))
	return nil
}

// zero takes all instances away and waits until they are gone.
func (x *sleeper) zero(s *session) error {
	_, _, err := s.p.Nomad.Jobs().Scale(x.job, leapcell.Group, new(0), "bench", false, nil, (&nomad.WriteOptions{}).WithContext(s.ctx))
	if err != nil {
		return err
	}
	harness.Eventually(s, 40*time.Second, "no instance is left", func() bool {
		allocs, _, err := s.p.Nomad.Jobs().Allocations(x.job, true, (&nomad.QueryOptions{}).WithContext(s.ctx))
		return err == nil && !slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool {
			return a.ClientStatus == nomad.AllocClientStatusPending || a.ClientStatus == nomad.AllocClientStatusRunning
		})
	})
	return nil
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
