package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/build"
	"github.com/leapcell/leapcell/api/cdn"
)

// fakeFronts are front ends in the registry by "service:number", and manifests at the origin.
// They outlive the deployer.
type fakeFronts struct {
	built, there map[string]bool
	away         *int // so many calls of the origin fail
	whole        bool
	v            *view
}

// answers is what a call of the origin begins with.
func (f *fakeFronts) answers() error {
	if *f.away == 0 {
		return nil
	}
	*f.away--
	return leapcell.Errorf(leapcell.CodeUnavailable, "the bucket does not answer")
}

func (f *fakeFronts) manifest(tag string) string { return "manifest-" + tag }

func (f *fakeFronts) Look(ctx context.Context, service, tag string) (out *cdn.Front, err error) {
	err = f.v.do(ctx, "Look", func() error {
		if !f.built[service+":"+tag] {
			return notFound(tag)
		}
		out = &cdn.Front{Digest: "sha256:" + tag, Static: leapcell.Static{Manifest: f.manifest(tag), Whole: f.whole, Files: 1}}
		return nil
	})
	return out, err
}

func (f *fakeFronts) Publish(ctx context.Context, front *cdn.Front) error {
	return f.v.do(ctx, "Publish", func() error { f.there[front.Manifest] = true; return nil })
}

func (f *fakeFronts) Has(ctx context.Context, _, manifest string) (ok bool, err error) {
	err = f.v.do(ctx, "Has", func() error { ok = f.there[manifest]; return nil })
	return ok, err
}

func (f *fakeFronts) Collect(ctx context.Context, _ string, keep []string) (lost []string, err error) {
	err = f.v.do(ctx, "Collect", func() error {
		if err := f.answers(); err != nil {
			return err
		}
		maps.DeleteFunc(f.there, func(m string, _ bool) bool { return !slices.Contains(keep, m) })
		for _, m := range keep {
			if !f.there[m] {
				lost = append(lost, m)
			}
		}
		return nil
	})
	return lost, err
}

func (f *fakeFronts) Forget(ctx context.Context, _ string) error {
	return f.v.do(ctx, "Forget", func() error {
		if err := f.answers(); err != nil {
			return err
		}
		clear(f.there)
		return nil
	})
}

// withFronts is a world whose builds leave front ends; whole ones leave no image.
func withFronts(t *testing.T, whole bool) (*world, *fakeFronts) {
	w := newWorld(t)
	f := &fakeFronts{built: map[string]bool{}, there: map[string]bool{}, away: new(int), whole: whole}
	w.build = func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
		goodBuild(w, a, dep)
		f.built[dep.ServiceID+":"+strconv.Itoa(dep.Number)] = true
		if whole {
			delete(w.images, fmt.Sprintf("%s/app:%d", dep.ServiceID, dep.Number))
		}
	}
	return w, f
}

// with gives the fronts to one life of the deployer.
func (f *fakeFronts) with(v *view) func(*Config) {
	mine := *f
	mine.v = v
	return func(c *Config) { c.Fronts, c.Keep, c.FormerFor = &mine, 2, time.Nanosecond }
}

