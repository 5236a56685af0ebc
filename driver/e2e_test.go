//go:build e2e

package driver_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/supervisor"
	"github.com/leapcell/leapcell/internal/ports"
)

// The end-to-end test of the driver alone: a real Nomad agent, a real registry, real cells.
//
//	NOMAD_BIN=/path/to/nomad go test -tags e2e ./driver
//
// It needs root. It starts an agent of its own and leaves nothing behind.

// rig is one machine with an agent and the driver.
type rig struct {
	t        *testing.T
	dir      string
	program  string // the driver
	registry string // host:port
	client   *api.Client
	agent    *exec.Cmd
	ports    [3]int
	node     supervisor.Config
	main     string // the allocation that most tests visit
}

func newRig(t *testing.T) *rig {
	r := newRigWithoutAgent(t)
	r.startAgent()
	return r
}

// newRigWithoutAgent has the driver and a registry, and what an agent would need.
func newRigWithoutAgent(t *testing.T) *rig {
	nomad := os.Getenv("NOMAD_BIN")
	if nomad == "" || os.Geteuid() != 0 {
		t.Skip("needs root, and NOMAD_BIN: the path of a nomad program")
	}
	r := &rig{t: t, dir: t.TempDir()}
	r.program = filepath.Join(r.dir, "plugins", "nomad-driver-leapcell")
	r.build("../cmd/nomad-driver-leapcell", r.program)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	u, _ := url.Parse(server.URL)
	r.registry = u.Host
	for i := range r.ports {
		r.ports[i] = freePort(t)
	}
	var err error
	r.node, err = supervisor.Config{StateDir: filepath.Join(r.dir, "state")}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r.write("registry.json", `{"address":"`+r.registry+`","username":"node","password":"x","insecure":true}`)
	r.write("agent.hcl", r.config())
	t.Cleanup(r.destroy)
	return r
}

func (r *rig) config() string {
	return fmt.Sprintf(`
data_dir = %q
plugin_dir = %q
bind_addr = "127.0.0.1"
disable_update_check = true
telemetry {
  publish_allocation_metrics = true
}
advertise {
  http = "127.0.0.1"
  rpc = "127.0.0.1"
  serf = "127.0.0.1"
}
ports { 
  http = %d 
  rpc = %d 
  serf = %d 
}
server { 
  enabled = true 
  bootstrap_expect = 1 
}
client {
  enabled = true
  network_interface = "lo"
  options = {
    "driver.allowlist" = "leapcell"
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}
plugin "nomad-driver-leapcell" { 
  config {
    state_dir = %q
    nomad_addr = "http://127.0.0.1:%d"
    registry_credentials_file = %q
    log_level = "debug"
    build {
      env = {
        BUILD_SETTING = "from the operator"
      }
      files = {
        "/etc/operator.conf" = %q
      }
    }
  } 
}
`, filepath.Join(r.dir, "nomad"), filepath.Join(r.dir, "plugins"), r.ports[0], r.ports[1], r.ports[2],
		r.node.StateDir, r.ports[0], filepath.Join(r.dir, "registry.json"), filepath.Join(r.dir, "registry.json"))
}

func (r *rig) write(name, text string) {
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) build(source, target string) {
	cmd := exec.Command("go", "build", "-o", target, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("build %s: %v\n%s", source, err, out)
	}
}

func freePort(t *testing.T) int {
	port, err := ports.Free(1, ports.ForPrograms)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func (r *rig) startAgent() {
	log, err := os.OpenFile(filepath.Join(r.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	r.agent = exec.Command(os.Getenv("NOMAD_BIN"), "agent", "-config", filepath.Join(r.dir, "agent.hcl"))
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "AWS_") && !strings.HasPrefix(e, "NOMAD_") {
			r.agent.Env = append(r.agent.Env, e)
		}
	}
	r.agent.Stdout, r.agent.Stderr = log, log
	if err := r.agent.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.client, err = api.NewClient(&api.Config{Address: fmt.Sprintf("http://127.0.0.1:%d", r.ports[0])})
	if err != nil {
		r.t.Fatal(err)
	}
	r.until("a node with a healthy driver", func() bool {
		nodes, _, err := r.client.Nodes().List(nil)
		return err == nil && len(nodes) == 1 && nodes[0].Status == "ready" && nodes[0].Drivers["leapcell"] != nil && nodes[0].Drivers["leapcell"].Healthy
	})
}

// kill ends the agent and its plugin as a crash does.
func (r *rig) kill() {
	for _, pid := range children(r.agent.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = r.agent.Process.Kill()
	_ = r.agent.Wait()
}

func children(pid int) (out []int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		b, _ = os.ReadFile(task)
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil && n != pid {
				// The supervisor is a child of the plugin's, in a session of its own.
				out = append(out, n)
			}
		}
	}
	return out
}

