package supervisor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestClientAndServer(t *testing.T) {
	n := newNode(t, serves(hello))
	socket := filepath.Join(n.dir, "s.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	down := make(chan struct{})
	server := &http.Server{Handler: n.Handler(func() { close(down) })}
	go server.Serve(l)
	defer server.Close()
	c := NewClient(socket)
	defer c.Close()
	ctx := context.Background()

	if h, err := c.Health(ctx); err != nil || h.PID == 0 || h.Version != Version || h.Tasks != 0 {
		t.Fatalf("health %+v, %v", h, err)
	}
	if _, err := c.Inspect(ctx, "x/y"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown task: %v", err)
	}
	bad := n.request("fast")
	if _, err := c.Start(ctx, bad); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
		t.Errorf("bad task: %v", err)
	}
	req := n.request(leapcell.TaskServerless)
	before, _ := c.Health(ctx)
	if s, err := c.Start(ctx, req); err != nil || s.ID != req.ID {
		t.Fatalf("start %+v, %v", s, err)
	}
	if events, err := c.Events(ctx, before.LastSeq); err != nil || len(events) == 0 || events[0].TaskID != req.ID {
		t.Errorf("events %+v, %v", events, err)
	}
	if s, err := c.Stats(ctx, req.ID); err != nil || s.Cell.CPUNanos != 5 {
		t.Errorf("stats %+v, %v", s, err)
	}
	if err := c.Signal(ctx, req.ID, "SIGNONE"); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
		t.Errorf("bad signal: %v", err)
	}
	if err := c.Signal(ctx, req.ID, "SIGHUP"); err != nil {
		t.Error(err)
	}
	if err := c.Shutdown(ctx, false); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("shutdown under a task: %v", err)
	}
	waited := make(chan Exit, 1)
	go func() {
		exit, err := c.Wait(ctx, req.ID)
		if err != nil {
			t.Error(err)
		}
		waited <- exit
	}()
	if err := c.Stop(ctx, req.ID, 10*time.Second, "SIGTERM"); err != nil {
		t.Error(err)
	}
	if exit := <-waited; exit.Message != "stopped" {
		t.Errorf("exit %+v", exit)
	}
	if list, err := c.List(ctx); err != nil || len(list) != 1 || list[0].State != Exited {
		t.Errorf("list %+v, %v", list, err)
	}
	if err := c.Destroy(ctx, req.ID, false); err != nil {
		t.Error(err)
	}
	if err := c.Shutdown(ctx, false); err != nil {
		t.Error(err)
	}
	<-down
}
