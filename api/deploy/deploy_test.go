package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

func TestDeploy(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	dep := w.finish(d, w.submit(d).ID)
	if dep.State != leapcell.Live || dep.Image != "registry/shop-x/app@sha256:1" || dep.LiveAt.IsZero() {
		t.Fatalf("deployment: %+v", dep)
	}
	if dep.BuildBegan.Before(dep.CreatedAt) || dep.BuildEnded.Before(dep.BuildBegan) || dep.LiveAt.Before(dep.BuildEnded) {
		t.Errorf("asked for at %s, built from %s to %s, live at %s", dep.CreatedAt, dep.BuildBegan, dep.BuildEnded, dep.LiveAt)
	}
	if dep.Settings.Runtime != "go" || dep.Settings.StartCommand != "./app" || dep.Settings.Port != leapcell.DefaultPort {
		t.Errorf("settings: %+v", dep.Settings)
	}
	if w.vars["leapcell/routes/shop-x"] != "shop-1" || w.svc["shop-x"].Live != "shop-1" {
		t.Errorf("route %v, live %q", w.vars, w.svc["shop-x"].Live)
	}
	if got := w.registered(); !slices.Equal(got, []string{"shop-1"}) {
		t.Errorf("jobs: %v", got)
	}
	log := readLog(t, d, dep.ID)
	order := []string{"==> fetching\n", "==> fetched\n", "==> runtime: go 1.24, because there is a go.mod\n",
		"==> build command: go build -o app, as none is set\n", "==> start command: ./app, as none is set\n", "==> building\n", "compiling\n", "done\n", "==> starting\n", "==> live at http://shop-x.test\n"}
	for at, line := 0, ""; len(order) > 0; {
		line, order = order[0], order[1:]
		i := strings.Index(log[at:], line)
		if i < 0 {
			t.Fatalf("%q is missing, or out of order, in:\n%s", line, log)
		}
		at += i
	}
}

func TestNextDeploymentReplaces(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	w.finish(d, w.submit(d).ID)
	w.finish(d, w.submit(d).ID)
	d.done.Wait()
	if got := w.states(); !slices.Equal(got, []string{"shop-1 superseded", "shop-2 live"}) {
		t.Errorf("states: %v", got)
	}
	if got := w.running(); !slices.Equal(got, []string{"shop-2=1"}) {
		t.Errorf("running: %v", got)
	}
	if got := w.registered(); !slices.Contains(got, "shop-1") {
		t.Errorf("jobs: %v; the former must be kept for rollback", got)
	}
}

