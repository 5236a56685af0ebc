package harness

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell/internal/platform"
)

// secondNode is what a second Nomad client on this machine has for itself.
type secondNode struct {
	dir, name       string
	runtime         string // OCI
	server          string // whom it joins
	http, rpc, serf int
	from, to        int // ports of instances
	program         string
	agent           *exec.Cmd
	ended           chan struct{}
	platform        *Platform
}

// SecondNode brings up another node on this machine: a Nomad client that joins the platform's
// server, with a driver, a supervisor, folders, ports, networks and control groups of its
// own, and with the OCI runtime of the first unless another is named. It gives the ID of
// the node, which ends with the test.
func (p *Platform) SecondNode(t testing.TB, runtime string) string {
	t.Helper()
	own := p.Parts("nomad", "agent")
	if len(own) != 1 {
		t.Fatalf("%d Nomad agents are running, not one", len(own))
	}
	// Beside the platform's folder, and short: sockets have their names in it.
	dir, err := os.MkdirTemp("", "lc-node-")
	if err != nil {
		t.Fatal(err)
	}
	ports, err := platform.FreePorts()
	if err != nil {
		t.Fatal(err)
	}
	n := &secondNode{
		dir: dir, server: fmt.Sprintf("127.0.0.1:%d", p.Config.Ports.NomadRPC), platform: p,
		http: ports.Nomad, rpc: ports.NomadRPC, serf: ports.NomadSerf, from: ports.InstancesFrom, to: ports.InstancesTo,
		program: own[0].Args()[0],
	}
	cfg := p.Config
	cfg.StateDir, cfg.Ports, cfg.Runtime = dir, ports, cmp.Or(runtime, cfg.Runtime)
	cfg.Ports.InstancesFrom, cfg.Ports.InstancesTo = n.from, n.to
	cfg.Name = fmt.Sprintf("%06x", os.Getpid()&0xffffff)
	n.name, n.runtime = cfg.Name, cfg.Runtime
	t.Cleanup(func() { n.down(t) })
	n.start(t, cfg, own[0])
	return n.await(t)
}