func (r *rig) destroy() {
	if r.agent != nil && r.agent.ProcessState == nil {
		r.kill()
	}
	out, err := exec.Command(r.program, "destroy", "--state-dir", r.node.StateDir).CombinedOutput()
	if err != nil {
		r.t.Errorf("destroy: %v\n%s", err, out)
	}
	if r.t.Failed() || os.Getenv("E2E_LOGS") != "" {
		for _, f := range []string{"agent.log", "state/supervisor.log"} {
			b, _ := os.ReadFile(filepath.Join(r.dir, f))
			r.t.Logf("---- %s\n%s", f, b[max(0, len(b)-8000):])
		}
	}
	mounts, _ := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, r.node.Group()) || strings.Contains(line, r.node.StateDir) {
			r.t.Errorf("left mounted: %s", line)
		}
		if fields := strings.Fields(line); strings.HasPrefix(fields[1], r.dir) {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH) // Nomad's secrets folders
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + r.node.Group())
	links, _ := filepath.Glob("/sys/class/net/lc" + r.node.Name + "*")
	spaces, _ := filepath.Glob("/run/netns/leapcell-" + r.node.Name + "-*")
	if all := append(append(groups, links...), spaces...); len(all) > 0 {
		r.t.Errorf("left behind: %q", all)
	}
}

func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	for end := time.Now().Add(60 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("never came: %s", what)
		}
	}
}

// image pushes an image with bash, the app and what they need of this machine's libraries.
func (r *rig) image(repository string) string {
	app := filepath.Join(r.dir, "app")
	r.build("./testdata/app", app)
	files := map[string]string{"usr/bin/bash": "/bin/bash", "app/app": app}
	tools := []string{"/bin/sh", "/bin/cat", "/bin/mkdir", "/bin/sleep", "/usr/bin/id", "/usr/bin/head", "/bin/stty"}
	for _, tool := range tools {
		files["usr/bin/"+filepath.Base(tool)] = tool
	}
	out, err := exec.Command("ldd", append(tools, "/bin/bash")...).Output()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, lib := range regexp.MustCompile(`/\S+\.so\S*`).FindAllString(string(out), -1) {
		files["usr"+strings.TrimPrefix(lib, "/usr")] = lib
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"app", "tmp", "proc", "sys", "dev", "etc", "root", "usr", "usr/bin", "usr/lib", "usr/lib64"} {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
	}
	for link, to := range map[string]string{"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"} {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: link, Linkname: to})
	}
	for inside, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			r.t.Fatal(err)
		}
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: inside, Mode: 0o755, Size: int64(len(content))})
		w.Write(content)
	}
	if err := w.Close(); err != nil {
		r.t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		r.t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		img, err = mutate.Config(img, v1.Config{WorkingDir: "/app", Env: []string{"PATH=/usr/bin:/bin"}, Entrypoint: []string{"/app/app"}})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	ref, err := name.ParseReference(r.registry+"/"+repository+":1", name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		r.t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		r.t.Fatal(err)
	}
	return r.registry + "/" + repository + "@" + digest.String()
}

