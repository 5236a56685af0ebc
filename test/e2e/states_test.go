package e2e

import (
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// caught is a deployment that stays in one state for long enough to be killed in it.
type caught struct {
	state leapcell.State
	begin func(t *testing.T) (s *harness.Service, d leapcell.Deployment, release func())
}

// big is a build that leaves so much that packaging and publishing take a while.
const big = "chmod 755 probe; echo build begins; truncate -s 1G big"

func building(command string, env map[string]string) func(t *testing.T) (*harness.Service, leapcell.Deployment, func()) {
	return func(t *testing.T) (*harness.Service, leapcell.Deployment, func()) {
		s := harness.Get(t).Create(t, harness.Spec{Env: env, Settings: leapcell.Settings{BuildCommand: command}})
		return s, s.Begin(t), func() {}
	}
}

var catches = []caught{
	{leapcell.Building, building("chmod 755 probe; echo build begins; sleep 8", nil)},
	{leapcell.Packaging, building(big, nil)},
	{leapcell.Publishing, building(big, nil)},
	{leapcell.Starting, building("chmod 755 probe", map[string]string{"LISTEN_DELAY": "6s"})},
}

// victims are what can be killed under a deployment. The builder is the node's supervisor.
var victims = []struct {
	name string
	// kill reports whether there was something to kill.
	kill func(t *testing.T, s *harness.Service) bool
	// allowed are reasons for which the deployment may fail; without one it must go live.
	allowed map[leapcell.State]string
}{
	{"leapcelld", func(t *testing.T, _ *harness.Service) bool { kill(t, "leapcelld", ""); return true }, nil},
	{"nomad", func(t *testing.T, _ *harness.Service) bool { kill(t, "nomad", "agent"); return true }, nil},
	{"supervisor", func(t *testing.T, _ *harness.Service) bool {
		kill(t, "nomad-driver-leapcell", "supervisor")
		return true
	}, map[leapcell.State]string{
		leapcell.Building:   "the supervisor of its node ended",
		leapcell.Packaging:  "the supervisor of its node ended",
		leapcell.Publishing: "the supervisor of its node ended",
	}},
}

// Whatever is killed under a deployment, from the first line of its build on: it ends, it says why if it failed, and
// nothing of it is left.
func TestKilledInEveryState(t *testing.T) {
	quick := map[string]bool{"building leapcelld": true, "publishing supervisor": true}
	for _, c := range catches {
		for _, v := range victims {
			name := string(c.state) + " " + v.name
			t.Run(name, func(t *testing.T) {
				if !quick[name] {
					harness.Quick(t)
				}
				p := harness.Get(t)
				before := harness.Snap(p.Config.StateDir)
				s, d, release := c.begin(t)
				await(t, s, d.ID, c.state)
				if !v.kill(t, s) {
					t.Fatalf("there was no %s", v.name)
				}
				p.Up(t)
				release()
				d = p.Await(t, d.ID)
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
func await(t *testing.T, s *harness.Service, id string, state leapcell.State) {
	t.Helper()
	end := time.Now().Add(5 * time.Minute)
	for {
		now := harness.Get(t).Deployment(t, id).State
		if now == state && (state != leapcell.Building || strings.Contains(s.BuildLog(t, id), "build begins")) {
			return
		}
		if now.Done() || time.Now().After(end) {
			t.Fatalf("the deployment is %s and was never seen %s\n%s", now, state, s.BuildLog(t, id))
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
