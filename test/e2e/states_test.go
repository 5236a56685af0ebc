package e2e

import (
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/githost"
	"github.com/leapcell/leapcell/test/harness"
)

// caught is a deployment that stays in one state for long enough to be killed in it.
type caught struct {
	s *harness.Service
	d leapcell.Deployment
	// build is the Nomad job of the build that runs meanwhile: its own, or the one that it waits for.
	build string
	// release lets it go on, and removes what held it up; nil: it goes on by itself.
	release func()
}

// big is a build that leaves so much that packaging and publishing take a while.
const big = "chmod 755 probe; echo build begins; truncate -s 1G big"

func building(command string, env map[string]string) func(t *testing.T) caught {
	return func(t *testing.T) caught {
		s := harness.Get(t).Create(t, harness.Spec{Env: env, Settings: leapcell.Settings{BuildCommand: command}})
		d := s.Begin(t)
		return caught{s: s, d: d, build: leapcell.BuildJobID(s.Name, d.Number)}
	}
}

// queued is a deployment that waits for the build of another service.
func queued(t *testing.T) caught {
	p := harness.Get(t)
	p.Set(t, "leapcelld.builds=1")
	other := p.Create(t, slow("600"))
	before := beginBuilding(t, other)
	s := p.Create(t, harness.Spec{})
	return caught{s: s, d: s.Begin(t), build: leapcell.BuildJobID(other.Name, before.Number), release: func() {
		must(t, p.API.Call(t.Context(), http.MethodDelete, "/v1/services/"+other.Name, nil, nil))
	}}
}

// fetching is a deployment whose git host does not answer.
func fetching(t *testing.T) caught {
	p := harness.Get(t)
	s := p.Create(t, harness.Spec{})
	host := githost.New(t)
	answer := make(chan struct{})
	release := sync.OnceFunc(func() { close(answer) })
	t.Cleanup(release)
	host.Mux.HandleFunc("/slow/", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-answer:
			http.StripPrefix("/slow", host.Mux).ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})
	host.Repository("shop", s.Source())
	in := map[string]any{"source": leapcell.Source{GitURL: host.URL + "/slow/shop.git", Branch: "main"}}
	var d leapcell.Deployment
	must(t, p.API.Call(t.Context(), http.MethodPost, "/v1/services/"+s.Name+"/deployments", in, &d))
	return caught{s: s, d: d, release: release}
}

var catches = []struct {
	state leapcell.State
	begin func(t *testing.T) caught
}{
	{leapcell.Queued, queued},
	{leapcell.Fetching, fetching},
	{leapcell.Building, building("chmod 755 probe; echo build begins; sleep 8", nil)},
	{leapcell.Packaging, building(big, nil)},
	{leapcell.Publishing, building(big, nil)},
	{leapcell.Starting, building("chmod 755 probe", map[string]string{"LISTEN_DELAY": "6s"})},
}

// victims are what can be killed under a deployment.
var victims = []struct {
	name string
	kill func(t *testing.T, c caught)
	in   []leapcell.State // where it is there; nil: everywhere
	// allowed are reasons for which the deployment may fail; without one it must go live.
	allowed map[leapcell.State]string
}{
	{"leapcelld", func(t *testing.T, _ caught) { kill(t, "leapcelld", "") }, nil, nil},
	{"nomad", func(t *testing.T, _ caught) { kill(t, "nomad", "agent") }, nil, nil},
	{"supervisor", func(t *testing.T, _ caught) { kill(t, "nomad-driver-leapcell", "supervisor") }, nil, map[leapcell.State]string{
		leapcell.Building:   "the supervisor of its node ended",
		leapcell.Packaging:  "the supervisor of its node ended",
		leapcell.Publishing: "the supervisor of its node ended",
	}},
	// The sandbox of a build ends before its image is made.
	{"builder", killBuilder, []leapcell.State{leapcell.Queued, leapcell.Building}, map[leapcell.State]string{
		leapcell.Building: "the build command was killed from outside of its sandbox",
	}},
}

// killBuilder kills all that runs in the sandbox of a build by the first of its processes.
func killBuilder(t *testing.T, c caught) {
	t.Helper()
	found := harness.Get(t).Builder(t, c.build)
	if len(found) != 1 {
		t.Fatalf("the build %s has %d first processes", c.build, len(found))
	}
	must(t, syscall.Kill(found[0].PID, syscall.SIGKILL))
	harness.Eventually(t, 10*time.Second, "the build is dead", func() bool { return !found[0].Alive() })
}

