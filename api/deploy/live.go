package deploy

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/jobs"
)

// goLive sends the visitors to dep. Everything before the route can be repeated; after it
// the deployment is live, whatever happens to this process.
func (d *Deployer) goLive(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker) error {
	state := d.service(svc.ID)
	state.live.Lock()
	defer state.live.Unlock()
	if err := d.overtake(ctx, svc, dep); err != nil {
		return err
	}
	if svc, err := d.cfg.Store.Service(ctx, svc.ID); err != nil {
		return err
	} else if err := d.putRoute(ctx, svc, dep, w); err != nil {
		return err
	}
	// From here a cancelled worker must not stop half-way: visitors are there already.
	ctx = context.WithoutCancel(ctx)
	former, err := d.retire(ctx, svc, dep)
	if err != nil {
		return err
	}
	if _, err := d.cfg.Store.UpdateService(ctx, svc.ID, func(svc *leapcell.Service) error {
		svc.Live = dep.ID
		return nil
	}); err != nil {
		return err
	}
	w.log.say("live at %s", svc.URL)
	d.cfg.Log.Info("deployment live", "deployment", dep.ID, "service", svc.ID, "took", time.Since(requested(dep)))
	if _, err := d.update(ctx, dep.ID, func(dep *leapcell.Deployment) error {
		dep.State, dep.LiveAt, dep.Error = leapcell.Live, time.Now(), nil
		return nil
	}); err != nil {
		return err
	}
	d.done.Go(func() { d.drain(former, svc) })
	return nil
}

// requested is when somebody asked for dep to be live.
func requested(dep leapcell.Deployment) time.Time {
	if isRollback(dep) {
		return dep.UpdatedAt // nothing else touches a starting deployment
	}
	return dep.CreatedAt
}

// overtake makes sure that dep may still go live, and ends what was asked for before it.
func (d *Deployer) overtake(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) error {
	now, err := d.cfg.Store.Deployment(ctx, dep.ID)
	if err != nil {
		return err
	}
	if now.State != leapcell.Starting {
		return errOvertook
	}
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.ID == dep.ID || other.Preview != dep.Preview || other.State.Done() || !requested(other).Before(requested(dep)) {
			continue
		}
		_, err := d.update(ctx, other.ID, func(other *leapcell.Deployment) error {
			other.State = leapcell.Superseded
			return nil
		})
		if err != nil && leapcell.ErrorCode(err) != leapcell.CodeConflict {
			return err
		}
		d.stop(other.ID, errOvertook)
	}
	return nil
}

// putRoute sends the visitors to dep, under its own name and under the service's.
func (d *Deployer) putRoute(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker) error {
	if err := d.patiently(ctx, w, func(ctx context.Context) error {
		_, err := d.put(ctx, leapcell.PreviewPath(svc.ID, dep.Number), jobs.Preview(d.cfg.Namespace, svc, dep))
		return err
	}); err != nil {
		return err
	}
	route := jobs.Route(d.cfg.Namespace, svc, dep)
	var err error
	if route.Former, err = d.formerFronts(ctx, svc, dep); err != nil {
		return err
	}
	var index uint64
	err = d.patiently(ctx, w, func(ctx context.Context) (err error) {
		index, err = d.put(ctx, leapcell.RoutesPrefix+svc.ID, route)
		return err
	})
	if err != nil {
		return err
	}
	d.awaitEdges(context.WithoutCancel(ctx), dep.ID, index)
	return nil
}

// awaitEdges makes "live" mean that visitors get the new deployment, and lets the former
// one keep its instances until then.
func (d *Deployer) awaitEdges(ctx context.Context, id string, index uint64) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Handover)
	defer cancel()
	if err := d.cfg.Edges.AwaitRoutes(ctx, index); err != nil {
		d.cfg.Log.Warn("not every edge said in time that it has the route", "deployment", id, "err", err)
	}
}