func TestRollback(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	w.finish(d, w.submit(d).ID)
	w.finish(d, w.submit(d).ID)
	d.done.Wait()
	svc := w.svc["shop-x"]
	dep, err := d.Rollback(t.Context(), svc, "", ada)
	if err != nil {
		t.Fatal(err)
	}
	if dep.ID != "shop-1" || dep.State != leapcell.Starting {
		t.Errorf("rolls back to %s, %s", dep.ID, dep.State)
	}
	w.finish(d, "shop-1")
	d.done.Wait()
	if got := w.states(); !slices.Equal(got, []string{"shop-1 live", "shop-2 superseded"}) {
		t.Errorf("states: %v", got)
	}
	if got := w.running(); !slices.Equal(got, []string{"shop-1=1"}) || w.vars["leapcell/routes/shop-x"] != "shop-1" {
		t.Errorf("running: %v, route: %v", got, w.vars)
	}
	// To one whose job Nomad has forgotten: it is registered again.
	delete(w.jobs, "shop-2")
	if _, err := d.Rollback(t.Context(), w.svc["shop-x"], "shop-2", ada); err != nil {
		t.Fatal(err)
	}
	if dep := w.finish(d, "shop-2"); dep.State != leapcell.Live {
		t.Errorf("state %s: %+v", dep.State, dep.Error)
	}
	for id, code := range map[string]leapcell.Code{"shop-9": leapcell.CodeNotFound, "shop-2": leapcell.CodeConflict} {
		if _, err := d.Rollback(t.Context(), w.svc["shop-x"], id, ada); leapcell.ErrorCode(err) != code {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// Who lost the answer to a request sends it again: it takes effect once, also when no further
// deployment is allowed, and whatever has happened since.
func TestARequestThatComesTwice(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), func(c *Config) {
		c.Plan = leapcell.Plans()[0]
		c.Plan.DeploymentsPerDay = 3
	})
	svc := w.svc["shop-x"]
	ask := map[string]func(key string) (leapcell.Deployment, error){
		"submit": func(key string) (leapcell.Deployment, error) {
			return d.Submit(t.Context(), svc, leapcell.Source{}, leapcell.Origin{Request: key}, strings.NewReader("x"))
		},
		"redeploy": func(key string) (leapcell.Deployment, error) {
			return d.Redeploy(t.Context(), svc, w.deps["shop-1"], w.deps["shop-1"].Source, leapcell.Origin{Request: key})
		},
		"rollback": func(key string) (leapcell.Deployment, error) {
			return d.Rollback(t.Context(), w.svc["shop-x"], "", leapcell.Origin{Request: key})
		},
	}
	for _, request := range []struct{ what, key, gives string }{
		{"submit", "a", "shop-1"}, {"submit", "a", "shop-1"},
		{"redeploy", "b", "shop-2"}, {"redeploy", "b", "shop-2"},
		{"submit", "c", "shop-3"}, {"submit", "c", "shop-3"}, {"submit", "a", "shop-1"},
		{"rollback", "d", "shop-2"}, {"rollback", "d", "shop-2"},
		{"rollback", "e", "shop-3"}, {"rollback", "d", "shop-2"},
	} {
		dep, err := ask[request.what](request.key)
		if err != nil || dep.ID != request.gives {
			t.Fatalf("%v: %s, %v", request, dep.ID, err)
		}
		w.finish(d, dep.ID)
		d.done.Wait()
	}
	if got := w.states(); !slices.Equal(got, []string{"shop-1 superseded", "shop-2 superseded", "shop-3 live"}) {
		t.Errorf("states: %v", got)
	}
	if _, err := ask["submit"]("f"); leapcell.ErrorCode(err) != leapcell.CodeRateLimited {
		t.Errorf("one too many: %v", err)
	}
}

// A rollback that does not start leaves what serves, and can be tried again.
func TestFailedRollback(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	w.finish(d, w.submit(d).ID)
	w.finish(d, w.submit(d).ID)
	d.done.Wait()
	w.status = func(string) leapcell.GateStatus {
		return leapcell.GateStatus{Code: leapcell.CodePortNotListening, Message: leapcell.PortNotListeningText(8080)}
	}
	if _, err := d.Rollback(t.Context(), w.svc["shop-x"], "", ada); err != nil {
		t.Fatal(err)
	}
	dep := w.finish(d, "shop-1")
	if dep.State != leapcell.Superseded || dep.Error == nil || dep.Error.Code != leapcell.CodePortNotListening {
		t.Errorf("%s, %+v", dep.State, dep.Error)
	}
	if got := w.running(); !slices.Equal(got, []string{"shop-2=1"}) || w.vars["leapcell/routes/shop-x"] != "shop-2" {
		t.Errorf("running %v, route %v", got, w.vars)
	}
}

func TestFailures(t *testing.T) {
	exit := new(3)
	for name, test := range map[string]struct {
		change func(w *world)
		code   leapcell.Code
		text   string
		exit   *int
		tail   string
	}{
		"build command": {func(w *world) { w.build = badBuild(2, "one\nno such module\n") },
			leapcell.CodeBuildFailed, "the build command exited with code 2", new(2), "no such module"},
		"build killed": {func(w *world) {
			w.build = func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
				badBuild(137, "one\n")(w, a, dep)
				a.TaskStates[dep.ServiceID].Events[0].Details = map[string]string{"exit_message": "the build command was killed"}
			}
		}, leapcell.CodeBuildFailed, "the build command was killed", nil, "one"},
		"wrong port": {func(w *world) {
			w.status = func(string) leapcell.GateStatus {
				return leapcell.GateStatus{Code: leapcell.CodePortNotListening, Message: leapcell.PortNotListeningText(8080)}
			}
		}, leapcell.CodePortNotListening, "Port Some(8080) is not being listened to by the service", nil, ""},
		"start command exits": {func(w *world) {
			w.status = func(string) leapcell.GateStatus {
				return leapcell.GateStatus{Code: leapcell.CodeStartExited, Message: "exited with code 3", ExitCode: exit}
			}
			w.start = func(w *world, a *api.AllocationListStub) {
				time.AfterFunc(200*time.Millisecond, func() { // Nomad notes the start when the app has long ended
					w.mu.Lock()
					defer w.mu.Unlock()
					w.logs[a.ID+"/stderr"] = "Traceback\nKeyError: 'X'\n"
				})
			}
		}, leapcell.CodeStartExited, "the start command exited with code 3 before it listened", exit, "KeyError: 'X'"},
		"driver": {func(w *world) {
			w.start = func(w *world, a *api.AllocationListStub) {
				if strings.HasPrefix(a.JobID, "build-") {
					return
				}
				a.ClientStatus = api.AllocClientStatusFailed
				a.TaskStates["shop-x"].Events = []*api.TaskEvent{{Type: api.TaskDriverFailure, DriverError: "rpc error: code = Unknown desc = image: not found"}}
			}
		}, leapcell.CodeStartFailed, "the instance could not be started: image: not found", nil, ""},
		"node could not start it": {func(w *world) {
			w.start = func(w *world, a *api.AllocationListStub) {
				a.ClientStatus = api.AllocClientStatusFailed
				a.TaskStates["shop-x"].Events = []*api.TaskEvent{{Type: api.TaskTerminated, ExitCode: 1,
					Details: map[string]string{"exit_message": "start failed: the image could not be mounted"}}}
			}
			w.build = goodBuild
		}, leapcell.CodeStartFailed, "the instance could not be started: the image could not be mounted", nil, ""},
		"source":        {func(w *world) { w.fetch = leapcell.Errorf(leapcell.CodeUnprocessable, "no branch") }, leapcell.CodeUnprocessable, "no branch", nil, ""},
		"settings":      {func(w *world) { w.tree.Settings.Runtime = "cobol" }, leapcell.CodeInvalid, `the runtime "cobol" is not known`, nil, ""},
		"start command": {func(w *world) { w.tree.Settings.Runtime = "rust" }, leapcell.CodeInvalid, "no start command is set", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d := w.deployer(w.view(0, false), nil)
			w.finish(d, w.submit(d).ID)
			test.change(w)
			dep := w.finish(d, w.submit(d).ID)
			if dep.State != leapcell.Failed || dep.Error == nil {
				t.Fatalf("state %s", dep.State)
			}
			p := dep.Error
			if p.Code != test.code || !strings.Contains(p.Message, test.text) {
				t.Errorf("problem: %s %q", p.Code, p.Message)
			}
			if test.exit != nil && (p.ExitCode == nil || *p.ExitCode != *test.exit) {
				t.Errorf("exit code: %v", p.ExitCode)
			}
			if test.tail != "" && !slices.Contains(p.LogTail, test.tail) {
				t.Errorf("last lines: %q", p.LogTail)
			}
			if log := readLog(t, d, dep.ID); !strings.Contains(log, "==> failed: "+p.Message) || !strings.Contains(log, test.tail) {
				t.Errorf("log:\n%s", log)
			}
			// Nothing of it is left, and the former one serves.
			if got := w.registered(); !slices.Equal(got, []string{"shop-1"}) || w.vars["leapcell/routes/shop-x"] != "shop-1" {
				t.Errorf("jobs %v, route %v", got, w.vars)
			}
		})
	}
}

