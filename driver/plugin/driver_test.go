package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/supervisor"
)

// fakeSupervisor answers on the socket in dir as a supervisor with one task does.
type fakeSupervisor struct {
	mu      sync.Mutex
	started supervisor.StartRequest
	signals []string
	exit    chan supervisor.Exit
	events  chan supervisor.Event

	health    supervisor.Health
	refuse    map[string]string // by path: the message of a conflict in place of the answer
	cut       map[string]int    // by path: how often the connection breaks before the answer
	destroyed []string
}

func startFake(t *testing.T, dir string) *fakeSupervisor {
	f := &fakeSupervisor{exit: make(chan supervisor.Exit, 1), events: make(chan supervisor.Event, 1), health: supervisor.Health{PID: 1, Version: "0.0.9"}}
	l, err := net.Listen("unix", filepath.Join(dir, "supervisor.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return f
}

func (f *fakeSupervisor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reply := func(v any) { json.NewEncoder(w).Encode(v) }
	f.mu.Lock()
	id, refused, cut := f.started.ID, f.refuse[r.URL.Path], f.cut[r.URL.Path] > 0
	if cut {
		f.cut[r.URL.Path]--
		if r.URL.Path == "/v1/task/start" {
			json.NewDecoder(r.Body).Decode(&f.started) // it begins, and nobody learns
		}
	}
	f.mu.Unlock()
	if cut {
		panic(http.ErrAbortHandler)
	}
	if refused != "" {
		w.WriteHeader(409)
		reply(map[string]string{"code": "conflict", "message": refused})
		return
	}
	if strings.HasPrefix(r.URL.Path, "/v1/task") && r.URL.Path != "/v1/task/start" && r.FormValue("id") != id {
		w.WriteHeader(404)
		reply(map[string]string{"code": "not_found", "message": "no such task"})
		return
	}
	switch r.URL.Path {
	case "/v1/health":
		reply(f.health)
	case "/v1/task/start":
		f.mu.Lock()
		json.NewDecoder(r.Body).Decode(&f.started)
		f.mu.Unlock()
		reply(supervisor.Status{ID: f.started.ID})
	case "/v1/task":
		if r.Method == http.MethodDelete {
			f.mu.Lock()
			f.destroyed = append(f.destroyed, id+" force="+r.FormValue("force"))
			f.mu.Unlock()
			reply(struct{}{})
			return
		}
		reply(supervisor.Status{ID: id, State: supervisor.Running, PID: 42})
	case "/v1/task/wait":
		select {
		case e := <-f.exit:
			reply(map[string]any{"exit": e})
		case <-r.Context().Done():
		}
	case "/v1/task/signal":
		f.mu.Lock()
		f.signals = append(f.signals, r.FormValue("signal"))
		f.mu.Unlock()
		reply(struct{}{})
	case "/v1/task/stop":
		f.exit <- supervisor.Exit{Message: "stopped after " + r.FormValue("timeout")}
		reply(struct{}{})
	case "/v1/task/stats":
		reply(supervisor.TaskStats{Time: time.Now(), Cell: cell.Stats{CPUNanos: 1, Memory: 77}})
	case "/v1/events":
		select {
		case e := <-f.events:
			reply([]supervisor.Event{e})
		case <-r.Context().Done():
		}
	default:
		w.WriteHeader(500)
	}
}

// newHarness gives the driver as Nomad has it: behind gRPC.
func newHarness(t *testing.T) (*testutils.DriverHarness, *fakeSupervisor, string) {
	dir := t.TempDir()
	fake := startFake(t, dir)
	h := testutils.NewDriverHarness(t, New("/bin/false", hclog.NewNullLogger()))
	// Not killed: the harness stops its server twice at once, which the race detector sees.
	setConfig(t, h, `config { state_dir = "`+dir+`" }`)
	return h, fake, dir
}

func setConfig(t *testing.T, h *testutils.DriverHarness, text string) {
	t.Helper()
	cfg := supervisor.Config{}
	parser := hclutils.NewConfigParser(configSpec)
	parser.ParseHCL(t, text, &cfg)
	var b []byte
	if err := base.MsgPackEncode(&b, &cfg); err != nil {
		t.Fatal(err)
	}
	if err := h.SetConfig(&base.Config{PluginConfig: b}); err != nil {
		t.Fatal(err)
	}
}

const taskBlock = `config {
  image           = "registry/shop@sha256:1"
  command         = "./app"
  port            = 3000
  service         = "shop"
  service_id      = "shop-main-abcdefgh"
  deployment      = "shop-1"
  env_path        = "leapcell/env/shop-main-abcdefgh"
  request_timeout = "1m"
  caches          = ["/root/.cache"]
  cache           = "shop-main-abcdefgh-changes"
  cache_mb        = 100
  disk_mb         = 200
  image_mb        = 300
  run_image       = "registry/run@sha256:2"
  build_env       = ["TOKEN"]
  modified        = 315532800
}`

func newTask(t *testing.T) *drivers.TaskConfig {
	var cfg leapcell.TaskConfig
	hclutils.NewConfigParser(taskSpec).ParseHCL(t, taskBlock, &cfg)
	task := &drivers.TaskConfig{
		ID: "alloc-1/shop/abc", Name: "shop", AllocID: "alloc-1", Namespace: "leapcell", AllocDir: "/allocs/1",
		Resources: &drivers.Resources{
			NomadResources: &structs.AllocatedTaskResources{Memory: structs.AllocatedMemoryResources{MemoryMB: 192}},
			LinuxResources: &drivers.LinuxResources{},
			Ports:          &structs.AllocatedPorts{{Label: "other", Value: 1, HostIP: "10.0.0.1"}, {Label: "http", Value: 20123, HostIP: "127.0.0.1"}},
		},
	}
	if err := task.EncodeConcreteDriverConfig(&cfg); err != nil {
		t.Fatal(err)
	}
	return task
}

func TestTaskAcrossGRPC(t *testing.T) {
	h, fake, _ := newHarness(t)
	task := newTask(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	handle, network, err := h.StartTask(task)
	if err != nil || network != nil || handle.State != drivers.TaskStateRunning {
		t.Fatalf("%+v, %v, %v", handle, network, err)
	}
	r := fake.started
	want := leapcell.TaskConfig{
		Mode: "serverless", Image: "registry/shop@sha256:1", Command: "./app", Port: 3000, Service: "shop", ServiceID: "shop-main-abcdefgh",
		Deployment: "shop-1", EnvPath: "leapcell/env/shop-main-abcdefgh", Concurrency: 50, StartTimeout: "10s", RequestTimeout: "1m",
		Caches: r.Config.Caches, Timeout: "10m", CPUs: 2, Cache: "shop-main-abcdefgh-changes", CacheMB: 100, DiskMB: 200, ImageMB: 300,
		RunImage: "registry/run@sha256:2", BuildEnv: r.Config.BuildEnv, Modified: 315532800,
	}
	got, _ := json.Marshal(r.Config)
	if b, _ := json.Marshal(want); string(got) != string(b) || len(r.Config.Caches) != 1 || len(r.Config.BuildEnv) != 1 {
		t.Errorf("config\n%s, want\n%s", got, b)
	}
	if r.ID != task.ID || r.Name != "shop" || r.AllocID != "alloc-1" || r.Namespace != "leapcell" || r.Dir != "/allocs/1" || r.Address != "127.0.0.1:20123" || r.MemoryMB != 192 {
		t.Errorf("request %+v", r)
	}
	if err := h.RecoverTask(handle); err != nil {
		t.Error(err)
	}
	lost := handle.Copy()
	lost.Config.ID = "other"
	if err := h.RecoverTask(lost); err == nil {
		t.Error("recovered a task that nobody knows")
	}
	if s, err := h.InspectTask(task.ID); err != nil || s.State != drivers.TaskStateRunning || s.DriverAttributes["pid"] != "42" {
		t.Errorf("%+v, %v", s, err)
	}
	if err := h.SignalTask(task.ID, "SIGHUP"); err != nil || len(fake.signals) != 1 || fake.signals[0] != "SIGHUP" {
		t.Errorf("%v, %q", err, fake.signals)
	}
	stats, err := h.TaskStats(ctx, task.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if s := <-stats; s.ResourceUsage.MemoryStats.RSS != 77 {
		t.Errorf("stats %+v", s.ResourceUsage)
	}
	events, err := h.TaskEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	fake.events <- supervisor.Event{Seq: 1, TaskID: task.ID, TaskName: "shop", AllocID: "alloc-1", Time: time.Now(), Message: "ready", Annotations: map[string]string{"a": "b"}}
	if e := <-events; e.TaskID != task.ID || e.Message != "ready" || e.Annotations["a"] != "b" {
		t.Errorf("event %+v", e)
	}
	waited, err := h.WaitTask(ctx, task.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.StopTask(task.ID, 3*time.Second, "SIGTERM"); err != nil {
		t.Error(err)
	}
	if e := <-waited; !e.Successful() {
		t.Errorf("exit %+v", e)
	}
}

func TestExitMessageReachesNomad(t *testing.T) {
	h, fake, _ := newHarness(t)
	task := newTask(t)
	if _, _, err := h.StartTask(task); err != nil {
		t.Fatal(err)
	}
	fake.exit <- supervisor.Exit{Code: 137, OOM: true, Message: "out of memory: limit 192 MB"}
	ch, err := h.WaitTask(context.Background(), task.ID)
	if err != nil {
		t.Fatal(err)
	}
	e := <-ch
	if e.ExitCode != 137 || !e.OOMKilled || e.Err == nil || e.Err.Error() != "out of memory: limit 192 MB" {
		t.Errorf("exit %+v", e)
	}
}

func TestFingerprint(t *testing.T) {
	h, _, _ := newHarness(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ch, err := h.Fingerprint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f := <-ch
	if os.Geteuid() != 0 {
		if f.Health != drivers.HealthStateUnhealthy || !strings.Contains(f.HealthDescription, "root") {
			t.Errorf("%+v", f)
		}
		return
	}
	if f.Health == drivers.HealthStateHealthy {
		if v, _ := f.Attributes["driver.leapcell.supervisor_version"].GetString(); v != "0.0.9" {
			t.Errorf("attributes %+v", f.Attributes)
		}
	} else if strings.Contains(f.HealthDescription, "supervisor") {
		t.Errorf("%+v", f)
	}
}

func TestSupervisorThatDoesNotStart(t *testing.T) {
	d := New("/bin/false", hclog.NewNullLogger())
	cfg, err := supervisor.Config{StateDir: t.TempDir()}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	d.cfg, d.client = cfg, supervisor.NewClient(cfg.Socket())
	_, _, err = d.StartTask(newTask(t))
	if err == nil || !strings.Contains(err.Error(), "the supervisor ended at once") {
		t.Errorf("%v", err)
	}
	if info, err := os.Stat(cfg.File()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("settings file: %v, %v", info, err)
	}
}

func TestConfigErrorsNameTheSetting(t *testing.T) {
	for part, cfg := range map[string]supervisor.Config{
		"state_dir": {}, "suspend_after": {StateDir: "/x", Suspend: "1h"}, "subnet": {StateDir: "/x", Subnet: "y"},
	} {
		var b []byte
		if err := base.MsgPackEncode(&b, &cfg); err != nil {
			t.Fatal(err)
		}
		d := New("/bin/false", hclog.NewNullLogger())
		if err := d.SetConfig(&base.Config{PluginConfig: b}); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", part, err)
		}
	}
	d := New("/bin/false", hclog.NewNullLogger())
	if _, _, err := d.StartTask(newTask(t)); err == nil {
		t.Error("started a task without configuration")
	}
	if !errors.Is(notFound(&leapcell.Error{Err: supervisor.ErrNotFound}), drivers.ErrTaskNotFound) {
		t.Error("Nomad is not told that a task is lost")
	}
}