// retire marks what was live before dep as superseded and gives it.
func (d *Deployer) retire(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) ([]leapcell.Deployment, error) {
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return nil, err
	}
	var former []leapcell.Deployment
	for _, other := range all {
		if other.ID == dep.ID || other.State != leapcell.Live {
			continue
		}
		other, err := d.update(ctx, other.ID, func(other *leapcell.Deployment) error {
			other.State = leapcell.Superseded
			return nil
		})
		if err != nil {
			return nil, err
		}
		former = append(former, other)
	}
	return former, nil
}

// drain takes the instances of the former deployments away, which every edge has left by
// now, and forgets jobs too old to be rolled back to at once.
func (d *Deployer) drain(former []leapcell.Deployment, svc leapcell.Service) {
	for _, dep := range former {
		now, err := d.cfg.Store.Deployment(d.ctx, dep.ID)
		if err != nil || now.State != leapcell.Superseded {
			continue // rolled back to in the meantime
		}
		d.quiet(dep.ID, d.scaleDown(d.ctx, dep.ID))
	}
	d.prune(svc)
}

// prune forgets the jobs of all but the newest superseded deployments.
func (d *Deployer) prune(svc leapcell.Service) {
	all, err := d.cfg.Store.Deployments(d.ctx, svc.ID, 0)
	if err != nil {
		d.quiet(svc.ID, err)
		return
	}
	kept := 0
	for _, dep := range all {
		if dep.State != leapcell.Superseded || dep.LiveAt.IsZero() || dep.Preview != "" {
			continue
		}
		if kept++; kept > d.cfg.Keep && kept <= d.cfg.Keep+5 { // the older ones are gone since before
			d.quiet(dep.ID, d.cfg.Nomad.DeleteVariable(d.ctx, leapcell.PreviewPath(svc.ID, dep.Number)))
			d.quiet(dep.ID, d.remove(d.ctx, dep.ID))
		}
	}
	d.collectFronts(svc)
}

// quiet logs what nobody waits for; the next start of the process tries it again.
func (d *Deployer) quiet(what string, err error) {
	if err != nil && d.ctx.Err() == nil {
		d.cfg.Log.Warn("clean-up failed", "of", what, "err", err)
	}
}

// Rollback makes a former deployment live again; "" means the one before the live one. by is whose
// wish it is, and which request's: one that arrives twice does not go back twice.
func (d *Deployer) Rollback(ctx context.Context, svc leapcell.Service, id string, by leapcell.Origin) (leapcell.Deployment, error) {
	if d.isDeleting(svc.ID) {
		return leapcell.Deployment{}, errDeleting(svc)
	}
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return leapcell.Deployment{}, err
	}
	done := func(dep leapcell.Deployment) bool { return by.Request != "" && dep.RestoredRequest == by.Request }
	if i := slices.IndexFunc(all, done); i >= 0 {
		return all[i], nil
	}
	dep, err := d.rollbackTo(svc, all, id)
	if err != nil {
		return leapcell.Deployment{}, err
	}
	dep, err = d.update(ctx, dep.ID, func(dep *leapcell.Deployment) error {
		if dep.State != leapcell.Superseded {
			return leapcell.Errorf(leapcell.CodeConflict, "the deployment %s is %s: only a superseded one can be rolled back to", dep.ID, dep.State)
		}
		if !dep.HasImage() {
			return d.imageGone(*dep)
		}
		dep.State, dep.Error = leapcell.Starting, nil
		dep.RestoredBy, dep.RestoredFrom, dep.RestoredRequest = by.StartedBy, svc.Live, by.Request
		return nil
	})
	if err != nil {
		return leapcell.Deployment{}, err
	}
	d.awaitLeave(dep.ID)
	d.start(dep)
	return dep, nil
}

