//go:build e2e

// The edge against a real Nomad: NOMAD_BIN, or nomad on PATH, as root. It starts
// an agent of its own on free ports with a folder of its own.
package edge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/ports"
)

const (
	namespace  = "leapcell"
	host       = "app-e2e.leapcell.localhost"
	deployment = "app-1"
	patience   = 30 * time.Second
)

func TestEdgeOnNomad(t *testing.T) {
	n := startNomad(t)
	n.setUp()
	reports := newReports(t)
	e := n.startEdge(reports.URL)

	t.Run("unknown host wakes nothing", func(t *testing.T) {
		resp, body := e.get(t, "nobody.leapcell.localhost", "/")
		if resp.StatusCode != 404 || !strings.Contains(body, leapcell.TextNoRoute) {
			t.Errorf("got %s %q", resp.Status, body)
		}
	})
	t.Run("200 clients, one allocation", func(t *testing.T) {
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				resp, body := e.get(t, host, "/")
				if resp.StatusCode != 200 || body != "hello" || resp.Header.Get("Server-Timing") == "" {
					t.Errorf("got %s %q, Server-Timing %q", resp.Status, body, resp.Header.Get("Server-Timing"))
				}
			})
		}
		all.Wait()
		if got := n.allocations(); got != 1 {
			t.Errorf("%d allocations, want 1", got)
		}
		reports.wait(t, func(s leapcell.EdgeService) bool {
			return s.ServiceID == "app-e2e" && s.Requests == 200 && s.InFlight == 0 && s.Queued == 0
		})
	})
	t.Run("warm requests and bodies", func(t *testing.T) {
		body := strings.Repeat("x", 1<<20)
		resp, got := e.send(t, "POST", host, "/", body)
		if resp.StatusCode != 200 || got != body+"hello" || resp.Header.Get("Server-Timing") != "" {
			t.Errorf("got %s, %d bytes, Server-Timing %q", resp.Status, len(got), resp.Header.Get("Server-Timing"))
		}
	})
	t.Run("limits", func(t *testing.T) {
		for path, want := range map[string]int{
			"/" + strings.Repeat("a", 17<<10): 414, "/" + strings.Repeat("a", 15<<10): 200,
		} {
			if resp, _ := e.get(t, host, path); resp.StatusCode != want {
				t.Errorf("a path of %d bytes: %s, want %d", len(path), resp.Status, want)
			}
		}
	})
	t.Run("the edge restarts", func(t *testing.T) {
		slow := make(chan int, 1)
		inside := make(chan struct{})
		go func() {
			close(inside)
			resp, _ := e.get(t, host, "/?sleep=500ms")
			slow <- resp.StatusCode
		}()
		<-inside
		reports.wait(t, func(s leapcell.EdgeService) bool { return s.InFlight == 1 })
		e.stop()
		if got := <-slow; got != 200 {
			t.Errorf("the request in flight got %d", got)
		}
		e = n.startEdge(reports.URL)
		if resp, _ := e.get(t, host, "/"); resp.StatusCode != 200 {
			t.Errorf("after the restart: %s", resp.Status)
		}
		if got := n.allocations(); got != 1 {
			t.Errorf("%d allocations, want 1", got)
		}
	})
	t.Run("woken again after scale-in", func(t *testing.T) {
		for i := range 3 {
			n.scale(0)
			e.waitForZero(t)
			resp, _ := e.get(t, host, "/")
			if resp.StatusCode != 200 || resp.Header.Get("Server-Timing") == "" {
				t.Errorf("wake %d: %s", i, resp.Status)
			}
			t.Log("cold:", resp.Header.Get("Server-Timing"))
		}
	})
	t.Run("Nomad restarts", func(t *testing.T) {
		n.stop()
		for range 20 {
			if resp, _ := e.get(t, host, "/"); resp.StatusCode != 200 {
				t.Fatalf("while Nomad is away: %s", resp.Status)
			}
		}
		n.start()
		const second = "second-e2e.leapcell.localhost"
		n.route(host, second) // the tables follow again
		e.eventually(t, second, func(code int) bool { return code == 200 })
	})
	t.Run("route goes", func(t *testing.T) {
		if _, err := n.client.Variables().Delete(leapcell.RoutesPrefix+"app-e2e", nil); err != nil {
			t.Fatal(err)
		}
		e.eventually(t, host, func(code int) bool { return code == 404 })
	})
	e.stop()
}

// nomadAgent is a server and client in one, with its own folder and ports.
type nomadAgent struct {
	t      *testing.T
	dir    string
	ports  []int
	cmd    *exec.Cmd
	client *api.Client
}

