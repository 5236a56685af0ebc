package deploy

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/registry"
)

// Storage is where the registry keeps images.
type Storage interface {
	// Forget removes all repositories below a folder.
	Forget(folder string) error
	Repositories() ([]string, error)
	Tags(repository string) ([]string, error)
	// Untag removes a tag that nobody used since then, and reports whether it did.
	Untag(repository, tag string, since time.Time) (bool, error)
	// Collect removes what no tag leads to any more. Others may push and pull meanwhile.
	Collect(ctx context.Context, c registry.Collection) (registry.Freed, error)
}

// Collections are the figures of the collector since the process began.
type Collections struct {
	Done   int // that came to their end
	Failed int
	Images int // tags that were removed
	Freed  registry.Freed
}

// The repositories of a service, below the folder of its ID; tags are numbers of deployments.
const (
	appRepository    = "app"    // what runs
	sourceRepository = "source" // what builds begin with
	staticRepository = "static" // front ends as builds pushed them
)

// serviceFolder is how IDs of services look: what an operator keeps in the registry has other
// names.
var serviceFolder = regexp.MustCompile(`^[a-z][a-z0-9-]*-[a-z2-7]{8}$`)

// collector remembers what was collected.
type collector struct {
	wake chan struct{} // something may have to go

	mu  sync.Mutex
	all Collections
}

// Collections gives the figures.
func (d *Deployer) Collections() Collections {
	d.collector.mu.Lock()
	defer d.collector.mu.Unlock()
	return d.collector.all
}

