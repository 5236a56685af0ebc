package nomad

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
	"github.com/leapcell/leapcell"
)

// Allocs gives all allocations of a job, with their ports; none when the job is not known.
func (c *Client) Allocs(ctx context.Context, job string) ([]*api.AllocationListStub, error) {
	allocs, _, err := c.WaitAllocs(ctx, job, 0)
	return allocs, err
}

// WaitAllocs waits until the allocations of a job are newer than index, at most [MaxWait],
// and gives them with their index. Start with index 0, which does not wait.
func (c *Client) WaitAllocs(ctx context.Context, job string, index uint64) ([]*api.AllocationListStub, uint64, error) {
	// Not the job's own list: Nomad leaves the ports out of it, whatever is asked for.
	return c.allocs(ctx, fmt.Sprintf("JobID == %q", job), index)
}

// onlyRunning is [Running] for Nomad, which keeps what has ended for hours: of a service that wakes often
// that is most.
const onlyRunning = `DesiredStatus == "run" and (ClientStatus == "pending" or ClientStatus == "running")`

// WaitRunning is [Client.WaitAllocs] for those of all jobs of the namespace that are [Running].
func (c *Client) WaitRunning(ctx context.Context, index uint64) ([]*api.AllocationListStub, uint64, error) {
	return c.allocs(ctx, onlyRunning, index)
}

func (c *Client) allocs(ctx context.Context, filter string, index uint64) ([]*api.AllocationListStub, uint64, error) {
	timeout := callTimeout
	if index > 0 {
		timeout += MaxWait + MaxWait/16 // Nomad adds up to a sixteenth so that queries do not all end at once
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	q := c.query(ctx)
	q.WaitIndex, q.WaitTime = index, MaxWait
	q.Filter, q.Params = filter, map[string]string{"resources": "true"}
	var allocs []*api.AllocationListStub
	meta, err := c.api.Raw().Query("/v1/allocations", &allocs, q)
	if err != nil {
		return nil, 0, c.wrap(err, "list allocations")
	}
	return allocs, max(meta.LastIndex, 1), nil // 0 would not wait the next time
}

// Alloc gives one allocation in full, else [leapcell.CodeNotFound].
func (c *Client) Alloc(ctx context.Context, id string) (*api.Allocation, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	alloc, _, err := c.api.Allocations().Info(id, c.query(ctx))
	return alloc, c.wrap(err, "look up allocation "+id)
}

// Running reports whether Nomad wants the allocation to run and it has not ended.
func Running(a *api.AllocationListStub) bool {
	return a.DesiredStatus == api.AllocDesiredStatusRun &&
		(a.ClientStatus == api.AllocClientStatusPending || a.ClientStatus == api.AllocClientStatusRunning)
}

// Ready reports whether the node said that the instance is ready. Nomad keeps the last ten
// events of a task: one whose start is no longer among them has long been ready.
func Ready(a *api.AllocationListStub) bool {
	for _, task := range a.TaskStates {
		ready := task.State == "running"
		for _, e := range task.Events {
			switch {
			case e.Type == api.TaskReceived || e.Type == api.TaskStarted:
				ready = false
			case e.Details[leapcell.ReadyAnnotation] != "":
				ready = true
			}
		}
		if ready {
			return true
		}
	}
	return false
}

// Instance is what the platform calls an allocation. Its address is that of the gate, ""
// while Nomad has not allotted one.
func Instance(a *api.AllocationListStub) leapcell.Instance {
	in := leapcell.Instance{ID: a.ID, Deployment: a.JobID, Status: a.ClientStatus}
	if a.AllocatedResources == nil {
		return in
	}
	for _, p := range a.AllocatedResources.Shared.Ports {
		if p.Label == leapcell.PortLabel {
			in.Address = net.JoinHostPort(p.HostIP, strconv.Itoa(p.Value))
		}
	}
	return in
}

// TaskEventText is the last thing that happened to a task of the allocation, for messages.
func TaskEventText(a *api.AllocationListStub, task string) string {
	state := a.TaskStates[task]
	if state == nil || len(state.Events) == 0 {
		return a.ClientDescription
	}
	e := state.Events[len(state.Events)-1]
	return fmt.Sprintf("%s: %s", e.Type, e.DisplayMessage)
}

// Instances gives the instances that Nomad runs of any deployment of a service, by its name.
func (c *Client) Instances(ctx context.Context, service string) ([]leapcell.Instance, error) {
	allocs, _, err := c.WaitRunning(ctx, 0)
	if err != nil {
		return nil, err
	}
	instances := []leapcell.Instance{} // never nil: it becomes [] in JSON
	for _, a := range allocs {
		number, ours := strings.CutPrefix(a.JobID, service+"-")
		if _, err := strconv.Atoi(number); ours && err == nil {
			instances = append(instances, Instance(a))
		}
	}
	return instances, nil
}

// StopAlloc ends one allocation; Nomad starts another in its place while the job's count
// asks for it. One that is not known gives [leapcell.CodeNotFound].
func (c *Client) StopAlloc(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.api.Allocations().Stop(&api.Allocation{ID: id}, c.query(ctx))
	return c.wrap(err, "stop allocation "+id)
}

// FailedPlacement says why Nomad's last attempt found no node for all instances of the job;
// nil when it found one for each, or has not tried yet.
func (c *Client) FailedPlacement(ctx context.Context, job string) (*api.AllocationMetric, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	evals, _, err := c.api.Jobs().Evaluations(job, c.query(ctx))
	if err != nil {
		return nil, c.wrap(err, "list the evaluations of job "+job)
	}
	slices.SortFunc(evals, func(a, b *api.Evaluation) int { return cmp.Compare(b.CreateIndex, a.CreateIndex) })
	for _, e := range evals {
		if e.Status == api.EvalStatusComplete {
			return e.FailedTGAllocs[leapcell.Group], nil
		}
	}
	return nil, nil
}
