package cell

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// emptyLimit is how long killed processes may take to be gone.
const emptyLimit = 2 * time.Second

// cgroup2 is a group in the one hierarchy of version 2.
type cgroup2 struct {
	h          *hierarchy
	parent, id string
}

func (g *cgroup2) path() string { return filepath.Join("/", g.parent, g.id) }

func (g *cgroup2) file(name string) string {
	return filepath.Join(g.h.unified, g.parent, g.id, name)
}

func (g *cgroup2) create(l limits) error {
	parent := filepath.Join(g.h.unified, g.parent)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	for _, dir := range []string{g.h.unified, parent} {
		if err := enableControllers(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(g.file(""), 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	writes := []struct {
		name, value string
		optional    bool
	}{
		{"memory.max", strconv.FormatInt(l.MemoryBytes, 10), false},
		{"pids.max", strconv.FormatInt(l.Pids, 10), false},
		{"cpu.max", cpuMax(l.Quota), false},
		{"memory.swap.max", "0", true},  // absent where the kernel does not account for swap
		{"memory.oom.group", "1", true}, // an instance without one of its processes is of no use [ID6]
		{"cpuset.cpus", formatCPUs(l.CPUs), true},
	}
	for _, w := range writes {
		write := writeText
		if w.optional {
			write = writeOptional
		}
		if err := write(g.file(w.name), w.value); err != nil {
			return fmt.Errorf("set %s to %s: %w", w.name, w.value, err)
		}
	}
	return nil
}

// enableControllers lets the groups below dir have what we set. cpuset may be missing.
func enableControllers(dir string) error {
	has, err := readText(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the cgroup controllers: %w", err)
	}
	on, err := readText(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return fmt.Errorf("read the cgroup controllers: %w", err)
	}
	available, enabled := strings.Fields(has), strings.Fields(on)
	// Memory first: a group with processes refuses it, where it would take the others and be of a
	// kind that cells cannot be below.
	for _, c := range []string{"memory", "cpu", "pids", "cpuset"} {
		if slices.Contains(enabled, c) {
			continue
		}
		if !slices.Contains(available, c) {
			if c == "cpuset" {
				continue
			}
			return leapcell.Errorf(leapcell.CodeUnavailable, "cgroup %s has no controller %q: let systemd or the kernel command line enable it", dir, c)
		}
		err := writeText(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP) { // only the machine's own root may have both
			return leapcell.Wrap(leapcell.CodeUnavailable, err, fmt.Sprintf("cgroup %s has processes, so groups below it cannot have the controller %q: "+
				"in a container, start Nomad in a cgroup below that of the container", dir, c))
		}
		if err != nil {
			return fmt.Errorf("enable the cgroup controller %s in %s: %w", c, dir, err)
		}
	}
	return nil
}

func cpuMax(q time.Duration) string { return micros(q) + " " + micros(leapcell.CPUPeriod) }

func (g *cgroup2) setQuota(q time.Duration) error { return writeText(g.file("cpu.max"), cpuMax(q)) }

// freeze asks and then sleeps until the kernel says that it is so.
func (g *cgroup2) freeze() error {
	events, err := os.Open(g.file("cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	if err := writeText(g.file("cgroup.freeze"), "1"); err != nil {
		return err
	}
	frozen, err := awaitEvent(events, "frozen 1", freezeLimit)
	if err == nil && !frozen {
		err = errors.Join(errFreezeTimeout, g.thaw())
	}
	return err
}

// awaitEvent sleeps until a line of cgroup.events is there, and reports whether it came.
func awaitEvent(events *os.File, line string, limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	buf := make([]byte, 128)
	for {
		n, err := events.ReadAt(buf, 0)
		if n == 0 {
			return false, err
		}
		if strings.Contains("\n"+string(buf[:n]), "\n"+line) {
			return true, nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return false, nil
		}
		// A change of the file is an exceptional condition. It may have come between the read
		// and this call: the kernel then answers at once.
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return false, err
		}
	}
}

func (g *cgroup2) thaw() error { return writeText(g.file("cgroup.freeze"), "0") }

func (g *cgroup2) frozen() (bool, error) {
	text, err := readText(g.file("cgroup.freeze"))
	return text == "1", err
}

func (g *cgroup2) procs() ([]int, error) { return readProcs(g.file("cgroup.procs")) }

func (g *cgroup2) stats() (s Stats, err error) {
	if s.Memory, err = readUint(g.file("memory.current")); err != nil {
		return s, err
	}
	// memory.peak came with Linux 5.19.
	if s.MaxMemory, err = readUint(g.file("memory.peak")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if s.Pids, err = readUint(g.file("pids.current")); err != nil {
		return s, err
	}
	memory, err := readKeys(g.file("memory.stat"))
	if err != nil {
		return s, err
	}
	s.MaxMemory = max(s.MaxMemory, s.Memory)
	s.Memory -= min(s.Memory, memory["inactive_file"])
	cpu, err := readKeys(g.file("cpu.stat"))
	s.CPUNanos = cpu["usage_usec"] * 1000
	s.Periods, s.Throttled, s.ThrottledNanos = cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_usec"]*1000
	return s, err
}

func (g *cgroup2) oomKills() (uint64, error) {
	keys, err := readKeys(g.file("memory.events"))
	return keys["oom_kill"], err
}

// watchOOM has nothing to do: memory.oom.group makes the kernel kill all at once.
func (g *cgroup2) watchOOM(func()) (stop func(), err error) { return func() {}, nil }

func (g *cgroup2) cpus() ([]int, error) {
	text, err := readText(g.file("cpuset.cpus"))
	if err != nil {
		return nil, err
	}
	return parseCPUs(text)
}

// kill uses the kernel's own switch, which no fork can outrun (Linux 5.14), else signals one by one.
func (g *cgroup2) kill() error {
	err := writeText(g.file("cgroup.kill"), "1")
	if err == nil || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := killAll(g); err != nil {
		return err
	}
	if err := g.thaw(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remove sleeps until the last process is gone: until then the kernel refuses. Should one not
// go, the refusal names the group.
func (g *cgroup2) remove() error {
	if events, err := os.Open(g.file("cgroup.events")); err == nil {
		_, err = awaitEvent(events, "populated 0", emptyLimit)
		if err := errors.Join(err, events.Close()); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return g.h.removeGroup(g.parent, g.id)
}