func TestPlacement(t *testing.T) {
	w := newWorld(t)
	w.place = &api.AllocationMetric{NodesEvaluated: 2, DimensionExhausted: map[string]int{"memory": 1}, ConstraintFiltered: map[string]int{"missing drivers": 1}}
	d := w.deployer(w.view(0, false), func(c *Config) { c.PlacementPatience = time.Millisecond })
	dep := w.finish(d, w.submit(d).ID)
	if dep.State != leapcell.Failed || !strings.Contains(dep.Error.Message, "1 node without the leapcell driver; 1 node without enough memory") {
		t.Errorf("%s: %+v", dep.State, dep.Error)
	}
	if got := w.registered(); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

func TestWaitsForNomad(t *testing.T) {
	w := newWorld(t)
	w.down = leapcell.Errorf(leapcell.CodeUnavailable, "Nomad does not answer")
	d := w.deployer(w.view(0, false), nil)
	dep := w.submit(d)
	r, err := d.Log(t.Context(), dep.ID, leapcell.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var log strings.Builder
	buf := make([]byte, 256)
	for !strings.Contains(log.String(), "==> waiting: Nomad does not answer") {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("%v; log:\n%s", err, log.String())
		}
		log.Write(buf[:n])
	}
	w.mu.Lock()
	w.down = nil
	w.mu.Unlock()
	if dep := w.finish(d, dep.ID); dep.State != leapcell.Live {
		t.Errorf("%s: %+v", dep.State, dep.Error)
	}
	rest, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(rest), "==> live at") {
		t.Errorf("%v; the rest of the log:\n%s", err, rest)
	}
}

