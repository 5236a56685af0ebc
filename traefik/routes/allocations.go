package routes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

const (
	// relist is how often the full list is read under a healthy stream. It heals whatever
	// a stream can lose: Nomad keeps a bounded number of events and skips silently.
	relist = time.Minute
	// silence is when a stream that says nothing is given up: Nomad says at least an
	// empty word each 30 seconds.
	silence = 75 * time.Second
)

// allocation is the part of a Nomad allocation that matters here, as both the list and the
// event stream give it.
type allocation struct {
	ID                 string
	JobID              string // of a plain job: the deployment of one of its ports, see split
	TaskGroup          string
	Namespace          string
	DesiredStatus      string
	ClientStatus       string
	NextAllocation     string
	ModifyIndex        uint64
	AllocatedResources *struct {
		Shared struct {
			Ports []struct {
				Label, HostIP string
				Value         int
			}
		}
	}
	TaskStates map[string]taskState // read for plain jobs only

	label string // of the port; "" for that of our services' gates
}

// taskState is what happened to a task of an allocation.
type taskState struct {
	State    string
	Restarts int
}

// split is a plain job's allocation as one for each of its ports.
func (a *allocation) split() []*allocation {
	if a.AllocatedResources == nil {
		return nil
	}
	var out []*allocation
	for _, p := range a.AllocatedResources.Shared.Ports {
		one := *a
		one.JobID, one.label = jobKey(a.Namespace, a.JobID, a.TaskGroup, p.Label), p.Label
		out = append(out, &one)
	}
	return out
}

// pausing reports whether a plain job's tasks have ended and Nomad waits before it starts
// them again: nobody listens meanwhile. With a gate that does not matter: it would say so.
func (a *allocation) pausing() bool {
	if a.label == "" {
		return false
	}
	restarted := false
	for _, task := range a.TaskStates {
		switch task.State {
		case "running":
			return false
		case "pending":
			restarted = restarted || task.Restarts > 0
		}
	}
	return restarted
}

// address is where its gate listens, or "".
func (a *allocation) address() string {
	if a.AllocatedResources == nil {
		return ""
	}
	label := cmp.Or(a.label, leapcell.PortLabel)
	for _, p := range a.AllocatedResources.Shared.Ports {
		if p.Label == label && p.HostIP != "" && p.Value > 0 {
			return net.JoinHostPort(p.HostIP, strconv.Itoa(p.Value))
		}
	}
	return ""
}

func (a *allocation) terminal() bool {
	return a.ClientStatus == api.AllocClientStatusComplete || a.ClientStatus == api.AllocClientStatusFailed ||
		a.ClientStatus == api.AllocClientStatusLost
}

// takesRequests reports whether requests may go there. That the instance runs is not asked:
// Nomad knows late, and the gate holds requests until it does.
func (a *allocation) takesRequests() bool {
	return a.DesiredStatus == api.AllocDesiredStatusRun && !a.terminal() && a.address() != "" &&
		a.ClientStatus != api.AllocClientStatusUnknown && !a.pausing()
}

// willReturn reports whether Nomad is to replace it by itself.
func (a *allocation) willReturn() bool {
	return a.DesiredStatus == api.AllocDesiredStatusRun && a.NextAllocation == "" &&
		(a.ClientStatus == api.AllocClientStatusFailed || a.ClientStatus == api.AllocClientStatusLost || a.pausing())
}

// allocations follows the instances.
type allocations struct {
	nomad *nomad
	table instanceTable
	plain bool   // they are of jobs that the platform did not deploy
	index uint64 // of the last thing seen
	// listedAt is the index of the last full list.
	listedAt uint64
	known    map[string]map[string]*allocation // by deployment and ID: those that take requests or will return
}

// instanceTable is where the instances are published: see [Table].
type instanceTable interface {
	wasListed() bool
	publishAll(instances map[string][]leapcell.Instance, restarting map[string]bool)
	publishSome(some map[string][]leapcell.Instance, restarting map[string]bool)
}

// run returns only with an error; the next run goes on from the index it came to. The
// stream is opened before the list is read, so that nothing falls between the two; events
// older than what the list has shown are told by their allocation's index.
func (a *allocations) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(errors.New("nothing was heard for too long")) })
	defer watchdog.Stop()

	body, err := a.nomad.client.Raw().Response("/v1/event/stream", a.nomad.query(ctx, &api.QueryOptions{
		Params: map[string]string{"topic": "Allocation", "index": strconv.FormatUint(a.index, 10)}}))
	if err != nil {
		return fmt.Errorf("open the event stream: %w", err)
	}
	defer body.Close()

	messages := make(chan message)
	failed := make(chan error, 1)
	go func() { failed <- read(ctx, json.NewDecoder(body), messages) }()

	timer := time.NewTimer(relist)
	defer timer.Stop()
	listed := false
	for {
		select {
		case m := <-messages:
			watchdog.Reset(silence)
			if !listed { // the first word of Nomad says that the subscription stands
				if err := a.list(ctx); err != nil {
					return err
				}
				listed = true
			}
			a.apply(m)
		case <-timer.C:
			if err := a.list(ctx); err != nil {
				return err
			}
			timer.Reset(relist)
		case err := <-failed:
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return fmt.Errorf("event stream: %w", err)
		}
	}
}

