package contract

import (
	"net/http"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// A service can be switched either way at any time, under load, and is then what it was made.
func TestMust_CP6_ServiceIsSwitchedEitherWay(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	load := s.Visitors(t, 2, "/sleep?ms=20")
	for _, mode := range []leapcell.Mode{leapcell.Persistent, leapcell.Serverless} {
		s.Set(t, leapcell.Settings{Mode: mode})
		s.Deploy(t)
		harness.Eventually(t, aMinute, "the service is "+string(mode), func() bool {
			var env map[string]string
			s.Read(t, "/env", &env)
			return env[leapcell.EnvMode] == string(mode)
		})
	}
	harness.Eventually(t, aMinute, "visits go on", func() bool { return load.Answered() > 50 })
	load.Check(t)

	// What the modes differ in.
	if r := write(t, s, "/app/new"); r.Err == "" {
		t.Error("serverless again, and its files can be written")
	}
	group := s.Inside(t, instanceOf(t, s)).Cgroup()
	harness.Eventually(t, 10*time.Second, "serverless again: suspended while idle", group.Frozen)
	s.Set(t, leapcell.Settings{Mode: leapcell.Persistent})
	s.Deploy(t)
	if r := write(t, s, "/app/new"); r.Err != "" {
		t.Errorf("persistent, and its files cannot be written: %s", r.Err)
	}
	group = s.Inside(t, instanceOf(t, s)).Cgroup()
	for range 20 { // well over the time after which the other mode suspends
		if time.Sleep(20 * time.Millisecond); group.Frozen() {
			t.Fatal("persistent, and suspended")
		}
	}
}

// The kernel's verdict is said where an operator looks: with the limit and what was used.
func TestMust_ID6_OutOfMemoryIsAnEvent(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		alloc := s.Get(t, "/").Instance()
		if r := s.Get(t, "/exhaust?what=memory"); r.Status == http.StatusOK {
			t.Errorf("memory without end: %d %q", r.Status, r.Body)
		}
		harness.Eventually(t, 20*time.Second, "the event", func() bool {
			text := eventsOf(t, alloc)
			return strings.Contains(text, "out of memory: limit 256 MB, used 25") || strings.Contains(text, "out of memory: limit 256 MB\n")
		})
	})
}

// What a service did is told in Nomad's own UI.
func TestSuspensionsAreEvents(t *testing.T) {
	s := harness.Get(t).Probe(t, harness.Spec{})
	alloc := instanceOf(t, s)
	harness.Eventually(t, 5*time.Second, "the idle instance is suspended", s.Inside(t, alloc).Cgroup().Frozen)
	s.Get(t, "/")
	harness.Eventually(t, 20*time.Second, "the events", func() bool {
		text := eventsOf(t, alloc)
		return strings.Contains(text, "started in ") && strings.Contains(text, "suspended: no request for ") && strings.Contains(text, "resumed by a request")
	})
}

// eventsOf are the events of an instance's task as Nomad has them, one a line.
func eventsOf(t *testing.T, alloc string) string {
	t.Helper()
	a, _, err := harness.Get(t).Nomad.Allocations().Info(alloc, (&nomad.QueryOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatalf("allocation %s: %v", alloc, err)
	}
	var b strings.Builder
	for _, state := range a.TaskStates {
		for _, e := range state.Events {
			b.WriteString(e.DisplayMessage + "\n")
		}
	}
	return b.String()
}
