//go:build e2e

package driver_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell/driver/supervisor"
)

// visitors ask gates all the time, as edges do: some over connections that they keep, some
// over a new one each, some with pauses in which the instance is suspended.
type visitors struct {
	t    *testing.T
	stop chan struct{}
	all  sync.WaitGroup

	answered, failed atomic.Int64
	mu               sync.Mutex
	first            string // failure
}

func (v *visitors) visit(address string, keep bool, pause time.Duration) {
	v.all.Go(func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: !keep}, Timeout: 20 * time.Second}
		defer client.CloseIdleConnections()
		for {
			select {
			case <-v.stop:
				return
			case <-time.After(pause):
			}
			v.count(ask(client, address, "/", "hello from 1\n"))
		}
	})
}

func (v *visitors) count(err error) {
	if err == nil {
		v.answered.Add(1)
		return
	}
	v.failed.Add(1)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.first == "" {
		v.first = time.Now().Format("15:04:05.000 ") + err.Error()
	}
}

// ask posts, so that no client repeats the request by itself.
func ask(client *http.Client, address, path, want string) error {
	res, err := client.Post("http://"+address+path, "text/plain", strings.NewReader("body"))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 || string(b) != want {
		return fmt.Errorf("%d %q %v", res.StatusCode, b, err)
	}
	return nil
}

// end gives what came of it.
func (v *visitors) end() (answered, failed int64, first string) {
	close(v.stop)
	v.all.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.answered.Load(), v.failed.Load(), v.first
}

// load begins visits to all addresses.
func load(t *testing.T, addresses ...string) *visitors {
	v := &visitors{t: t, stop: make(chan struct{})}
	for _, a := range addresses {
		v.visit(a, true, time.Millisecond)
		v.visit(a, false, 5*time.Millisecond)
		v.visit(a, true, 60*time.Millisecond) // longer than it stays awake
	}
	return v
}

func (r *rig) health() supervisor.Health {
	c := supervisor.NewClient(r.node.Socket())
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	h, err := c.Health(ctx)
	if err != nil {
		return supervisor.Health{}
	}
	return h
}

