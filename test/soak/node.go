// Package soak runs instances by the thousand through the real driver and looks at what is
// left of them: on the machine, and in the supervisor.
//
// It speaks to a supervisor of its own through the socket, as the plugin does. Nomad is left
// out: it keeps allocations for their logs on purpose, takes most of a second for a cycle,
// and its own memory would hide what the driver does with its.
package soak

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/supervisor"
	"github.com/leapcell/leapcell/internal/ports"
	"github.com/leapcell/leapcell/test/harness"
)

// Node is a supervisor beside the platform's own: a second node on this machine that takes
// its images from the same registry.
type Node struct {
	Config supervisor.Config
	Client *supervisor.Client
	PID    int
	dir    string // of what Nomad would give to tasks
	log    string
}

// NewNode starts one, with the settings of the platform's as changed by change. It is taken
// down with the test.
func NewNode(t testing.TB, p *harness.Platform, change func(*supervisor.Config)) *Node {
	t.Helper()
	cfg, err := supervisor.ReadConfig(supervisor.Config{StateDir: p.Config.NodeDir()}.File())
	if err != nil {
		t.Fatalf("settings of the platform's node: %v", err)
	}
	name := make([]byte, 3)
	_, _ = rand.Read(name) // never fails
	dir := t.TempDir()
	cfg.StateDir, cfg.Name, cfg.Subnet = filepath.Join(dir, "node"), hex.EncodeToString(name), ""
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Write(); err != nil {
		t.Fatal(err)
	}
	n := &Node{Config: cfg, Client: supervisor.NewClient(cfg.Socket()), dir: filepath.Join(dir, "alloc"), log: filepath.Join(dir, "log")}
	n.start(t, filepath.Join(p.Root, "bin", "nomad-driver-leapcell"))
	return n
}

func (n *Node) start(t testing.TB, program string) {
	t.Helper()
	log, err := os.Create(n.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "supervisor", "--config", n.Config.File())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is the test's
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.PID = cmd.Process.Pid
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { n.down(t, ended) })
	harness.Eventually(t, 20*time.Second, "the supervisor answers", func() bool {
		h, err := n.Client.Health(t.Context())
		return err == nil && h.PID == n.PID
	})
}

// down removes all that the node has. The test's own context is over by now.
func (n *Node) down(t testing.TB, ended <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := supervisor.Destroy(ctx, n.Config); err != nil {
		t.Errorf("taking the node down: %v", err)
	}
	n.Client.Close()
	select {
	case <-ended:
	case <-ctx.Done():
		t.Errorf("the supervisor %d does not end", n.PID)
	}
	if b, err := os.ReadFile(n.log); t.Failed() && err == nil {
		t.Logf("log of the supervisor:\n%.4000s", b)
	}
}

// Instance is one task of a node.
type Instance struct {
	ID      string // also of the allocation
	Address string // of its gate
	node    *Node
}

// Start starts a task and waits until its app answers.
func (n *Node) Start(ctx context.Context, image string, mode leapcell.TaskMode) (*Instance, error) {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	i := &Instance{ID: hex.EncodeToString(id), node: n}
	port, err := ports.Free(1, ports.ForPrograms)
	if err != nil {
		return nil, err
	}
	i.Address = fmt.Sprintf("127.0.0.1:%d", port)
	_, err = n.Client.Start(ctx, supervisor.StartRequest{
		ID: i.ID, Name: "soak", AllocID: i.ID, Namespace: "leapcell", Dir: filepath.Join(n.dir, i.ID), Address: i.Address, MemoryMB: 256,
		Config: leapcell.TaskConfig{
			Mode: mode, Image: image, Command: "exec ./probe", Service: "soak", ServiceID: "soak", Deployment: "soak-1",
			StartTimeout: "30s", RequestTimeout: "1m",
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	_, err = i.Get(ctx, "/")
	return i, err
}

// visitor keeps no connections: they would keep descriptors of the gate.
var visitor = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}

// Get asks the app through its gate; anything but 200 is an error.
func (i *Instance) Get(ctx context.Context, path string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.Address+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := visitor.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, resp.Status, strings.TrimSpace(string(b)))
	}
	return string(b), err
}

// Stop ends the task and has it forgotten.
func (i *Instance) Stop(ctx context.Context) error {
	if err := i.node.Client.Stop(ctx, i.ID, 5*time.Second, "SIGTERM"); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := i.node.Client.Destroy(ctx, i.ID, false); err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	return os.RemoveAll(filepath.Join(i.node.dir, i.ID)) // as Nomad does
}

// Frozen reports whether the app is suspended.
func (i *Instance) Frozen() bool {
	members := harness.Members(i.ID)
	return len(members) > 0 && members[0].Cgroup().Frozen()
}