// run registers a job with one task and gives its allocation, once there is one.
func (r *rig) run(id, kind string, config map[string]any) *api.Allocation {
	job := api.NewServiceJob(id, id, "global", 50)
	job.Type, job.Datacenters = &kind, []string{"*"}
	task := api.NewTask("shop", "leapcell")
	task.Config = config
	task.Resources = &api.Resources{CPU: new(50), MemoryMB: new(256)}
	task.LogConfig = &api.LogConfig{Disabled: new(true)}
	task.KillTimeout = new(20 * time.Second)
	group := api.NewTaskGroup("app", 1)
	group.Update = &api.UpdateStrategy{MaxParallel: new(0)}
	job.Update = group.Update
	group.RestartPolicy = &api.RestartPolicy{Attempts: new(1), Interval: new(time.Minute), Delay: new(100 * time.Millisecond), Mode: new("fail")}
	group.ReschedulePolicy = &api.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)}
	group.Networks = []*api.NetworkResource{{DynamicPorts: []api.Port{{Label: "http"}}}}
	if kind == "batch" {
		job.Update, group.Update, group.Networks = nil, nil, nil
		group.RestartPolicy.Attempts = new(0)
	}
	job.TaskGroups = []*api.TaskGroup{group.AddTask(task)}
	if _, _, err := r.client.Jobs().Register(job, nil); err != nil {
		r.t.Fatal(err)
	}
	var alloc *api.Allocation
	r.until("an allocation of "+id, func() bool {
		list, _, err := r.client.Jobs().Allocations(id, true, nil)
		if err != nil || len(list) == 0 {
			return false
		}
		alloc, _, err = r.client.Allocations().Info(list[0].ID, nil)
		return err == nil
	})
	return alloc
}

func address(a *api.Allocation) string {
	for _, p := range a.AllocatedResources.Shared.Ports {
		if p.Label == leapcell.PortLabel {
			return net.JoinHostPort(p.HostIP, strconv.Itoa(p.Value))
		}
	}
	return ""
}

