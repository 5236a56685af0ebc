package plugin

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/supervisor"
)

// newDriver is a driver without gRPC whose supervisor's program writes down how it was
// started, and ends.
func newDriver(t *testing.T) (d *Driver, fake *fakeSupervisor, starts func() string) {
	t.Helper()
	dir := t.TempDir()
	fake = startFake(t, dir)
	program, list := filepath.Join(dir, "program"), filepath.Join(dir, "starts")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho \"$@\" >> "+list+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d = New(program, hclog.NewNullLogger())
	cfg, err := supervisor.Config{StateDir: dir}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	d.cfg, d.client = cfg, supervisor.NewClient(cfg.Socket())
	return d, fake, func() string {
		b, _ := os.ReadFile(list)
		return string(b)
	}
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

func TestStartWhoseAnswerIsLost(t *testing.T) {
	d, fake, _ := newDriver(t)
	fake.cut = map[string]int{"/v1/task/start": 1}
	_, _, err := d.StartTask(newTask(t))
	if err == nil || !structs.IsRecoverable(err) {
		t.Errorf("%v", err)
	}
	if !slices.Equal(fake.destroyed, []string{"alloc-1/shop/abc force=true"}) {
		t.Errorf("destroyed %q: the task runs on and holds its port", fake.destroyed)
	}
}

func TestPortTakenIsNotTriedAgainInPlace(t *testing.T) {
	d, fake, _ := newDriver(t)
	fake.refuse = map[string]string{"/v1/task/start": leapcell.TextPortTaken + ": 127.0.0.1:20123"}
	_, _, err := d.StartTask(newTask(t))
	if err == nil || !strings.HasPrefix(err.Error(), leapcell.TextPortTaken) || structs.IsRecoverable(err) {
		t.Errorf("%v, recoverable: %t", err, structs.IsRecoverable(err))
	}
	if len(fake.destroyed) > 0 {
		t.Errorf("destroyed %q: the answer was clear", fake.destroyed)
	}
}

func TestQuestionsAreAskedAgain(t *testing.T) {
	d, fake, _ := newDriver(t)
	fake.cut = map[string]int{"/v1/task/stop": 2, "/v1/task": 1, "/v1/task/wait": 1}
	task := newTask(t)
	handle, _, err := d.StartTask(task)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.RecoverTask(handle); err != nil {
		t.Error(err)
	}
	waited, err := d.WaitTask(context.Background(), task.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.StopTask(task.ID, time.Second, "SIGTERM"); err != nil {
		t.Error(err)
	}
	if e := <-waited; !e.Successful() {
		t.Errorf("exit %+v", e)
	}
	lost := handle.Copy()
	lost.Config.ID = "other"
	if err := d.RecoverTask(lost); !errors.Is(err, drivers.ErrTaskNotFound) {
		t.Errorf("a clear answer: %v", err)
	}
}

func TestDeadSupervisorIsStartedUnasked(t *testing.T) {
	dir := t.TempDir()
	d, _, starts := newDriver(t)
	d.cfg.StateDir = dir
	socket := d.cfg.Socket()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	there := make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(there)
		<-r.Context().Done()
	})}
	go server.Serve(l)
	d.client = supervisor.NewClient(socket)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { d.watch(ctx); close(ended) }()
	<-there
	if starts() != "" {
		t.Errorf("started beside a living one: %q", starts())
	}
	server.Close() // what a kill does to its connections
	until(t, "a start", func() bool { return starts() != "" })
	if s := starts(); !strings.HasPrefix(s, "supervisor --config "+d.cfg.File()+"\n") {
		t.Errorf("started with %q", s)
	}
	cancel()
	<-ended
}

func TestSupervisorOfAnotherBuild(t *testing.T) {
	for name, c := range map[string]struct {
		health   supervisor.Health
		starts   string
		shutdown bool
	}{
		"hands over":        {supervisor.Health{PID: 1, Program: "another", Handover: 1}, "--take-over", false},
		"cannot, and works": {supervisor.Health{PID: 1, Program: "another", Tasks: 1}, "", true},
		"is ours":           {supervisor.Health{PID: 1, Handover: 1}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			d, fake, starts := newDriver(t)
			if fake.health = c.health; c.health.Program == "" {
				fake.health.Program = supervisor.ProgramID(d.exec)
			}
			fake.refuse = map[string]string{"/v1/shutdown": "1 tasks are running"}
			// The program ends at once, as one that was refused does: the old one stays.
			if _, err := d.up(context.Background()); err != nil {
				t.Error(err)
			}
			if s := starts(); (c.starts == "") != (s == "") || !strings.Contains(s, c.starts) {
				t.Errorf("started with %q, want %q", s, c.starts)
			}
			if (d.postponed != "") != (c.starts != "") {
				t.Errorf("postponed: %q", d.postponed)
			}
		})
	}
}

func TestOrphans(t *testing.T) {
	d, _, _ := newDriver(t)
	here := t.TempDir()
	d.know("known")
	list := []supervisor.Status{
		{ID: "known", Dir: "/gone"}, {ID: "orphan", Dir: here}, {ID: "homeless", Dir: "/gone"}, {ID: "nameless"},
	}
	for _, c := range []struct {
		age  time.Duration
		want []string
	}{
		{orphanSoon - 1, nil}, // it may merely not be recovered yet
		{orphanSoon, []string{"homeless"}},
		{orphanAfter - 1, []string{"homeless"}},
		{orphanAfter, []string{"orphan", "homeless", "nameless"}},
	} {
		var got []string
		for _, s := range d.orphans(list, c.age) {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("after %s: %q, want %q", c.age, got, c.want)
		}
	}
	d.forget("known")
	if got := d.orphans(list[:1], orphanSoon); len(got) != 1 {
		t.Error("a task that Nomad has destroyed is still known")
	}
}