// A port that somebody else has, and what an instance needs to start, such as Vault: Nomad's
// next attempt finds another port, or Vault back.
func TestWaitsForAnotherPort(t *testing.T) {
	w := newWorld(t)
	first := true
	w.start = func(w *world, a *api.AllocationListStub) {
		if strings.HasPrefix(a.JobID, "build-") || !first {
			return
		}
		first = false
		a.ClientStatus = api.AllocClientStatusFailed
		a.TaskStates["shop-x"].Events = []*api.TaskEvent{{Type: api.TaskDriverFailure,
			DriverError: "task was not started: " + leapcell.TextPortTaken + ": 127.0.0.1:28597"}}
		w.newAlloc(a.JobID, w.jobs[a.JobID]) // as rescheduling does
	}
	d := w.deployer(w.view(0, false), nil)
	if dep := w.finish(d, w.submit(d).ID); dep.State != leapcell.Live {
		t.Fatalf("%s: %+v", dep.State, dep.Error)
	}
}

// The driver's plugin comes back, and so does what a node needs to take an allocation at all.
func TestFailuresThatPass(t *testing.T) {
	event := func(text string) map[string]*api.TaskState {
		return map[string]*api.TaskState{"shop-x": {Events: []*api.TaskEvent{{Type: api.TaskDriverFailure, DriverError: text}}}}
	}
	for name, c := range map[string]struct {
		alloc api.AllocationListStub
		want  bool
	}{
		"without a task": {api.AllocationListStub{ClientDescription: "Unable to add allocation due to error: plugin is shut down"}, true},
		"plugin gone":    {api.AllocationListStub{TaskStates: event("rpc error: code = Unknown desc = plugin is shut down")}, true},
		"image gone":     {api.AllocationListStub{TaskStates: event("rpc error: code = Unknown desc = image: not found")}, false},
	} {
		r := &readiness{svc: leapcell.Service{ID: "shop-x"}}
		if p := r.startFailure(&c.alloc).problem; passing(p) != c.want || !strings.Contains(p.Message, map[bool]string{true: "plugin is shut down", false: "not found"}[c.want]) {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// What an instance needs to start, such as Vault, may come back.
func TestWaitsForVault(t *testing.T) {
	w := newWorld(t)
	asked := 0
	w.status = func(string) leapcell.GateStatus {
		if asked++; asked < 3 {
			return leapcell.GateStatus{Code: leapcell.CodeUnavailable, Message: "Vault is sealed"}
		}
		return leapcell.GateStatus{Ready: true}
	}
	d := w.deployer(w.view(0, false), nil)
	dep := w.finish(d, w.submit(d).ID)
	if dep.State != leapcell.Live {
		t.Fatalf("%s: %+v", dep.State, dep.Error)
	}
	if log := readLog(t, d, dep.ID); strings.Count(log, "==> waiting: the instance could not be started: Vault is sealed\n") != 1 {
		t.Errorf("log:\n%s", log)
	}
}

func TestVaultStaysSealed(t *testing.T) {
	w := newWorld(t)
	w.status = func(string) leapcell.GateStatus {
		return leapcell.GateStatus{Code: leapcell.CodeUnavailable, Message: "Vault is sealed"}
	}
	w.tree.Settings.StartTimeout = leapcell.Duration(100 * time.Millisecond)
	d := w.deployer(w.view(0, false), func(c *Config) { c.Patience, c.StartGrace = 20*time.Millisecond, 20*time.Millisecond })
	dep := w.finish(d, w.submit(d).ID)
	if dep.State != leapcell.Failed || !strings.Contains(dep.Error.Message, "Vault is sealed") {
		t.Errorf("%s: %+v", dep.State, dep.Error)
	}
}

func TestBuildsQueue(t *testing.T) {
	w := newWorld(t)
	running := make(chan string, 2)
	release := map[string]func(){}
	w.build = func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
		release[dep.ID] = func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			goodBuild(w, a, dep)
			w.bump()
		}
		running <- dep.ID
	}
	d := w.deployer(w.view(0, false), nil)
	one := w.submit(d)
	if got := <-running; got != one.ID {
		t.Fatalf("%s builds", got)
	}
	two := w.submit(d)
	r, err := d.Log(t.Context(), two.ID, leapcell.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, err := r.Read(line)
	r.Close()
	if err != nil || !strings.Contains(string(line[:n]), "queued: place 1; the plan hobby builds 1 at a time in the workspace default") {
		t.Errorf("log: %q, %v", line[:n], err)
	}
	if place := d.Place(t.Context(), two); place != 1 {
		t.Errorf("place %d", place)
	}
	if w.builds != 1 {
		t.Errorf("%d builds at a time", w.builds)
	}
	release[one.ID]()
	<-running
	release[two.ID]()
	if dep := w.finish(d, two.ID); dep.State != leapcell.Live {
		t.Errorf("%s", dep.State)
	}
}

func TestCancel(t *testing.T) {
	w := newWorld(t)
	building := make(chan struct{})
	w.build = func(*world, *api.AllocationListStub, leapcell.Deployment) { close(building) }
	d := w.deployer(w.view(0, false), nil)
	dep := w.submit(d)
	<-building
	if err := d.Cancel(t.Context(), dep.ID); err != nil {
		t.Fatal(err)
	}
	dep = w.finish(d, dep.ID)
	if dep.State != leapcell.Cancelled || dep.Error.Code != leapcell.CodeCancelled {
		t.Errorf("%s %+v", dep.State, dep.Error)
	}
	if got := w.registered(); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
	if err := d.Cancel(t.Context(), dep.ID); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("cancelled again: %v", err)
	}
}

// The older one is slow to start; the newer goes live first and stays.
func TestNewestWins(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	hold := make(chan struct{})
	w.held = hold
	one := w.submit(d)
	<-w.asked
	w.mu.Lock()
	w.held = nil
	w.mu.Unlock()
	two := w.finish(d, w.submit(d).ID)
	close(hold)
	overtaken := w.finish(d, one.ID)
	if two.State != leapcell.Live || overtaken.State != leapcell.Superseded {
		t.Errorf("newer is %s, older is %s", two.State, overtaken.State)
	}
	if got := w.registered(); !slices.Equal(got, []string{"shop-2"}) || !slices.Equal(w.writes, []string{"shop-2"}) {
		t.Errorf("jobs %v, routes %v", got, w.writes)
	}
	// What was never live is nothing to roll back to.
	if _, err := d.Rollback(t.Context(), w.svc["shop-x"], one.ID, ada); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("rollback: %v", err)
	}
}

