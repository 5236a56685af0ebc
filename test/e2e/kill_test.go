package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// kill ends the one process of the platform with this name, without a chance to tidy up.
// Should the test fail afterwards, everything is brought up again, before its services are
// deleted.
func kill(t *testing.T, executable, command string) {
	t.Helper()
	found := harness.Get(t).Parts(executable, command)
	if command == "supervisor" && len(found) > 1 {
		// Former ones go on until their last connection ends: the newest is meant.
		found = []harness.Process{slices.MaxFunc(found, func(a, b harness.Process) int { return cmp.Compare(a.Started(), b.Started()) })}
	}
	if len(found) != 1 {
		for _, p := range found {
			t.Logf("%d: %q", p.PID, p.Args())
		}
		t.Fatalf("%d processes %s %s of the platform, want 1", len(found), executable, command)
	}
	t.Cleanup(func() {
		if t.Failed() {
			harness.Get(t).CLI(noContext{t}, "up", "--no-sample")
		}
	})
	if err := syscall.Kill(found[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, executable+" is dead", func() bool { return !found[0].Alive() })
}

// slow is a service whose build takes a while, so that something can happen meanwhile.
func slow(seconds string) harness.Spec {
	return harness.Spec{Settings: leapcell.Settings{BuildCommand: "chmod 755 probe; echo build begins; sleep " + seconds + "; echo build ends"}}
}

func beginBuilding(t *testing.T, s *harness.Service) leapcell.Deployment {
	t.Helper()
	d := s.Begin(t)
	harness.Eventually(t, 5*time.Minute, "the build command runs", func() bool {
		now := harness.Get(t).Deployment(t, d.ID)
		if now.State.Done() {
			t.Fatalf("the deployment is already %s: %+v", now.State, now.Error)
		}
		return strings.Contains(s.BuildLog(t, d.ID), "build begins")
	})
	return d
}

func TestControlPlaneKilledInTheMiddleOfADeployment(t *testing.T) {
	for name, spec := range map[string]harness.Spec{"while it builds": slow("8"), "while it starts": {Env: map[string]string{"LISTEN_DELAY": "5s"}}} {
		t.Run(name, func(t *testing.T) {
			p := harness.Get(t)
			other := p.Probe(t, harness.Spec{})
			load := other.Visitors(t, 4, "/")
			s := p.Create(t, spec)
			var d leapcell.Deployment
			if len(spec.Env) == 0 {
				d = beginBuilding(t, s)
			} else {
				d = s.Begin(t)
				harness.Eventually(t, 5*time.Minute, "the instance starts", func() bool { return p.Deployment(t, d.ID).State == leapcell.Starting })
			}
			other.Reload(t)
			kill(t, "leapcelld", "")
			// Nothing on the way of a visit needs it: not even a start from zero.
			answered := load.Answered()
			scaleToZero(t, p, other)
			harness.Eventually(t, time.Minute, "visits go on without the control plane", func() bool { return load.Answered() > answered+50 })
			p.Up(t)
			if d = p.Await(t, d.ID); d.State != leapcell.Live {
				t.Errorf("the deployment ended %s: %+v\n%s", d.State, d.Error, s.BuildLog(t, d.ID))
			}
			visit(t, s)
			load.Check(t)
		})
	}
}

// scaleToZero does not ask the control plane which deployment is live.
func scaleToZero(t *testing.T, p *harness.Platform, s *harness.Service) {
	t.Helper()
	zero := 0
	if _, _, err := p.Nomad.Jobs().Scale(s.Live, leapcell.Group, &zero, "test", false, nil, nil); err != nil {
		t.Fatal(err)
	}
}

func TestDriverPluginKilled(t *testing.T) {
	p := harness.Get(t)
	other := p.Probe(t, harness.Spec{})
	s := p.Create(t, slow("8"))
	load := other.Visitors(t, 4, "/")
	instance := other.Get(t, "/").Instance()
	d := beginBuilding(t, s)
	kill(t, "nomad-driver-leapcell", "")
	if d = p.Await(t, d.ID); d.State != leapcell.Live {
		t.Errorf("the deployment ended %s: %+v\n%s", d.State, d.Error, s.BuildLog(t, d.ID))
	}
	visit(t, s)
	load.Check(t)
	if now := other.Get(t, "/").Instance(); now != instance {
		t.Errorf("instance %s was replaced by %s", instance, now)
	}
	// What was started before is still in Nomad's hands.
	other.ToZero(t)
	visit(t, other)
}

func TestNomadAgentKilled(t *testing.T) {
	p := harness.Get(t)
	other := p.Probe(t, harness.Spec{})
	s := p.Create(t, slow("8"))
	load := other.Visitors(t, 4, "/")
	instance := other.Get(t, "/").Instance()
	d := beginBuilding(t, s)
	kill(t, "nomad", "agent")
	answered := load.Answered()
	harness.Eventually(t, 20*time.Second, "visits go on without Nomad", func() bool { return load.Answered() > answered+200 })
	p.Up(t)
	if d = p.Await(t, d.ID); d.State != leapcell.Live {
		t.Errorf("the deployment ended %s: %+v\n%s", d.State, d.Error, s.BuildLog(t, d.ID))
	}
	visit(t, s)
	load.Check(t)
	if now := other.Get(t, "/").Instance(); now != instance {
		t.Errorf("instance %s was replaced by %s", instance, now)
	}
	other.ToZero(t)
	visit(t, other)
}

func TestEdgeKilledComesBack(t *testing.T) {
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{})
	kill(t, "leapcell-edge", "")
	p.Up(t)
	visit(t, s)
}