func startNomad(t *testing.T) *nomadAgent {
	n := &nomadAgent{t: t, dir: t.TempDir(), ports: freePorts(t, 3)}
	client, err := api.NewClient(&api.Config{Address: fmt.Sprintf("http://127.0.0.1:%d", n.ports[0]), Namespace: namespace})
	if err != nil {
		t.Fatal(err)
	}
	n.client = client
	config := fmt.Sprintf(`
data_dir  = %q
disable_update_check = true
bind_addr = "127.0.0.1"
advertise { 
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
ports { 
  http = %d 
  rpc  = %d
  serf = %d
}
server { 
  enabled          = true
  bootstrap_expect = 1 
}
client {
  enabled           = true
  network_interface = "lo"
  options           = { "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean" }
}
plugin "raw_exec" { 
  config { enabled = true } 
}
`, n.dir, n.ports[0], n.ports[1], n.ports[2])
	if err := os.WriteFile(filepath.Join(n.dir, "agent.hcl"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.stop()
		// A Nomad that is killed leaves its mounts behind.
		left, _ := filepath.Glob(filepath.Join(n.dir, "alloc", "*", "*", "*"))
		for _, dir := range left {
			_ = syscall.Unmount(dir, 0)
		}
	})
	n.start()
	t.Cleanup(func() { // while Nomad still runs
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(n.dir, "agent.log"))
			t.Logf("the end of Nomad's log:\n%s", log[max(0, len(log)-3000):])
		}
		n.client.Jobs().Deregister(deployment, true, nil)
		n.eventually("no instance is left", func() bool { return n.allocations() == 0 })
	})
	return n
}

func (n *nomadAgent) start() {
	bin := os.Getenv("NOMAD_BIN")
	if bin == "" {
		bin = "nomad"
	}
	n.cmd = exec.Command(bin, "agent", "-config", filepath.Join(n.dir, "agent.hcl"))
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "NOMAD_") && !strings.HasPrefix(kv, "AWS_") {
			n.cmd.Env = append(n.cmd.Env, kv)
		}
	}
	n.cmd.Env = append(n.cmd.Env, "TMPDIR="+n.dir) // for the sockets of its plugins
	out, err := os.OpenFile(filepath.Join(n.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer out.Close()
	n.cmd.Stdout, n.cmd.Stderr = out, out
	if err := n.cmd.Start(); err != nil {
		n.t.Fatalf("nomad: %v (set NOMAD_BIN)", err)
	}
	// A new server may get its node's registration before it has made its keys, and refuse it;
	// Nomad tries again after 15 to 30 seconds.
	n.within(3*patience, "a ready node", func() bool {
		nodes, _, err := n.client.Nodes().List(nil)
		return err == nil && len(nodes) == 1 && nodes[0].Status == "ready"
	})
}

func (n *nomadAgent) stop() {
	if n.cmd == nil || n.cmd.Process == nil {
		return
	}
	n.cmd.Process.Kill()
	n.cmd.Wait()
}

// eventually is for what Nomad gives no event for.
func (n *nomadAgent) eventually(what string, ok func() bool) {
	n.t.Helper()
	n.within(patience, what, ok)
}

func (n *nomadAgent) within(limit time.Duration, what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(n.dir, "agent.log"))
			n.t.Fatalf("waited in vain for %s; the end of Nomad's log:\n%s", what, log[max(0, len(log)-3000):])
		}
	}
}

// setUp makes namespace, job at count 0, and route.
func (n *nomadAgent) setUp() {
	t := n.t
	app := filepath.Join(n.dir, "app")
	build := exec.Command("go", "build", "-o", app, "./testdata/app")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("app: %v\n%s", err, out)
	}
	if _, err := n.client.Namespaces().Register(&api.Namespace{Name: namespace}, nil); err != nil {
		t.Fatal(err)
	}
	job := api.NewServiceJob(deployment, deployment, "global", 50)
	ns, off, zero, none := namespace, true, 0, 0
	job.Namespace = &ns
	group := api.NewTaskGroup(leapcell.Group, zero)
	group.Networks = []*api.NetworkResource{{DynamicPorts: []api.Port{{Label: leapcell.PortLabel}}}}
	task := api.NewTask("app", "raw_exec").SetConfig("command", app)
	task.LogConfig = &api.LogConfig{Disabled: &off}
	cpu, memory := 50, 64
	task.Resources = &api.Resources{CPU: &cpu, MemoryMB: &memory}
	job.AddTaskGroup(group.AddTask(task))
	job.Update = &api.UpdateStrategy{MaxParallel: &none}
	if _, _, err := n.client.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	n.route(host)
}

