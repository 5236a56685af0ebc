package deploy

import (
	"context"

	"github.com/leapcell/leapcell"
)

// DeleteService removes what runs and what is stored of a service, first its route. It can
// be repeated until it succeeds; the caller removes the rows last.
func (d *Deployer) DeleteService(ctx context.Context, svc leapcell.Service) (err error) {
	d.mu.Lock()
	d.serviceLocked(svc.ID).deleting = true
	d.mu.Unlock()
	defer func() {
		if err != nil { // the service goes on to exist, and may be used
			d.mu.Lock()
			d.serviceLocked(svc.ID).deleting = false
			d.mu.Unlock()
		}
	}()
	if err := d.cfg.Nomad.DeleteVariable(ctx, leapcell.RoutesPrefix+svc.ID); err != nil {
		return err
	}
	if err := d.stopAll(ctx, svc); err != nil {
		return err
	}
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return err
	}
	// A goLive that was past its last check may have written the route again.
	if err := d.cfg.Nomad.DeleteVariable(ctx, leapcell.RoutesPrefix+svc.ID); err != nil {
		return err
	}
	for _, dep := range all {
		if err := d.forget(ctx, dep); err != nil {
			return err
		}
	}
	if err := d.cfg.Nomad.DeleteVariable(ctx, leapcell.EnvPrefix+svc.ID); err != nil {
		return err
	}
	d.done.Go(func() { d.quiet(svc.ID, d.ClearCache(d.ctx, svc)) })
	// What is left in the registry goes with the next collection.
	d.quiet(svc.ID, d.cfg.Storage.Forget(svc.ID))
	return d.forgetFronts(ctx, svc)
}

// forgetFronts removes the service's static files. Nobody else would find them: if it fails, the
// service stays, and is deleted again.
func (d *Deployer) forgetFronts(ctx context.Context, svc leapcell.Service) error {
	if d.cfg.Fronts == nil {
		return nil
	}
	state := d.service(svc.ID)
	state.front.Lock()
	defer state.front.Unlock()
	return d.cfg.Fronts.Forget(ctx, svc.ID)
}

// stopAll cancels the unfinished deployments of a service and waits for their workers.
func (d *Deployer) stopAll(ctx context.Context, svc leapcell.Service) error {
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return err
	}
	for _, dep := range all {
		if !dep.State.Done() {
			if err := d.Cancel(ctx, dep.ID); err != nil && leapcell.ErrorCode(err) != leapcell.CodeConflict {
				return err
			}
		}
	}
	for _, w := range d.workersOf(svc.ID) {
		select {
		case <-w.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// Instances that are being replaced count too.
	state := d.service(svc.ID)
	state.live.Lock()
	defer state.live.Unlock()
	return nil
}

func (d *Deployer) workersOf(serviceID string) (out []*worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		if w.service == serviceID {
			out = append(out, w)
		}
	}
	return out
}

func (d *Deployer) forget(ctx context.Context, dep leapcell.Deployment) error {
	for _, job := range []string{leapcell.BuildJobID(dep.Service, dep.Number), leapcell.PrefetchJobID(dep.ID)} {
		if err := d.cfg.Nomad.Stop(ctx, job, true); err != nil {
			return err
		}
	}
	if err := d.cfg.Nomad.DeleteVariable(ctx, leapcell.PreviewPath(dep.ServiceID, dep.Number)); err != nil {
		return err
	}
	if dep.Preview != "" {
		if err := d.cfg.Nomad.DeleteVariable(ctx, leapcell.BranchPath(dep.ServiceID, dep.Preview)); err != nil {
			return err
		}
	}
	if err := d.remove(ctx, dep.ID); err != nil {
		return err
	}
	d.removeFiles(dep)
	d.quiet(dep.ID, d.logs.remove(dep.ID))
	return nil
}