// replaceProgram puts another build of the driver in place, as an upgrade does.
func (r *rig) replaceProgram() {
	r.t.Helper()
	b, err := os.ReadFile(r.program)
	if err == nil {
		err = os.WriteFile(r.program+".new", b, 0o755)
	}
	if err == nil {
		err = os.Rename(r.program+".new", r.program)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestSupervisorChanges(t *testing.T) {
	r := newRig(t)
	image := r.image("shop")
	config := map[string]any{
		"mode": "serverless", "image": image, "command": "exec ./app", "port": 3000,
		"service": "shop", "service_id": "shop-main-abcdefgh", "deployment": "shop-1", "start_timeout": "10s",
	}
	serverless := r.run("shop-1", "service", config)
	persistent := r.run("shop-2", "service", clone(config, "mode", "persistent"))
	suspended := r.run("shop-3", "service", config)
	instances := []*api.Allocation{serverless, persistent, suspended}
	for _, a := range instances {
		if status, body, _ := r.visit(address(a), "/"); status != 200 {
			t.Fatalf("%d %q", status, body)
		}
	}
	t.Run("upgrade under load", func(t *testing.T) { r.upgradeUnderLoad(t, instances) })
	t.Run("killed under load", func(t *testing.T) { r.killedUnderLoad(t, instances) })
	t.Run("killed in the middle of a handover", func(t *testing.T) { r.killedInHandover(t, instances) })
	t.Run("killed in the middle of starts", func(t *testing.T) { r.killedInStarts(t, config) })
	t.Run("nothing was replaced", func(t *testing.T) {
		for _, a := range instances {
			now, _, err := r.client.Allocations().Info(a.ID, nil)
			if err != nil || now.ClientStatus != "running" || now.TaskStates["shop"].Restarts != 0 {
				t.Errorf("%v: %s\n%s", err, now.ClientStatus, r.events(a.ID))
			}
			if out := r.logs(a, "stdout"); out != "listening on 3000\n" {
				t.Errorf("stdout %q", out)
			}
		}
	})
	t.Run("exit code after all that", func(t *testing.T) {
		_, _ = http.Get("http://" + address(serverless) + "/exit")
		r.until("the app's exit code at Nomad", func() bool { return strings.Contains(r.events(serverless.ID), "exited with code 7") })
	})
	t.Run("answer to a start lost", func(t *testing.T) { r.lostReply(t, config) })
}

// upgradeUnderLoad: no request fails, also not one that takes five seconds.
func (r *rig) upgradeUnderLoad(t *testing.T, instances []*api.Allocation) {
	before := r.health()
	v := load(t, address(instances[0]), address(instances[1]))
	slow := make(chan error, 2)
	for _, a := range instances[:2] {
		go func() { slow <- ask(http.DefaultClient, address(a), "/sleep?for=5s", "slept") }()
	}
	time.Sleep(300 * time.Millisecond) // they are under way
	r.replaceProgram()
	r.until("the new build's supervisor", func() bool { h := r.health(); return h.PID != 0 && h.PID != before.PID })
	if status, body, _ := r.visit(address(instances[2]), "/"); status != 200 {
		t.Errorf("the suspended instance: %d %q", status, body)
	}
	for range 2 {
		if err := <-slow; err != nil {
			t.Errorf("a request of five seconds: %v", err)
		}
	}
	time.Sleep(500 * time.Millisecond)
	answered, failed, first := v.end()
	t.Logf("%d requests answered, %d failed", answered, failed)
	if failed > 0 {
		t.Errorf("%d requests failed: %s", failed, first)
	}
	http.DefaultClient.CloseIdleConnections()
	r.until("the end of the old one", func() bool { return syscall.Kill(before.PID, 0) != nil || zombie(before.PID) })
}

func zombie(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Contains(string(b), ") Z ")
}

// killedUnderLoad: what was in flight is lost, all else is served again at once.
func (r *rig) killedUnderLoad(t *testing.T, instances []*api.Allocation) {
	for range 3 {
		v := load(t, address(instances[0]))
		time.Sleep(200 * time.Millisecond)
		before := r.health()
		if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		t.Logf("all answered again after %s", r.answersAgain(t, instances))
		v.end()
		if h := r.health(); h.PID == before.PID || h.Tasks != before.Tasks {
			t.Errorf("%+v, was %+v", h, before)
		}
	}
}

// answersAgain is how long it takes until every instance answers.
func (r *rig) answersAgain(t *testing.T, instances []*api.Allocation) time.Duration {
	t.Helper()
	begin := time.Now()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	for _, a := range instances {
		r.until("an answer", func() bool { return ask(client, address(a), "/", "hello from 1\n") == nil })
	}
	return time.Since(begin)
}

// killedInHandover ends the new or the old one at some moment of a handover.
func (r *rig) killedInHandover(t *testing.T, instances []*api.Allocation) {
	for i := range 12 {
		old := r.health()
		slow := make(chan error, 1)
		go func() { slow <- ask(http.DefaultClient, address(instances[0]), "/sleep?for=1s", "slept") }()
		next := exec.Command(r.program, "supervisor", "--config", r.node.File(), "--take-over")
		next.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := next.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i/2) * 25 * time.Millisecond) // another moment each time
		victim := next.Process.Pid
		if i%2 == 1 {
			victim = old.PID
		}
		_ = syscall.Kill(victim, syscall.SIGKILL)
		took := r.answersAgain(t, instances)
		err := <-slow
		t.Logf("killed the %s after %d ms: all answered after %s; the slow request: %v", []string{"new", "old"}[i%2], i/2*25, took, err)
		if i%2 == 0 && err != nil {
			t.Errorf("the old one had the request, and lives: %v", err)
		}
		r.until("one supervisor with all tasks", func() bool { return r.health().Tasks >= len(instances) })
		go func() { _ = next.Wait() }()
	}
}

// killedInStarts: wherever the start was, Nomad gets it done, and nothing of the first try is left.
func (r *rig) killedInStarts(t *testing.T, config map[string]any) {
	for i := range 6 {
		alloc := r.run(fmt.Sprintf("shop-2%d", i), "service", config)
		time.Sleep(time.Duration(i*i) * 4 * time.Millisecond) // another step each time
		_ = syscall.Kill(r.health().PID, syscall.SIGKILL)
		r.until("an answer", func() bool { return ask(http.DefaultClient, address(alloc), "/", "hello from 1\n") == nil })
	}
	r.until("folders of living tasks only", func() bool {
		c := supervisor.NewClient(r.node.Socket())
		defer c.Close()
		list, err := c.List(context.Background())
		if err != nil {
			return false
		}
		living := 0
		for _, s := range list {
			if s.State != supervisor.Exited {
				living++
			}
		}
		folders, _ := os.ReadDir(r.node.RunDir() + "/tasks")
		mounts, _ := os.ReadFile("/proc/mounts")
		return len(folders) == living && strings.Count(string(mounts), r.node.RunDir()+"/tasks/") == living
	})
}

// lostReply stops the supervisor until the plugin has given up waiting for its answer.
func (r *rig) lostReply(t *testing.T, config map[string]any) {
	h := r.health()
	if err := syscall.Kill(h.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	alloc := r.run("shop-9", "service", config)
	time.Sleep(time.Until(begin.Add(11 * time.Second))) // the plugin waits for ten
	if err := syscall.Kill(h.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	r.until("the second try", func() bool { return ask(http.DefaultClient, address(alloc), "/", "hello from 1\n") == nil })
	c := supervisor.NewClient(r.node.Socket())
	defer c.Close()
	list, err := c.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range list {
		if strings.HasPrefix(s.ID, alloc.ID) && s.State != supervisor.Exited {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d tasks of one allocation", n)
	}
}
