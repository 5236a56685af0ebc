//go:build e2e

package driver_test

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/plugin"
	"github.com/leapcell/leapcell/driver/supervisor"
)

// TestNomadsHarness calls every call of the driver across gRPC, as Nomad's own drivers are tested, with a
// real supervisor and a real instance behind it.
func TestNomadsHarness(t *testing.T) {
	r := newRigWithoutAgent(t)
	h := testutils.NewDriverHarness(t, plugin.New(r.program, hclog.NewNullLogger()))
	var b []byte
	if err := base.MsgPackEncode(&b, &supervisor.Config{StateDir: r.node.StateDir, Credentials: filepath.Join(r.dir, "registry.json")}); err != nil {
		t.Fatal(err)
	}
	if err := h.SetConfig(&base.Config{PluginConfig: b}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	prints, err := h.Fingerprint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if f := <-prints; f.Health != drivers.HealthStateHealthy || f.Attributes["driver.leapcell.runtime_version"] == nil {
		t.Fatalf("%+v", f)
	}
	events, err := h.TaskEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var said eventLog
	go said.follow(events)

	task := r.harnessTask(t, r.image("harness"))
	defer h.MkAllocDir(task, false)()
	handle, _, err := h.StartTask(task)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.WaitUntilStarted(task.ID, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	at := net.JoinHostPort("127.0.0.1", strconv.Itoa((*task.Resources.Ports)[0].Value))
	if status, body, _ := r.visit(at, "/"); status != 200 || body != "hello from 1" {
		t.Fatalf("%d %q", status, body)
	}
	waited, err := h.WaitTask(ctx, task.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("exec", func(t *testing.T) { testutils.TestExecTaskStreamingBasicResponses(t, h, task.ID) })
	t.Run("exec across gRPC", func(t *testing.T) {
		got, err := h.ExecTask(task.ID, []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, 20*time.Second)
		if err != nil || got.ExitResult.ExitCode != 3 || string(got.Stdout) != "out\n" || string(got.Stderr) != "err\n" {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := h.ExecTask(task.ID, []string{"sleep", "60"}, time.Second); err == nil || !strings.Contains(err.Error(), "longer than 1s") {
			t.Errorf("%v", err)
		}
	})
	t.Run("inspect and stats", func(t *testing.T) {
		s, err := h.InspectTask(task.ID)
		if err != nil || s.State != drivers.TaskStateRunning || s.DriverAttributes["state"] != "running" || s.DriverAttributes["requests"] != "1" {
			t.Errorf("%+v, %v", s, err)
		}
		stats, err := h.TaskStats(ctx, task.ID, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if u := (<-stats).ResourceUsage; u.MemoryStats.RSS == 0 || u.MemoryStats.MaxUsage < u.MemoryStats.RSS {
			t.Errorf("%+v", u.MemoryStats)
		}
	})
	t.Run("signal", func(t *testing.T) {
		if err := h.SignalTask(task.ID, "SIGNONE"); err == nil {
			t.Error("there is no such signal")
		}
		if err := h.SignalTask(task.ID, "SIGURG"); err != nil { // which the Go runtime sits out
			t.Error(err)
		}
	})
	t.Run("recover", func(t *testing.T) {
		again := testutils.NewDriverHarness(t, plugin.New(r.program, hclog.NewNullLogger()))
		if err := again.SetConfig(&base.Config{PluginConfig: b}); err != nil {
			t.Fatal(err)
		}
		if err := again.RecoverTask(handle); err != nil {
			t.Error(err)
		}
		lost := handle.Copy()
		lost.Config.ID = "nobody/knows"
		if err := again.RecoverTask(lost); err == nil {
			t.Error("a task that nobody knows was recovered")
		}
	})
	r.until("suspension", func() bool {
		s, err := h.InspectTask(task.ID)
		return err == nil && s.DriverAttributes["suspended"] == "true"
	})
	if status, _, _ := r.visit(at, "/"); status != 200 {
		t.Errorf("resumed: %d", status)
	}
	if err := h.DestroyTask(task.ID, false); err == nil {
		t.Error("a running task was destroyed without force")
	}
	if err := h.StopTask(task.ID, 10*time.Second, "SIGTERM"); err != nil {
		t.Error(err)
	}
	if e := <-waited; !e.Successful() {
		t.Errorf("%+v", e)
	}
	if err := h.DestroyTask(task.ID, false); err != nil {
		t.Error(err)
	}
	if _, err := h.InspectTask(task.ID); err == nil || !strings.Contains(err.Error(), drivers.ErrTaskNotFound.Error()) {
		t.Errorf("after its end: %v", err)
	}
	r.until("the events", func() bool { return said.has("image pulled in", "started in", "suspended", "resumed", "stopped") })
}

func (r *rig) harnessTask(t *testing.T, image string) *drivers.TaskConfig {
	alloc := uuid.Generate()
	task := &drivers.TaskConfig{
		ID: alloc + "/web/" + uuid.Short(), Name: "web", AllocID: alloc, JobName: "web", Namespace: "default", Env: map[string]string{},
		Resources: &drivers.Resources{
			NomadResources: &structs.AllocatedTaskResources{Memory: structs.AllocatedMemoryResources{MemoryMB: 256}},
			LinuxResources: &drivers.LinuxResources{},
			Ports:          &structs.AllocatedPorts{{Label: "http", Value: freePort(t), HostIP: "127.0.0.1"}},
		},
	}
	if err := task.EncodeConcreteDriverConfig(&leapcell.TaskConfig{Mode: leapcell.TaskServerless, Image: image}); err != nil {
		t.Fatal(err)
	}
	return task
}

// eventLog is what was told of a task.
type eventLog struct {
	mu  sync.Mutex
	all []string
}

func (l *eventLog) follow(events <-chan *drivers.TaskEvent) {
	for e := range events {
		l.mu.Lock()
		l.all = append(l.all, e.Message)
		l.mu.Unlock()
	}
}

// has reports whether each of the beginnings was told.
func (l *eventLog) has(beginnings ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !slices.ContainsFunc(beginnings, func(b string) bool {
		return !slices.ContainsFunc(l.all, func(text string) bool { return strings.HasPrefix(text, b) })
	})
}