// Whatever is killed under a deployment, in every state that it has before it is done: it ends, it says
// why if it failed, and nothing of it is left.
func TestKilledInEveryState(t *testing.T) {
	for _, state := range leapcell.States() {
		there := false
		for _, c := range catches {
			there = there || c.state == state
		}
		if there == state.Done() {
			t.Errorf("%s: in the table %t, done %t", state, there, state.Done())
		}
	}
	harness.Get(t).Probe(t, harness.Spec{}) // what the first start makes for all of them is not left of any
	quick := map[string]bool{"fetching leapcelld": true, "building leapcelld": true, "building builder": true, "publishing supervisor": true}
	for _, c := range catches {
		for _, v := range victims {
			if v.in != nil && !slices.Contains(v.in, c.state) {
				continue
			}
			name := string(c.state) + " " + v.name
			t.Run(name, func(t *testing.T) {
				if !quick[name] {
					harness.Quick(t)
				}
				p := harness.Get(t)
				before := harness.Snap(p.Config.StateDir)
				caught := c.begin(t)
				s := caught.s
				await(t, caught, c.state)
				v.kill(t, caught)
				p.Up(t)
				if caught.release != nil {
					caught.release()
				}
				d := p.Await(t, caught.d.ID)
				why := ""
				if d.Error != nil {
					why = d.Error.Message
				}
				t.Logf("killed while %s: %s %s", c.state, d.State, why)
				switch allowed := v.allowed[c.state]; {
				case d.State == leapcell.Live:
					visit(t, s)
				case d.State != leapcell.Failed, allowed == "", !strings.Contains(why, allowed):
					t.Errorf("it ended %s: %q, want live, or failed for %q\n%s", d.State, why, allowed, s.BuildLog(t, d.ID))
				}
				must(t, p.API.Call(t.Context(), http.MethodDelete, "/v1/services/"+s.Name, nil, nil))
				nothingLeft(t, s, d, before)
			})
		}
	}
}

// await waits until the deployment is in a state, and begun in it.
func await(t *testing.T, c caught, state leapcell.State) {
	t.Helper()
	s, id := c.s, c.d.ID
	end := time.Now().Add(5 * time.Minute)
	for {
		now := harness.Get(t).Deployment(t, id)
		switch begun := now.State == state; {
		case begun && state == leapcell.Queued && now.Place == 0:
		case begun && state == leapcell.Building && !strings.Contains(s.BuildLog(t, id), "build begins"):
		case begun:
			return
		}
		if now.State.Done() || time.Now().After(end) {
			t.Fatalf("the deployment is %s and was never seen %s\n%s", now.State, state, s.BuildLog(t, id))
		}
		time.Sleep(5 * time.Millisecond) // some states are short
	}
}

// nothingLeft looks for what a deployment of a deleted service may have left on the machine, in Nomad,
// and in the registry.
func nothingLeft(t *testing.T, s *harness.Service, d leapcell.Deployment, before harness.Snapshot) {
	t.Helper()
	p := harness.Get(t)
	var left []string
	defer func() {
		if t.Failed() {
			t.Logf("left: %q", left)
		}
	}()
	harness.Eventually(t, time.Minute, "nothing is left of "+s.Name, func() bool {
		left = nil
		for _, job := range []string{leapcell.BuildJobID(s.Name, d.Number), leapcell.PrefetchJobID(d.ID), d.ID} {
			if j, _, err := p.Nomad.Jobs().Info(job, nil); err == nil && !*j.Stop {
				left = append(left, "job "+job)
			}
		}
		for thing := range harness.Snap(p.Config.StateDir) {
			// Namespaces of the network are pooled, and parts of the platform are new.
			ours := strings.Contains(thing, "/tasks/") || strings.Contains(thing, "/scratch/") || strings.Contains(thing, "/caches/") || strings.HasPrefix(thing, "control group ")
			if ours && !before[thing] && strings.Contains(thing, p.Config.Name) && !strings.Contains(thing, "supervisor") {
				left = append(left, thing)
			}
		}
		left = append(left, files(filepath.Join(p.Config.NodeDir(), "scratch"), "")...)
		left = append(left, files(filepath.Join(p.Config.NodeDir(), "caches"), s.ID)...)
		left = append(left, files(filepath.Join(p.Config.StateDir, "control"), s.ID)...)
		left = append(left, files(filepath.Join(p.Config.StateDir, "control"), d.ID)...)
		left = append(left, files(filepath.Join(p.Config.StateDir, "control", "source", "work"), "")...)
		return len(left) == 0
	})
}

// files are those below dir whose path has part in it.
func files(dir, part string) (found []string) {
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir && strings.Contains(strings.TrimPrefix(path, dir), part) {
			found = append(found, path)
		}
		return nil // what vanishes meanwhile is not left
	})
	return found
}
