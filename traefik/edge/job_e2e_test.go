//go:build e2e

package edge

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

// A stock Nomad, its namespace, and jobs that know nothing of the platform but their meta.
func TestEdgeOnPlainJobs(t *testing.T) {
	n := startNomad(t)
	stock, err := api.NewClient(&api.Config{Address: n.client.Address(), Namespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	n.client = stock
	app := filepath.Join(n.dir, "app")
	if out, err := exec.Command("go", "build", "-o", app, "./testdata/app").CombinedOutput(); err != nil {
		t.Fatalf("app: %v\n%s", err, out)
	}
	n.runJob("shop", app, map[string]string{"leapcell_host": "shop.test", "leapcell_idle": "3s", "leapcell_probe": "/"})
	n.runJob("broken", "/bin/false", map[string]string{"leapcell_host": "broken.test", "leapcell_idle": "never"})
	e := n.startJobEdge("one")

	t.Run("50 clients, one start", func(t *testing.T) {
		e.eventually(t, "shop.test", func(code int) bool { return code != 404 }) // the first of them, maybe
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if resp, body := e.send(t, "POST", "shop.test", "/", "body "); resp.StatusCode != 200 || body != "body hello" {
					t.Errorf("got %s %q", resp.Status, body)
				}
			})
		}
		all.Wait()
		if got := len(n.allocationsOf("shop", false)); got != 1 {
			t.Errorf("%d allocations, want 1", got)
		}
	})
	t.Run("the edge restarts", func(t *testing.T) {
		e.stop()
		e = n.startJobEdge("one")
		if resp, _ := e.get(t, "shop.test", "/"); resp.StatusCode != 200 {
			t.Errorf("after the restart: %s", resp.Status)
		}
	})
	t.Run("two edges, a busy one", func(t *testing.T) {
		other := n.startJobEdge("two")
		if resp, _ := other.get(t, "shop.test", "/?sleep=10s"); resp.StatusCode != 200 {
			t.Errorf("a request of three times the idle time: %s", resp.Status)
		}
		if got := len(n.allocationsOf("shop", true)); got != 1 {
			t.Errorf("%d instances after it, want 1", got)
		}
		other.stop()
	})
	t.Run("idle, asleep, awake", func(t *testing.T) {
		n.eventually("the job to sleep", func() bool { return len(n.allocationsOf("shop", true)) == 0 })
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				resp, body := e.get(t, "shop.test", "/")
				if resp.StatusCode != 200 || body != "hello" || resp.Header.Get("Server-Timing") == "" {
					t.Errorf("got %s %q, Server-Timing %q", resp.Status, body, resp.Header.Get("Server-Timing"))
				}
			})
		}
		all.Wait()
		if got := len(n.allocationsOf("shop", true)); got != 1 {
			t.Errorf("%d instances, want 1", got)
		}
	})
	t.Run("a job that fails", func(t *testing.T) {
		if resp, _ := e.get(t, "broken.test", "/"); resp.StatusCode != 502 {
			t.Errorf("who waited got %s", resp.Status)
		}
		if resp, _ := e.get(t, "broken.test", "/"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("who came next got %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
		}
		if got := len(n.allocationsOf("broken", false)); got != 1 {
			t.Errorf("%d allocations, want 1", got)
		}
	})
	t.Run("a job that is stopped", func(t *testing.T) {
		if _, _, err := n.client.Jobs().Deregister("shop", false, nil); err != nil {
			t.Fatal(err)
		}
		e.eventually(t, "shop.test", func(code int) bool { return code == 404 })
	})
	e.stop()
}

// runJob registers a job at count 0, as a user's file would, with a short time to be healthy.
func (n *nomadAgent) runJob(id, command string, meta map[string]string) {
	n.t.Helper()
	job := api.NewServiceJob(id, id, "global", 50)
	job.Meta = meta
	group := api.NewTaskGroup("web", 0)
	group.Networks = []*api.NetworkResource{{DynamicPorts: []api.Port{{Label: "http"}}}}
	task := api.NewTask("server", "raw_exec").SetConfig("command", command)
	cpu, memory, healthy := 50, 64, time.Second
	task.Resources = &api.Resources{CPU: &cpu, MemoryMB: &memory}
	job.Update = &api.UpdateStrategy{MinHealthyTime: &healthy}
	job.AddTaskGroup(group.AddTask(task))
	if _, _, err := n.client.Jobs().Register(job, nil); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { // while Nomad still runs
		n.client.Jobs().Deregister(id, true, nil)
		n.eventually("no instance is left", func() bool { return len(n.allocationsOf(id, true)) == 0 })
	})
}

// allocationsOf are those of a job: all that there were, or those that run or are to run.
func (n *nomadAgent) allocationsOf(job string, running bool) []*api.AllocationListStub {
	n.t.Helper()
	list, _, err := n.client.Jobs().Allocations(job, true, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	var out []*api.AllocationListStub
	for _, a := range list {
		if !running || a.ClientStatus == api.AllocClientStatusRunning || a.ClientStatus == api.AllocClientStatusPending {
			out = append(out, a)
		}
	}
	return out
}

// startJobEdge starts an edge that has no control plane.
func (n *nomadAgent) startJobEdge(id string) *runningEdge {
	t := n.t
	ports := freePorts(t, 2)
	e := &runningEdge{address: fmt.Sprintf("127.0.0.1:%d", ports[0]), admin: fmt.Sprintf("127.0.0.1:%d", ports[1]),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}, Timeout: patience}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{ID: id, Listen: e.address, AdminListen: e.admin, Drain: 10 * time.Second,
			NomadAddr: n.client.Address(), NomadNamespace: "default", JobNamespaces: []string{"default"},
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
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return strings.Contains(string(b), "ok")
	})
	return e
}