func TestEnvChanged(t *testing.T) {
	w := newWorld(t)
	w.tree.Settings.Mode, w.tree.Settings.MinInstances = leapcell.Persistent, 2
	d := w.deployer(w.view(0, false), nil)
	dep := w.finish(d, w.submit(d).ID)
	old := allocsOf(w, dep.ID)
	least := w.watchLeast(t, dep.ID)
	w.mu.Lock()
	w.env["shop-x"] = 1
	w.mu.Unlock()
	if err := d.EnvChanged(t.Context(), w.svc["shop-x"]); err != nil {
		t.Fatal(err)
	}
	d.done.Wait()
	now := allocsOf(w, dep.ID)
	if len(old) != 2 || len(now) != 2 || slices.Contains(now, old[0]) || slices.Contains(now, old[1]) {
		t.Errorf("before %v, now %v", old, now)
	}
	if n := least(); n < 2 {
		t.Errorf("only %d instances at one time", n)
	}
	if w.applied["shop-x"] != 1 {
		t.Errorf("applied: %v", w.applied)
	}
	if got := w.running(); !slices.Equal(got, []string{"shop-1=2"}) {
		t.Errorf("running %v", got)
	}

	// Told again of the same change: there is nothing to do.
	if err := d.EnvChanged(t.Context(), w.svc["shop-x"]); err != nil {
		t.Fatal(err)
	}
	d.done.Wait()
	if again := allocsOf(w, dep.ID); !slices.Equal(again, now) {
		t.Errorf("replaced without a change: %v, %v", now, again)
	}

	// Dormant: there is nothing to do.
	if err := d.cfg.Nomad.Scale(t.Context(), dep.ID, 0); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.env["shop-x"] = 2
	w.mu.Unlock()
	if err := d.EnvChanged(t.Context(), w.svc["shop-x"]); err != nil {
		t.Fatal(err)
	}
	d.done.Wait()
	if got := w.running(); len(got) > 0 || w.applied["shop-x"] != 2 {
		t.Errorf("running %v, applied %v", got, w.applied)
	}
}