func TestSupervisorKilled(t *testing.T) {
	p := harness.Get(t)
	s, suspended := p.Probe(t, harness.Spec{}), p.Probe(t, harness.Spec{})
	instances := map[*harness.Service]string{s: s.Get(t, "/").Instance(), suspended: suspended.Get(t, "/").Instance()}
	load := s.Visitors(t, 4, "/")
	answered := load.Answered()
	harness.Eventually(t, 20*time.Second, "visits", func() bool { return load.Answered() > answered+50 })
	kill(t, "nomad-driver-leapcell", "supervisor")
	for s, instance := range instances {
		harness.Eventually(t, 20*time.Second, "the service answers again by itself", func() bool {
			r, err := s.Visit(t.Context(), p.HTTP, "/")
			return err == nil && r.Status == 200
		})
		if now := s.Get(t, "/").Instance(); now != instance {
			t.Errorf("instance %s was replaced by %s", instance, now)
		}
	}
	answered = load.Answered()
	harness.Eventually(t, 20*time.Second, "visits go on", func() bool { return load.Answered() > answered+50 })
}

// A new build of the driver is put in place while visitors come: none of them notices, and
// the instances stay.
func TestDriverUpgraded(t *testing.T) {
	p := harness.Get(t)
	s, suspended := p.Probe(t, harness.Spec{}), p.Probe(t, harness.Spec{})
	instances := map[*harness.Service]string{s: s.Get(t, "/").Instance(), suspended: suspended.Get(t, "/").Instance()}
	load := s.Visitors(t, 4, "/")
	slow := make(chan string, 1)
	go func() {
		r, err := s.Visit(t.Context(), p.Visitor(), "/sleep?ms=15000")
		slow <- fmt.Sprint(r.Status, r.Err, err)
	}()
	before := p.Parts("nomad-driver-leapcell", "supervisor")
	replace(t, filepath.Join(p.Config.StateDir, "nomad", "plugins", "nomad-driver-leapcell"))
	harness.Eventually(t, time.Minute, "the new build's supervisor", func() bool {
		return slices.ContainsFunc(p.Parts("nomad-driver-leapcell", "supervisor"), func(q harness.Process) bool {
			return !slices.ContainsFunc(before, func(b harness.Process) bool { return b.PID == q.PID })
		})
	})
	answered := load.Answered()
	harness.Eventually(t, 20*time.Second, "visits go on", func() bool { return load.Answered() > answered+200 })
	if got := <-slow; got != "200 <nil> <nil>" {
		t.Errorf("the request that was in flight all the time: %s", got)
	}
	load.Check(t)
	for s, instance := range instances {
		if now := s.Get(t, "/").Instance(); now != instance {
			t.Errorf("instance %s was replaced by %s", instance, now)
		}
	}
	// What was started by the old one is in the new one's hands.
	s.ToZero(t)
	visit(t, s)
}

// replace puts another file with the same content in the place of the program behind link.
func replace(t *testing.T, link string) {
	t.Helper()
	name, err := filepath.EvalSymlinks(link)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name+".new", b, 0o755)
	}
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		t.Fatal(err)
	}
}
