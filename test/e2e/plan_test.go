package e2e

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// untilTold is a build that goes on until [tell].
const untilTold = "chmod 755 probe; echo build begins; while ! test -e /tmp/told; do sleep 0.1; done"

// tell lets a build go on.
func tell(t *testing.T, s *harness.Service, d leapcell.Deployment) {
	t.Helper()
	found := harness.Get(t).Builder(t, leapcell.BuildJobID(s.Name, d.Number))
	if len(found) != 1 {
		t.Fatalf("the build of %s has %d first processes", d.ID, len(found))
	}
	must(t, os.WriteFile(filepath.Join("/proc", strconv.Itoa(found[0].PID), "root/tmp/told"), nil, 0o644))
}

// A workspace builds as many at a time as its plan says. Who comes then waits, is told the place in the
// queue, and builds when it is free.
func TestBuildsWaitForTheirTurn(t *testing.T) {
	p := harness.Get(t)
	p.Set(t, "leapcelld.plan=hobby", "leapcelld.builds=1")
	first := p.Create(t, harness.Spec{Settings: leapcell.Settings{BuildCommand: untilTold}})
	building := beginBuilding(t, first)
	var waiting []*harness.Service
	var all []leapcell.Deployment
	for range 2 {
		s := p.Create(t, harness.Spec{})
		waiting, all = append(waiting, s), append(all, s.Begin(t))
	}
	log := p.Follow(t, "deployment", "log", all[1].ID, "--follow")
	for i, d := range all {
		harness.Eventually(t, 20*time.Second, d.ID+" has its place", func() bool { return p.Deployment(t, d.ID).Place == i+1 })
		if now := p.Deployment(t, d.ID); now.State != leapcell.Queued {
			t.Errorf("%s is %s", d.ID, now.State)
		}
		if out := p.Must(t, "deployment", "show", d.ID); !regexp.MustCompile(`place in queue\s+` + strconv.Itoa(i+1)).MatchString(out) {
			t.Errorf("the place is not shown:\n%s", out)
		}
		if _, _, err := p.Nomad.Jobs().Info(leapcell.BuildJobID(waiting[i].Name, d.Number), nil); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("%s waits, and of its build Nomad says: %v", d.ID, err)
		}
	}
	said := "queued: place 2; the plan hobby builds 1 at a time in the workspace default"
	harness.Eventually(t, 20*time.Second, "the place is in the log", func() bool { return strings.Contains(log.Output(), said) })
	if now := p.Deployment(t, building.ID); now.State != leapcell.Building || now.Place != 0 {
		t.Errorf("the first is %s at place %d", now.State, now.Place)
	}

	tell(t, first, building)
	former := p.Await(t, building.ID)
	for i, d := range all {
		d = p.Await(t, d.ID)
		if former.State != leapcell.Live || d.State != leapcell.Live || d.Place != 0 {
			t.Fatalf("%s is %s, %s is %s at place %d: %+v", former.ID, former.State, d.ID, d.State, d.Place, d.Error)
		}
		if former.BuildEnded.IsZero() || d.BuildBegan.Before(former.BuildEnded) {
			t.Errorf("%s was built from %s on, and %s until %s", d.ID, d.BuildBegan, former.ID, former.BuildEnded)
		}
		visit(t, waiting[i])
		former = d
	}
	if text := log.Output(); !strings.Contains(text[strings.Index(text, said):], "queued: place 1; ") {
		t.Errorf("that it was next is not in its log:\n%s", text)
	}
}