func (n *nomadAgent) route(hosts ...string) {
	n.t.Helper()
	b, err := json.Marshal(leapcell.Route{ServiceID: "app-e2e", Service: "app", Hosts: hosts, Namespace: namespace,
		Deployment: deployment, Mode: leapcell.Serverless, Concurrency: 50, StartTimeout: leapcell.Duration(leapcell.StartTimeout)})
	if err != nil {
		n.t.Fatal(err)
	}
	n.eventually("the route to be written", func() bool { // right after a start there is no leader yet
		_, _, err = n.client.Variables().Update(&api.Variable{Path: leapcell.RoutesPrefix + "app-e2e", Namespace: namespace,
			Items: api.VariableItems{leapcell.VariableItem: string(b)}}, nil)
		return err == nil
	})
}

func (n *nomadAgent) scale(count int) {
	n.t.Helper()
	if _, _, err := n.client.Jobs().Scale(deployment, leapcell.Group, &count, "", false, nil, nil); err != nil {
		n.t.Fatal(err)
	}
}

// allocations counts those that run or are to run.
func (n *nomadAgent) allocations() int {
	list, _, err := n.client.Allocations().List(nil)
	if err != nil {
		n.t.Fatal(err)
	}
	count := 0
	for _, a := range list {
		if a.ClientStatus == api.AllocClientStatusRunning || a.ClientStatus == api.AllocClientStatusPending {
			count++
		}
	}
	return count
}

// runningEdge is an edge in this process.
type runningEdge struct {
	address, admin string
	http           *http.Client
	stop           func()
}

func (n *nomadAgent) startEdge(apiAddr string) *runningEdge {
	t := n.t
	ports := freePorts(t, 2)
	e := &runningEdge{address: fmt.Sprintf("127.0.0.1:%d", ports[0]), admin: fmt.Sprintf("127.0.0.1:%d", ports[1]),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}, Timeout: patience}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{ID: "e2e", Listen: e.address, AdminListen: e.admin, Drain: 10 * time.Second,
			NomadAddr: n.client.Address(), NomadNamespace: namespace, APIAddrs: []string{apiAddr}, APIToken: "edge-token",
			Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	}()
	var once sync.Once
	e.stop = func() {
		once.Do(func() {
			e.http.CloseIdleConnections()
			cancel()
			if err := <-done; err != nil {
				t.Errorf("the edge: %v", err)
			}
		})
	}
	t.Cleanup(e.stop)
	n.eventually("the edge's ping", func() bool {
		resp, err := http.Get("http://" + e.admin + "/ping")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
	return e
}

func (e *runningEdge) get(t *testing.T, host, path string) (*http.Response, string) {
	t.Helper()
	return e.send(t, "GET", host, path, "")
}

func (e *runningEdge) send(t *testing.T, method, host, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+e.address+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := e.http.Do(req)
	if err != nil {
		t.Error(err)
		return &http.Response{Status: "none", Header: http.Header{}}, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp, string(b)
}

func (e *runningEdge) eventually(t *testing.T, host string, ok func(code int) bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		resp, _ := e.get(t, host, "/")
		if ok(resp.StatusCode) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s still answers %s", host, resp.Status)
		}
	}
}

// waitForZero waits until the edge sees no instance.
func (e *runningEdge) waitForZero(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		resp, err := http.Get("http://" + e.admin + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if bytes.Contains(b, []byte("\nleapcell_edge_deployments_running 0\n")) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("an instance is still there:\n%s", b)
		}
	}
}

// reports is the API as far as an edge knows it.
type reports struct {
	*httptest.Server
	mu      sync.Mutex
	last    map[string]leapcell.EdgeService
	changed chan struct{}
}

func newReports(t *testing.T) *reports {
	r := &reports{last: map[string]leapcell.EdgeService{}, changed: make(chan struct{}, 1)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var report leapcell.EdgeReport
		if err := json.NewDecoder(req.Body).Decode(&report); err != nil || req.URL.Path != "/v1/edges/e2e/report" ||
			req.Header.Get("Authorization") != "Bearer edge-token" || report.Edge != "e2e" {
			t.Errorf("report to %s: %v, %+v", req.URL.Path, err, report)
		}
		r.mu.Lock()
		for _, s := range report.Services {
			r.last[s.ServiceID] = s
		}
		r.mu.Unlock()
		select {
		case r.changed <- struct{}{}:
		default:
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *reports) wait(t *testing.T, ok func(leapcell.EdgeService) bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		r.mu.Lock()
		found := false
		for _, s := range r.last {
			found = found || ok(s)
		}
		r.mu.Unlock()
		if found {
			return
		}
		select {
		case <-r.changed:
		case <-timeout:
			t.Fatalf("no such report; the last are %+v", r.last)
		}
	}
}

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	found, err := ports.Several(n)
	if err != nil {
		t.Fatal(err)
	}
	return found
}