// message is one line of the stream; an empty one is a sign of life.
type message struct {
	Index  uint64
	Events []struct {
		Payload struct{ Allocation *allocation }
	}
	Error any // a last word of Nomad before it ends the stream
}

func read(ctx context.Context, dec *json.Decoder, out chan<- message) error {
	for {
		var m message
		if err := dec.Decode(&m); err != nil {
			return err
		}
		if m.Error != nil {
			return fmt.Errorf("nomad ended it: %v", m.Error)
		}
		select {
		case out <- m:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// list reads all allocations and replaces what is known.
func (a *allocations) list(ctx context.Context) error {
	var all []*allocation
	meta, err := a.nomad.client.Raw().Query("/v1/allocations", &all,
		a.nomad.query(ctx, &api.QueryOptions{Params: map[string]string{"resources": "true", "task_states": strconv.FormatBool(a.plain)}}))
	if err != nil {
		return fmt.Errorf("list the allocations: %w", err)
	}
	a.nomad.answered("instances")
	before := a.known
	a.known = map[string]map[string]*allocation{}
	for _, alloc := range all {
		for _, one := range a.entries(alloc) {
			a.note(one)
		}
	}
	a.index, a.listedAt = meta.LastIndex, meta.LastIndex // lower than before when Nomad's state is another one
	if before != nil && same(before, a.known) && a.table.wasListed() {
		return nil
	}
	instances := map[string][]leapcell.Instance{}
	for deployment := range a.known {
		if list := a.instances(deployment); len(list) > 0 {
			instances[deployment] = list
		}
	}
	a.table.publishAll(instances, a.restarting())
	return nil
}

// apply takes the events of one message in.
func (a *allocations) apply(m message) {
	touched := map[string][]leapcell.Instance{}
	for _, e := range m.Events {
		alloc := e.Payload.Allocation
		if alloc == nil || alloc.ModifyIndex <= a.listedAt {
			continue // the list has shown it, or what came of it
		}
		for _, one := range a.entries(alloc) {
			if a.note(one) {
				touched[one.JobID] = nil
			}
		}
	}
	a.index = max(a.index, m.Index)
	if len(touched) == 0 {
		return
	}
	for deployment := range touched {
		touched[deployment] = a.instances(deployment)
	}
	a.table.publishSome(touched, a.restarting())
}

// entries are what the table has for one allocation.
func (a *allocations) entries(alloc *allocation) []*allocation {
	if a.plain {
		return alloc.split()
	}
	return []*allocation{alloc}
}

// note takes one allocation in and reports whether that changed anything that matters.
func (a *allocations) note(alloc *allocation) bool {
	old := a.known[alloc.JobID][alloc.ID]
	if !alloc.takesRequests() && !alloc.willReturn() {
		if old == nil {
			return false
		}
		delete(a.known[alloc.JobID], alloc.ID)
		if len(a.known[alloc.JobID]) == 0 {
			delete(a.known, alloc.JobID)
		}
		return true
	}
	if a.known[alloc.JobID] == nil {
		a.known[alloc.JobID] = map[string]*allocation{}
	}
	a.known[alloc.JobID][alloc.ID] = alloc
	return old == nil || !old.alike(alloc)
}

// alike reports whether the two lead to the same table.
func (a *allocation) alike(b *allocation) bool {
	return a.takesRequests() == b.takesRequests() && a.address() == b.address()
}

// instances are those of a deployment that take requests, in the order of their IDs.
func (a *allocations) instances(deployment string) []leapcell.Instance {
	var out []leapcell.Instance
	for _, alloc := range a.known[deployment] {
		if alloc.takesRequests() {
			out = append(out, leapcell.Instance{ID: alloc.ID, Deployment: deployment,
				Address: alloc.address(), Status: alloc.ClientStatus})
		}
	}
	slices.SortFunc(out, func(a, b leapcell.Instance) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// restarting are the deployments with a failed instance that Nomad is to replace.
func (a *allocations) restarting() map[string]bool {
	out := map[string]bool{}
	for deployment, list := range a.known {
		for _, alloc := range list {
			if alloc.willReturn() {
				out[deployment] = true
			}
		}
	}
	return out
}

// same reports whether the two states lead to the same table.
func same(a, b map[string]map[string]*allocation) bool {
	return maps.EqualFunc(a, b, func(a, b map[string]*allocation) bool {
		return maps.EqualFunc(a, b, (*allocation).alike)
	})
}
