package contract

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

const aMinute = time.Minute

type identity struct {
	Status     map[string]string
	Namespaces map[string]string
	Hostname   string
	PID        int
	Instance   string
	StartedAt  int64
}

func TestMust_ID1_InstanceIsNobodySpecial(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		var id identity
		s.Read(t, "/id", &id)
		for field, want := range map[string]string{
			"Uid": "1000\t1000\t1000\t1000", "Gid": "1000\t1000\t1000\t1000", "NoNewPrivs": "1", "Seccomp": "2",
			"CapInh": noCaps, "CapPrm": noCaps, "CapEff": noCaps, "CapBnd": noCaps, "CapAmb": noCaps,
		} {
			if got := id.Status[field]; got != want {
				t.Errorf("%s is %q, want %q", field, got, want)
			}
		}
		if groups := strings.Fields(id.Status["Groups"]); len(groups) > 1 || len(groups) == 1 && groups[0] != "1000" {
			t.Errorf("it is in the groups %q", groups)
		}
		for _, name := range []string{"unshare-user", "unshare-net", "mount", "keyctl", "add_key", "bpf", "userfaultfd", "open_by_handle_at", "setuid", "chroot", "sethostname", "reboot", "socket-packet"} {
			var r tried
			if s.Read(t, "/syscall?name="+name, &r); r.Err != "EPERM" && r.Err != "ENOSYS" && r.Err != "EACCES" {
				t.Errorf("%s: %q, want it refused", name, r.Err)
			}
		}
	})
}

const noCaps = "0000000000000000"

func TestMust_ID1_BuildRunsAsRoot(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	var r struct{ Err, Text string }
	if s.Read(t, "/read?path=/app/built-by", &r); strings.TrimSpace(r.Text) != "0" {
		t.Errorf("the build ran as user %q (%s), want 0", r.Text, r.Err)
	}
}

func TestMust_ID2_NamespacesOfItsOwn(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	a, b := p.Probe(t, harness.Spec{}), p.Probe(t, harness.Spec{})
	var one, two identity
	a.Read(t, "/id", &one)
	b.Read(t, "/id", &two) // both listen on 8080
	host := harness.Process{PID: os.Getpid()}
	for _, kind := range []string{"pid", "mnt", "ipc", "uts", "net", "cgroup"} {
		switch n := one.Namespaces[kind]; n {
		case "":
			t.Errorf("the %s namespace is unknown", kind)
		case host.Namespace(kind):
			t.Errorf("the %s namespace is the host's", kind)
		case two.Namespaces[kind]:
			t.Errorf("two instances share their %s namespace", kind)
		}
	}
	if name, _ := os.Hostname(); one.Hostname == name || one.Hostname == two.Hostname {
		t.Errorf("host names: instance %q, another %q, machine %q", one.Hostname, two.Hostname, name)
	}
	if one.PID > 50 {
		t.Errorf("the app is process %d: it counts with the host's", one.PID)
	}
	for _, s := range []*harness.Service{a, b} {
		var links map[string][]string
		if s.Read(t, "/net", &links); len(links["lo"]) == 0 || len(links) > 2 {
			t.Errorf("network links inside: %v", links)
		}
	}
}

func TestMust_ID3_NoTerminalAndOutputIsTheLog(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		var in struct {
			EOF, TTY bool
			DevTTY   string
			Mode     string
		}
		s.Read(t, "/stdin", &in)
		if !in.EOF || in.TTY {
			t.Errorf("stdin at its end: %v, a terminal: %v (%s)", in.EOF, in.TTY, in.Mode)
		}
		if in.DevTTY == "" {
			t.Error("/dev/tty can be opened: there is a controlling terminal")
		}
		s.Get(t, "/log?out=line-for-stdout&err=line-for-stderr")
		harness.Eventually(t, 10*time.Second, "both lines are in the log", func() bool {
			log := s.Logs(t)
			return strings.Contains(log, "line-for-stdout") && strings.Contains(log, "line-for-stderr")
		})
	})
}

// What an app finds in its environment is its own, and a short list of the platform's.
func TestMust_ID5_OnlyItsOwnVariables(t *testing.T) {
	t.Parallel()
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: mode}, Env: map[string]string{"MINE": "1", "LEAPCELL_MODE": "forged"}})
		var env map[string]string
		r := s.Read(t, "/env", &env)
		want := map[string]string{
			"MINE": "1", "PORT": "8080", "HOME": "/tmp", "LEAPCELL_SERVICE": s.Name, "LEAPCELL_MODE": string(mode),
			"LEAPCELL_MEMORY_MB": fmt.Sprint(leapcell.DefaultMemoryMB), "LEAPCELL_INSTANCE": r.Instance(), "LEAPCELL_DEPLOYMENT": s.Live,
		}
		s.Reload(t)
		want["LEAPCELL_DEPLOYMENT"] = s.Live
		for name, value := range want {
			if env[name] != value {
				t.Errorf("%s: %s is %q, want %q", mode, name, env[name], value)
			}
		}
		for name, value := range env {
			_, ok := want[name]
			// The last ones are bash's own.
			if !ok && !slices.Contains([]string{"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}, name) {
				t.Errorf("%s: the app sees %s=%q", mode, name, value)
			}
		}
	}
}