// A build over its time or its memory is ended, and the reason has the limit.
func TestBuildOverItsLimits(t *testing.T) {
	for name, c := range map[string]struct{ setting, command, dockerfile, says string }{
		"time":                   {"leapcelld.build-timeout=4s", "sleep 600", "", "the build took longer than its limit of 4s"},
		"memory":                 {"leapcelld.build-memory=256", "head -c 1G /dev/zero | tail", "", "out of memory: the build was killed at 256 MB"},
		"memory of a Dockerfile": {"leapcelld.build-memory=512", "", "RUN head -c 2G /dev/zero | tail", "out of memory: the build was killed at 512 MB"},
	} {
		t.Run(name, func(t *testing.T) {
			p := harness.Get(t)
			files := map[string]string{"leapcell.yaml": yaml("runtime: go", `buildCommand: "`+c.command+`"`, "startCommand: ./app")}
			if c.dockerfile != "" {
				harness.Quick(t)
				p.ServeHub(t, map[string]string{"library/debian": "base/run"})
				files = map[string]string{"Dockerfile": "FROM debian\n" + c.dockerfile + "\nCMD [\"true\"]\n"}
			}
			p.Set(t, c.setting)
			wrong(t, files, c.says)
		})
	}
}

// More deployments in 24 hours than the plan allows are refused, by every way to ask for one, and nothing
// is made; what is there can still be rolled back.
func TestDeploymentsPerDay(t *testing.T) {
	harness.Quick(t)
	p := harness.Get(t)
	s := p.Create(t, harness.Spec{Extra: map[string]string{"answer": "one"}})
	s.Deploy(t)
	s.Change(map[string]string{"answer": "two"})
	s.Deploy(t)
	p.Set(t, "leapcelld.plan=hobby", "leapcelld.deployments-per-day=2")

	const says = "deployments in 24 hours, all that the plan hobby allows: the next one is possible in "
	var api *harness.APIError
	err := p.API.Upload(t.Context(), "/v1/services/"+s.Name+"/deployments", harness.Archive(s.Source()), nil)
	if !errors.As(err, &api) || api.Status != http.StatusTooManyRequests || api.Code != leapcell.CodeRateLimited || !strings.Contains(api.Detail, says) {
		t.Errorf("the API says %v", err)
	}
	t.Log(err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "index.html"), []byte("<p>one too many"), 0o644))
	for _, args := range [][]string{{"deploy", dir, "--name", s.Name}, {"redeploy", s.Name}, {"deploy", "--name", s.Name, "--image", "debian"}} {
		if r := p.CLI(t, args...); r.Code == 0 || !strings.Contains(r.Output, says) || strings.Contains(r.Output, "wait a moment") {
			t.Errorf("leapcell %s: %d %s", args[0], r.Code, r.Output)
		}
	}
	var all []leapcell.Deployment
	must(t, p.API.Call(t.Context(), http.MethodGet, "/v1/services/"+s.Name+"/deployments", nil, &all))
	if len(all) != 2 {
		t.Errorf("there are %d deployments", len(all))
	}
	p.Must(t, "rollback", s.Name)
	answers(t, s, "one")
}

// A push that is one too many deploys nothing, and the host of the repository is told.
func TestPushesPerDay(t *testing.T) {
	harness.Quick(t)
	p := harness.Get(t)
	c := connect(t, false)
	p.Set(t, "leapcelld.plan=hobby", "leapcelld.automatic-per-day=1")
	for _, answer := range []string{"two", "three"} { // others may have pushed before: the second is one too many in any case
		c.repo.Commit(answer, map[string]string{"answer": answer})
		if status := c.send("push", c.key, c.pushed("main", c.repo.Head())); status != http.StatusAccepted {
			t.Fatalf("the push: %d", status)
		}
	}
	want := c.repo.Head()[:8] + " failure"
	harness.Eventually(t, time.Minute, "the host is told", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.Contains(c.told, want)
	})
	var all []leapcell.Deployment
	must(t, p.API.Call(t.Context(), http.MethodGet, "/v1/services/"+c.Name+"/deployments", nil, &all))
	if slices.ContainsFunc(all, func(d leapcell.Deployment) bool { return d.Source.Commit == c.repo.Head() }) {
		t.Errorf("it is deployed: %+v", all)
	}
	must(t, p.API.Upload(t.Context(), "/v1/services/"+c.Name+"/deployments", harness.Archive(c.Source()), nil)) // has a limit of its own
}
