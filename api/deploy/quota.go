package deploy

import (
	"context"
	"time"

	"github.com/leapcell/leapcell"
)

// day is that of a plan's limits: the last 24 hours, whatever the clock of whose wall says.
const day = 24 * time.Hour

// admit refuses a deployment that is one too many for the plan. [plans]
func (d *Deployer) admit(ctx context.Context, svc leapcell.Service, origin leapcell.Origin) error {
	most := d.cfg.Plan.PerDay(origin)
	if most == 0 {
		return nil
	}
	now := time.Now()
	made, err := d.cfg.Store.DeploymentsSince(ctx, svc.Workspace, now.Add(-day))
	if err != nil {
		return err
	}
	var alike []time.Time // oldest first
	for _, m := range made {
		if m.Automatic() == origin.Automatic() {
			alike = append(alike, m.CreatedAt)
		}
	}
	if len(alike) < most {
		return nil
	}
	kind := ""
	if origin.Automatic() {
		kind = "automatic "
	}
	next := alike[len(alike)-most].Add(day).Sub(now).Truncate(time.Second) + time.Second
	return leapcell.Errorf(leapcell.CodeRateLimited, "the workspace %s has had %d %sdeployments in 24 hours, all that the plan %s allows: the next one is possible in %s",
		svc.Workspace, len(alike), kind, d.cfg.Plan.Name, next)
}

// create adds a deployment, unless it is one too many. It is not fresh when the same request made it
// before.
func (d *Deployer) create(ctx context.Context, svc leapcell.Service, src leapcell.Source, settings leapcell.Settings, origin leapcell.Origin) (dep leapcell.Deployment, fresh bool, err error) {
	d.admitting.Lock()
	defer d.admitting.Unlock()
	if dep, made, err := d.requested(ctx, svc, origin); made || err != nil {
		return dep, false, err
	}
	if err := d.admit(ctx, svc, origin); err != nil {
		return leapcell.Deployment{}, false, err
	}
	dep, err = d.cfg.Store.CreateDeployment(ctx, svc.ID, src, settings, origin)
	return dep, true, err
}

// requested is the deployment that the same request made already: its answer was lost.
func (d *Deployer) requested(ctx context.Context, svc leapcell.Service, origin leapcell.Origin) (dep leapcell.Deployment, made bool, err error) {
	if origin.Request == "" {
		return dep, false, nil
	}
	dep, err = d.cfg.Store.Requested(ctx, svc.ID, origin.Request)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return dep, false, nil
	}
	return dep, err == nil, err
}

// Place is that of a deployment in the queue for builds, 1 for the next; 0 says that it does not
// wait.
func (d *Deployer) Place(ctx context.Context, dep leapcell.Deployment) int {
	if dep.State.Done() || dep.State == leapcell.Starting {
		return 0
	}
	svc, err := d.cfg.Store.Service(ctx, dep.ServiceID)
	if err != nil {
		return 0 // not worth an error: the deployment itself is what was asked for
	}
	return d.slots.place(svc.Workspace, dep.ID)
}