// A new environment with which the app does not start changes nothing.
func TestEnvThatBreaks(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	dep := w.finish(d, w.submit(d).ID)
	old := allocsOf(w, dep.ID)
	w.status = func(string) leapcell.GateStatus {
		return leapcell.GateStatus{Code: leapcell.CodeStartExited, Message: "exited with code 1", ExitCode: new(1)}
	}
	w.env["shop-x"] = 1
	if err := d.EnvChanged(t.Context(), w.svc["shop-x"]); err != nil {
		t.Fatal(err)
	}
	d.done.Wait()
	if now := allocsOf(w, dep.ID); !slices.Equal(now, old) {
		t.Errorf("before %v, now %v", old, now)
	}
	if log := readLog(t, d, dep.ID); !strings.Contains(log, "the changed environment is not in effect: the start command exited with code 1") {
		t.Errorf("log:\n%s", log)
	}
}

func allocsOf(w *world, job string) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.jobs[job].allocs {
		if a.DesiredStatus == api.AllocDesiredStatusRun {
			out = append(out, a.ID)
		}
	}
	return out
}

// watchLeast gives the least number of instances of a job until it is asked.
func (w *world) watchLeast(t *testing.T, job string) func() int {
	t.Helper()
	least := len(allocsOf(w, job))
	former := w.start
	w.start = func(w *world, a *api.AllocationListStub) {
		n := -1 // the new one is not ready yet
		for _, a := range w.jobs[job].allocs {
			if a.DesiredStatus == api.AllocDesiredStatusRun {
				n++
			}
		}
		least = min(least, n)
		former(w, a)
	}
	return func() int { return least }
}

func TestDeleteService(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	w.finish(d, w.submit(d).ID)
	building := make(chan struct{})
	w.build = func(*world, *api.AllocationListStub, leapcell.Deployment) { close(building) }
	w.submit(d)
	<-building
	svc := w.svc["shop-x"]
	w.mu.Lock()
	w.vars["leapcell/env/shop-x"] = "sealed"
	w.down = leapcell.Errorf(leapcell.CodeUnavailable, "Nomad does not answer")
	w.mu.Unlock()
	if err := d.DeleteService(t.Context(), svc); leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
		t.Fatalf("error is %v", err)
	}
	w.mu.Lock()
	w.down = nil
	w.mu.Unlock()
	for range 2 { // repeating it is no error
		if err := d.DeleteService(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.registered(); len(got) > 0 || len(w.vars) > 0 {
		t.Errorf("jobs %v, variables %v", got, w.vars)
	}
	if !slices.Contains(w.forgot, "shop-x") {
		t.Error("images are kept")
	}
	if _, err := d.Submit(t.Context(), svc, leapcell.Source{}, leapcell.Origin{}, strings.NewReader("x")); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("deployed while it is deleted: %v", err)
	}
}