// awaitLeave waits for a worker that cleans up after dep was superseded.
func (d *Deployer) awaitLeave(id string) {
	d.mu.Lock()
	w, ok := d.workers[id]
	d.mu.Unlock()
	if ok {
		<-w.done
	}
}

func (d *Deployer) imageGone(dep leapcell.Deployment) error {
	return leapcell.Errorf(leapcell.CodeConflict, "the image of %s is no longer kept: the plan %s keeps those of the last %d former deployments; `leapcell redeploy %s %s` builds it again",
		dep.ID, d.cfg.Plan.Name, d.cfg.Keep, dep.Service, dep.ID)
}

// rollbackTo chooses among all deployments of a service.
func (d *Deployer) rollbackTo(svc leapcell.Service, all []leapcell.Deployment, id string) (leapcell.Deployment, error) {
	var best leapcell.Deployment
	for _, dep := range all {
		if id != "" && dep.ID != id {
			continue
		}
		good := dep.Kept() && dep.Preview == ""
		if id != "" && dep.Preview == "" && dep.State == leapcell.Superseded && !dep.LiveAt.IsZero() && !dep.HasImage() {
			return leapcell.Deployment{}, d.imageGone(dep)
		}
		if id != "" && dep.Preview != "" {
			return leapcell.Deployment{}, leapcell.Errorf(leapcell.CodeConflict, "the deployment %s is a preview and cannot be rolled back to: only one that was live before can", id)
		}
		if id != "" && !good {
			return leapcell.Deployment{}, leapcell.Errorf(leapcell.CodeConflict, "the deployment %s is %s and cannot be rolled back to: only one that was live before can", id, dep.State)
		}
		if good && dep.LiveAt.After(best.LiveAt) {
			best = dep
		}
	}
	if best.ID == "" && id != "" {
		return best, leapcell.Errorf(leapcell.CodeNotFound, "the service %s has no deployment %q", svc.Name, id)
	}
	if best.ID == "" {
		return best, leapcell.Errorf(leapcell.CodeConflict, "the service %s has no former deployment to roll back to", svc.Name)
	}
	return best, nil
}

// tidy makes Nomad agree with the store after a restart: jobs of deployments that are
// superseded run nothing, those of failed and cancelled ones are gone.
func (d *Deployer) tidy() {
	registered, err := d.registered()
	if err != nil {
		d.quiet("jobs", err)
		return
	}
	for _, job := range registered {
		if of, ok := strings.CutPrefix(job.ID, leapcell.PrefetchPrefix); ok {
			d.tidyPrefetch(job.ID, of)
			continue
		}
		if strings.HasPrefix(job.ID, leapcell.ForgetPrefix) {
			d.quiet(job.ID, d.cfg.Nomad.Stop(d.ctx, job.ID, true))
			continue
		}
		dep, err := d.cfg.Store.Deployment(d.ctx, job.ID)
		switch {
		case leapcell.ErrorCode(err) == leapcell.CodeNotFound && job.Stop:
			d.purgeLater(job.ID) // of a deleted service
		case err != nil || d.busy(dep.ID):
			// A build: its worker cleans up after it.
		case dep.State == leapcell.Failed || dep.State == leapcell.Cancelled:
			d.quiet(dep.ID, d.remove(d.ctx, dep.ID))
		case dep.State == leapcell.Superseded:
			d.quiet(dep.ID, d.scaleDown(d.ctx, dep.ID))
		}
	}
}

// registered gives the jobs in Nomad, as soon as it answers.
func (d *Deployer) registered() ([]*api.JobListStub, error) {
	for pause := d.cfg.Pause; ; pause = min(2*pause, maxPause) {
		jobs, err := d.cfg.Nomad.Jobs(d.ctx, "")
		if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || sleep(d.ctx, pause) != nil {
			return jobs, err
		}
	}
}

func (d *Deployer) busy(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.workers[id]
	return ok
}

// uploadAge is how long an upload stays at least: it is there before its deployment.
const uploadAge = time.Hour
