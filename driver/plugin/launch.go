package plugin

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/leapcell/leapcell/driver/supervisor"
)

// logLimit is the size from which on a start begins a new log of the supervisor.
const logLimit = 10 << 20

// startSupervisor starts the node's supervisor in a session of its own, so that no signal
// meant for the agent reaches it, and waits until it answers. Should two plugins do so at
// once, one of the two finds the state folder locked and ends; the other answers.
func startSupervisor(ctx context.Context, program string, cfg supervisor.Config, client *supervisor.Client) error {
	if err := cfg.Write(); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	name := filepath.Join(cfg.StateDir, "supervisor.log")
	if info, err := os.Stat(name); err == nil && info.Size() > logLimit {
		_ = os.Rename(name, name+".old")
	}
	log, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	defer log.Close()
	begin, _ := log.Seek(0, 2)
	cmd := exec.Command(program, "supervisor", "--config", cfg.File())
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it outlives us if all is well
		close(ended)
	}()
	for {
		if _, err = client.Health(ctx); err == nil {
			return nil
		}
		select {
		case <-ended:
			if _, err := client.Health(ctx); err == nil {
				return nil // somebody else's
			}
			return fmt.Errorf("the supervisor ended at once: %s", tail(name, begin))
		case <-ctx.Done():
			return fmt.Errorf("the supervisor does not answer: see %s", name)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// tail is the last line that the supervisor wrote, or where to look.
func tail(name string, begin int64) string {
	b, err := os.ReadFile(name)
	if err != nil || int64(len(b)) <= begin {
		return "see " + name
	}
	lines := bytes.Split(bytes.TrimSpace(b[begin:]), []byte("\n"))
	return string(lines[len(lines)-1])
}
