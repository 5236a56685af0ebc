package deploy

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/build"
	"github.com/leapcell/leapcell/api/cdn"
	"github.com/leapcell/leapcell/internal/front"
)

// Fronts brings front ends from the registry to where edges fetch them.
type Fronts interface {
	// Look gives the front end that a build pushed, else CodeNotFound.
	Look(ctx context.Context, service, tag string) (*cdn.Front, error)
	// Publish makes sure that all of it is there. It can be repeated.
	Publish(ctx context.Context, f *cdn.Front) error
	// Has reports whether all of what a manifest names is there.
	Has(ctx context.Context, service, manifest string) (bool, error)
	// Collect removes what none of these manifests needs, and gives those of which something is
	// not there.
	Collect(ctx context.Context, service string, keep []string) (lost []string, err error)
	// Forget removes all of a service.
	Forget(ctx context.Context, service string) error
}

// nodeRuntime is what front ends are built with.
const nodeRuntime = "node"

// resolveStatic gives the settings of a service that is files only.
func resolveStatic(given leapcell.Settings, because string, say func(string)) (leapcell.Settings, error) {
	say(fmt.Sprintf("runtime: %s, %s", given.Runtime, because))
	if given.Static == front.None {
		return given, leapcell.Errorf(leapcell.CodeInvalid, "the runtime is static, and static is none: there would be nothing to serve")
	}
	if given.StartCommand != "" {
		say("start command: none, as there is nothing to start")
		given.StartCommand = ""
	}
	if given.BuildCommand == "" {
		say("build command: none, as none is set")
	}
	out := given.Over(leapcell.DefaultSettings())
	return out, out.Validate()
}

// mayBeSite reports whether a build may leave a whole site, so that nothing has to be started.
// If it does not, the build says so.
func mayBeSite(set leapcell.Settings) bool {
	name, _, _ := strings.Cut(set.Runtime, "@")
	return set.Static != front.None && (name == nodeRuntime || set.Static != "")
}

// builtOn is the runtime that a build runs with.
func (d *Deployer) builtOn(set leapcell.Settings) (build.Runtime, error) {
	switch {
	case set.Runtime == leapcell.RuntimeDocker: // without a base: the Dockerfile names its own
		return build.Runtime{Name: set.Runtime}, nil
	case set.Runtime == leapcell.RuntimeStatic && set.BuildCommand != "":
		return d.cfg.Builder.Runtime(nodeRuntime)
	}
	return d.cfg.Builder.Runtime(set.Runtime)
}

// front gives the front end that the build of dep pushed, nil if there is none.
func (d *Deployer) front(ctx context.Context, dep leapcell.Deployment) (*cdn.Front, error) {
	if d.cfg.Fronts == nil {
		return nil, nil
	}
	f, err := d.cfg.Fronts.Look(ctx, dep.ServiceID, strconv.Itoa(dep.Number))
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return nil, nil
	}
	return f, err
}

// publishFront brings the front end of dep to the edges' origin, if the build left one. What is
// there is noted before anybody may collect what no deployment needs.
func (d *Deployer) publishFront(ctx context.Context, dep leapcell.Deployment, w *worker) (*cdn.Front, error) {
	f, err := patient(ctx, d, w, func(ctx context.Context) (*cdn.Front, error) { return d.front(ctx, dep) })
	if f == nil || err != nil {
		return nil, err
	}
	state := d.service(dep.ServiceID)
	state.front.Lock()
	defer state.front.Unlock()
	if err := d.patiently(ctx, w, func(ctx context.Context) error { return d.cfg.Fronts.Publish(ctx, f) }); err != nil {
		return nil, err
	}
	_, err = d.update(ctx, dep.ID, func(dep *leapcell.Deployment) error {
		dep.Static = &f.Static
		return nil
	})
	return f, err
}

// restoreFront makes sure that what edges need of a former deployment is there again.
func (d *Deployer) restoreFront(ctx context.Context, dep leapcell.Deployment, w *worker) error {
	there, err := patient(ctx, d, w, func(ctx context.Context) (bool, error) {
		return d.cfg.Fronts.Has(ctx, dep.ServiceID, dep.Static.Manifest)
	})
	if there || err != nil {
		return err
	}
	f, err := d.publishFront(ctx, dep, w)
	if err == nil && f == nil {
		err = leapcell.Errorf(leapcell.CodeConflict, "the files of the deployment %s are no longer kept: deploy its source again", dep.ID)
	}
	return err
}

// frontImage is the reference of a whole site in place of an image's: there is nothing else.
func (d *Deployer) frontImage(f *cdn.Front, dep leapcell.Deployment) string {
	return fmt.Sprintf("%s/%s/static@%s", d.cfg.RegistryAddress, dep.ServiceID, f.Digest)
}

