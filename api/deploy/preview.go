package deploy

import (
	"context"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/jobs"
)

// showPreview makes dep what is seen of its branch. The service's own names stay with what
// is live; the state says superseded, since dep serves none of them. Everything before the
// last step can be repeated.
func (d *Deployer) showPreview(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker) error {
	state := d.service(svc.ID)
	state.live.Lock()
	defer state.live.Unlock()
	if err := d.overtake(ctx, svc, dep); err != nil {
		return err
	}
	svc, err := d.cfg.Store.Service(ctx, svc.ID)
	if err != nil {
		return err
	}
	path, route := leapcell.BranchPath(svc.ID, dep.Preview), jobs.Preview(d.cfg.Namespace, svc, dep)
	index, err := patient(ctx, d, w, func(ctx context.Context) (uint64, error) { return d.put(ctx, path, route) })
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // visitors are there already
	d.awaitEdges(ctx, dep.ID, index)
	if err := d.endFormer(ctx, svc, dep); err != nil {
		return err
	}
	address := strings.Replace(svc.URL, svc.Host, route.Hosts[0], 1)
	_, err = d.update(ctx, dep.ID, func(dep *leapcell.Deployment) error {
		dep.State, dep.LiveAt, dep.Error, dep.PreviewURL = leapcell.Superseded, time.Now(), nil, address
		return nil
	})
	if leapcell.ErrorCode(err) == leapcell.CodeConflict { // cancelled at the last moment
		d.quiet(dep.ID, d.cfg.Nomad.DeleteVariable(ctx, path))
	}
	if err != nil {
		return err
	}
	w.log.say("the preview of %s is at %s", dep.Source.Branch, address)
	d.cfg.Log.Info("preview shown", "deployment", dep.ID, "service", svc.ID, "took", time.Since(dep.CreatedAt))
	return nil
}

// endFormer removes what was seen of dep's branch before.
func (d *Deployer) endFormer(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) error {
	shown, err := d.shown(ctx, svc, dep.Preview)
	if err != nil {
		return err
	}
	for _, former := range shown {
		if former.ID == dep.ID {
			continue
		}
		if err := d.endShown(ctx, former); err != nil {
			return err
		}
	}
	return nil
}

// shown are the deployments that are seen of a branch: one, and two for a moment.
func (d *Deployer) shown(ctx context.Context, svc leapcell.Service, label string) ([]leapcell.Deployment, error) {
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return nil, err
	}
	var out []leapcell.Deployment
	for _, dep := range all {
		if dep.Preview == label && !dep.LiveAt.IsZero() && dep.PreviewEnded.IsZero() {
			out = append(out, dep)
		}
	}
	return out, nil
}

func (d *Deployer) endShown(ctx context.Context, dep leapcell.Deployment) error {
	if err := d.remove(ctx, dep.ID); err != nil {
		return err
	}
	_, err := d.update(ctx, dep.ID, func(dep *leapcell.Deployment) error {
		dep.PreviewURL, dep.PreviewEnded = "", time.Now()
		return nil
	})
	return err
}

// EndPreview removes what is seen of a branch, and stops what is to be seen of it. It can be
// repeated.
func (d *Deployer) EndPreview(ctx context.Context, svc leapcell.Service, label string) error {
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return err
	}
	for _, dep := range all {
		if dep.Preview != label || dep.State.Done() {
			continue
		}
		if err := d.Cancel(ctx, dep.ID); err != nil && leapcell.ErrorCode(err) != leapcell.CodeConflict {
			return err
		}
		d.awaitLeave(dep.ID)
	}
	state := d.service(svc.ID)
	state.live.Lock()
	defer state.live.Unlock()
	if err := d.cfg.Nomad.DeleteVariable(ctx, leapcell.BranchPath(svc.ID, label)); err != nil {
		return err
	}
	shown, err := d.shown(ctx, svc, label)
	if err != nil {
		return err
	}
	for _, dep := range shown {
		if err := d.endShown(ctx, dep); err != nil {
			return err
		}
	}
	d.done.Go(func() { d.collectFronts(svc) })
	d.wantCollection()
	return nil
}

// Overtake ends the deployments that were asked for before dep and have not begun: of many in a
// row the newest is built. One that is being built goes on, so that a branch which is pushed to
// all the time gets somewhere. A push ends only what came by pushes to its branch: who asked for
// a deployment by name gets it.
func (d *Deployer) Overtake(ctx context.Context, dep leapcell.Deployment) error {
	all, err := d.cfg.Store.Deployments(ctx, dep.ServiceID, 0)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.Number >= dep.Number || other.State != leapcell.Queued || other.Preview != dep.Preview || dep.Automatic() && !other.Automatic() {
			continue
		}
		_, err := d.update(ctx, other.ID, func(other *leapcell.Deployment) error {
			if other.State != leapcell.Queued {
				return leapcell.Errorf(leapcell.CodeConflict, "the deployment %s has begun", other.ID)
			}
			other.State = leapcell.Superseded
			return nil
		})
		if err != nil && leapcell.ErrorCode(err) != leapcell.CodeConflict {
			return err
		}
		if err == nil {
			d.stop(other.ID, errOvertook)
		}
	}
	return nil
}
