package cell

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// cgroup1 is a group in the separate hierarchies of version 1.
type cgroup1 struct {
	h          *hierarchy
	parent, id string
}

func (g *cgroup1) path() string { return filepath.Join("/", g.parent, g.id) }

func (g *cgroup1) file(controller, name string) string {
	return filepath.Join(g.h.v1[controller], g.parent, g.id, name)
}

func (g *cgroup1) create(l limits) error {
	for _, c := range needed {
		if err := os.MkdirAll(g.file(c, ""), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	if err := g.prepareCpuset(); err != nil {
		return err
	}
	memory := strconv.FormatInt(l.MemoryBytes, 10)
	writes := []struct{ controller, name, value string }{
		{"cpuset", "cpuset.cpus", formatCPUs(l.CPUs)},
		{"memory", "memory.limit_in_bytes", memory},
		{"pids", "pids.max", strconv.FormatInt(l.Pids, 10)},
		{"cpu", "cpu.cfs_period_us", micros(leapcell.CPUPeriod)},
		{"cpu", "cpu.cfs_quota_us", micros(l.Quota)},
	}
	for _, w := range writes {
		if err := writeText(g.file(w.controller, w.name), w.value); err != nil {
			return fmt.Errorf("set %s to %s: %w", w.name, w.value, err)
		}
	}
	// Memory and swap together: no swap. Absent where the kernel does not account for swap.
	if err := writeOptional(g.file("memory", "memory.memsw.limit_in_bytes"), memory); err != nil {
		return fmt.Errorf("set memory.memsw.limit_in_bytes: %w", err)
	}
	return nil
}

// prepareCpuset copies cores and memory nodes down the tree: a new cpuset is empty, and
// nothing can be put into an empty one.
func (g *cgroup1) prepareCpuset() error {
	above := g.h.v1["cpuset"]
	for _, dir := range []string{filepath.Join(above, g.parent), g.file("cpuset", "")} {
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if text, err := readText(filepath.Join(dir, name)); err != nil || text != "" {
				if err != nil {
					return fmt.Errorf("prepare cpuset: %w", err)
				}
				continue
			}
			text, err := readText(filepath.Join(above, name))
			if err == nil {
				err = writeText(filepath.Join(dir, name), text)
			}
			if err != nil {
				return fmt.Errorf("prepare cpuset: %w", err)
			}
		}
		above = dir
	}
	return nil
}

func (g *cgroup1) setQuota(q time.Duration) error {
	return writeText(g.file("cpu", "cpu.cfs_quota_us"), micros(q))
}

// freeze asks and then reads until it is so: the read itself moves FREEZING on to FROZEN, and
// version 1 has no event. It is a matter of microseconds.
func (g *cgroup1) freeze() error {
	f, err := os.OpenFile(g.file("freezer", "freezer.state"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("FROZEN"); err != nil {
		return err
	}
	deadline := time.Now().Add(freezeLimit)
	buf := make([]byte, 16)
	for try := 0; ; try++ {
		n, err := f.ReadAt(buf, 0)
		if n == 0 {
			return err
		}
		if strings.HasPrefix(string(buf[:n]), "FROZEN") {
			return nil
		}
		if try < 100 {
			runtime.Gosched()
			continue
		}
		if time.Now().After(deadline) {
			return errors.Join(errFreezeTimeout, g.thaw())
		}
		time.Sleep(50 * time.Microsecond)
	}
}

func (g *cgroup1) thaw() error { return writeText(g.file("freezer", "freezer.state"), "THAWED") }

func (g *cgroup1) frozen() (bool, error) {
	text, err := readText(g.file("freezer", "freezer.state"))
	return text != "THAWED" && err == nil, err
}

func (g *cgroup1) procs() ([]int, error) { return readProcs(g.file("memory", "cgroup.procs")) }

func (g *cgroup1) stats() (s Stats, err error) {
	if s.CPUNanos, err = readUint(g.file("cpuacct", "cpuacct.usage")); err != nil {
		return s, err
	}
	if s.Memory, err = readUint(g.file("memory", "memory.usage_in_bytes")); err != nil {
		return s, err
	}
	if s.MaxMemory, err = readUint(g.file("memory", "memory.max_usage_in_bytes")); err != nil {
		return s, err
	}
	if s.Pids, err = readUint(g.file("pids", "pids.current")); err != nil {
		return s, err
	}
	memory, err := readKeys(g.file("memory", "memory.stat"))
	if err != nil {
		return s, err
	}
	s.Memory -= min(s.Memory, memory["total_inactive_file"])
	cpu, err := readKeys(g.file("cpu", "cpu.stat"))
	s.Periods, s.Throttled, s.ThrottledNanos = cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_time"]
	return s, err
}

func (g *cgroup1) oomKills() (uint64, error) {
	keys, err := readKeys(g.file("memory", "memory.oom_control"))
	return keys["oom_kill"], err
}

// watchOOM has the kernel signal an eventfd when the group runs out of memory. The signal
// comes a moment before the kill is counted.
func (g *cgroup1) watchOOM(f func()) (stop func(), err error) {
	control, err := os.Open(g.file("memory", "memory.oom_control"))
	if err != nil {
		return nil, err
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		control.Close()
		return nil, err
	}
	event := os.NewFile(uintptr(fd), "oom event")
	if err := writeText(g.file("memory", "cgroup.event_control"), fmt.Sprintf("%d %d", fd, control.Fd())); err != nil {
		control.Close()
		event.Close()
		return nil, err
	}
	go func() {
		defer control.Close()
		// The cell runs already: what happened before now has no event any more.
		n, err := g.oomKills()
		killed, buf := err == nil && n > 0, make([]byte, 8)
		for !killed {
			if _, err := event.Read(buf); err != nil {
				return // stopped
			}
			killed = g.killedSoon()
		}
		f()
	}()
	return func() { event.Close() }, nil
}

// killedSoon waits for the kill that follows an out-of-memory event. On a busy machine it may take
// long. It gives up after a minute: memory may have become free instead; or at once when the group is gone.
func (g *cgroup1) killedSoon() bool {
	pause := time.Millisecond
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(pause) {
		n, err := g.oomKills()
		if err != nil {
			return false
		}
		if n > 0 {
			return true
		}
		pause = min(pause*2, 50*time.Millisecond)
	}
	return false
}

func (g *cgroup1) cpus() ([]int, error) {
	text, err := readText(g.file("cpuset", "cpuset.cpus"))
	if err != nil {
		return nil, err
	}
	return parseCPUs(text)
}

// kill signals first and thaws then, so that nothing runs in between.
func (g *cgroup1) kill() error {
	if err := killAll(g); err != nil {
		return err
	}
	if err := g.thaw(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (g *cgroup1) remove() error { return g.h.removeGroup(g.parent, g.id) }
