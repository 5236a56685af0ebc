package deploy

import (
	"context"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/registry"
)

// stored is a world whose builds push images to a real registry.
type stored struct {
	*world
	images *registry.Registry
	client *registry.Client
}

func withRegistry(t *testing.T) *stored {
	w := newWorld(t)
	cred := registry.Credentials{Username: "node", Password: "secret", Insecure: true}
	images, err := registry.New(t.Context(), registry.Config{Dir: filepath.Join(t.TempDir(), "registry"), Credentials: cred, MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(images)
	t.Cleanup(server.Close)
	cred.Address = strings.TrimPrefix(server.URL, "http://")
	s := &stored{w, images, registry.NewClient(cred)}
	w.build = func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
		goodBuild(w, a, dep)
		for _, kind := range []string{appRepository, sourceRepository} {
			s.push(t, dep.ServiceID+"/"+kind, dep.Number)
		}
	}
	return s
}

func (s *stored) push(t *testing.T, repository string, number int) {
	t.Helper()
	img, err := random.Image(4<<10, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Push(t.Context(), repository, strconv.Itoa(number), img); err != nil {
		t.Error(err)
	}
}

// with gives the registry to one life of the deployer; nothing is too young for its collector.
func (s *stored) with(c *Config) {
	c.Storage, c.Keep, c.CollectAge = s.images, 2, time.Nanosecond
}

func (s *stored) tags(t *testing.T, repository string) []string {
	t.Helper()
	tags, err := s.images.Tags(repository)
	if err != nil {
		t.Fatal(err)
	}
	return tags
}

func TestCollectImages(t *testing.T) {
	s := withRegistry(t)
	d := s.deployer(s.view(0, false), s.with)
	for range 5 {
		s.finish(d, s.submit(d).ID)
	}
	preview := s.finish(d, s.mustPush(d, "next").ID)
	s.world.mu.Lock()
	s.status = func(string) leapcell.GateStatus {
		return leapcell.GateStatus{Code: leapcell.CodePortNotListening, Message: leapcell.PortNotListeningText(8080)}
	}
	s.world.mu.Unlock()
	failed := s.finish(d, s.submit(d).ID)
	d.done.Wait()
	if failed.State != leapcell.Failed || preview.PreviewURL == "" {
		t.Fatalf("%s, preview at %q", failed.State, preview.PreviewURL)
	}
	s.push(t, "shop-default-abcdefgh/app", 1) // of a service that was deleted
	s.push(t, "team/app", 1)                  // the operator's
	s.push(t, "base/go", 1)

	freed, err := d.CollectImages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := s.tags(t, "shop-x/app"); !slices.Equal(got, []string{"3", "4", "5", "6"}) {
		t.Errorf("images %v: the live one, two former ones and the preview are needed", got)
	}
	if got := s.tags(t, "shop-x/source"); len(got) != 0 {
		t.Errorf("sources %v: nothing is built", got)
	}
	if freed.Manifests != 3+7 || freed.Bytes < 80<<10 || freed.Kept == 0 {
		t.Errorf("freed %+v", freed)
	}
	all, err := s.images.Repositories()
	if err != nil || slices.Contains(all, "shop-default-abcdefgh/app") || !slices.Contains(all, "team/app") || len(s.tags(t, "team/app"))+len(s.tags(t, "base/go")) != 2 {
		t.Errorf("repositories %q, %v", all, err)
	}
	for id, gone := range map[string]bool{"shop-1": true, "shop-2": true, "shop-3": false, "shop-5": false, "shop-6": false, "shop-7": true} {
		if dep := s.deps[id]; dep.HasImage() == gone {
			t.Errorf("%s: image %q, gone %s", id, dep.Image, dep.ImageGone)
		}
	}
	if c := d.Collections(); c.Done != 1 || c.Failed != 0 || c.Images != 3+7 || c.Freed.Bytes != freed.Bytes {
		t.Errorf("figures %+v", c)
	}

	_, err = d.Rollback(t.Context(), s.svc["shop-x"], "shop-2", ada)
	if leapcell.ErrorCode(err) != leapcell.CodeConflict || !strings.Contains(leapcell.ErrorMessage(err), "leapcell redeploy shop shop-2") {
		t.Errorf("back to one without an image: %v", err)
	}
	if err := d.EndPreview(t.Context(), s.svc["shop-x"], "next"); err != nil {
		t.Fatal(err)
	}
	d.done.Wait()
	if _, err := d.CollectImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.tags(t, "shop-x/app"); !slices.Equal(got, []string{"3", "4", "5"}) {
		t.Errorf("images %v after the preview's end", got)
	}
}

// What is being built or runs keeps its image, and while nobody knows what runs nothing goes.
func TestCollectImagesLeavesWhatIsUsed(t *testing.T) {
	s := withRegistry(t)
	d := s.deployer(s.view(0, false), s.with)
	for range 2 {
		s.finish(d, s.submit(d).ID)
	}
	d.done.Wait()
	s.world.mu.Lock()
	s.deps["shop-1"] = asFailed(s.deps["shop-1"])
	s.world.mu.Unlock()
	if _, err := d.CollectImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.tags(t, "shop-x/app"); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("images %v: Nomad still has the job", got)
	}
	s.world.mu.Lock()
	delete(s.jobs, "shop-1")
	s.down = leapcell.Errorf(leapcell.CodeUnavailable, "Nomad is away")
	s.world.mu.Unlock()
	if _, err := d.CollectImages(t.Context()); leapcell.ErrorCode(err) != leapcell.CodeUnavailable || d.Collections().Failed != 1 {
		t.Errorf("without Nomad: %v", err)
	}
	s.world.mu.Lock()
	s.down = nil
	s.deps["shop-3"] = leapcell.Deployment{ID: "shop-3", ServiceID: "shop-x", Service: "shop", Number: 3, State: leapcell.Building}
	s.world.mu.Unlock()
	s.push(t, "shop-x/source", 3)
	s.push(t, "shop-x/app", 4) // of one that is newer than what was read
	if _, err := d.CollectImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.tags(t, "shop-x/app"); !slices.Equal(got, []string{"2", "4"}) || !slices.Equal(s.tags(t, "shop-x/source"), []string{"3"}) {
		t.Errorf("images %v, sources %v", got, s.tags(t, "shop-x/source"))
	}
}

func asFailed(dep leapcell.Deployment) leapcell.Deployment {
	dep.State = leapcell.Failed
	return dep
}

// However far a collection had come when the process was killed, what can be rolled back to has
// its image, and the next one comes to the same end.
func TestCollectImagesKilledAnywhere(t *testing.T) {
	for _, after := range []bool{false, true} {
		reached := true
		for at := 1; reached; at++ {
			s := withRegistry(t)
			first := s.deployer(s.view(0, false), s.with)
			for range 4 {
				s.finish(first, s.submit(first).ID)
			}
			first.done.Wait()
			v := s.view(at, after)
			_, err := s.deployer(v, s.with).CollectImages(t.Context())
			select {
			case <-v.crashed:
			default:
				reached = false
				if err != nil {
					t.Error(err)
				}
			}
			whole := func() {
				for _, dep := range s.deps {
					_, err := s.client.Resolve(t.Context(), "shop-x/app", strconv.Itoa(dep.Number))
					if dep.HasImage() && err != nil {
						t.Errorf("killed at call %d (%s): %s is said to have an image: %v", at, v.last, dep.ID, err)
					}
				}
			}
			whole()
			if _, err := first.CollectImages(t.Context()); err != nil {
				t.Fatal(err)
			}
			whole()
			if got := s.tags(t, "shop-x/app"); !slices.Equal(got, []string{"2", "3", "4"}) {
				t.Errorf("killed at call %d (%s): images %v", at, v.last, got)
			}
		}
	}
}

func TestRunCollector(t *testing.T) {
	s := withRegistry(t)
	d := s.deployer(s.view(0, false), func(c *Config) {
		s.with(c)
		c.CollectPause = time.Millisecond
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { d.RunCollector(ctx); close(ended) }()
	for range 4 {
		s.finish(d, s.submit(d).ID)
	}
	for !slices.Equal(s.tags(t, "shop-x/app"), []string{"2", "3", "4"}) || len(s.tags(t, "shop-x/source")) > 0 {
		if sleep(t.Context(), 10*time.Millisecond) != nil {
			t.Fatal("it was never collected")
		}
	}
	stop()
	<-ended
}

func TestRedeploy(t *testing.T) {
	s := withRegistry(t)
	d := s.deployer(s.view(0, false), s.with)
	first := s.finish(d, s.submit(d).ID)
	s.finish(d, s.submit(d).ID)
	svc := s.svc["shop-x"]
	svc.Settings.StartCommand = "changed since"
	dep, err := d.Redeploy(t.Context(), svc, first, first.Source, ada)
	if err != nil {
		t.Fatal(err)
	}
	dep = s.finish(d, dep.ID)
	d.done.Wait()
	if dep.State != leapcell.Live || dep.Source != first.Source || fmt.Sprint(dep.Settings) != fmt.Sprint(first.Settings) || dep.Image == first.Image ||
		dep.Origin != (leapcell.Origin{Trigger: leapcell.Redeploy, StartedBy: "ada", Of: first.ID}) {
		t.Errorf("%+v, %+v", dep, dep.Error)
	}
	if dep.EndedAt.IsZero() || dep.Took() <= 0 {
		t.Errorf("it took %s", dep.Took())
	}
	s.swept[first.Source.Upload] = true
	if _, err := d.Redeploy(t.Context(), svc, first, first.Source, ada); leapcell.ErrorCode(err) != leapcell.CodeConflict || !strings.Contains(err.Error(), "no longer kept") {
		t.Errorf("without its upload: %v", err)
	}
	preview := first
	preview.Preview = "next"
	if _, err := d.Redeploy(t.Context(), svc, preview, first.Source, ada); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("of a preview: %v", err)
	}
}

// Three at once: the first is starting, the second is being built and the third, which is the
// newest, goes live first. The others end superseded, whatever they were at.
func TestTheNewestOfThreeWins(t *testing.T) {
	w := newWorld(t)
	w.mu.Lock()
	held := make(chan struct{})
	w.held = held
	build := w.build
	w.build = func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
		if dep.Number != 2 {
			build(w, a, dep)
		}
	}
	w.mu.Unlock()
	d := w.deployer(w.view(0, false), func(c *Config) { c.Plan.Builds = 3 })
	one := w.submit(d)
	<-w.asked // its instance is being waited for
	two := w.submit(d)
	w.reaches(d, two.ID, leapcell.Building)
	if now := w.deps[one.ID].State; now != leapcell.Starting {
		t.Fatalf("the first is %s", now)
	}
	w.mu.Lock()
	w.held = nil
	w.mu.Unlock()
	three := w.finish(d, w.submit(d).ID)
	for id, want := range map[string]leapcell.State{one.ID: leapcell.Superseded, two.ID: leapcell.Superseded, three.ID: leapcell.Live} {
		if dep := w.finish(d, id); dep.State != want || dep.Error != nil {
			t.Errorf("%s is %s, %+v; want %s", id, dep.State, dep.Error, want)
		}
	}
	close(held)
	d.done.Wait()
	if got := w.running(); !slices.Equal(got, []string{three.ID + "=1"}) || w.vars["leapcell/routes/shop-x"] != three.ID {
		t.Errorf("running %v, route to %s", got, w.vars["leapcell/routes/shop-x"])
	}
}

// One that waits for its turn is not built any more when somebody asks for a newer one.
func TestTheNewestOvertakesInTheQueue(t *testing.T) {
	w := newWorld(t)
	begun := make(chan struct{})
	w.mu.Lock()
	build := w.build
	w.build = func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
		if dep.Number == 1 {
			close(begun)
			return
		}
		build(w, a, dep)
	}
	w.mu.Unlock()
	d := w.deployer(w.view(0, false), nil)
	one := w.submit(d)
	<-begun
	two := w.submit(d)
	three := w.submit(d)
	if dep := w.finish(d, two.ID); dep.State != leapcell.Superseded || !dep.LiveAt.IsZero() {
		t.Errorf("the second is %s", dep.State)
	}
	if err := d.Cancel(t.Context(), one.ID); err != nil {
		t.Fatal(err)
	}
	if dep := w.finish(d, three.ID); dep.State != leapcell.Live {
		t.Errorf("the third is %s, %+v", dep.State, dep.Error)
	}
	if w.builds != 2 {
		t.Errorf("%d builds, want 2", w.builds)
	}
}

// reaches waits until a deployment is in a state.
func (w *world) reaches(d *Deployer, id string, state leapcell.State) {
	w.t.Helper()
	for {
		changed := d.changes(id)
		w.mu.Lock()
		now := w.deps[id].State
		w.mu.Unlock()
		if now == state {
			return
		}
		if now.Done() {
			w.t.Fatalf("%s is %s", id, now)
		}
		<-changed
	}
}
