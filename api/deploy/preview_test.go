package deploy

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// push deploys as an event of a branch does; label "" is the connected one.
func (w *world) push(d *Deployer, label string) (leapcell.Deployment, error) {
	w.mu.Lock()
	svc := w.svc["shop-x"]
	w.mu.Unlock()
	src := leapcell.Source{GitURL: "https://git.example/x", Branch: "branch-of-" + label}
	dep, err := d.Submit(w.t.Context(), svc, src, leapcell.Origin{Trigger: leapcell.Push, Preview: label}, nil)
	if err == nil {
		err = d.Overtake(w.t.Context(), dep)
	}
	return dep, err
}

func (w *world) mustPush(d *Deployer, label string) leapcell.Deployment {
	w.t.Helper()
	dep, err := w.push(d, label)
	if err != nil {
		w.t.Fatal(err)
	}
	return dep
}

func TestPreviewsLeaveTheServiceAlone(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	w.finish(d, w.submit(d).ID)
	next := w.finish(d, w.mustPush(d, "next").ID)
	if next.State != leapcell.Superseded || next.PreviewURL != "http://next--shop-x.test" || next.LiveAt.IsZero() || next.Error != nil {
		t.Errorf("preview %+v", next)
	}
	other := w.finish(d, w.mustPush(d, "other").ID)
	d.done.Wait()
	if w.svc["shop-x"].Live != "shop-1" || w.vars["leapcell/routes/shop-x"] != "shop-1" ||
		w.vars["leapcell/routes/shop-x/next"] != "shop-2" || w.vars["leapcell/routes/shop-x/other"] != other.ID {
		t.Errorf("live %q, routes %v", w.svc["shop-x"].Live, w.vars)
	}
	route, err := leapcell.ParseRoute(w.values["leapcell/routes/shop-x/next"])
	if err != nil || !route.Preview || !slices.Equal(route.Hosts, []string{"next--shop-x.test"}) {
		t.Errorf("route %+v, %v", route, err)
	}
	// Neither is a former version of the service.
	svc := w.svc["shop-x"]
	for _, id := range []string{"", next.ID} {
		if _, err := d.Rollback(t.Context(), svc, id, ada); leapcell.ErrorCode(err) != leapcell.CodeConflict {
			t.Errorf("rollback to %q: %v", id, err)
		}
	}
	if _, err := d.Split(t.Context(), svc, next.ID, 10); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("split: %v", err)
	}
	// The next push replaces the preview of its branch alone.
	again := w.finish(d, w.mustPush(d, "next").ID)
	d.done.Wait()
	if former := w.deps[next.ID]; former.PreviewURL != "" || former.PreviewEnded.IsZero() {
		t.Errorf("the former preview %+v", former)
	}
	if got := w.registered(); !slices.Equal(got, []string{"shop-1", other.ID, again.ID}) {
		t.Errorf("jobs %v", got)
	}
	// One that fails leaves what is seen.
	w.build = badBuild(1, "")
	w.finish(d, w.mustPush(d, "next").ID)
	if w.vars["leapcell/routes/shop-x/next"] != again.ID {
		t.Errorf("routes %v", w.vars)
	}
	for range 2 {
		if err := d.EndPreview(t.Context(), svc, "next"); err != nil {
			t.Fatal(err)
		}
	}
	d.done.Wait()
	if _, ok := w.vars["leapcell/routes/shop-x/next"]; ok || w.vars["leapcell/routes/shop-x/other"] != other.ID {
		t.Errorf("routes %v", w.vars)
	}
	if got := w.registered(); !slices.Equal(got, []string{"shop-1", other.ID}) {
		t.Errorf("jobs %v", got)
	}
	if err := d.DeleteService(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	d.done.Wait()
	if len(w.vars) != 0 || len(w.registered()) != 0 {
		t.Errorf("left of the service: %v, %v", w.vars, w.registered())
	}
}

