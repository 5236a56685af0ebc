package cell

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// reapRuntime ends and reaps what a runtime left, once it has ended itself: it is ours, since we
// are the reaper of orphans. Most of it is in the runtime's process group. crun also leaves one
// process in a session of its own, which makes the app and ends then: [inherit] reaps it together
// with the app, and where there is none, a later start does by its name.
func reapRuntime(pgid int, comm string) {
	if err := unix.Kill(-pgid, unix.SIGKILL); err == nil {
		for {
			if _, err := unix.Wait4(-pgid, nil, 0, nil); err != nil && err != unix.EINTR {
				break
			}
		}
	}
	if comm == "crun" {
		reapDead(comm)
	}
}

// reapDead reaps our children of that name that are dead. An app has another name: one that dies
// with the runtime's was never started. One of our own session has a starter that waits for it.
func reapDead(comm string) {
	session, err := unix.Getsid(0)
	names, globbed := filepath.Glob("/proc/[0-9]*")
	if err != nil || globbed != nil {
		return // neither fails
	}
	for _, name := range names {
		stat, err := os.ReadFile(name + "/stat")
		pid, _ := strconv.Atoi(filepath.Base(name))
		if err != nil || !strings.HasPrefix(string(stat), fmt.Sprintf("%d (%s) Z %d ", pid, comm, os.Getpid())) {
			continue
		}
		if fields := strings.Fields(string(stat)); len(fields) > 5 && fields[5] != strconv.Itoa(session) {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// inherit makes a process of a cell our child: while what made it is still there, its exit code
// would be lost, and nobody would reap it. Only descendants of ours are ended for that.
func inherit(pid int) {
	for {
		above := pid // in the end the child of ours that pid descends from
		for parent := parentOf(above); parent != os.Getpid(); parent = parentOf(above) {
			if parent == 0 {
				return // it is none
			}
			above = parent
		}
		if above == pid {
			return
		}
		_ = unix.Kill(above, unix.SIGKILL) // it has nothing left to do; not reaped, it keeps its number
		for {
			if _, err := unix.Wait4(above, nil, 0, nil); err != unix.EINTR {
				break // reaped now, or by another start
			}
		}
	}
}

// parentOf is 0 when there is no such process.
func parentOf(pid int) int {
	fields, err := statFields(pid)
	if err != nil || len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}