// visit asks as the edge does: it connects until the gate is there.
func (r *rig) visit(address, path string) (int, string, http.Header) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		res, err := http.Get("http://" + address + path)
		if err == nil {
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			return res.StatusCode, strings.TrimSpace(string(b)), res.Header
		}
		if time.Now().After(end) {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) events(alloc string) string {
	a, _, err := r.client.Allocations().Info(alloc, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	var b strings.Builder
	for _, s := range a.TaskStates {
		for _, e := range s.Events {
			fmt.Fprintf(&b, "%s: %s %v\n", e.Type, e.DisplayMessage, e.Details)
		}
	}
	return b.String()
}

func (r *rig) logs(alloc *api.Allocation, output string) string {
	frames, errs := r.client.AllocFS().Logs(alloc, false, "shop", output, "start", 0, nil, nil)
	var b strings.Builder
	for {
		select {
		case f, ok := <-frames:
			if !ok {
				return b.String()
			}
			b.Write(f.Data)
		case err := <-errs:
			r.t.Fatal(err)
		}
	}
}

func TestDriver(t *testing.T) {
	r := newRig(t)
	image := r.image("shop")
	config := map[string]any{
		"mode": "serverless", "image": image, "command": "exec ./app", "port": 3000,
		"service": "shop", "service_id": "shop-main-abcdefgh", "deployment": "shop-1", "start_timeout": "5s",
	}
	begin := time.Now()
	alloc := r.run("shop-1", "service", config)
	r.main = alloc.ID
	at := address(alloc)
	status, body, header := r.visit(at, "/")
	t.Logf("registered → answered in %s; %s", time.Since(begin), header.Get(leapcell.HeaderTiming))
	if status != 200 || body != "hello from 1" || header.Get(leapcell.HeaderInstance) != alloc.ID {
		t.Fatalf("%d %q %v", status, body, header)
	}
	t.Run("suspended in between", func(t *testing.T) {
		_, first, _ := r.visit(at, "/ticks")
		time.Sleep(1500 * time.Millisecond)
		begin := time.Now()
		_, second, _ := r.visit(at, "/ticks")
		t.Logf("resumed in %s", time.Since(begin))
		a, _ := strconv.Atoi(first)
		b, _ := strconv.Atoi(second)
		if b-a > 200 {
			t.Errorf("the app ran on: %d ticks in 1.5 s", b-a)
		}
	})
	t.Run("environment", func(t *testing.T) {
		_, body, _ := r.visit(at, "/env")
		for line := range strings.Lines(body) {
			name, _, _ := strings.Cut(line, "=")
			switch {
			case strings.HasPrefix(name, "LEAPCELL_"), name == "PORT", name == "PATH", name == "HOME", name == "LANG":
			case name == "PWD", name == "SHLVL", name == "_", name == "OLDPWD": // of bash
			default:
				t.Errorf("the app sees %s", line)
			}
		}
	})
	t.Run("burst on a cold instance", func(t *testing.T) { r.burst(t, config) })
	t.Run("frozen and thawed under load", func(t *testing.T) { r.load(t, at) })
	t.Run("logs", func(t *testing.T) {
		if out := r.logs(alloc, "stdout"); out != "listening on 3000\n" {
			t.Errorf("stdout %q", out)
		}
	})
	t.Run("stop drains", func(t *testing.T) { r.stopDrains(t, config) })
	t.Run("exits at once", func(t *testing.T) {
		config := clone(config, "command", "echo cannot go on >&2; exit 3")
		alloc := r.run("shop-2", "service", config)
		status, body, _ := r.visit(address(alloc), "/")
		if status != 502 || body != leapcell.TextStartFailed {
			t.Errorf("visitor got %d %q", status, body)
		}
		r.until("failure", func() bool { a, _, _ := r.client.Allocations().Info(alloc.ID, nil); return a.ClientStatus == "failed" })
		if out := r.logs(alloc, "stderr"); !strings.Contains(out, "cannot go on\nleapcell: exited with code 3\n") {
			t.Errorf("stderr %q", out)
		}
		if e := r.events(alloc.ID); !strings.Contains(e, "exited with code 3") {
			t.Errorf("events %s", e)
		}
	})
	t.Run("wrong port", func(t *testing.T) {
		alloc := r.run("shop-3", "service", clone(config, "port", 3001, "start_timeout", "500ms", "command", "PORT=3999 exec ./app"))
		status, body, _ := r.visit(address(alloc), "/")
		if status != 502 || body != "Port Some(3001) is not being listened to by the service" {
			t.Errorf("visitor got %d %q", status, body)
		}
	})
	t.Run("crash", func(t *testing.T) { r.crash(t, config) })
	t.Run("build", func(t *testing.T) { r.builds(t, image) })
	t.Run("another build of the driver", func(t *testing.T) { r.upgrade(t) })
	// The last ones: Nomad takes half a minute until a restarted client takes orders again.
	t.Run("supervisor killed", func(t *testing.T) { r.supervisorKilled(t, alloc) })
	t.Run("agent and plugin killed", func(t *testing.T) { r.killed(t, alloc) })
}

func clone(m map[string]any, changes ...any) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	for i := 0; i < len(changes); i += 2 {
		out[changes[i].(string)] = changes[i+1]
	}
	return out
}

func (r *rig) killed(t *testing.T, alloc *api.Allocation) {
	at := address(alloc)
	slow := make(chan string, 1)
	go func() { _, body, _ := r.visit(at, "/sleep?for=2s"); slow <- body }()
	time.Sleep(200 * time.Millisecond)
	r.kill()
	for range 20 {
		if status, body, _ := r.visit(at, "/"); status != 200 || body != "hello from 1" {
			t.Fatalf("without agent: %d %q", status, body)
		}
	}
	r.startAgent()
	if body := <-slow; body != "slept" {
		t.Errorf("the request in flight got %q", body)
	}
	r.until("recovery", func() bool {
		a, _, err := r.client.Allocations().Info(alloc.ID, nil)
		return err == nil && a.ClientStatus == "running" && a.TaskStates["shop"].Restarts == 0
	})
	if status, body, _ := r.visit(at, "/"); status != 200 || body != "hello from 1" {
		t.Errorf("after recovery: %d %q", status, body)
	}
	time.Sleep(time.Second) // were it not recovered, Nomad would restart it now
	if a, _, err := r.client.Allocations().Info(alloc.ID, nil); err != nil || a.TaskStates["shop"].Restarts != 0 || a.ClientStatus != "running" {
		t.Errorf("%v %+v\n%s", err, a.TaskStates["shop"], r.events(alloc.ID))
	}
}

