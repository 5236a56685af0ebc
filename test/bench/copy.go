package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/platform"
	"github.com/leapcell/leapcell/test/harness"
)

// copyOf is the job of a service under another name, with no instance yet, and the route to
// it. The control plane does not know it: nobody but the edge starts it.
func copyOf(service *harness.Service, job *nomad.Job, id, domain string) (*nomad.Job, leapcell.Route) {
	j := *job
	j.ID, j.Name, j.Version, j.Meta = &id, &id, nil, nil
	group := *job.TaskGroups[0]
	group.Count = new(0)
	task := *group.Tasks[0]
	group.Tasks = []*nomad.Task{&task}
	j.TaskGroups = []*nomad.TaskGroup{&group}
	return &j, leapcell.Route{
		ServiceID: id, Service: id, Hosts: []string{id + "." + domain}, Namespace: platform.Namespace, Deployment: id,
		Mode: leapcell.Serverless, Concurrency: 50, MinInstances: 1, MaxInstances: 1, MaxInFlight: 100,
		StartTimeout: leapcell.Duration(time.Minute), DormantAfter: leapcell.Duration(time.Hour),
	}
}

// register makes a copy and its route known; both go with the session.
func (s *session) register(ctx context.Context, job *nomad.Job, route leapcell.Route) error {
	if _, _, err := s.p.Nomad.Jobs().Register(job, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("registering %s: %w", *job.ID, err)
	}
	s.Cleanup(func() {
		_, _, _ = s.p.Nomad.Jobs().Deregister(*job.ID, true, nil)
		_ = unput(s, route.Namespace, route.ServiceID)
	})
	return put(s, route)
}

// known visits a host until the edge has read the route and an instance has answered.
func (s *session) known(ctx context.Context, host string) error {
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) { // nobody announces what an edge has read
		status := ask(s, host)
		if status == http.StatusOK {
			return nil
		}
		if ctx.Err() != nil || time.Since(begin) > time.Minute {
			return fmt.Errorf("%s answers %d", host, status)
		}
	}
}
