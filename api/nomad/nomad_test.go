package nomad

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/ports"
)

func nomadBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("NOMAD_BIN"); path != "" {
		return path
	}
	path, err := exec.LookPath("nomad")
	if err != nil {
		t.Skip("no nomad on PATH and NOMAD_BIN is not set: this test needs a real Nomad")
	}
	return path
}

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	found, err := ports.Several(n)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// startNomad starts a real agent, server and client in one, and gives a client of it.
func startNomad(t *testing.T) *Client {
	t.Helper()
	bin := nomadBinary(t)
	p := freePorts(t, 3)
	config := filepath.Join(t.TempDir(), "agent.hcl")
	text := fmt.Sprintf(`
ports {
  http = %d
  rpc  = %d
  serf = %d
}
plugin "raw_exec" {
  config { enabled = true }
}
client {
  network_interface = "lo"
  options = {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.allowlist"     = "raw_exec"
  }
}
`, p[0], p[1], p[2])
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "agent", "-dev", "-config", config, "-bind", "127.0.0.1")
	data := t.TempDir()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + data}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		unmountBelow(t, data)
	})
	ready := make(chan string, 1)
	go func() {
		var seen strings.Builder
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), "node registration complete") {
				ready <- ""
				break
			}
			seen.WriteString(lines.Text() + "\n")
		}
		_, _ = io.Copy(io.Discard, out)
		select {
		case ready <- seen.String():
		default:
		}
	}()
	if text := <-ready; text != "" {
		t.Fatalf("nomad ended at its start:\n%s", text)
	}
	c, err := New(Config{Address: fmt.Sprintf("http://127.0.0.1:%d", p[0]), Namespace: "leapcell"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.api.Namespaces().Register(&api.Namespace{Name: "leapcell"}, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

// unmountBelow takes away what an agent leaves mounted that ends while it removes an allocation:
// memory for the secrets of its tasks.
func unmountBelow(t *testing.T, dir string) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, dir+"/") {
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				t.Errorf("unmounting %s: %v", point, err)
			}
		}
	}
}

func wantCode(t *testing.T, err error, code leapcell.Code, words ...string) {
	t.Helper()
	if got := leapcell.ErrorCode(err); got != code {
		t.Fatalf("error %v has code %q, want %q", err, got, code)
	}
	for _, word := range words {
		if !strings.Contains(leapcell.ErrorMessage(err), word) {
			t.Errorf("%q does not say %q", leapcell.ErrorMessage(err), word)
		}
	}
}

// job writes to its log and goes on until it is stopped.
func job(id string) *api.Job {
	task := api.NewTask("python-default-abcdefgh", "raw_exec").
		SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", "echo one; echo two; echo oops >&2; exec sleep 1000"}).
		Require(&api.Resources{CPU: new(10), MemoryMB: new(10)})
	group := api.NewTaskGroup(leapcell.Group, 1).AddTask(task)
	group.Networks = []*api.NetworkResource{{DynamicPorts: []api.Port{{Label: leapcell.PortLabel}}}}
	group.Update = &api.UpdateStrategy{MaxParallel: new(0)}
	return api.NewServiceJob(id, id, "global", 50).AddTaskGroup(group).AddDatacenter("*")
}

// waitFor follows the allocations of a job until ok says yes.
func waitFor(t *testing.T, c *Client, job string, ok func([]*api.AllocationListStub) bool) []*api.AllocationListStub {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for index := uint64(0); ; {
		allocs, next, err := c.WaitAllocs(ctx, job, index)
		if err != nil {
			t.Fatal(err)
		}
		if ok(allocs) {
			return allocs
		}
		index = next
	}
}

func running(n int) func([]*api.AllocationListStub) bool {
	return func(allocs []*api.AllocationListStub) bool {
		have := 0
		for _, a := range allocs {
			if Running(a) && a.ClientStatus == api.AllocClientStatusRunning {
				have++
			}
		}
		return have == n
	}
}

