package contract

import (
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

func TestMust_LC1_StartCommandRunsThroughBash(t *testing.T) {
	t.Parallel()
	eachMode(t, startCommandRunsThroughBash)
}

func startCommandRunsThroughBash(t *testing.T, mode leapcell.Mode) {
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: mode, StartCommand: `
		set -e
		export SEEN_BASH=$BASH_VERSION
		export SEEN_DIR=$PWD
		if [[ -x probe && $((6 * 7)) == 42 ]]; then
			export SEEN_LINES="all of them"
		fi
		./probe
	`}})
	var env map[string]string
	s.Read(t, "/env", &env)
	if env["SEEN_BASH"] == "" {
		t.Error("the command did not run in bash")
	}
	if env["SEEN_DIR"] != "/app" {
		t.Errorf("the command ran in %q, want the image's working directory /app", env["SEEN_DIR"])
	}
	if env["SEEN_LINES"] != "all of them" {
		t.Error("the lines in the middle did not run")
	}
}

func TestMust_LC2_PortIsSetAndWins(t *testing.T) {
	t.Parallel()
	eachMode(t, portIsSetAndWins)
}

func portIsSetAndWins(t *testing.T, mode leapcell.Mode) {
	for name, port := range map[string]int{"default": 0, "of the service": 9123} {
		t.Run(name, func(t *testing.T) {
			s := harness.Get(t).Probe(t, harness.Spec{
				Settings: leapcell.Settings{Mode: mode, Port: port},
				Env:      map[string]string{"PORT": "4711", "OTHER": "kept"},
			})
			want := "8080"
			if port != 0 {
				want = "9123"
			}
			var env map[string]string
			s.Read(t, "/env", &env)
			if env["PORT"] != want {
				t.Errorf("PORT is %q, want %s: the user's variable must not win", env["PORT"], want)
			}
			if env["OTHER"] != "kept" {
				t.Error("the user's other variable is not there")
			}
		})
	}
}

type life struct {
	StartedAt, ListenedAt, ServedAt, FirstAt int64
	Early                                    []int64
	Probes                                   []struct {
		At                   int64
		Remote, Host, Method string
	}
}

func TestMust_LC3_AnyAnswerOnAnyAddressIsListening(t *testing.T) {
	t.Parallel()
	eachMode(t, anyAnswerIsListening)
}

func anyAnswerIsListening(t *testing.T, mode leapcell.Mode) {
	for name, env := range map[string]map[string]string{
		"loopback only":       {"LISTEN_ADDR": "127.0.0.1"},
		"all IPv4 addresses":  {"LISTEN_ADDR": "0.0.0.0"},
		"all IPv6 addresses":  {"LISTEN_ADDR": "[::]"},
		"answers with errors": {"PROBE_STATUS": "500"},
		"answers with 200":    {"PROBE_STATUS": "200"},
	} {
		t.Run(name, func(t *testing.T) {
			s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: mode}, Env: env})
			var seen life
			s.Read(t, "/life", &seen)
			if len(seen.Probes) == 0 {
				t.Fatalf("no request to %s was seen", leapcell.ProbePath)
			}
			p := seen.Probes[0]
			if p.Method != http.MethodGet {
				t.Errorf("the probe is a %s", p.Method)
			}
			if host, _, _ := net.SplitHostPort(p.Remote); !net.ParseIP(host).IsLoopback() {
				t.Errorf("the probe came from %s, not from inside the instance", p.Remote)
			}
		})
	}
}

// The clause is a number. What is asserted are medians over many probes, with room for a
// machine that has other things to do.
func TestMust_LC4_ProbesComeQuickly(t *testing.T) { eachMode(t, probesComeQuickly) }

func probesComeQuickly(t *testing.T, mode leapcell.Mode) {
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: mode}, Env: map[string]string{"EARLY_CLOSE": "2500ms"}})
	var seen life
	s.Read(t, "/life", &seen)
	if len(seen.Early) < 20 {
		t.Fatalf("%d probes in 2.5 s", len(seen.Early))
	}
	median := func(from, to time.Duration) time.Duration {
		var gaps []time.Duration
		for i, at := range seen.Early[1:] {
			if after := time.Duration(at - seen.ListenedAt); after >= from && after < to {
				gaps = append(gaps, time.Duration(at-seen.Early[i]))
			}
		}
		if len(gaps) == 0 {
			t.Fatalf("no probe from %s to %s after the port was open", from, to)
		}
		slices.Sort(gaps)
		return gaps[len(gaps)/2]
	}
	// The process started before it listened, so its first second ends earlier than ours.
	if got := median(0, 500*time.Millisecond); got > harness.Allow(15*time.Millisecond) {
		t.Errorf("in the first half second: one probe in %s, want 10 ms at most", got)
	}
	if got := median(1200*time.Millisecond, 2500*time.Millisecond); got > harness.Allow(75*time.Millisecond) {
		t.Errorf("after the first second: one probe in %s, want 50 ms", got)
	}
}