// tidyFronts makes the edges' origin agree with the store after a restart, as soon as it
// answers. Another origin than before is empty: it gets everything that is still needed.
func (d *Deployer) tidyFronts() {
	services, err := d.cfg.Store.Services(d.ctx)
	d.quiet("static files", err)
	for _, svc := range services {
		said := ""
		for pause := d.cfg.Pause; ; pause = min(2*pause, maxPause) {
			err := d.tidyFront(d.ctx, svc)
			if leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
				d.quiet(svc.ID, err)
				break
			}
			if message := leapcell.ErrorMessage(err); message != said {
				said = message
				d.quiet(svc.ID, err)
			}
			if sleep(d.ctx, pause) != nil {
				return
			}
		}
	}
}

// collectFronts removes static files that no deployment of the service needs any more.
func (d *Deployer) collectFronts(svc leapcell.Service) { d.quiet(svc.ID, d.tidyFront(d.ctx, svc)) }

// tidyFront removes what no deployment of the service needs, and brings back what one needs and
// the origin has lost.
func (d *Deployer) tidyFront(ctx context.Context, svc leapcell.Service) error {
	if d.cfg.Fronts == nil {
		return nil
	}
	state := d.service(svc.ID)
	state.front.Lock()
	defer state.front.Unlock()
	if d.isDeleting(svc.ID) {
		return nil // what came back now would stay for ever
	}
	deps, any, err := d.neededFronts(ctx, svc)
	if err != nil || !any {
		return err
	}
	var keep []string
	for _, dep := range deps {
		keep = append(keep, dep.Static.Manifest)
	}
	lost, err := d.cfg.Fronts.Collect(ctx, svc.ID, keep)
	if err != nil {
		return err
	}
	for _, dep := range deps {
		if !slices.Contains(lost, dep.Static.Manifest) {
			continue
		}
		err := d.bringBack(ctx, dep)
		if leapcell.ErrorCode(err) == leapcell.CodeUnavailable {
			return err
		}
		d.quiet(dep.ID, err) // of the others nothing may be missing
	}
	return nil
}

// bringBack publishes the front end of a former or live deployment once more.
func (d *Deployer) bringBack(ctx context.Context, dep leapcell.Deployment) error {
	f, err := d.front(ctx, dep)
	if err != nil {
		return err
	}
	if f == nil || f.Manifest != dep.Static.Manifest {
		return leapcell.Errorf(leapcell.CodeConflict, "static files of %s are gone, in the registry as well: `leapcell redeploy %s %s` makes them again", dep.ID, dep.Service, dep.ID)
	}
	if err := d.cfg.Fronts.Publish(ctx, f); err != nil {
		return err
	}
	d.cfg.Log.Info("static files published once more", "deployment", dep.ID, "service", dep.ServiceID)
	return nil
}

// maxFormer bounds how many front ends an edge looks through for one file.
const maxFormer = 20

// formerFronts are the manifests of the front ends that svc had before dep, the newest first.
func (d *Deployer) formerFronts(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment) ([]string, error) {
	if d.cfg.Fronts == nil {
		return nil, nil
	}
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return nil, err
	}
	var out []string
	former := 0
	for _, other := range all {
		if other.ID == dep.ID || other.Preview != "" || !other.WasLive() && other.State != leapcell.Live {
			continue
		}
		former++
		if other.Static == nil || other.State != leapcell.Live && !d.frontKept(other, former) {
			continue
		}
		same := dep.Static != nil && dep.Static.Manifest == other.Static.Manifest
		if !same && !slices.Contains(out, other.Static.Manifest) && len(out) < maxFormer {
			out = append(out, other.Static.Manifest)
		}
	}
	return out, nil
}

// frontKept reports whether the files of a deployment that was live are still there, also when its
// image has gone; former is how many were live since, with it.
func (d *Deployer) frontKept(dep leapcell.Deployment, former int) bool {
	return former <= d.cfg.Keep || former <= maxFormer && time.Since(dep.UpdatedAt) < d.cfg.FormerFor
}

// neededFronts are the deployments with a front end that may be visited, by the service's name or
// by their own, or whose pages may still be open, the newest first. any says whether there ever
// was one.
func (d *Deployer) neededFronts(ctx context.Context, svc leapcell.Service) (keep []leapcell.Deployment, any bool, err error) {
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return nil, false, err
	}
	needed := d.needed(all)
	former := 0
	for _, dep := range all {
		was := dep.WasLive() && dep.Preview == ""
		if was {
			former++
		}
		if dep.Static == nil {
			continue
		}
		any = true
		if needed[dep.ID] || was && d.frontKept(dep, former) {
			keep = append(keep, dep)
		}
	}
	return keep, any, nil
}
