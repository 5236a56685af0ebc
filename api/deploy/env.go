package deploy

import (
	"context"
	"errors"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/nomad"
)

// EnvChanged brings a changed environment to the running instances: one by one, each
// replaced only when another is ready. [EN2] It returns at once; changes that come while
// one is under way are taken together.
func (d *Deployer) EnvChanged(_ context.Context, svc leapcell.Service) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.serviceLocked(svc.ID)
	if s.deleting || d.ctx.Err() != nil {
		return nil
	}
	if s.refreshing {
		s.refreshNext = true
		return nil
	}
	s.refreshing = true
	d.done.Go(func() { d.refreshAll(svc.ID) })
	return nil
}

// refreshAll refreshes until no change is left.
func (d *Deployer) refreshAll(id string) {
	for {
		err := d.refresh(d.ctx, id)
		if err != nil && d.ctx.Err() == nil {
			d.cfg.Log.Error("environment not in effect", "service", id, "err", err)
		}
		d.mu.Lock()
		s := d.serviceLocked(id)
		if !s.refreshNext || d.ctx.Err() != nil {
			s.refreshing = false
			d.mu.Unlock()
			return
		}
		s.refreshNext = false
		d.mu.Unlock()
	}
}

// refresh replaces the running instances of the live deployment of a service.
func (d *Deployer) refresh(ctx context.Context, id string) error {
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
	if svc.Live != "" {
		dep, err := d.cfg.Store.Deployment(ctx, svc.Live)
		if err != nil {
			return err
		}
		if err := d.replaceAll(ctx, svc, dep); err != nil {
			return err
		}
	}
	return d.cfg.Env.EnvApplied(ctx, id, env.Version)
}

// replaceAll replaces each running instance of dep. One more than usual runs meanwhile, so
// that there is always one for the requests.
func (d *Deployer) replaceAll(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) (err error) {
	allocs, _, err := d.cfg.Nomad.WaitAllocs(ctx, dep.ID, 0)
	if err != nil {
		return err
	}
	known, old := map[string]bool{}, []string{}
	for _, a := range allocs {
		known[a.ID] = true
		if nomad.Running(a) {
			old = append(old, a.ID)
		}
	}
	if len(old) == 0 {
		return nil // dormant: the next instance has the new environment
	}
	job, err := d.cfg.Nomad.Job(ctx, dep.ID)
	if err != nil {
		return err
	}
	before := jobCount(job)
	log := d.logs.begin(dep.ID)
	defer log.close()
	w := &worker{id: dep.ID, service: svc.ID, log: log}
	w.log.say("environment changed: replacing %d instances", len(old))
	if err := d.cfg.Nomad.Scale(ctx, dep.ID, before+1); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.scaleBack(context.WithoutCancel(ctx), dep, before)) }()
	start := time.Now()
	for i := 0; ; i++ {
		ready, err := d.nextReady(ctx, svc, dep, w, known)
		if err != nil {
			w.log.say("the changed environment is not in effect: %s", problemOf(err).Message)
			return err
		}
		known[ready] = true
		if i == len(old) {
			break
		}
		if err := d.cfg.Nomad.StopAlloc(ctx, old[i]); err != nil && leapcell.ErrorCode(err) != leapcell.CodeNotFound {
			return err
		}
	}
	w.log.say("environment in effect after %s", time.Since(start).Round(time.Millisecond))
	return nil
}

// nextReady waits until an instance that is not known yet is ready.
func (d *Deployer) nextReady(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, w *worker, known map[string]bool) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(dep.Settings.StartTimeout)+d.cfg.StartGrace,
		leapcell.Errorf(leapcell.CodeStartFailed, "no new instance was ready in time"))
	defer cancel()
	r := &readiness{d: d, w: w, svc: svc, dep: dep, skip: known}
	if err := d.waitReady(ctx, r); err != nil {
		return "", causeOf(ctx, err)
	}
	return r.ready, nil
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