func TestMust_LC5_PortNotListening(t *testing.T) {
	t.Parallel()
	text := leapcell.PortNotListeningText(9123)
	settings := leapcell.Settings{Port: 9123, StartTimeout: leapcell.Duration(harness.Stretch(time.Second, 20*time.Second))}

	eachMode(t, func(t *testing.T, mode leapcell.Mode) {
		settings := settings
		settings.Mode = mode
		s := harness.Get(t).Create(t, harness.Spec{Settings: settings, Env: map[string]string{"NO_LISTEN": "1"}})
		d := s.TryDeploy(t)
		if d.State != leapcell.Failed || d.Error == nil || d.Error.Code != leapcell.CodePortNotListening || !strings.Contains(d.Error.Message, text) {
			t.Errorf("the deployment is %s: %+v, want %q", d.State, d.Error, text)
		}
	})
	t.Run("visitor and log", func(t *testing.T) {
		s := harness.Get(t).Probe(t, harness.Spec{Settings: settings})
		s.ToZero(t)
		s.SetEnv(t, map[string]string{"NO_LISTEN": "1"})
		r := s.Get(t, "/")
		if r.Status != http.StatusBadGateway || !strings.Contains(r.Body, text) {
			t.Errorf("the visitor got %d %q, want 502 %q", r.Status, r.Body, text)
		}
		harness.Eventually(t, 10*time.Second, "the service's log says so", func() bool { return strings.Contains(s.Logs(t), text) })
	})
}

func TestMust_LC6_ExitIsTheOwnersToKnow(t *testing.T) {
	t.Parallel()
	const cause = "config file is missing: db=internal-7"
	broken := map[string]string{"EXIT_CODE": "7", "EXIT_STDERR": cause}

	eachMode(t, func(t *testing.T, mode leapcell.Mode) {
		s := harness.Get(t).Create(t, harness.Spec{Settings: leapcell.Settings{Mode: mode}, Env: broken})
		d := s.TryDeploy(t)
		if d.State != leapcell.Failed || d.Error == nil || d.Error.Code != leapcell.CodeStartExited {
			t.Fatalf("the deployment is %s: %+v", d.State, d.Error)
		}
		if d.Error.ExitCode == nil || *d.Error.ExitCode != 7 {
			t.Errorf("the exit code is not there: %+v", d.Error)
		}
		if !strings.Contains(strings.Join(d.Error.LogTail, "\n"), cause) {
			t.Errorf("the last lines of stderr are not there: %q", d.Error.LogTail)
		}
	})
	t.Run("visitor", func(t *testing.T) {
		s := harness.Get(t).Probe(t, harness.Spec{})
		s.ToZero(t)
		s.SetEnv(t, broken)
		r := s.Get(t, "/")
		if r.Status != http.StatusBadGateway || !strings.Contains(r.Body, leapcell.TextStartFailed) {
			t.Errorf("the visitor got %d %q, want 502 %q", r.Status, r.Body, leapcell.TextStartFailed)
		}
		if all := r.Body + headerText(r.Header); strings.Contains(all, "internal-7") || strings.Contains(r.Body, "7") {
			t.Errorf("the visitor is told the cause: %q", all)
		}
		harness.Eventually(t, 10*time.Second, "the owner's log has the cause", func() bool { return strings.Contains(s.Logs(t), cause) })
	})
}

func headerText(h http.Header) string {
	var b strings.Builder
	_ = h.Write(&b) // into memory
	return b.String()
}

func TestMust_LC7_ColdRequestsAreHeld(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]map[string]string{
		"port closed at first":         {"LISTEN_DELAY": "700ms"},
		"port open but no HTTP spoken": {"EARLY_CLOSE": "700ms"},
	} {
		t.Run(name, func(t *testing.T) {
			s := harness.Get(t).Probe(t, harness.Spec{Env: env})
			s.ToZero(t)
			replies := together(t, s, 20, "/life")
			for _, r := range replies {
				if r.Status != http.StatusOK || r.Err != nil {
					t.Fatalf("a visitor got %d %.200q %v", r.Status, r.Body, r.Err)
				}
			}
			var seen life
			s.Read(t, "/life", &seen)
			if seen.FirstAt < seen.ServedAt || len(seen.Probes) == 0 || seen.FirstAt < seen.Probes[0].At {
				t.Errorf("the first request came at %d, before the instance was ready: %+v", seen.FirstAt, seen)
			}
		})
	}
}

// together sends n requests together, each on a connection of its own.
func together(t *testing.T, s *harness.Service, n int, path string) []harness.Reply {
	t.Helper()
	replies := make([]harness.Reply, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { replies[i], errs[i] = s.Visit(t.Context(), harness.Get(t).Visitor(), path) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return replies
}