func (r *rig) supervisorKilled(t *testing.T, alloc *api.Allocation) {
	at := address(alloc)
	c := supervisor.NewClient(r.node.Socket())
	defer c.Close()
	h, err := c.Health(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.Inspect(context.Background(), r.taskID(t, c, alloc))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(h.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	status, body, _ := r.visit(at, "/")
	t.Logf("answered again after %s", time.Since(begin))
	if status != 200 || body != "hello from 1" {
		t.Errorf("%d %q", status, body)
	}
	after, err := c.Inspect(context.Background(), before.ID)
	if err != nil || after.PID != before.PID {
		t.Errorf("%+v, %v: was %+v", after, err, before)
	}
}

// taskID is the supervisor's name of the one task of an allocation.
func (r *rig) taskID(t *testing.T, c *supervisor.Client, alloc *api.Allocation) string {
	list, err := c.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if strings.HasPrefix(s.ID, alloc.ID) {
			return s.ID
		}
	}
	t.Fatalf("no task of %s in %+v", alloc.ID, list)
	return ""
}

// upgrade puts another build of the program in place: the supervisor stays while it has
// tasks. That it goes when it has none is seen by a driver of its own.
func (r *rig) upgrade(t *testing.T) {
	c := supervisor.NewClient(r.node.Socket())
	defer c.Close()
	before, err := c.Health(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	r.build("../cmd/nomad-driver-leapcell", r.program+".new")
	if err := os.Rename(r.program+".new", r.program); err != nil {
		t.Fatal(err)
	}
	if before.Program == supervisor.ProgramID(r.program) {
		t.Error("two builds cannot be told apart")
	}
	if err := c.Shutdown(context.Background(), false); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("a supervisor with tasks would go: %v", err)
	}
}

// burst has 200 clients find the gate as soon as it is there.
func (r *rig) burst(t *testing.T, config map[string]any) {
	alloc := r.run("shop-7", "service", clone(config, "command", "sleep 0.3; exec ./app"))
	at := address(alloc)
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if status, body, _ := r.visit(at, "/"); status != 200 || body != "hello from 1" {
				t.Errorf("%d %q", status, body)
			}
		})
	}
	all.Wait()
	if _, _, err := r.client.Jobs().Deregister("shop-7", false, nil); err != nil {
		t.Error(err)
	}
}

// load has clients pause for about as long as an instance stays awake, so that most requests
// meet a freeze or a thaw.
func (r *rig) load(t *testing.T, at string) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	var all sync.WaitGroup
	var mu sync.Mutex
	var times []time.Duration
	for c := range 2 {
		all.Go(func() {
			for i := range 80 {
				begin := time.Now()
				res, err := client.Post("http://"+at+"/", "text/plain", strings.NewReader("body"))
				if err != nil {
					t.Error(err)
					return
				}
				_, err = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != 200 {
					t.Errorf("%d, %v", res.StatusCode, err)
				}
				mu.Lock()
				times = append(times, time.Since(begin))
				mu.Unlock()
				time.Sleep(time.Duration(18+(i*7+c*11)%20) * time.Millisecond)
			}
		})
	}
	all.Wait()
	slices.Sort(times)
	t.Logf("p50 %s, p99 %s", times[len(times)/2], times[len(times)*99/100])
	c := supervisor.NewClient(r.node.Socket())
	defer c.Close()
	stats, err := c.Stats(context.Background(), r.taskID(t, c, &api.Allocation{ID: r.main}))
	if err != nil || stats.Gate.Suspensions < 10 {
		t.Errorf("%+v, %v", stats.Gate, err)
	}
	t.Logf("%d requests, %d suspensions", stats.Gate.Requests, stats.Gate.Suspensions)
}

