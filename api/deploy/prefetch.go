package deploy

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/jobs"
)

// prefetchLimit is how long nodes may take to read an image; those that did not do so by then
// read it when they need it.
const prefetchLimit = 20 * time.Minute

// prefetch brings the image of dep to every node while its first instance starts. The deployment
// neither waits for it nor fails with it.
func (d *Deployer) prefetch(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) {
	d.done.Go(func() {
		job := leapcell.PrefetchJobID(dep.ID)
		err := d.beginPrefetch(ctx, svc, dep) // ends with the deployment's work
		if err == nil {
			err = d.followPrefetch(d.ctx, job)
		}
		if err != nil && d.ctx.Err() == nil {
			d.cfg.Log.Warn("image not brought to all nodes", "deployment", dep.ID, "err", err)
		}
		d.quiet(job, d.cfg.Nomad.Stop(d.ctx, job, true))
	})
}

// beginPrefetch registers the job, unless a former process did.
func (d *Deployer) beginPrefetch(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) error {
	_, err := d.cfg.Nomad.Job(ctx, leapcell.PrefetchJobID(dep.ID))
	if leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return err
	}
	return d.cfg.Nomad.Register(ctx, jobs.Prefetch(jobs.PrefetchSpec{Namespace: d.cfg.Namespace, Service: svc, Deployment: dep}))
}

// followPrefetch waits until all nodes have the image or have given up.
func (d *Deployer) followPrefetch(ctx context.Context, job string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, prefetchLimit,
		leapcell.Errorf(leapcell.CodeUnavailable, "not all nodes had it within %s", prefetchLimit))
	defer cancel()
	begun, failed := time.Now(), 0
	see := func(_ context.Context, allocs []*api.AllocationListStub) (bool, error) {
		if len(allocs) == 0 || slices.ContainsFunc(allocs, alive) {
			return false, nil
		}
		for _, a := range allocs {
			if a.ClientStatus != api.AllocClientStatusComplete {
				failed++
			}
		}
		return true, nil
	}
	unplaced := func(context.Context) error {
		if time.Since(begun) > d.cfg.PlacementPatience {
			return leapcell.Errorf(leapcell.CodeUnavailable, "Nomad found no node for it within %s", d.cfg.PlacementPatience)
		}
		return nil
	}
	if err := d.watch(ctx, job, see, unplaced); err != nil {
		return causeOf(ctx, err)
	}
	if failed > 0 {
		return leapcell.Errorf(leapcell.CodeUnavailable, "%d nodes could not read it", failed)
	}
	return nil
}

// tidyPrefetch removes the job of a former process that did not live to see its end.
func (d *Deployer) tidyPrefetch(job, deployment string) {
	if !d.busy(deployment) {
		d.quiet(job, d.cfg.Nomad.Stop(d.ctx, job, true))
	}
}
