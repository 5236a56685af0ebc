package deploy

import (
	"context"
	"slices"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// remove stops a service job for good. Nomad forgets it only when all its instances have
// ended: with a job that is forgotten at once it would forget the ports of instances that
// still finish requests, and hand them to others.
func (d *Deployer) remove(ctx context.Context, job string) error {
	if err := d.cfg.Nomad.Stop(ctx, job, false); err != nil {
		return err
	}
	d.purgeLater(job)
	return nil
}

// purgeLater makes Nomad forget a stopped job when nothing of it runs any more. After a
// restart [Deployer.tidy] finds it again.
func (d *Deployer) purgeLater(job string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.purging[job] || d.ctx.Err() != nil {
		return
	}
	d.purging[job] = true
	d.done.Go(func() {
		defer func() {
			d.mu.Lock()
			delete(d.purging, job)
			d.mu.Unlock()
		}()
		d.purge(d.ctx, job)
	})
}

func (d *Deployer) purge(ctx context.Context, job string) {
	var index uint64
	pause := d.cfg.Pause
	for ctx.Err() == nil {
		allocs, next, err := d.cfg.Nomad.WaitAllocs(ctx, job, index)
		if err == nil && !slices.ContainsFunc(allocs, alive) {
			var purged bool
			if purged, err = d.purgeNow(ctx, job); purged {
				return
			}
		}
		if err == nil {
			index, pause = next, d.cfg.Pause
			continue
		}
		if sleep(ctx, pause) != nil {
			return
		}
		index, pause = 0, min(2*pause, maxPause)
	}
}

// alive reports whether a client may still run the allocation. What it was told to do does
// not matter: an instance that finishes requests keeps its port.
func alive(a *api.AllocationListStub) bool {
	return a.ClientStatus == api.AllocClientStatusPending || a.ClientStatus == api.AllocClientStatusRunning ||
		a.ClientStatus == api.AllocClientStatusUnknown
}

// purgeNow reports whether there is nothing to purge any more. A job that was registered
// again meanwhile, by a service of the same name, is left alone.
func (d *Deployer) purgeNow(ctx context.Context, job string) (bool, error) {
	d.registering.Lock()
	defer d.registering.Unlock()
	stored, err := d.cfg.Nomad.Job(ctx, job)
	switch {
	case leapcell.ErrorCode(err) == leapcell.CodeNotFound:
		return true, nil
	case err != nil:
		return false, err
	case stored.Stop == nil || !*stored.Stop:
		return true, nil
	}
	return true, d.cfg.Nomad.Stop(ctx, job, true)
}
