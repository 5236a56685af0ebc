package cell

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// orphans reaps what a runtime leaves behind. crun does not wait for all of its children: they
// become ours when it ends, and a dead one that is in a cell's pid namespace keeps the cell from
// ending until it is waited for.
type orphans struct {
	comm string // of the runtime, as the kernel shows it

	mu   sync.Mutex
	busy int // runtimes at work: somebody else waits for them and for what they start
}

// reapOrphans waits for the runtime's leftovers from now on, for as long as this process lives.
func reapOrphans(comm string) *orphans {
	o := &orphans{comm: comm}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for range ended {
			o.reap()
		}
	}()
	return o
}

// hold keeps it from reaping until release is called: until it is known which processes
// somebody waits for. A nil one does nothing.
func (o *orphans) hold() (release func()) {
	if o == nil {
		return func() {}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy++
	return func() {
		o.mu.Lock()
		o.busy--
		o.mu.Unlock()
		o.reap()
	}
}

func (o *orphans) reap() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy > 0 {
		return
	}
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return // the pattern is fixed
	}
	own := strconv.Itoa(os.Getpid())
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(name + "/stat")
		if err != nil || !strings.HasPrefix(string(stat), fmt.Sprintf("%d (%s) Z %s ", pid, o.comm, own)) {
			continue
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // it is dead and ours
	}
}
