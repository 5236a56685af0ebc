package e2e

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// named answers for a service under another of its names.
func under(t *testing.T, host, path string) (int, string, http.Header) {
	t.Helper()
	s := &harness.Service{Service: leapcell.Service{Host: host}}
	r, err := s.Visit(t.Context(), harness.Get(t).HTTP, path)
	if err != nil || r.Err != nil {
		t.Fatalf("GET %s%s: %v %v", host, path, err, r.Err)
	}
	return r.Status, r.Body, r.Header
}

func TestFormerDeploymentsAndTheirShare(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	s := p.Create(t, harness.Spec{
		Extra:    map[string]string{"answer": "one"},
		Settings: leapcell.Settings{DormantAfter: leapcell.Duration(3 * time.Second)},
	})
	first := s.Deploy(t)
	s.Change(map[string]string{"answer": "two"})
	s.Deploy(t)
	answers(t, s, "two")
	s.Reload(t)
	preview := leapcell.PreviewHost(s.Host, first.Number)
	if status, body, _ := under(t, preview, "/read?path=/app/answer"); status != http.StatusOK || !strings.Contains(body, "one") {
		t.Errorf("by its own name: %d %q", status, body)
	}

	p.Must(t, "traffic", s.Name, first.ID, "50")
	seen := map[string]int{}
	for range 60 {
		r := s.Get(t, "/read?path=/app/answer")
		if r.Status != http.StatusOK {
			t.Fatalf("%d %q", r.Status, r.Body)
		}
		seen[strings.TrimSpace(r.Body)]++
	}
	if len(seen) != 2 {
		t.Errorf("half of the requests were to go to each: %v", seen)
	}
	if out := p.Must(t, "traffic", s.Name); !strings.Contains(out, "50 %") || !strings.Contains(out, first.ID) {
		t.Errorf("traffic says %q", out)
	}
	harness.Eventually(t, time.Minute, "nothing of either runs", func() bool {
		allocs, _, err := p.Nomad.Jobs().Allocations(first.ID, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range allocs {
			if a.ClientStatus == "running" || a.ClientStatus == "pending" {
				return false
			}
		}
		return len(s.Allocs(t)) == 0
	})

	s.Change(map[string]string{"answer": "three"})
	s.Deploy(t)
	for range 20 {
		if r := s.Get(t, "/read?path=/app/answer"); !strings.Contains(r.Body, "three") {
			t.Errorf("the split was to end with the next deployment: %q", r.Body)
		}
	}
	if r := p.CLI(t, "traffic", s.Name, "nothing-1", "50"); r.Code == 0 || !strings.Contains(r.Output, "nothing-1") {
		t.Errorf("%d %q", r.Code, r.Output)
	}
}

func TestIgnoredRequestsWakeNothing(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{IgnorePaths: []string{"/healthz"}, IgnoreAgents: []string{"UptimeRobot"}}})
	s.ToZero(t)
	for range 5 {
		if r := s.Get(t, "/healthz"); r.Status != http.StatusNoContent {
			t.Errorf("an ignored path: %d %q", r.Status, r.Body)
		}
	}
	if n := len(s.Allocs(t)); n != 0 {
		t.Errorf("%d instances were woken", n)
	}
	if r := s.Get(t, "/"); r.Status != http.StatusOK {
		t.Errorf("a visitor: %d %q", r.Status, r.Body)
	}
}

// Variables that break the start: visitors are told at once, and when to come back. Once
// they are mended, so is the service.
func TestServiceThatCannotStartIsLeftAlone(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	s.ToZero(t)
	s.SetEnv(t, map[string]string{"EXIT_CODE": "3", "EXIT_STDERR": "no database"})
	if r := s.Get(t, "/"); r.Status != http.StatusBadGateway || !strings.Contains(r.Body, leapcell.TextStartFailed) {
		t.Errorf("who waits for the start: %d %q", r.Status, r.Body)
	}
	harness.Eventually(t, 30*time.Second, "visitors are told when to come back", func() bool {
		r := s.Get(t, "/")
		after, err := strconv.Atoi(r.Header.Get("Retry-After"))
		return r.Status == http.StatusServiceUnavailable && err == nil && after >= 1 && strings.Contains(r.Body, leapcell.TextStartFailed)
	})
	// Nomad shows no log of a task until it has noted the start, which this visitor can outrun.
	harness.Eventually(t, 10*time.Second, "the owner finds the cause in the log", func() bool { return strings.Contains(s.Logs(t), "no database") })
	s.SetEnv(t, map[string]string{"EXIT_CODE": "", "EXIT_STDERR": ""})
	harness.Eventually(t, 2*time.Minute, "it answers again", func() bool { return s.Get(t, "/").Status == http.StatusOK })
}
