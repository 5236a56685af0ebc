package deploy

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

const fetchJob = "prefetch-shop-1"

// job reports whether Nomad has the job.
func (w *world) job(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.jobs[id] != nil
}

// until waits for a change of Nomad's after which ok holds.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	late := time.After(20 * time.Second)
	for {
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-late:
			w.t.Fatalf("never came: %s", what)
		}
	}
}

func (w *world) setReads(status string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads = status
	for _, j := range w.jobs {
		if *j.job.Type == api.JobTypeSysbatch {
			for _, a := range j.allocs {
				a.ClientStatus = status
			}
		}
	}
	w.bump()
}

// Slow nodes do not hold a deployment up, and the job goes when the last one is done.
func TestPrefetch(t *testing.T) {
	w := newWorld(t)
	w.reads = api.AllocClientStatusRunning
	w.held = make(chan struct{}) // a deployment that is live begins no job any more
	d := w.deployer(w.view(0, false), nil)
	id := w.submit(d).ID
	w.until("the job", func() bool { return w.job(fetchJob) })
	close(w.held)
	if dep := w.finish(d, id); dep.State != leapcell.Live {
		t.Fatalf("state %s: %+v", dep.State, dep.Error)
	}
	w.setReads(api.AllocClientStatusComplete)
	d.done.Wait()
	if w.job(fetchJob) {
		t.Error("the job is left")
	}
	if len(w.fetched) != 1 || w.fetched[0].TaskGroups[0].Tasks[0].Config["image"] != "registry/shop-x/app@sha256:1" {
		t.Errorf("jobs: %+v", w.fetched)
	}
}

// What goes wrong with it is nobody's business but the operator's.
func TestPrefetchFails(t *testing.T) {
	for what, change := range map[string]func(*world){
		"on the nodes": func(w *world) { w.reads = api.AllocClientStatusFailed },
		"no nodes":     func(w *world) { w.nodes = 0 },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			change(w)
			d := w.deployer(w.view(0, false), func(c *Config) { c.PlacementPatience = time.Millisecond })
			if dep := w.finish(d, w.submit(d).ID); dep.State != leapcell.Live {
				t.Errorf("state %s: %+v", dep.State, dep.Error)
			}
			d.done.Wait()
			if w.job(fetchJob) {
				t.Error("the job is left")
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		w := newWorld(t)
		v := w.view(0, false)
		d := w.deployer(v, func(c *Config) { c.Nomad = refusing{v} })
		if dep := w.finish(d, w.submit(d).ID); dep.State != leapcell.Live {
			t.Errorf("state %s: %+v", dep.State, dep.Error)
		}
	})
}

// refusing is a Nomad that takes no prefetch job.
type refusing struct{ *view }

func (r refusing) Register(ctx context.Context, job *api.Job) error {
	if *job.Type == api.JobTypeSysbatch {
		return errors.New("no such type")
	}
	return r.view.Register(ctx, job)
}

// A deployment that does not start takes its prefetch away, one that is deleted too.
func TestPrefetchIsRemoved(t *testing.T) {
	w := newWorld(t)
	w.reads = api.AllocClientStatusRunning
	w.held = make(chan struct{})
	d := w.deployer(w.view(0, false), nil)
	dep := w.submit(d)
	w.until("the job", func() bool { return w.job(fetchJob) })
	<-w.asked
	if err := d.Cancel(t.Context(), dep.ID); err != nil {
		t.Fatal(err)
	}
	w.finish(d, dep.ID)
	if w.job(fetchJob) {
		t.Error("the job of a cancelled deployment is left")
	}
}

// A process that was killed before the nodes were done leaves the job; the next one removes it.
func TestPrefetchAfterRestart(t *testing.T) {
	w := newWorld(t)
	w.reads = api.AllocClientStatusRunning
	w.held = make(chan struct{})
	d := w.deployer(w.view(0, false), nil)
	id := w.submit(d).ID
	w.until("the job", func() bool { return w.job(fetchJob) })
	close(w.held)
	w.finish(d, id)
	d.Close()
	if !w.job(fetchJob) {
		t.Fatal("the job is gone with its process: this test proves nothing")
	}
	next := w.deployer(w.view(0, false), nil)
	if err := next.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.until("the end of the job", func() bool { return !w.job(fetchJob) })
	if got := w.running(); !slices.Equal(got, []string{"shop-1=1"}) {
		t.Errorf("running: %v", got)
	}
}
