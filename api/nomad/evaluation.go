package nomad

import (
	"context"

	"github.com/hashicorp/nomad/api"
	"github.com/leapcell/leapcell"
)

// StopAlloc ends one allocation as a drain would; Nomad starts another in its place. One
// that does not exist gives [leapcell.CodeNotFound].
func (c *Client) StopAlloc(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.api.Allocations().Stop(&api.Allocation{ID: id}, c.query(ctx))
	return c.wrap(err, "stop allocation "+id)
}

// FailedPlacement says why Nomad found no node for a job at its last attempt; nil when it
// found one, or made none yet.
func (c *Client) FailedPlacement(ctx context.Context, job string) (*api.AllocationMetric, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	evals, _, err := c.api.Jobs().Evaluations(job, c.query(ctx))
	if err != nil {
		return nil, c.wrap(err, "list evaluations of job "+job)
	}
	var last *api.Evaluation
	for _, e := range evals {
		if len(e.FailedTGAllocs) > 0 && (last == nil || e.ModifyIndex > last.ModifyIndex) {
			last = e
		}
	}
	if last == nil {
		return nil, nil
	}
	return last.FailedTGAllocs[leapcell.Group], nil
}