func ended(allocs []*api.AllocationListStub) bool {
	return !slices.ContainsFunc(allocs, func(a *api.AllocationListStub) bool {
		return a.ClientStatus == api.AllocClientStatusPending || a.ClientStatus == api.AllocClientStatusRunning
	})
}

func TestRealNomad(t *testing.T) {
	c := startNomad(t)
	ctx := t.Context()
	if err := c.Health(ctx); err != nil {
		t.Fatal(err)
	}
	t.Run("Jobs", func(t *testing.T) { testJobs(t, c) })
	t.Run("NoRoom", func(t *testing.T) { testNoRoom(t, c) })
	t.Run("Variables", func(t *testing.T) { testVariables(t, c) })
	t.Run("WrongNamespace", func(t *testing.T) {
		other, err := New(Config{Address: c.cfg.Address, Namespace: "nothing"})
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, other.Health(ctx), leapcell.CodeNotFound, "namespace nothing")
	})
}

func testJobs(t *testing.T, c *Client) {
	ctx := t.Context()
	const id = "python-1"
	for range 2 { // the second time nothing changes
		if err := c.Register(ctx, job(id)); err != nil {
			t.Fatal(err)
		}
	}
	allocs := waitFor(t, c, id, running(1))
	if got, err := c.Job(ctx, id); err != nil || *got.ID != id || *got.Version != 0 {
		t.Errorf("job is %v, %v", got, err)
	}
	if jobs, err := c.Jobs(ctx, "python-"); err != nil || len(jobs) != 1 {
		t.Errorf("jobs are %v, %v", jobs, err)
	}
	instances, err := c.Instances(ctx, "python")
	if err != nil || len(instances) != 1 || instances[0].ID != allocs[0].ID || instances[0].Deployment != id || !strings.HasPrefix(instances[0].Address, "127.0.0.1:") {
		t.Errorf("instances are %+v, %v", instances, err)
	}
	for _, other := range []string{"pyth", "python-1", "x"} {
		if got, err := c.Instances(ctx, other); err != nil || len(got) != 0 {
			t.Errorf("instances of %s are %v, %v", other, got, err)
		}
	}
	t.Run("Logs", func(t *testing.T) { testLogs(t, c, allocs[0].ID) })
	if err := c.StopAlloc(ctx, allocs[0].ID); err != nil {
		t.Fatal(err)
	}
	waitFor(t, c, id, func(now []*api.AllocationListStub) bool { // another one takes its place
		for _, a := range now {
			if a.ID != allocs[0].ID && a.ClientStatus == api.AllocClientStatusRunning {
				return true
			}
		}
		return false
	})
	wantCode(t, c.StopAlloc(ctx, "00000000-0000-0000-0000-000000000000"), leapcell.CodeNotFound)
	if err := c.Scale(ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	waitFor(t, c, id, running(0))
	if err := c.Scale(ctx, id, 1); err != nil {
		t.Fatal(err)
	}
	waitFor(t, c, id, running(1))
	// An agent that ends while it stops an instance leaves mounts and processes of it.
	if err := c.Stop(ctx, id, false); err != nil {
		t.Fatal(err)
	}
	waitFor(t, c, id, ended)
	for range 2 { // the second time it is gone
		if err := c.Stop(ctx, id, true); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.Job(ctx, id)
	wantCode(t, err, leapcell.CodeNotFound, "job python-1")
	wantCode(t, c.Scale(ctx, id, 1), leapcell.CodeNotFound)
	bad := job("bad-1")
	bad.TaskGroups[0].Tasks[0].Driver = ""
	err = c.Register(ctx, bad)
	wantCode(t, err, leapcell.CodeInternal, "bad-1", "driver")
	if strings.ContainsAny(leapcell.ErrorMessage(err), "\n\t") {
		t.Errorf("more than one line: %q", leapcell.ErrorMessage(err))
	}
}

func testLogs(t *testing.T, c *Client, alloc string) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := LogOptions{AllocID: alloc, Task: "python-default-abcdefgh", Stream: "stdout", Follow: true}
	r, err := c.Logs(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	lines := bufio.NewScanner(r)
	for _, want := range []string{"one", "two"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("line %q, %v, want %q", lines.Text(), lines.Err(), want)
		}
	}
	cancel()
	if lines.Scan() || !errors.Is(lines.Err(), context.Canceled) {
		t.Errorf("after the end: %q, %v", lines.Text(), lines.Err())
	}
	o.Follow, o.Stream, o.FromEnd, o.Offset = false, "stderr", true, 3
	if r, err = c.Logs(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "ps\n" {
		t.Errorf("the end of stderr is %q, %v", b, err)
	}
	o.AllocID = "00000000-0000-0000-0000-000000000000"
	_, err = c.Logs(t.Context(), o)
	wantCode(t, err, leapcell.CodeNotFound)
}

func testNoRoom(t *testing.T, c *Client) {
	ctx := t.Context()
	const id = "huge-1"
	if m, err := c.FailedPlacement(ctx, id); err != nil || m != nil {
		t.Errorf("of a job that is not there: %v, %v", m, err)
	}
	huge := job(id)
	huge.TaskGroups[0].Tasks[0].Resources.MemoryMB = new(1 << 30)
	if err := c.Register(ctx, huge); err != nil {
		t.Fatal(err)
	}
	var m *api.AllocationMetric
	for err := error(nil); m == nil; { // Nomad evaluates the job in the background
		if m, err = c.FailedPlacement(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if m.DimensionExhausted["memory"] == 0 {
		t.Errorf("no memory is not the reason: %+v", m)
	}
	if err := c.Stop(ctx, id, true); err != nil {
		t.Fatal(err)
	}
}

func testVariables(t *testing.T, c *Client) {
	ctx := t.Context()
	const path = leapcell.EnvPrefix + "python-default-abcdefgh"
	_, err := c.Variable(ctx, path)
	wantCode(t, err, leapcell.CodeNotFound, path)
	for _, value := range []string{`{"version":1}`, `{"version":2}`} {
		if _, err := c.PutVariable(ctx, path, []byte(value)); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Variable(ctx, path); err != nil || string(got) != value {
			t.Errorf("%s, %v, want %s", got, err, value)
		}
	}
	if got, err := c.Variables(ctx, leapcell.EnvPrefix); err != nil || fmt.Sprint(got) != "["+path+"]" {
		t.Errorf("%v, %v", got, err)
	}
	for range 2 {
		if err := c.DeleteVariable(ctx, path); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.Variable(ctx, path)
	wantCode(t, err, leapcell.CodeNotFound)
}

func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"1 error occurred:\n\t* Task group app validation failed: 2 errors occurred:\n\t* a\n\t* b: c\n\n": "Task group app validation failed; a; b: c",
		"plain": "plain", "": "",
	} {
		if got := oneLine(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

func FuzzOneLine(f *testing.F) {
	f.Add("1 error occurred:\n\t* a")
	f.Fuzz(func(t *testing.T, text string) {
		if got := oneLine(text); strings.Contains(got, "\n") {
			t.Errorf("%q becomes %q", text, got)
		}
	})
}

func TestNomadThatIsNotThere(t *testing.T) {
	address := fmt.Sprintf("http://127.0.0.1:%d", freePorts(t, 1)[0])
	c, err := New(Config{Address: address, Namespace: "leapcell"})
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, c.Health(t.Context()), leapcell.CodeUnavailable, "Nomad at "+address+" does not answer", "refused", "is the agent running?")
	_, err = c.PutVariable(t.Context(), "x", nil)
	wantCode(t, err, leapcell.CodeUnavailable)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Health(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	if _, err := New(Config{Address: "://"}); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
		t.Errorf("a bad address: %v", err)
	}
}

// Two who remove a job at the same time both succeed.
func TestStopTwiceAtOnce(t *testing.T) {
	c := startNomad(t)
	for i := range 20 {
		id := fmt.Sprintf("twice-%d", i)
		j := job(id)
		j.TaskGroups[0].Count = new(0) // an agent that ends while instances start leaves mounts of theirs
		if err := c.Register(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		errs := make(chan error, 8)
		for range cap(errs) {
			go func() { errs <- c.Stop(t.Context(), id, true) }()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	}
}
