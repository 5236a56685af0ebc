package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// wrong deploys a folder by the CLI and expects it to fail, saying all of says.
func wrong(t *testing.T, files map[string]string, says ...string) {
	t.Helper()
	p := harness.Get(t)
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	name := harness.Name(t)
	r := p.CLI(t, "deploy", dir, "--name", name)
	if r.Code == 0 {
		t.Errorf("the command succeeded:\n%s", r.Output)
	}
	for _, text := range says {
		if !strings.Contains(r.Output, text) {
			t.Errorf("%q is not said in:\n%s", text, r.Output)
		}
	}
	if strings.Contains(r.Output, "internal error") || strings.Contains(r.Output, "goroutine ") {
		t.Errorf("that is no message for a user:\n%s", r.Output)
	}
	nothingRuns(t, name)
}

// nothingRuns looks for what a failed deployment of a service left.
func nothingRuns(t *testing.T, name string) {
	t.Helper()
	p := harness.Get(t)
	var s leapcell.Service
	if err := p.API.Call(t.Context(), http.MethodGet, "/v1/services/"+name, nil, &s); err != nil {
		return // it was refused before there was anything
	}
	p.Adopt(t, s)
	var deployments []leapcell.Deployment
	if err := p.API.Call(t.Context(), http.MethodGet, "/v1/services/"+name+"/deployments", nil, &deployments); err != nil {
		t.Fatal(err)
	}
	for _, d := range deployments {
		if d.State != leapcell.Failed || d.Error == nil || d.Error.Message == "" {
			t.Errorf("deployment %s is %s: %+v", d.ID, d.State, d.Error)
		}
	}
	harness.Eventually(t, 40*time.Second, "nothing of "+name+" runs", func() bool {
		allocs, _, err := p.Nomad.Allocations().List(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range allocs {
			ours := a.JobID == leapcell.JobID(name, 1) || a.JobID == leapcell.BuildJobID(name, 1)
			if ours && (a.ClientStatus == "running" || a.ClientStatus == "pending") {
				return false
			}
		}
		return true
	})
	left := harness.Processes(func(q harness.Process) bool { return q.Env(leapcell.EnvService) == name })
	if len(left) > 0 {
		t.Errorf("process %d of %s still runs: %q", left[0].PID, name, left[0].Args())
	}
}

func yaml(lines ...string) string { return strings.Join(lines, "\n") + "\n" }

func TestFailingBuildCommand(t *testing.T) {
	t.Parallel()
	wrong(t, map[string]string{"leapcell.yaml": yaml("runtime: go", `buildCommand: "echo before-it; echo the-cause >&2; exit 42"`, "startCommand: ./app")},
		"42", "the-cause")
}

func TestBuildCommandThatDoesNotExist(t *testing.T) {
	t.Parallel()
	wrong(t, map[string]string{"leapcell.yaml": yaml("runtime: go", "buildCommand: no-such-tool --now", "startCommand: ./app")},
		"127", "no-such-tool")
}

func TestWrongPort(t *testing.T) {
	t.Parallel()
	wrong(t, map[string]string{"leapcell.yaml": yaml("runtime: go", `buildCommand: "true"`, "startCommand: sleep 1000", "port: 9099", "startTimeout: 1s")},
		leapcell.PortNotListeningText(9099))
}

func TestStartCommandThatExits(t *testing.T) {
	t.Parallel()
	wrong(t, map[string]string{"leapcell.yaml": yaml("runtime: go", `buildCommand: "true"`, `startCommand: "echo no config found >&2; exit 9"`)},
		"9", "no config found")
}

func TestUnknownRuntime(t *testing.T) {
	t.Parallel()
	wrong(t, map[string]string{"leapcell.yaml": yaml("runtime: cobol", "startCommand: ./app")}, "cobol", "python", "go")
}

func TestBadSettingsFile(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		says []string
	}{
		"unknown key": {yaml("runtime: go", "", "startComand: ./app"), []string{"leapcell.yaml", "3", "startComand"}},
		"bad value":   {yaml("runtime: go", "startCommand: ./app", "memory: plenty"), []string{"leapcell.yaml", "3", "memory", "plenty"}},
		"too much":    {yaml("runtime: go", "memory: 9000mb", "startCommand: ./app"), []string{"leapcell.yaml", "2", "memory", "7076"}},
		"not YAML":    {"runtime: go\n\tport: 1\n", []string{"leapcell.yaml", "2"}},
	} {
		t.Run(name, func(t *testing.T) { wrong(t, map[string]string{"leapcell.yaml": c.text}, c.says...) })
	}
}

// A runtime may have a start command of its own; when that finds nothing, it says so.
func TestNoStartCommand(t *testing.T) {
	t.Parallel()
	wrong(t, map[string]string{"leapcell.yaml": yaml("runtime: go", `buildCommand: "true"`)}, "127", "./app")
}

func TestUploadOverTheLimit(t *testing.T) {
	t.Parallel()
	big := make([]byte, 101<<20)
	_, _ = rand.Read(big) // so that it does not compress
	wrong(t, map[string]string{"leapcell.yaml": yaml("runtime: go", "startCommand: ./app"), "big": string(big)}, "100")
}