func TestWholeSite(t *testing.T) {
	w, f := withFronts(t, true)
	v := w.view(0, false)
	d := w.deployer(v, f.with(v))
	dep := w.finish(d, w.submit(d).ID)
	if dep.State != leapcell.Live || !dep.Whole() || dep.Static.Manifest != "manifest-1" || dep.Image != "registry/shop-x/static@sha256:1" {
		t.Fatalf("deployment %+v, static %+v", dep, dep.Static)
	}
	route, err := leapcell.ParseRoute(w.values["leapcell/routes/shop-x"])
	if err != nil || route.Static == nil || *route.Static != (leapcell.RouteStatic{Manifest: "manifest-1", Whole: true}) {
		t.Errorf("route %+v, %v", route.Static, err)
	}
	if jobs, running := w.registered(), w.running(); len(jobs)+len(running)+len(w.fetched) > 0 {
		t.Errorf("jobs %v, instances %v: a site needs none", jobs, running)
	}

	w.finish(d, w.submit(d).ID)
	if split, err := d.Split(t.Context(), w.svc["shop-x"], "shop-1", 10); err != nil || split == nil {
		t.Errorf("split is %+v, %v", split, err)
	}
	w.mu.Lock()
	w.env["shop-x"]++
	w.mu.Unlock()
	if err := d.EnvChanged(t.Context(), w.svc["shop-x"]); err != nil {
		t.Error(err)
	}
	for range 3 {
		w.finish(d, w.submit(d).ID)
	}
	d.done.Wait()
	if w.applied["shop-x"] != w.env["shop-x"] {
		t.Error("a change of variables waits for instances that will never be")
	}
	if got := slices.Sorted(maps.Keys(f.there)); !slices.Equal(got, []string{"manifest-3", "manifest-4", "manifest-5"}) {
		t.Errorf("at the origin: %v", got)
	}
	if _, err := d.Split(t.Context(), w.svc["shop-x"], "shop-1", 10); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("to one that is too old: %v", err)
	}

	// Back to one whose files were collected: they come from the registry again.
	for _, id := range []string{"shop-4", "shop-1"} {
		if _, err := d.Rollback(t.Context(), w.svc["shop-x"], id, ada); err != nil {
			t.Fatal(err)
		}
		dep := w.finish(d, id)
		w.mu.Lock() // the former one is still put to rest
		if dep.State != leapcell.Live || w.vars["leapcell/routes/shop-x"] != id || !f.there["manifest-"+id[5:]] {
			t.Errorf("%s is %s, %+v; route %v, there %v", id, dep.State, dep.Error, w.vars, f.there)
		}
		w.mu.Unlock()
	}
	d.done.Wait()
	delete(f.built, "shop-x:2")
	if _, err := d.Rollback(t.Context(), w.svc["shop-x"], "shop-2", ada); err != nil {
		t.Fatal(err)
	}
	if dep := w.finish(d, "shop-2"); dep.State != leapcell.Superseded || dep.Error == nil || !strings.Contains(dep.Error.Message, "no longer kept") {
		t.Errorf("to one that is nowhere: %s %+v", dep.State, dep.Error)
	}
	if err := d.DeleteService(t.Context(), w.svc["shop-x"]); err != nil || len(f.there) > 0 || len(w.vars) > 0 {
		t.Errorf("%v; left: %v %v", err, f.there, w.vars)
	}
}

func TestFrontEndBesideAnApp(t *testing.T) {
	w, f := withFronts(t, false)
	v := w.view(0, false)
	d := w.deployer(v, f.with(v))
	dep := w.finish(d, w.submit(d).ID)
	if dep.State != leapcell.Live || dep.Whole() || dep.Static == nil || dep.Image != "registry/shop-x/app@sha256:1" || !f.there["manifest-1"] {
		t.Fatalf("deployment %+v, static %+v", dep, dep.Static)
	}
	if got := w.running(); !slices.Equal(got, []string{"shop-1=1"}) {
		t.Errorf("running: %v", got)
	}
	route, err := leapcell.ParseRoute(w.values["leapcell/routes/shop-x/1"])
	if err != nil || route.Static == nil || route.Static.Whole {
		t.Errorf("route %+v, %v", route.Static, err)
	}
}

// However far a deployment had come when the process was killed, it ends live with its files at
// the origin, and nothing else there.
func TestCrashAnywhereWithFrontEnd(t *testing.T) {
	for _, whole := range []bool{true, false} {
		for _, after := range []bool{false, true} {
			for at := 1; crashFront(t, at, after, whole); at++ {
				if t.Failed() {
					t.Fatalf("killed at call %d (after its effect: %v, a whole site: %v)", at, after, whole)
				}
			}
		}
	}
}

