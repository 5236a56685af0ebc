package deploy

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/jobs"
)

// forgetLimit is how long nodes may take to remove a service's build caches.
const forgetLimit = time.Minute

// ClearCache removes what the nodes keep between builds of a service, and returns when they have. A
// build that runs goes on with what it has.
func (d *Deployer) ClearCache(ctx context.Context, svc leapcell.Service) error {
	d.clearing.Lock()
	defer d.clearing.Unlock()
	job := leapcell.ForgetJobID(svc.ID)
	// Once for each call: the former job may have come before what is to be removed now.
	if err := d.cfg.Nomad.Stop(ctx, job, true); err != nil {
		return err
	}
	if err := d.register(ctx, jobs.Forget(d.cfg.Namespace, svc)); err != nil {
		return err
	}
	defer func() { d.quiet(job, d.cfg.Nomad.Stop(d.ctx, job, true)) }()
	ctx, cancel := context.WithTimeoutCause(ctx, forgetLimit,
		leapcell.Errorf(leapcell.CodeUnavailable, "not all nodes have removed the build caches within %s: they may be away", forgetLimit))
	defer cancel()
	failed := 0
	see := func(_ context.Context, allocs []*api.AllocationListStub) (bool, error) {
		if len(allocs) == 0 || slices.ContainsFunc(allocs, alive) {
			return false, nil
		}
		failed = 0
		for _, a := range allocs {
			if a.ClientStatus != api.AllocClientStatusComplete {
				failed++
			}
		}
		return true, nil
	}
	if err := d.watch(ctx, job, see, func(context.Context) error { return nil }); err != nil {
		return causeOf(ctx, err)
	}
	if failed > 0 {
		return leapcell.Errorf(leapcell.CodeUnavailable, "%d nodes could not remove the build caches", failed)
	}
	return nil
}