// Nomad may not forget a job while one of its instances finishes requests: it would give the
// port to another. A restart in between changes nothing.
func TestNomadForgetsAJobWithItsLastInstance(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	dep := w.finish(d, w.submit(d).ID)
	w.mu.Lock()
	w.linger = true
	w.mu.Unlock()
	if err := d.DeleteService(t.Context(), w.svc["shop-x"]); err != nil {
		t.Fatal(err)
	}
	d.Close()
	w.mu.Lock()
	delete(w.deps, dep.ID) // the caller removes the rows last
	j := w.jobs[dep.ID]
	w.mu.Unlock()
	if j == nil {
		t.Fatal("the job is gone, its instance is not")
	}
	d = w.deployer(w.view(0, false), nil)
	if err := d.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	j.allocs[0].ClientStatus = api.AllocClientStatusComplete
	w.bump()
	w.mu.Unlock()
	for {
		w.mu.Lock()
		_, there := w.jobs[dep.ID]
		changed := w.changed
		w.mu.Unlock()
		if !there {
			break
		}
		<-changed
	}
}

// A service of the same name may be deployed before the last instance of the deleted one
// has ended: its job stays.
func TestPurgeSparesTheNextJobOfThatName(t *testing.T) {
	w := newWorld(t)
	v := w.view(0, false)
	d := w.deployer(v, nil)
	dep := w.finish(d, w.submit(d).ID)
	w.mu.Lock()
	w.linger = true
	w.mu.Unlock()
	if err := d.remove(t.Context(), dep.ID); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	job := *w.jobs[dep.ID].job
	w.mu.Unlock()
	job.Stop = nil
	if err := d.register(t.Context(), &job); err != nil {
		t.Fatal(err)
	}
	if gone, err := d.purgeNow(t.Context(), dep.ID); !gone || err != nil {
		t.Errorf("there is something to purge: %v, %v", gone, err)
	}
	if got := w.registered(); !slices.Contains(got, dep.ID) {
		t.Errorf("registered: %v", got)
	}
}

// The process is killed at each of its calls, before or after it had its effect; the next
// process must bring the deployment to the same end.
func TestCrashAnywhere(t *testing.T) {
	crashAnywhere(t, crash)
}

// crashAnywhere calls crash for each call that a process makes, until there is none more.
func crashAnywhere(t *testing.T, crash func(t *testing.T, at int, after bool) (reached bool)) {
	t.Helper()
	for _, after := range []bool{false, true} {
		for at := 1; ; at++ {
			reached := crash(t, at, after)
			if t.Failed() {
				t.Fatalf("killed at call %d (after its effect: %v)", at, after)
			}
			if !reached {
				if at < 30 {
					t.Errorf("only %d calls", at)
				}
				break
			}
		}
	}
}

func crash(t *testing.T, at int, after bool) (reached bool) {
	w := newWorld(t)
	defer w.gate.Close()
	first := w.deployer(w.view(0, false), nil)
	w.finish(first, w.submit(first).ID) // so that there is one to replace
	first.done.Wait()

	v := w.view(at, after)
	d := w.deployer(v, nil)
	svc := w.svc["shop-x"]
	dep, err := d.Submit(t.Context(), svc, leapcell.Source{}, leapcell.Origin{}, strings.NewReader("x"))
	if errors.Is(err, errCrashed) && len(w.states()) == 1 {
		return true // nothing was promised
	}
	if dep.ID == "" {
		dep.ID = "shop-2"
	}
	ended := make(chan struct{})
	go func() {
		d.awaitLeave(dep.ID)
		close(ended)
	}()
	select {
	case <-v.crashed:
		reached = true
	case <-ended:
	}
	if !reached {
		d.done.Wait()
		select {
		case <-v.crashed:
			reached = true
		default:
		}
	}
	d.Close()

	again := w.deployer(w.view(0, false), nil)
	if err := again.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.finish(again, "shop-2")
	again.done.Wait()
	if got := w.states(); !slices.Equal(got, []string{"shop-1 superseded", "shop-2 live"}) {
		t.Errorf("states: %v, error %+v", got, w.deps["shop-2"].Error)
	}
	if got := w.running(); !slices.Equal(got, []string{"shop-2=1"}) {
		t.Errorf("running: %v", got)
	}
	if got := w.registered(); !slices.Equal(got, []string{"shop-1", "shop-2"}) {
		t.Errorf("jobs: %v", got)
	}
	if w.svc["shop-x"].Live != "shop-2" || w.vars["leapcell/routes/shop-x"] != "shop-2" || w.builds != 2 {
		t.Errorf("live %q, route %v, %d builds", w.svc["shop-x"].Live, w.vars, w.builds)
	}
	if log := readLog(t, again, "shop-2"); strings.Count(log, "compiling\n") != 1 || strings.Count(log, "done\n") != 1 {
		t.Errorf("the build's output is not once in the log:\n%s", log)
	}
	return reached
}