func (r *rig) stopDrains(t *testing.T, config map[string]any) {
	alloc := r.run("shop-6", "service", config)
	at := address(alloc)
	_, _, header := r.visit(at, "/")
	t.Logf("with the image on the node: %s", header.Get(leapcell.HeaderTiming))
	slow := make(chan string, 1)
	go func() { _, body, _ := r.visit(at, "/sleep?for=2s"); slow <- body }()
	time.Sleep(200 * time.Millisecond)
	if _, _, err := r.client.Jobs().Deregister("shop-6", false, nil); err != nil {
		t.Fatal(err)
	}
	r.until("refusal", func() bool {
		status, _, header := r.visit(at, "/")
		return status == 503 && header.Get(leapcell.HeaderGone) == "1"
	})
	if body := <-slow; body != "slept" {
		t.Errorf("the request in flight got %q", body)
	}
	r.until("end", func() bool {
		a, _, _ := r.client.Allocations().Info(alloc.ID, nil)
		return a.ClientStatus == "complete"
	})
	if e := r.events(alloc.ID); !strings.Contains(e, "drained: 1 requests") {
		t.Errorf("events %s", e)
	}
}

func (r *rig) crash(t *testing.T, config map[string]any) {
	alloc := r.run("shop-4", "service", config)
	at := address(alloc)
	r.visit(at, "/")
	if status, body, _ := r.visit(at, "/exit"); status != 502 || body != leapcell.TextCrashed {
		t.Errorf("the request that crashed got %d %q", status, body)
	}
	r.until("replacement", func() bool {
		status, _, header := r.visit(at, "/")
		return status == 200 && header.Get(leapcell.HeaderTiming) != ""
	})
}

func (r *rig) builds(t *testing.T, source string) {
	config := map[string]any{
		"mode": "build", "image": source, "service": "shop", "service_id": "shop-main-abcdefgh", "deployment": "shop-5",
		"command": "id -u; cat /etc/operator.conf > /dev/null && echo $BUILD_SETTING; mkdir out; echo built > out/file; echo kept > /root/.cache/x; echo to stderr >&2",
		"output":  r.registry + "/shop/app:5", "start_command": "exec ./app", "caches": []string{"/root/.cache"}, "timeout": "1m", "cpus": 1,
	}
	alloc := r.run("build-shop-5", "batch", config)
	done := func(a *api.Allocation, want string) {
		r.until("the build's end", func() bool {
			now, _, err := r.client.Allocations().Info(a.ID, nil)
			return err == nil && (now.ClientStatus == "complete" || now.ClientStatus == "failed")
		})
		if now, _, _ := r.client.Allocations().Info(a.ID, nil); now.ClientStatus != want {
			t.Fatalf("build is %s\n%s\n%s", now.ClientStatus, r.events(a.ID), r.logs(a, "stdout"))
		}
	}
	done(alloc, "complete")
	out := r.logs(alloc, "stdout")
	t.Log(out)
	if !strings.HasPrefix(out, "0\nfrom the operator\nto stderr\n") {
		t.Errorf("log %q", out)
	}
	if e := r.events(alloc.ID); !strings.Contains(e, "leapcell.phase:publishing") {
		t.Errorf("events %s", e)
	}
	ref, _ := name.ParseReference(r.registry+"/shop/app:5", name.Insecure)
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := json.Marshal(cfg.Config.Cmd); string(b) != `["bash","-c","exec ./app"]` || cfg.Config.WorkingDir != "/app" {
		t.Errorf("image config %s %s", b, cfg.Config.WorkingDir)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	service := r.run("shop-5", "service", map[string]any{
		"mode": "serverless", "image": r.registry + "/shop/app@" + digest.String(), "command": "cat out/file /root/.cache/x /etc/operator.conf; exec ./app", "port": 8080,
		"service": "shop", "service_id": "shop-main-abcdefgh", "deployment": "shop-5",
	})
	if status, body, _ := r.visit(address(service), "/"); status != 200 {
		t.Errorf("the built image: %d %q", status, body)
	}
	if out := r.logs(service, "stdout"); out != "built\nlistening on 8080\n" {
		t.Errorf("the built image wrote %q", out)
	}
	failing := r.run("build-shop-6", "batch", clone(config, "command", "echo no such package; exit 4"))
	done(failing, "failed")
	if out := r.logs(failing, "stdout"); out != "no such package\nleapcell: the build command exited with code 4\n" {
		t.Errorf("log %q", out)
	}
}
