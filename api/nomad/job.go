package nomad

import (
	"context"
	"strings"

	"github.com/hashicorp/nomad/api"
	"github.com/leapcell/leapcell"
)

// Register adds or changes a job. Registering the same job twice changes nothing.
func (c *Client) Register(ctx context.Context, job *api.Job) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.api.Jobs().Register(job, c.write(ctx))
	return c.wrap(err, "register job "+*job.ID)
}

// Scale sets the number of a job's instances. A job that Nomad does not know gives
// [leapcell.CodeNotFound].
func (c *Client) Scale(ctx context.Context, job string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.api.Jobs().Scale(job, leapcell.Group, &n, "", false, nil, c.write(ctx))
	return c.wrap(err, "scale job "+job)
}

// Stop stops a job; with purge Nomad forgets it as well. A job that does not exist is no
// error.
func (c *Client) Stop(ctx context.Context, job string, purge bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _, err := c.api.Jobs().DeregisterOpts(job, &api.DeregisterOptions{Purge: purge}, c.write(ctx))
	// The second is what one of two says who remove a job at the same time.
	if status := statusOf(err); status == 404 || status == 500 && strings.Contains(bodyOf(err), "job not found") {
		return nil
	}
	return c.wrap(err, "stop job "+job)
}

// Job gives a job as Nomad has it, else [leapcell.CodeNotFound].
func (c *Client) Job(ctx context.Context, id string) (*api.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	job, _, err := c.api.Jobs().Info(id, c.query(ctx))
	return job, c.wrap(err, "look up job "+id)
}

// Jobs gives all jobs of the namespace whose ID starts with prefix.
func (c *Client) Jobs(ctx context.Context, prefix string) ([]*api.JobListStub, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	q := c.query(ctx)
	q.Prefix = prefix
	jobs, _, err := c.api.Jobs().List(q)
	return jobs, c.wrap(err, "list jobs")
}
