package plugin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/supervisor"
)

// goodMachine has all that is needed, in a folder of its own.
func goodMachine(t *testing.T) *machine {
	m := newMachine()
	m.root = t.TempDir()
	m.uid = func() int { return 0 }
	m.available = func(string) error { return nil }
	m.nftables = func() error { return nil }
	write(t, m.path("proc/filesystems"), "nodev\tproc\nnodev\toverlay\n")
	write(t, m.path("sys/fs/cgroup/cgroup.controllers"), "cpuset cpu io memory pids\n")
	return m
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFingerprintSaysAllThatIsMissingAndRecovers(t *testing.T) {
	dir := t.TempDir()
	startFake(t, dir)
	d := New("/bin/false", hclog.NewNullLogger())
	d.machine = goodMachine(t)
	d.cfg, d.client = supervisor.Config{StateDir: dir, Runtime: "runc", Name: "abc"}, supervisor.NewClient(filepath.Join(dir, "supervisor.sock"))
	t.Cleanup(d.client.Close)
	healthy := func() {
		t.Helper()
		if f := d.fingerprint(context.Background()); f.Health != drivers.HealthStateHealthy {
			t.Fatalf("%s: %s", f.Health, f.HealthDescription)
		}
	}
	healthy()
	d.cfg.Fallback = "the kernel is too old"
	if f := d.fingerprint(context.Background()); f.Health != drivers.HealthStateHealthy || !strings.Contains(f.HealthDescription, "made by runc: the kernel is too old") {
		t.Errorf("of a node that runs with less: %s %s", f.Health, f.HealthDescription)
	}
	for want, harm := range map[string]func(m *machine){
		"does not run as root":     func(m *machine) { m.uid = func() int { return 1000 } },
		"runc is not on PATH":      func(m *machine) { m.available = func(r string) error { return errors.New(r + " is not on PATH") } },
		"modprobe overlay":         func(m *machine) { write(t, m.path("proc/filesystems"), "nodev\tproc\n") },
		"controllers memory, pids": func(m *machine) { write(t, m.path("sys/fs/cgroup/cgroup.controllers"), "cpu io\n") },
		"modprobe nf_tables":       func(m *machine) { m.nftables = func() error { return errors.New("operation not supported") } },
	} {
		d.machine = goodMachine(t)
		harm(d.machine)
		f := d.fingerprint(context.Background())
		if f.Health != drivers.HealthStateUnhealthy || !strings.Contains(f.HealthDescription, want) {
			t.Errorf("%s: %s", f.Health, f.HealthDescription)
		}
		if v, _ := f.Attributes["driver.leapcell.version"].GetString(); v != supervisor.Version {
			t.Errorf("attributes of an unhealthy node: %v", f.Attributes)
		}
		d.machine = goodMachine(t)
		healthy()
	}
	d.machine.uid, d.machine.available = func() int { return 1 }, func(string) error { return errors.New("no runtime") }
	if f := d.fingerprint(context.Background()); !strings.Contains(f.HealthDescription, "root") || !strings.Contains(f.HealthDescription, "; no runtime") {
		t.Errorf("not all at once: %s", f.HealthDescription)
	}
	d.machine = goodMachine(t)
	d.client = supervisor.NewClient(filepath.Join(dir, "nobody.sock"))
	if f := d.fingerprint(context.Background()); f.Health != drivers.HealthStateUnhealthy || !strings.Contains(f.HealthDescription, "supervisor") {
		t.Errorf("without a supervisor: %s %s", f.Health, f.HealthDescription)
	}
}

func TestCgroupsOfVersion1(t *testing.T) {
	m := goodMachine(t)
	if err := os.Remove(m.path("sys/fs/cgroup/cgroup.controllers")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		write(t, m.path("sys/fs/cgroup/"+c+"/cgroup.procs"), "")
	}
	if v, lacking := m.cgroups(); v != "v1" || len(lacking) != 1 || lacking[0] != "freezer" {
		t.Errorf("%s, %v", v, lacking)
	}
}

// A mistake in the job is not tried again.
func TestMistakesAreNotRepeated(t *testing.T) {
	d := New("/bin/false", hclog.NewNullLogger())
	err := d.notStarted("x", leapcell.Errorf(leapcell.CodeInvalid, "task config: port is 0"))
	if structs.IsRecoverable(err) || err.Error() != "task config: port is 0" {
		t.Errorf("recoverable %v: %v", structs.IsRecoverable(err), err)
	}
	if err := d.notStarted("x", leapcell.Errorf(leapcell.CodeUnavailable, "the disk is full")); !structs.IsRecoverable(err) {
		t.Errorf("given up: %v", err)
	}
}

func TestDefaultsOfAPlainJob(t *testing.T) {
	task := newTask(t)
	task.JobName, task.Env = "hello", map[string]string{"MINE": "1", "NOMAD_ALLOC_ID": "x", "VAULT_TOKEN": "x", "CONSUL_HTTP_TOKEN": "x"}
	(*task.Resources.Ports)[1].To = 5678
	if err := task.EncodeConcreteDriverConfig(&leapcell.TaskConfig{Image: "hello:1"}); err != nil {
		t.Fatal(err)
	}
	req, err := request(task)
	if err != nil || req.Config.Port != 5678 || req.Config.Service != "hello" || req.Config.Deployment != "hello" || len(req.Env) != 1 || req.Env["MINE"] != "1" {
		t.Errorf("%+v, %v", req, err)
	}
	(*task.Resources.Ports)[1].To = 0
	if req, _ := request(task); req.Config.Port != leapcell.DefaultPort {
		t.Errorf("port %d", req.Config.Port)
	}
}

func TestLastBytes(t *testing.T) {
	var l lastBytes
	for range 100 {
		_, _ = l.Write([]byte(strings.Repeat("x", 5000)))
	}
	_, _ = l.Write([]byte("end"))
	if b := l.bytes(); len(b) != lastLimit || !strings.HasSuffix(string(b), "xend") {
		t.Errorf("%d bytes", len(b))
	}
}
