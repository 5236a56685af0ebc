package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell/internal/ports"
)

// Twin is a process of a part of the platform that was started as the platform's own was:
// a second one with some settings changed, or the same again after it was killed.
// `leapcell up` does not know it.
type Twin struct {
	args, env []string
	log       string
	cmd       *exec.Cmd
	ended     chan struct{}
}

// Twin describes one like the only process of that executable, with the flags in change. It
// runs from Start on, and ends with the test.
func (p *Platform) Twin(t testing.TB, executable string, change map[string]string) *Twin {
	t.Helper()
	own := p.Parts(executable, "")
	if len(own) != 1 {
		t.Fatalf("%d processes of %s are running, not one", len(own), executable)
	}
	w := &Twin{args: own[0].Args(), log: p.Config.LogFile(executable)}
	if len(change) > 0 {
		w.log = p.Config.LogFile(executable + "-2")
	}
	for name, value := range change {
		w.args = withFlag(w.args, name, value)
	}
	for kv := range strings.SplitSeq(strings.TrimRight(own[0].File("environ"), "\x00"), "\x00") {
		w.env = append(w.env, kv)
	}
	t.Cleanup(func() { w.stop(t) })
	return w
}

// withFlag sets a flag on a command line, where it is "--name value" or "--name=value".
func withFlag(args []string, name, value string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		if arg == name && i+1 < len(args) {
			args[i+1] = value
			return args
		}
		if strings.HasPrefix(arg, name+"=") {
			args[i] = name + "=" + value
			return args
		}
	}
	return append(args, name+"="+value)
}

// Start starts it, for the first time or after it was killed.
func (w *Twin) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(w.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(w.args[0], w.args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = w.env, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is the test's
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.cmd, w.ended = cmd, make(chan struct{})
	go func(ended chan<- struct{}) { _ = cmd.Wait(); close(ended) }(w.ended)
}

// Process is the one that runs, or ran last; 0 before the first.
func (w *Twin) Process() Process {
	if w.cmd == nil {
		return Process{}
	}
	return Process{w.cmd.Process.Pid}
}

// stop lets it end by itself, and sees that it does.
func (w *Twin) stop(t testing.TB) {
	if w.cmd == nil {
		return
	}
	_ = w.cmd.Process.Signal(syscall.SIGTERM) // it may have been killed
	select {
	case <-w.ended:
	case <-time.After(40 * time.Second):
		_ = w.cmd.Process.Kill()
		<-w.ended
		t.Errorf("%s had to be killed; its log is %s", filepath.Base(w.args[0]), w.log)
	}
}

// FreePorts finds n ports that nobody has.
func FreePorts(t testing.TB, n int) []int {
	t.Helper()
	found, err := ports.Several(n)
	if err != nil {
		t.Fatal(err)
	}
	return found
}