func TestFolderAndGitURLThatDoNotExist(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	if r := p.CLI(t, "deploy", "/no/such/folder"); r.Code == 0 || !strings.Contains(r.Output, "/no/such/folder") {
		t.Errorf("%d %q", r.Code, r.Output)
	}
	name := harness.Name(t)
	r := p.CLI(t, "deploy", "--git", "http://127.0.0.1:1/no/such/repository", "--name", name)
	if r.Code == 0 || !strings.Contains(r.Output, "/no/such/repository") {
		t.Errorf("%d %q", r.Code, r.Output)
	}
	nothingRuns(t, name)
}

func TestWrongTokenAndNoPlatform(t *testing.T) {
	p := harness.Get(t)
	if r := p.CLI(t, "services", "--token", "wrong"); r.Code == 0 || !strings.Contains(strings.ToLower(r.Output), "token") {
		t.Errorf("a wrong token: %d %q", r.Code, r.Output)
	}
	if r := p.CLI(t, "services", "--api", "http://127.0.0.1:1"); r.Code == 0 || !strings.Contains(r.Output, "127.0.0.1:1") {
		t.Errorf("no platform: %d %q", r.Code, r.Output)
	}
}

func TestVaultSealed(t *testing.T) {
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{Env: map[string]string{"A": "1"}})
	t.Cleanup(func() { p.CLI(noContext{t}, "up", "--no-sample") })
	load := s.Visitors(t, 2, "/")
	vault(t, http.MethodPut, "/v1/sys/seal")

	r := p.CLI(t, "env", "set", s.Name, "A=2")
	if r.Code == 0 || !strings.Contains(r.Output, "Vault") || !strings.Contains(r.Output, "sealed") {
		t.Errorf("setting a variable: %d %q", r.Code, r.Output)
	}
	if r := p.CLI(t, "status"); r.Code == 0 || !strings.Contains(r.Output, "sealed") {
		t.Errorf("status: %d %q", r.Code, r.Output)
	}
	// Clear values are kept on the node by version: a start from zero needs no Vault.
	load.Check(t)
	s.ToZero(t)
	visit(t, s)

	p.Up(t) // unseals
	p.Must(t, "env", "set", s.Name, "A=2")
}

// vault calls Vault as its operator.
func vault(t *testing.T, method, path string) {
	t.Helper()
	p := harness.Get(t)
	b, err := os.ReadFile(filepath.Join(p.Config.StateDir, "vault", "init.json"))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, p.Config.VaultAddress()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range fields {
		if s, ok := v.(string); ok && strings.Contains(strings.ToLower(name), "token") {
			req.Header.Set("X-Vault-Token", s)
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode/100 != 2 {
		t.Fatalf("Vault %s: %d %s", path, resp.StatusCode, b)
	}
}

func TestNomadUnreachable(t *testing.T) {
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{})
	kill(t, "nomad", "agent")
	begin := time.Now()
	d := s.Begin(t)
	r := p.CLI(t, "status")
	if r.Code == 0 || !strings.Contains(r.Output, "Nomad") && !strings.Contains(r.Output, "nomad") {
		t.Errorf("status: %d %q", r.Code, r.Output)
	}
	// The deployment waits or fails; if it fails, it says why.
	visit(t, s)
	if now := p.Deployment(t, d.ID); now.State == leapcell.Failed && !strings.Contains(now.Error.Message, "Nomad") {
		t.Errorf("the deployment failed: %+v", now.Error)
	}
	r = p.CLI(t, "env", "set", s.Name, "A=1")
	if r.Code == 0 || !strings.Contains(r.Output, "Nomad") {
		t.Errorf("setting a variable without Nomad: %d %q", r.Code, r.Output)
	}
	t.Logf("all was said within %s", time.Since(begin).Round(time.Second))
	p.Up(t)
	if d = p.Await(t, d.ID); d.State != leapcell.Live && (d.Error == nil || !strings.Contains(d.Error.Message, "Nomad")) {
		t.Errorf("the deployment ended %s: %+v", d.State, d.Error)
	}
	s.Deploy(t)
	visit(t, s)
}

// The folders of the control plane get a file system on top of them whose new files have
// hardly any room.
func TestNoDiskSpace(t *testing.T) {
	p := harness.Get(t)
	full(t, filepath.Join(p.Config.StateDir, "control"))
	blob := make([]byte, 8<<20)
	_, _ = rand.Read(blob)
	wrong(t, map[string]string{
		"leapcell.yaml": yaml("runtime: go", `buildCommand: "true"`, "startCommand: ./app"), "blob": string(blob),
	}, "disk is full")
}

// full puts an overlay with 1 MB of room over each folder below dir.
func full(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	room := t.TempDir()
	must(t, syscall.Mount("tmpfs", room, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { must(t, syscall.Unmount(room, syscall.MNT_DETACH)) })
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		over, upper, work := filepath.Join(dir, e.Name()), filepath.Join(room, "upper-"+e.Name()), filepath.Join(room, "work-"+e.Name())
		must(t, os.Mkdir(upper, 0o755))
		must(t, os.Mkdir(work, 0o755))
		must(t, syscall.Mount("overlay", over, "overlay", 0, "lowerdir="+over+",upperdir="+upper+",workdir="+work))
		t.Cleanup(func() { must(t, syscall.Unmount(over, syscall.MNT_DETACH)) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Deployments after all that still work: none of it lingers.
func TestWorksAfterAllThat(t *testing.T) {
	s := harness.Get(t).Probe(t, harness.Spec{})
	if !bytes.Contains([]byte(visit(t, s).Body), []byte("probe")) {
		t.Error("it does not answer")
	}
}