func crashFront(t *testing.T, at int, after, whole bool) (reached bool) {
	w, f := withFronts(t, whole)
	defer w.gate.Close()
	v := w.view(at, after)
	d := w.deployer(v, f.with(v))
	_, err := d.Submit(t.Context(), w.svc["shop-x"], leapcell.Source{}, leapcell.Origin{}, strings.NewReader("x"))
	if errors.Is(err, errCrashed) && len(w.states()) == 0 {
		return true // nothing was promised
	}
	ended := make(chan struct{})
	go func() {
		d.awaitLeave("shop-1")
		d.done.Wait()
		close(ended)
	}()
	select {
	case <-v.crashed:
		reached = true
	case <-ended:
	}
	d.Close()
	<-ended

	next := w.view(0, false)
	again := w.deployer(next, f.with(next))
	if err := again.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	dep := w.finish(again, "shop-1")
	again.done.Wait()
	if dep.State != leapcell.Live || dep.Static == nil || !maps.Equal(f.there, map[string]bool{"manifest-1": true}) || w.builds != 1 {
		t.Errorf("%s %+v, static %+v, at the origin %v, %d builds", dep.State, dep.Error, dep.Static, f.there, w.builds)
	}
	if jobs := w.registered(); (len(jobs) == 0) != whole {
		t.Errorf("jobs: %v", jobs)
	}
	return reached
}

// noImages is for a builder that makes none.
type noImages struct{ build.Images }