// wantCollection makes the collector look soon.
func (d *Deployer) wantCollection() {
	select {
	case d.collector.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// RunCollector collects after deployments and now and then, until ctx ends. The control plane
// that holds the data folder runs it: there is one.
func (d *Deployer) RunCollector(ctx context.Context) {
	every := time.NewTicker(d.cfg.CollectEvery)
	defer every.Stop()
	for sleep(ctx, d.cfg.CollectPause) == nil {
		if _, err := d.CollectImages(ctx); err != nil && ctx.Err() == nil {
			d.cfg.Log.Warn("images not collected", "err", err)
		}
		select {
		case <-d.collector.wake:
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

// CollectImages removes the images, build results and uploads that no deployment needs. It may be
// ended anywhere, and goes on the next time: a deployment says that its image is gone before the
// image goes.
func (d *Deployer) CollectImages(ctx context.Context) (freed registry.Freed, err error) {
	begun, untagged := time.Now(), 0
	defer func() { d.collected(begun, untagged, freed, err) }()
	// In this order: a repository that is there has a service by then, unless that was deleted;
	// and whatever runs by then was asked for before.
	repositories, err := d.cfg.Storage.Repositories()
	if err != nil {
		return freed, err
	}
	services, err := d.cfg.Store.Services(ctx)
	if err != nil {
		return freed, err
	}
	running, err := d.runningJobs(ctx)
	if err != nil {
		return freed, err
	}
	known, uploads := map[string]bool{}, map[string]bool{}
	for _, svc := range services {
		known[svc.ID] = true
		n, err := d.collectService(ctx, svc, running, uploads)
		untagged += n
		if err != nil {
			return freed, err
		}
	}
	for _, repository := range repositories {
		n, err := d.collectRepository(repository, known)
		untagged += n
		if err != nil {
			return freed, err
		}
	}
	if err := d.cfg.Sources.Sweep(uploads, uploadAge); err != nil {
		return freed, err
	}
	return d.cfg.Storage.Collect(ctx, registry.Collection{
		Age: d.cfg.CollectAge, Settled: func(repository string) bool { return d.isSettled(ctx, repository, known) },
	})
}

// collected tells what a collection did.
func (d *Deployer) collected(begun time.Time, untagged int, freed registry.Freed, err error) {
	c := &d.collector
	c.mu.Lock()
	if err == nil {
		c.all.Done++
		c.all.Freed.Kept = freed.Kept
	} else {
		c.all.Failed++
	}
	c.all.Images += untagged
	c.all.Freed.Manifests += freed.Manifests
	c.all.Freed.Blobs += freed.Blobs
	c.all.Freed.Uploads += freed.Uploads
	c.all.Freed.Bytes += freed.Bytes
	c.mu.Unlock()
	if untagged+freed.Manifests+freed.Blobs+freed.Uploads > 0 {
		d.cfg.Log.Info("images collected", "images", untagged, "manifests", freed.Manifests, "blobs", freed.Blobs, "uploads", freed.Uploads,
			"bytes", freed.Bytes, "kept", freed.Kept, "took", time.Since(begun))
	}
}

// runningJobs are the IDs of all jobs that Nomad runs or may run at any time.
func (d *Deployer) runningJobs(ctx context.Context) (map[string]bool, error) {
	jobs, err := d.cfg.Nomad.Jobs(ctx, "")
	if err != nil {
		return nil, err
	}
	running := map[string]bool{}
	for _, job := range jobs {
		running[job.ID] = !job.Stop
	}
	return running, nil
}

// collectService removes the tags of deployments that are not needed, and adds the uploads that
// are to uploads.
func (d *Deployer) collectService(ctx context.Context, svc leapcell.Service, running, uploads map[string]bool) (n int, err error) {
	all, err := d.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return 0, err
	}
	needed := d.needed(all)
	byTag := map[string]leapcell.Deployment{}
	for i, dep := range all {
		byTag[strconv.Itoa(dep.Number)] = dep
		if needed[dep.ID] || i == 0 { // the newest may be repeated, however it ended
			uploads[dep.Source.Upload] = true
		}
		if !needed[dep.ID] && running[dep.ID] {
			needed[dep.ID] = true // until Nomad has let it go as well
			if dep.State == leapcell.Superseded && dep.Preview == "" {
				d.forgetJob(ctx, dep)
			}
		}
	}
	for _, kind := range []string{appRepository, sourceRepository, staticRepository} {
		repository := svc.ID + "/" + kind
		tags, err := d.cfg.Storage.Tags(repository)
		if err != nil {
			return n, err
		}
		for _, tag := range tags {
			dep, ok := byTag[tag]
			if !ok || needed[dep.ID] && (kind != sourceRepository || !dep.State.Done()) {
				continue // one that is not known is newer than what we know
			}
			if kind != sourceRepository {
				if ok, err := d.giveUpImage(ctx, dep); err != nil || !ok {
					d.quiet(dep.ID, err)
					continue
				}
			}
			gone, err := d.cfg.Storage.Untag(repository, tag, time.Now())
			if err != nil {
				return n, err
			}
			if gone {
				n++
			}
		}
	}
	return n, nil
}

// forgetJob stops the job of a deployment that is too old to be rolled back to.
func (d *Deployer) forgetJob(ctx context.Context, dep leapcell.Deployment) {
	d.quiet(dep.ID, d.cfg.Nomad.DeleteVariable(ctx, leapcell.PreviewPath(dep.ServiceID, dep.Number)))
	d.quiet(dep.ID, d.remove(ctx, dep.ID))
}

// giveUpImage notes that the image of a deployment is gone, unless somebody was faster who wants
// it: a rollback after this one is refused, one before it keeps the image.
func (d *Deployer) giveUpImage(ctx context.Context, seen leapcell.Deployment) (bool, error) {
	if seen.Image == "" || !seen.ImageGone.IsZero() {
		return true, nil // nobody can roll back to it
	}
	_, err := d.update(ctx, seen.ID, func(dep *leapcell.Deployment) error {
		if dep.State != seen.State || !dep.LiveAt.Equal(seen.LiveAt) {
			return leapcell.Errorf(leapcell.CodeConflict, "the deployment %s is %s now", dep.ID, dep.State)
		}
		dep.ImageGone = time.Now()
		return nil
	})
	if code := leapcell.ErrorCode(err); code == leapcell.CodeConflict || code == leapcell.CodeNotFound {
		return false, nil
	}
	return err == nil, err
}

// collectRepository removes what services that are gone left, and what no build asked for lately.
func (d *Deployer) collectRepository(repository string, known map[string]bool) (n int, err error) {
	folder, kind, _ := strings.Cut(repository, "/")
	switch {
	case strings.HasPrefix(repository, registry.MirrorPath):
		tags, err := d.cfg.Storage.Tags(repository)
		if err != nil {
			return 0, err
		}
		for _, tag := range tags {
			gone, err := d.cfg.Storage.Untag(repository, tag, time.Now().Add(-d.cfg.MirrorAge))
			if err != nil {
				return n, err
			}
			if gone {
				n++
			}
		}
	case ownKind(kind) && serviceFolder.MatchString(folder) && !known[folder]:
		return 0, d.cfg.Storage.Forget(folder)
	}
	return n, nil
}

func ownKind(kind string) bool {
	return slices.Contains([]string{appRepository, sourceRepository, staticRepository}, kind)
}

// isSettled reports whether a repository is the platform's own and nobody pushes to it now.
func (d *Deployer) isSettled(ctx context.Context, repository string, known map[string]bool) bool {
	folder, kind, _ := strings.Cut(repository, "/")
	if strings.HasPrefix(repository, registry.MirrorPath) || folder == "base" {
		return true // what is being pushed there is young
	}
	if !ownKind(kind) || !known[folder] {
		return false
	}
	unfinished, err := d.cfg.Store.Unfinished(ctx)
	return err == nil && !slices.ContainsFunc(unfinished, func(dep leapcell.Deployment) bool { return dep.ServiceID == folder })
}

// needed are the deployments, by ID, of which nothing may go: what is or may come to be visited,
// what is on its way, and what can be rolled back to. all are those of a service, newest first.
func (d *Deployer) needed(all []leapcell.Deployment) map[string]bool {
	needed := map[string]bool{}
	former := 0
	for _, dep := range all {
		switch {
		case !dep.State.Done() || dep.State == leapcell.Live:
			needed[dep.ID] = true
		case dep.Kept() && dep.Preview != "":
			needed[dep.ID] = dep.PreviewEnded.IsZero()
		case dep.Kept():
			former++
			needed[dep.ID] = former <= d.cfg.Keep
		}
	}
	return needed
}
