package routes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// listGap is between two lists of jobs: Nomad moves their index with each change of an
// allocation, too.
const listGap = 250 * time.Millisecond

// jobs follows the jobs of one namespace that ask for the edge in their meta.
type jobs struct {
	nomad *nomad
	table *Table
	known map[string]job // by ID
}

// job is one that asks for the edge.
type job struct {
	modified uint64
	routes   []*leapcell.Route
}

// run returns only with an error, like that of the route variables.
func (j *jobs) run(ctx context.Context) error {
	index := uint64(0)
	for {
		list, meta, err := j.nomad.client.Jobs().ListOptions(&api.JobListOptions{Fields: &api.JobListFields{Meta: true}},
			j.nomad.query(ctx, &api.QueryOptions{WaitIndex: index, WaitTime: listWait}))
		if err != nil {
			return fmt.Errorf("list the jobs: %w", err)
		}
		j.nomad.answered("jobs")
		changed, err := j.take(ctx, list)
		if err != nil {
			return err
		}
		if changed || index == 0 {
			j.publish()
		}
		if meta.LastIndex < index {
			index = 0
			continue
		}
		index = max(meta.LastIndex, 1)
		select {
		case <-time.After(listGap):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take reads the jobs that are new in the list and forgets those that are gone or stopped.
func (j *jobs) take(ctx context.Context, list []*api.JobListStub) (changed bool, err error) {
	next := map[string]job{}
	for _, stub := range list {
		if stub.Stop || stub.ParentID != "" || !asksForEdge(stub.Meta) {
			continue
		}
		old, known := j.known[stub.ID]
		if known && old.modified == stub.JobModifyIndex {
			next[stub.ID] = old
			continue
		}
		found, gone, err := j.read(ctx, stub.ID, old)
		if err != nil {
			return false, err
		}
		if gone {
			continue
		}
		changed = changed || !reflect.DeepEqual(old.routes, found.routes)
		next[stub.ID] = found
	}
	changed = changed || len(next) != len(j.known)
	j.known = next
	return changed, nil
}

func (j *jobs) read(ctx context.Context, id string, old job) (found job, gone bool, err error) {
	got, _, err := j.nomad.client.Jobs().Info(id, j.nomad.query(ctx, nil))
	var answer api.UnexpectedResponseError
	if errors.As(err, &answer) && answer.StatusCode() == http.StatusNotFound {
		return job{}, true, nil
	}
	if err != nil {
		return job{}, false, fmt.Errorf("read the job %s: %w", id, err)
	}
	modified := uint64(0)
	if got.JobModifyIndex != nil {
		modified = *got.JobModifyIndex
	}
	routes, err := jobRoutes(j.nomad.namespace, got)
	if err != nil {
		// A slip in a job's meta must not take a service down that visitors use.
		j.nomad.log.Error("the meta of a job cannot be used; what was known of it stays", "job", id, "error", err)
		return job{modified: modified, routes: old.routes}, false, nil
	}
	return job{modified: modified, routes: routes}, false, nil
}

func (j *jobs) publish() {
	routes := []*leapcell.Route{}
	for _, id := range slices.Sorted(maps.Keys(j.known)) {
		routes = append(routes, j.known[id].routes...)
	}
	for _, c := range j.table.publishJobs(j.nomad.namespace, routes) {
		j.nomad.log.Warn("two jobs claim one host; the first keeps it", "host", c.host,
			"service", c.first.ServiceID, "ignored", c.second.ServiceID)
	}
}

// part is what the table knows of the plain jobs of one namespace.
type part struct {
	routes     []*leapcell.Route              // nil until read
	instances  map[string][]leapcell.Instance // by the routes' Deployment; nil until read
	restarting map[string]bool
}

// parts are those of all namespaces that were asked for. Deployments in them begin with the
// namespace and a slash.
type parts map[string]*part

func (p parts) ready() bool {
	for _, one := range p {
		if one.routes == nil || one.instances == nil {
			return false
		}
	}
	return true
}

func (p parts) of(deployment string) *part {
	for i := range len(deployment) {
		if deployment[i] == '/' {
			return p[deployment[:i]]
		}
	}
	return nil
}

// with is p with one part changed. Neither p nor what is in it is.
func (p parts) with(namespace string, change func(*part)) parts {
	next := maps.Clone(p)
	var one part
	if before := p[namespace]; before != nil {
		one = *before
	}
	change(&one)
	next[namespace] = &one
	return next
}

// expectJobs makes the table wait for the jobs of these namespaces.
func (t *Table) expectJobs(namespaces []string) {
	t.publish(func(next *state) {
		next.parts = parts{}
		for _, namespace := range namespaces {
			next.parts[namespace] = &part{}
		}
	})
}

// clash is a host that two want.
type clash struct {
	host          string
	first, second *leapcell.Route
}

func (t *Table) publishJobs(namespace string, routes []*leapcell.Route) (clashes []clash) {
	t.publish(func(next *state) {
		next.parts = next.parts.with(namespace, func(p *part) { p.routes = routes })
		next.jobSites = sites{}
		for _, ns := range slices.Sorted(maps.Keys(next.parts)) {
			for _, route := range next.parts[ns].routes {
				for _, host := range route.Hosts {
					if other := next.jobSites.claim(host, route); other != nil {
						clashes = append(clashes, clash{host, other, route})
					}
				}
			}
		}
	})
	return clashes
}

// jobInstances is where the instances of one namespace's plain jobs are published.
type jobInstances struct {
	table     *Table
	namespace string
}

func (j jobInstances) wasListed() bool {
	return j.table.now.Load().parts[j.namespace].instances != nil
}

func (j jobInstances) publishAll(instances map[string][]leapcell.Instance, restarting map[string]bool) {
	j.table.publish(func(next *state) {
		next.parts = next.parts.with(j.namespace, func(p *part) { p.instances, p.restarting = instances, restarting })
	})
}

func (j jobInstances) publishSome(some map[string][]leapcell.Instance, restarting map[string]bool) {
	j.table.publish(func(next *state) {
		next.parts = next.parts.with(j.namespace, func(p *part) {
			p.instances, p.restarting = replaced(p.instances, some), restarting
		})
	})
}

// replaced is all with what is known of some deployments replaced.
func replaced(all, some map[string][]leapcell.Instance) map[string][]leapcell.Instance {
	all = maps.Clone(all)
	for deployment, list := range some {
		if len(list) == 0 {
			delete(all, deployment)
		} else {
			all[deployment] = list
		}
	}
	return all
}