func TestWhatMayBeASite(t *testing.T) {
	for _, c := range []struct {
		name        string
		given, want leapcell.Settings // want has what matters of the result
		names       []string
		code        leapcell.Code
	}{
		{name: "a page", names: []string{"index.html"}, want: leapcell.Settings{Runtime: "static"}},
		{name: "static, built", names: []string{"package.json"}, given: leapcell.Settings{Runtime: "static", BuildCommand: "npm run build", StartCommand: "npm start"},
			want: leapcell.Settings{Runtime: "static", BuildCommand: "npm run build"}},
		{name: "static, but none", given: leapcell.Settings{Runtime: "static", Static: "none"}, code: leapcell.CodeInvalid},
		{name: "node without a start", names: []string{"package.json"}, want: leapcell.Settings{Runtime: "node", BuildCommand: "-"}},
		{name: "python without a start", names: []string{"requirements.txt"}, code: leapcell.CodeInvalid},
		{name: "a Dockerfile that is set says what it is", names: []string{"package.json"}, given: leapcell.Settings{Dockerfile: "deploy/Dockerfile"}, want: leapcell.Settings{Runtime: "docker"}},
		{name: "python that makes a site", names: []string{"requirements.txt"}, given: leapcell.Settings{Static: "site"}, want: leapcell.Settings{Runtime: "python", BuildCommand: "-"}},
	} {
		w := newWorld(t)
		table, err := build.New(build.Config{Dir: t.TempDir(), Images: noImages{}})
		if err != nil {
			t.Fatal(err)
		}
		d := w.deployer(w.view(0, false), func(cfg *Config) { cfg.Builder = table })
		w.tree.Names = map[string]bool{}
		for _, n := range c.names {
			w.tree.Names[n] = true
		}
		got, err := d.resolve(c.given, w.tree, func(string) {})
		if c.want.BuildCommand == "-" {
			c.want.BuildCommand = got.BuildCommand
		}
		if (err != nil) != (c.code != "") || err != nil && leapcell.ErrorCode(err) != c.code || err == nil && (got.Runtime != c.want.Runtime || got.BuildCommand != c.want.BuildCommand || got.StartCommand != "") {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

// Pages that were loaded before a deploy find their files in the former front ends, for a day at
// least, also when more were deployed since than can be rolled back to.
func TestFormerFrontEnds(t *testing.T) {
	w, f := withFronts(t, true)
	v := w.view(0, false)
	d := w.deployer(v, func(c *Config) {
		f.with(v)(c) // keeps two
		c.FormerFor = 24 * time.Hour
	})
	for range 5 {
		w.finish(d, w.submit(d).ID)
	}
	former := func() []string {
		t.Helper()
		route, err := leapcell.ParseRoute(w.values["leapcell/routes/shop-x"])
		if err != nil {
			t.Fatal(err)
		}
		return route.Former
	}
	if got, want := former(), []string{"manifest-4", "manifest-3", "manifest-2", "manifest-1"}; !slices.Equal(got, want) {
		t.Errorf("the route names %v, want %v", got, want)
	}
	d.done.Wait()
	if len(f.there) != 5 {
		t.Errorf("at the origin: %v", f.there)
	}
	w.mu.Lock()
	for _, id := range []string{"shop-1", "shop-2"} { // pages may be open although nobody can roll back to them
		dep := w.deps[id]
		dep.ImageGone = time.Now()
		w.deps[id] = dep
	}
	w.mu.Unlock()
	if _, err := d.Split(t.Context(), w.svc["shop-x"], "shop-4", 10); err != nil {
		t.Fatal(err)
	}
	if got := former(); len(got) != 4 {
		t.Errorf("with a part of the requests for another the route names %v", got)
	}
	if d.collectFronts(w.svc["shop-x"]); len(f.there) != 5 {
		t.Errorf("at the origin, two images less: %v", f.there)
	}

	w.mu.Lock()
	for id, dep := range w.deps {
		dep.UpdatedAt = time.Now().Add(-24 * time.Hour)
		w.deps[id] = dep
	}
	w.mu.Unlock()
	w.finish(d, w.submit(d).ID)
	// What was superseded by this one is new among the former.
	if got, want := former(), []string{"manifest-5", "manifest-4"}; !slices.Equal(got, want) {
		t.Errorf("a day later the route names %v, want %v", got, want)
	}
	d.done.Wait()
	if len(f.there) != 3 {
		t.Errorf("at the origin a day later: %v", f.there)
	}
}

// The preview of a site leaves the service's own site alone, and its files go with it.
func TestPreviewOfASite(t *testing.T) {
	w, f := withFronts(t, true)
	v := w.view(0, false)
	d := w.deployer(v, f.with(v))
	w.finish(d, w.submit(d).ID)
	next := w.finish(d, w.mustPush(d, "next").ID)
	if next.State != leapcell.Superseded || next.PreviewURL == "" || w.vars["leapcell/routes/shop-x"] != "shop-1" || w.vars["leapcell/routes/shop-x/next"] != "shop-2" {
		t.Errorf("preview %+v, routes %v", next, w.vars)
	}
	for range 4 { // more than are kept
		w.finish(d, w.submit(d).ID)
	}
	d.done.Wait()
	if !f.there["manifest-2"] {
		t.Errorf("at the origin: %v", f.there)
	}
	if err := d.EndPreview(t.Context(), w.svc["shop-x"], "next"); err != nil {
		t.Fatal(err)
	}
	d.done.Wait()
	if f.there["manifest-2"] || len(f.there) != 3 {
		t.Errorf("at the origin after its end: %v", f.there)
	}
}

// An origin that has lost everything, as another one than before has, gets back what is needed,
// as soon as it answers.
func TestAnotherOrigin(t *testing.T) {
	w, f := withFronts(t, true)
	v := w.view(0, false)
	d := w.deployer(v, f.with(v))
	for range 3 {
		w.finish(d, w.submit(d).ID)
	}
	d.done.Wait()
	d.Close()
	if len(f.there) != 3 {
		t.Fatalf("at the origin: %v", f.there)
	}
	clear(f.there)
	delete(f.built, "shop-x:2") // what is nowhere keeps nothing else away
	*f.away = 3

	next := w.view(0, false)
	again := w.deployer(next, f.with(next))
	if err := again.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	again.done.Wait()
	if got := slices.Sorted(maps.Keys(f.there)); !slices.Equal(got, []string{"manifest-1", "manifest-3"}) {
		t.Errorf("at the origin: %v", got)
	}
}

// Nobody would find the files of a service that is gone: it goes once they are.
func TestDeleteWhileTheOriginIsAway(t *testing.T) {
	w, f := withFronts(t, true)
	v := w.view(0, false)
	d := w.deployer(v, f.with(v))
	w.finish(d, w.submit(d).ID)
	d.done.Wait()
	*f.away = 1
	if err := d.DeleteService(t.Context(), w.svc["shop-x"]); leapcell.ErrorCode(err) != leapcell.CodeUnavailable || len(f.there) != 1 {
		t.Errorf("%v; there is %v", err, f.there)
	}
	if err := d.DeleteService(t.Context(), w.svc["shop-x"]); err != nil || len(f.there) > 0 {
		t.Errorf("%v; left: %v", err, f.there)
	}
	// Somebody who still had the service at hand brings nothing back.
	d.collectFronts(w.svc["shop-x"])
	if len(f.there) > 0 {
		t.Errorf("came back: %v", f.there)
	}
}