func TestWaitEndsWithContext(t *testing.T) {
	w := newWorld(t)
	w.build = func(*world, *api.AllocationListStub, leapcell.Deployment) {}
	d := w.deployer(w.view(0, false), nil)
	dep := w.submit(d)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Wait(ctx, dep.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), func(c *Config) { c.Keep = 2 })
	for range 5 {
		w.finish(d, w.submit(d).ID)
		d.done.Wait()
	}
	if got := w.registered(); !slices.Equal(got, []string{"shop-3", "shop-4", "shop-5"}) {
		t.Errorf("jobs: %v", got)
	}
}

func TestProblemOfUnknown(t *testing.T) {
	if p := problemOf(fmt.Errorf("secret")); p.Code != leapcell.CodeInternal || p.Message != "internal error" {
		t.Errorf("%+v", p)
	}
}

// A build that no node could begin is the cluster's fault, not the user's.
func TestBuildThatNeverBeganIsTriedAgain(t *testing.T) {
	unable := func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
		a.ClientStatus = api.AllocClientStatusFailed
		a.TaskStates = map[string]*api.TaskState{dep.ServiceID: {State: "dead", Failed: true, Events: []*api.TaskEvent{
			{Type: api.TaskDriverFailure, DriverError: "plugin is shut down"},
		}}}
	}
	for attempts, want := range map[int]leapcell.State{2: leapcell.Live, 3: leapcell.Failed} {
		w := newWorld(t)
		tried := 0
		w.build = func(w *world, a *api.AllocationListStub, dep leapcell.Deployment) {
			if tried++; tried <= attempts {
				unable(w, a, dep)
				return
			}
			goodBuild(w, a, dep)
		}
		d := w.deployer(w.view(0, false), nil)
		dep := w.finish(d, w.submit(d).ID)
		if dep.State != want || tried != 3 {
			t.Errorf("%d nodes could not begin it: %s after %d attempts, want %s after 3", attempts, dep.State, tried, want)
		}
		if want == leapcell.Failed && (dep.Error.Code != leapcell.CodeBuildFailed || !strings.Contains(dep.Error.Message, "plugin is shut down")) {
			t.Errorf("problem %+v", dep.Error)
		}
	}
}

func TestSplit(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	svc := w.svc["shop-x"]
	if _, err := d.Split(t.Context(), svc, "shop-1", 10); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("without a live deployment: %v", err)
	}
	w.finish(d, w.submit(d).ID)
	w.finish(d, w.submit(d).ID)
	split, err := d.Split(t.Context(), svc, "shop-1", 10)
	if err != nil || split == nil || split.Percent != 10 || split.Host != "1--shop-x.test" {
		t.Errorf("split is %+v, %v", split, err)
	}
	if w.vars["leapcell/routes/shop-x"] != "shop-2" || w.vars["leapcell/routes/shop-x/1"] != "shop-1" || w.vars["leapcell/routes/shop-x/2"] != "shop-2" {
		t.Errorf("routes: %v", w.vars)
	}
	if got, err := d.Traffic(t.Context(), svc); err != nil || got == nil || *got != *split {
		t.Errorf("in effect is %+v, %v", got, err)
	}
	if split, err := d.Split(t.Context(), svc, "", 0); split != nil || err != nil {
		t.Errorf("ended: %+v, %v", split, err)
	}
	for name, c := range map[string]struct {
		id      string
		percent int
		code    leapcell.Code
	}{
		"all":     {"shop-1", 100, leapcell.CodeInvalid},
		"nothing": {"shop-1", -1, leapcell.CodeInvalid},
		"unknown": {"shop-9", 10, leapcell.CodeNotFound},
		"itself":  {"shop-2", 10, leapcell.CodeConflict},
	} {
		if _, err := d.Split(t.Context(), svc, c.id, c.percent); leapcell.ErrorCode(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := d.DeleteService(t.Context(), svc); err != nil || len(w.vars) > 0 {
		t.Errorf("%v; variables left: %v", err, w.vars)
	}
}