// A branch that goes while its preview is made leaves nothing.
func TestPreviewEndsOnItsWay(t *testing.T) {
	w := newWorld(t)
	w.held = make(chan struct{})
	d := w.deployer(w.view(0, false), nil)
	dep := w.mustPush(d, "next")
	<-w.asked // it is about to be shown
	if err := d.EndPreview(t.Context(), w.svc["shop-x"], "next"); err != nil {
		t.Fatal(err)
	}
	d.done.Wait()
	if got := w.states(); !slices.Equal(got, []string{dep.ID + " cancelled"}) || len(w.vars) != 0 || len(w.registered()) != 0 {
		t.Errorf("states %v, routes %v, jobs %v", got, w.vars, w.registered())
	}
}

// Of many pushes in a row the first is built, since it has begun, and the newest.
func TestNewestPushWins(t *testing.T) {
	w := newWorld(t)
	w.held = make(chan struct{})
	d := w.deployer(w.view(0, false), nil)
	w.mustPush(d, "")
	<-w.asked
	preview := w.mustPush(d, "next") // of another branch: it is nobody's rival
	<-w.asked
	release, err := d.slots.take(t.Context(), "default", &ticket{id: "held"}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	var last leapcell.Deployment
	for range 5 {
		last = w.mustPush(d, "")
	}
	close(w.held)
	w.finish(d, preview.ID) // before there is another instance: gates here speak for the newest
	release()
	w.finish(d, last.ID)
	d.done.Wait()
	want := []string{"shop-1 superseded", "shop-2 superseded", "shop-3 superseded", "shop-4 superseded", "shop-5 superseded", "shop-6 superseded", "shop-7 live"}
	if got := w.states(); !slices.Equal(got, want) {
		t.Errorf("states %v", got)
	}
	if w.builds != 3 {
		t.Errorf("%d builds for seven pushes", w.builds)
	}
	if w.vars["leapcell/routes/shop-x/next"] != "shop-2" || w.vars["leapcell/routes/shop-x"] != "shop-7" {
		t.Errorf("routes %v", w.vars)
	}
}

// The process is killed at each of its calls while a preview replaces another.
func TestCrashAnywhereInAPreview(t *testing.T) {
	crashAnywhere(t, crashPreview)
}

func crashPreview(t *testing.T, at int, after bool) (reached bool) {
	w := newWorld(t)
	defer w.gate.Close()
	first := w.deployer(w.view(0, false), nil)
	w.finish(first, w.mustPush(first, "next").ID)
	first.done.Wait()

	v := w.view(at, after)
	d := w.deployer(v, nil)
	dep, err := w.push(d, "next")
	if errors.Is(err, errCrashed) && len(w.states()) == 1 {
		return true // nothing was promised
	}
	if dep.ID == "" {
		dep.ID = "shop-2"
	}
	ended := make(chan struct{})
	go func() {
		d.awaitLeave(dep.ID)
		d.done.Wait()
		close(ended)
	}()
	select {
	case <-v.crashed:
	case <-ended:
	}
	select {
	case <-v.crashed:
		reached = true
	default:
	}
	d.Close()

	// A dead deployer's prefetch job may be removed while it is followed: that ends by itself.
	again := w.deployer(w.view(0, false), func(c *Config) { c.PlacementPatience = 5 * time.Second })
	if err := again.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	shown := w.finish(again, "shop-2")
	again.done.Wait()
	if former := w.deps["shop-1"]; shown.PreviewURL == "" || former.PreviewURL != "" || former.PreviewEnded.IsZero() {
		t.Errorf("former %+v, now %+v", former, shown)
	}
	if got := w.registered(); !slices.Equal(got, []string{"shop-2"}) {
		t.Errorf("jobs: %v", got)
	}
	if w.vars["leapcell/routes/shop-x/next"] != "shop-2" || w.svc["shop-x"].Live != "" {
		t.Errorf("routes %v, live %q", w.vars, w.svc["shop-x"].Live)
	}
	return reached
}
