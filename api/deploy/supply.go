package deploy

import (
	"context"

	"github.com/leapcell/leapcell"
)

// Supply vouches for images, which it is given by reference with digest. Errors of calls that may
// succeed later have CodeUnavailable.
type Supply interface {
	// Sign signs an image, unless it is signed. Nodes may refuse one that is not.
	Sign(ctx context.Context, image string) error
	// Prepare reads what is in an image that another will stand on: what is read now need not be read
	// when that one is described.
	Prepare(ctx context.Context, image string) error
	// Describe writes down what is in a deployment's image and how it came about, unless that is done.
	Describe(ctx context.Context, dep leapcell.Deployment) error
}

// noSupply vouches for nothing.
type noSupply struct{}

func (noSupply) Sign(context.Context, string) error                  { return nil }
func (noSupply) Prepare(context.Context, string) error               { return nil }
func (noSupply) Describe(context.Context, leapcell.Deployment) error { return nil }

// sign signs an image before a node is told to use it.
func (d *Deployer) sign(ctx context.Context, image string, w *worker) error {
	return d.patiently(ctx, w, func(ctx context.Context) error { return d.cfg.Supply.Sign(ctx, image) })
}

// prepare reads a build image while the build runs. It makes nothing but time.
func (d *Deployer) prepare(image string) {
	d.done.Go(func() {
		if err := d.cfg.Supply.Prepare(d.ctx, image); err != nil && d.ctx.Err() == nil {
			d.cfg.Log.Debug("build image not read ahead", "image", image, "err", err)
		}
	})
}

// describe writes a deployment's documents while its first instance starts; wait waits for that. They
// are no reason to fail: who wants to know finds in the log why there are none.
func (d *Deployer) describe(ctx context.Context, dep leapcell.Deployment, w *worker) (wait, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := d.patiently(ctx, w, func(ctx context.Context) error { return d.cfg.Supply.Describe(ctx, dep) })
		if err == nil || ctx.Err() != nil {
			return
		}
		w.log.say("what is in the image could not be written down: %s", problemOf(err).Message)
		d.cfg.Log.Warn("deployment without bill of materials or provenance", "deployment", dep.ID, "err", err)
	}()
	return func() { <-done }, func() { cancel(); <-done }
}

// signKept signs what is live and what can be rolled back to, if it is from before there was a signing
// key or from before that was replaced.
func (d *Deployer) signKept() {
	services, err := d.cfg.Store.Services(d.ctx)
	d.quiet("signatures", err)
	for _, svc := range services {
		all, err := d.cfg.Store.Deployments(d.ctx, svc.ID, 0)
		d.quiet("signatures of "+svc.Name, err)
		for _, dep := range all {
			if dep.Image != "" && !dep.Whole() && (dep.State == leapcell.Live || dep.Kept()) {
				d.quiet("signature of "+dep.ID, d.signLater(dep.Image))
			}
		}
	}
}

// signLater signs as soon as registry and Vault answer.
func (d *Deployer) signLater(image string) error {
	for pause := d.cfg.Pause; ; pause = min(2*pause, maxPause) {
		err := d.cfg.Supply.Sign(d.ctx, image)
		if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || sleep(d.ctx, pause) != nil {
			return err
		}
	}
}
