package deploy

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/nomad"
)

// EnvChanged brings a changed environment to the running instances: one by one, each
// replaced only when another is ready. [EN2] It returns at once; changes that come while
// one is under way are taken together.
func (d *Deployer) EnvChanged(_ context.Context, svc leapcell.Service) error {
	d.wantRefresh(svc, false)
	return nil
}

func (d *Deployer) wantRefresh(svc leapcell.Service, force bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.serviceLocked(svc.ID)
	if s.deleting || d.ctx.Err() != nil {
		return
	}
	s.refreshForce = s.refreshForce || force
	if s.refreshing {
		s.refreshNext = true
		return
	}
	s.refreshing = true
	d.done.Go(func() { d.refreshAll(svc.ID) })
}

// refreshAll refreshes until no change is left.
func (d *Deployer) refreshAll(id string) {
	for more := true; more; {
		d.mu.Lock()
		s := d.serviceLocked(id)
		force := s.refreshForce
		s.refreshForce, s.refreshNext = false, false
		d.mu.Unlock()
		if err := d.refresh(d.ctx, id, force); err != nil && d.ctx.Err() == nil {
			d.cfg.Log.Error("environment not in effect", "service", id, "err", err)
		}
		d.mu.Lock()
		more = s.refreshNext && d.ctx.Err() == nil
		s.refreshing = more
		d.mu.Unlock()
	}
}

// refresh replaces the running instances of the live deployment of a service.
// Without force it is done only for a change that is not in effect yet.
func (d *Deployer) refresh(ctx context.Context, id string, force bool) error {
	state := d.service(id)
	state.live.Lock() // a deployment that goes live meanwhile would change what is live
	defer state.live.Unlock()
	svc, err := d.cfg.Store.Service(ctx, id)
	if err != nil {
		return err
	}
	env, err := d.cfg.Env.Env(ctx, id)
	if err != nil {
		return err
	}
	needed, err := d.isPending(ctx, id, force)
	if err != nil {
		return err
	}
	if svc.Live != "" && needed {
		dep, err := d.cfg.Store.Deployment(ctx, svc.Live)
		if err != nil {
			return err
		}
		if dep.Whole() {
			return d.cfg.Env.EnvApplied(ctx, id, env.Version) // it runs nothing
		}
		if err := d.replaceAll(ctx, svc, dep); err != nil {
			return err
		}
	}
	return d.cfg.Env.EnvApplied(ctx, id, env.Version)
}

// isPending tells a change from the news of one that was taken together with another.
func (d *Deployer) isPending(ctx context.Context, id string, force bool) (bool, error) {
	if force {
		return true, nil
	}
	pending, err := d.cfg.Env.EnvPending(ctx)
	return slices.Contains(pending, id), err
}

// replaceAll replaces each running instance of dep. One more than usual runs meanwhile, so
// that there is always one for the requests.
func (d *Deployer) replaceAll(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) (err error) {
	job, err := d.cfg.Nomad.Job(ctx, dep.ID)
	if err != nil {
		return err
	}
	before := jobCount(job)
	known, old, err := d.settled(ctx, dep.ID, before)
	if err != nil || len(old) == 0 {
		return err // dormant: the next instance has the new environment
	}
	log := d.logs.begin(dep.ID)
	defer log.close()
	w := &worker{id: dep.ID, service: svc.ID, log: log}
	w.log.say("environment changed: replacing %d instances", len(old))
	start := time.Now()
	if err := d.cfg.Nomad.Scale(ctx, dep.ID, before+1); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.scaleBack(context.WithoutCancel(ctx), dep, before)) }()
	if err := d.nextReady(ctx, svc, dep, w, known); err != nil {
		return err
	}
	for _, id := range old {
		_, running, err := d.allocs(ctx, dep.ID)
		if err != nil {
			return err
		}
		if !slices.Contains(running, id) {
			continue // it ended by itself: there is no replacement to wait for
		}
		if err := d.cfg.Nomad.StopAlloc(ctx, id); err != nil {
			return err
		}
		if err := d.nextReady(ctx, svc, dep, w, known); err != nil {
			return err
		}
	}
	w.log.say("environment in effect after %s", time.Since(start).Round(time.Millisecond))
	return nil
}

// settleTime is how long Nomad may take to stop what a lower count asked it to.
const settleTime = 5 * time.Second

// settled gives all allocations of a job, and the running ones, when these are no more than
// its count: some may be about to be stopped.
func (d *Deployer) settled(ctx context.Context, job string, count int) (known map[string]bool, running []string, err error) {
	limited, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	var index uint64
	for {
		allocs, next, err := d.cfg.Nomad.WaitAllocs(limited, job, index)
		if err != nil && (limited.Err() == nil || ctx.Err() != nil) {
			return nil, nil, err
		}
		if err == nil {
			known, running = sortOut(allocs)
		}
		if len(running) <= count || limited.Err() != nil {
			return known, running, nil
		}
		index = next
	}
}

func (d *Deployer) allocs(ctx context.Context, job string) (known map[string]bool, running []string, err error) {
	allocs, _, err := d.cfg.Nomad.WaitAllocs(ctx, job, 0)
	if err != nil {
		return nil, nil, err
	}
	known, running = sortOut(allocs)
	return known, running, nil
}

func sortOut(allocs []*api.AllocationListStub) (known map[string]bool, running []string) {
	known = map[string]bool{}
	for _, a := range allocs {
		known[a.ID] = true
		if nomad.Running(a) {
			running = append(running, a.ID)
		}
	}
	return known, running
}

// nextReady waits until an instance that is not known yet is ready, and adds it to the known.
func (d *Deployer) nextReady(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker, known map[string]bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(dep.Settings.StartTimeout)+d.cfg.StartGrace,
		leapcell.Errorf(leapcell.CodeStartFailed, "no new instance was ready in time"))
	defer cancel()
	r := &readiness{d: d, w: w, svc: svc, dep: dep, skip: known}
	if err := d.waitReady(ctx, r); err != nil {
		err = causeOf(ctx, err)
		w.log.say("the changed environment is not in effect: %s", problemOf(err).Message)
		return err
	}
	known[r.ready] = true
	return nil
}

// scaleBack takes the extra instance away, unless the scaler has decided otherwise since.
func (d *Deployer) scaleBack(ctx context.Context, dep leapcell.Deployment, before int) error {
	job, err := d.cfg.Nomad.Job(ctx, dep.ID)
	if err != nil {
		return err
	}
	if jobCount(job) != before+1 {
		return nil
	}
	return d.cfg.Nomad.Scale(ctx, dep.ID, before)
}
