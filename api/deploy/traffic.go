package deploy

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/jobs"
)

// Split sends percent of the service's requests to one of its former deployments; 0 ends it.
// It holds until the next deployment or rollback goes live.
func (d *Deployer) Split(ctx context.Context, svc leapcell.Service, id string, percent int) (*leapcell.Split, error) {
	if percent < 0 || percent > 99 {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "percent is %d: it must be from 0 to 99; to send all requests to %s, roll back to it", percent, id)
	}
	state := d.service(svc.ID)
	state.live.Lock()
	defer state.live.Unlock()
	svc, err := d.cfg.Store.Service(ctx, svc.ID)
	if err != nil {
		return nil, err
	}
	if svc.Live == "" {
		return nil, leapcell.Errorf(leapcell.CodeConflict, "the service %s has no live deployment yet", svc.Name)
	}
	live, err := d.cfg.Store.Deployment(ctx, svc.Live)
	if err != nil {
		return nil, err
	}
	route := jobs.Route(d.cfg.Namespace, svc, live)
	if route.Former, err = d.formerFronts(ctx, svc, live); err != nil {
		return nil, err
	}
	if percent > 0 {
		if route.Split, err = d.splitTo(ctx, svc, id, percent); err != nil {
			return nil, err
		}
	}
	index, err := d.put(ctx, leapcell.RoutesPrefix+svc.ID, route)
	if err != nil {
		return nil, err
	}
	d.awaitEdges(ctx, live.ID, index)
	return route.Split, nil
}

func (d *Deployer) splitTo(ctx context.Context, svc leapcell.Service, id string, percent int) (*leapcell.Split, error) {
	dep, err := d.cfg.Store.Deployment(ctx, id)
	if err == nil && dep.ServiceID != svc.ID {
		err = leapcell.Errorf(leapcell.CodeNotFound, "the service %s has no deployment %q", svc.Name, id)
	}
	if err != nil {
		return nil, err
	}
	if !dep.Kept() || dep.Preview != "" {
		return nil, leapcell.Errorf(leapcell.CodeConflict, "the deployment %s is %s: only one that was live before can get a part of the requests", id, dep.State)
	}
	if ready, err := d.isReady(ctx, dep); err != nil {
		return nil, err
	} else if !ready {
		return nil, leapcell.Errorf(leapcell.CodeConflict, "the deployment %s is too old: only the last %d are kept ready", id, d.cfg.Keep)
	}
	preview := jobs.Preview(d.cfg.Namespace, svc, dep)
	if _, err := d.put(ctx, leapcell.PreviewPath(svc.ID, dep.Number), preview); err != nil {
		return nil, err
	}
	return &leapcell.Split{Deployment: id, Host: preview.Hosts[0], Percent: percent}, nil
}

// isReady reports whether all is there that a former deployment answers with.
func (d *Deployer) isReady(ctx context.Context, dep leapcell.Deployment) (bool, error) {
	if dep.Static != nil {
		there, err := d.cfg.Fronts.Has(ctx, dep.ServiceID, dep.Static.Manifest)
		if err != nil || !there || dep.Whole() {
			return there, err
		}
	}
	_, err := d.cfg.Nomad.Job(ctx, dep.ID)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return false, nil
	}
	return err == nil, err
}

// Traffic is the split in effect, nil for none.
func (d *Deployer) Traffic(ctx context.Context, svc leapcell.Service) (*leapcell.Split, error) {
	b, err := d.cfg.Nomad.Variable(ctx, leapcell.RoutesPrefix+svc.ID)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return nil, nil // nothing was live yet
	}
	if err != nil {
		return nil, err
	}
	route, err := leapcell.ParseRoute(b)
	return route.Split, err
}

// put writes a route and gives Nomad's index of it.
func (d *Deployer) put(ctx context.Context, path string, route leapcell.Route) (uint64, error) {
	b, err := json.Marshal(route)
	if err != nil {
		return 0, fmt.Errorf("route of %s: %w", route.Deployment, err)
	}
	return d.cfg.Nomad.PutVariable(ctx, path, b)
}