// start writes what `leapcell down` needs to take it away, and the agent's configuration.
func (n *secondNode) start(t testing.TB, cfg platform.Config, first Process) {
	t.Helper()
	b, err := json.Marshal(cfg)
	if err == nil {
		err = os.WriteFile(filepath.Join(n.dir, "config.json"), b, 0o600)
	}
	for _, name := range []string{"nomad", "logs", "tmp"} {
		if err == nil {
			err = os.MkdirAll(filepath.Join(n.dir, name), 0o700)
		}
	}
	if err == nil {
		err = os.Chmod(filepath.Join(n.dir, "tmp"), os.ModeSticky|0o777)
	}
	if err == nil {
		b, err = os.ReadFile(filepath.Join(n.platform.Config.StateDir, "nomad", "nomad.hcl"))
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := secondAgent(string(b), *n)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(n.dir, "nomad", "nomad.hcl")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(n.dir, "logs", "nomad.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.agent = exec.Command(n.program, "agent", "-config="+file)
	for kv := range strings.SplitSeq(strings.TrimRight(first.File("environ"), "\x00"), "\x00") {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "LEAPCELL_PLATFORM", "TMPDIR":
		default:
			n.agent.Env = append(n.agent.Env, kv)
		}
	}
	n.agent.Env = append(n.agent.Env, "LEAPCELL_PLATFORM="+n.dir, "TMPDIR="+filepath.Join(n.dir, "tmp"))
	n.agent.Stdout, n.agent.Stderr = log, log
	n.agent.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is the test's
	if err := n.agent.Start(); err != nil {
		t.Fatal(err)
	}
	n.ended = make(chan struct{})
	go func() { _ = n.agent.Wait(); close(n.ended) }()
}

// secondAgent changes the first agent's configuration where the second must differ.
func secondAgent(text string, n secondNode) (string, error) {
	for _, change := range []struct{ old, new string }{
		{`(?m)^name +=.*`, fmt.Sprintf("name = %q", "leapcell-"+n.name)},
		{`(?m)^data_dir +=.*`, fmt.Sprintf("data_dir = %q", filepath.Join(n.dir, "nomad", "data"))},
		{`(?m)^  http +=.*\d$`, fmt.Sprintf("  http = %d", n.http)},
		{`(?m)^  rpc +=.*\d$`, fmt.Sprintf("  rpc = %d", n.rpc)},
		{`(?m)^  serf +=.*\d$`, fmt.Sprintf("  serf = %d", n.serf)},
		{`(?s)server \{\n.*?\n\}`, "server {\n  enabled = false\n}"},
		{`(?m)^client \{$`, fmt.Sprintf("client {\n  servers = [%q]", n.server)},
		{`(?m)^  min_dynamic_port +=.*`, fmt.Sprintf("  min_dynamic_port = %d", n.from)},
		{`(?m)^  max_dynamic_port +=.*`, fmt.Sprintf("  max_dynamic_port = %d", n.to)},
		{`(?m)^  cgroup_parent +=.*`, fmt.Sprintf("  cgroup_parent = %q", "leapcell-"+n.name+"-nomad")},
		{`(?m)^    state_dir +=.*`, fmt.Sprintf("    state_dir = %q", filepath.Join(n.dir, "node"))},
		{`(?m)^    runtime +=.*`, fmt.Sprintf("    runtime = %q", n.runtime)},
		{`(?m)^    name +=.*`, fmt.Sprintf("    name = %q", n.name)},
	} {
		pattern := regexp.MustCompile(change.old)
		if found := len(pattern.FindAllString(text, -1)); found != 1 {
			return "", fmt.Errorf("the configuration of the Nomad agent has %q %d times, not once", change.old, found)
		}
		text = pattern.ReplaceAllLiteralString(text, change.new)
	}
	return text, nil
}

// await waits until instances can be placed on it.
func (n *secondNode) await(t testing.TB) (id string) {
	t.Helper()
	Eventually(t, 2*time.Minute, "the second node is ready", func() bool {
		select {
		case <-n.ended:
			b, _ := os.ReadFile(filepath.Join(n.dir, "logs", "nomad.log"))
			t.Fatalf("the second Nomad agent ended; its log says:\n%s", tail(string(b), 20))
		default:
		}
		nodes, _, err := n.platform.Nomad.Nodes().List((&nomad.QueryOptions{}).WithContext(t.Context()))
		if err != nil {
			return false
		}
		for _, node := range nodes {
			driver := node.Drivers["leapcell"]
			if node.Name == "leapcell-"+n.name && node.Status == "ready" && driver != nil && driver.Healthy {
				id = node.ID
			}
		}
		return id != ""
	})
	return id
}

// down takes it away, as `leapcell down` does with what it finds in a folder. The test's own
// context is over by now.
func (n *secondNode) down(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if n.agent != nil {
		_ = n.agent.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-n.ended:
		case <-time.After(30 * time.Second):
			_ = n.agent.Process.Kill()
			<-n.ended
		}
	}
	for _, name := range []string{"logs/nomad.log", "node/supervisor.log"} { // kept with the platform's own
		if b, err := os.ReadFile(filepath.Join(n.dir, name)); err == nil {
			name = strings.TrimSuffix(filepath.Base(name), ".log") + "-2.log"
			_ = os.WriteFile(filepath.Join(n.platform.Config.StateDir, "logs", name), b, 0o640)
		}
	}
	if err := command(ctx, "down", "--state-dir", n.dir, "--purge"); err != nil {
		t.Errorf("taking the second node down: %v", err)
	}
	nodes, _, err := n.platform.Nomad.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		t.Errorf("nodes: %v", err)
	}
	for _, node := range nodes {
		if node.Name == "leapcell-"+n.name {
			_, _, _ = n.platform.Nomad.Nodes().Purge(node.ID, nil) // Nomad forgets it in time anyway
		}
	}
}
