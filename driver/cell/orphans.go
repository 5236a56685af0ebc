package cell

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// reapOrphans waits for what a runtime leaves behind, for as long as this process lives. crun does
// not wait for all of its children: they become ours when it ends, and a dead one that is in a
// cell's pid namespace keeps the cell from ending until it is waited for.
//
// A runtime itself, for which its starter waits, is in our session; what it leaves is in another. An
// app has a name of its own: one that dies with the runtime's name was never started.
func reapOrphans(comm string) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for range ended {
			reap(comm)
		}
	}()
}

func reap(comm string) {
	own := os.Getpid()
	session, err := unix.Getsid(0)
	names, globbed := filepath.Glob("/proc/[0-9]*")
	if err != nil || globbed != nil {
		return // neither fails
	}
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(name + "/stat")
		if err != nil || !strings.HasPrefix(string(stat), fmt.Sprintf("%d (%s) Z %d ", pid, comm, own)) {
			continue
		}
		if fields := strings.Fields(string(stat)); len(fields) < 6 || fields[5] == strconv.Itoa(session) {
			continue
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // it is dead and ours
	}
}
