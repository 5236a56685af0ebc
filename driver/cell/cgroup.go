package cell

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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

// cgroup is the control group of one cell. The two versions of the kernel's interface differ
// in everything but this. Callers serialise freeze and thaw.
type cgroup interface {
	// create makes the group and sets its limits.
	create(limits) error
	// setQuota changes the CPU time per period.
	setQuota(time.Duration) error
	// freeze returns when no process inside runs any more.
	freeze() error
	thaw() error
	frozen() (bool, error)
	// procs are the host's process IDs inside; none when the group is gone.
	procs() ([]int, error)
	stats() (Stats, error)
	// oomKills counts the processes that the kernel killed for want of memory.
	oomKills() (uint64, error)
	// watchOOM calls f at most once, from another goroutine, after the kernel killed one process
	// of the group and left others alive. stop ends the watch.
	watchOOM(f func()) (stop func(), err error)
	// cpus are the cores it sees.
	cpus() ([]int, error)
	// kill sends SIGKILL to everything inside, frozen or not.
	kill() error
	// remove deletes the group; one that is gone is no error.
	remove() error
	// path names the group to an OCI runtime.
	path() string
}

// hierarchy is where the kernel shows control groups on this machine.
type hierarchy struct {
	unified string            // the mount of a pure version 2; "" for version 1 and hybrid
	v1      map[string]string // version 1: controller or name -> mount
	hybrid  string            // the mount of version 2 beside version 1, "" without one
	all     []string          // every cgroup mount of any version: an OCI runtime makes folders in each
}

// needed are the version 1 controllers that we set.
var needed = []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "freezer"}

// detect reads the mounts of this machine.
func detect() (*hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find the cgroup mounts: %w", err)
	}
	defer f.Close()
	return parseHierarchy(f)
}

// parseHierarchy reads mountinfo. A unified mount beside a version 1 memory controller is a
// hybrid set-up: its controllers are those of version 1.
func parseHierarchy(r io.Reader) (*hierarchy, error) {
	h := &hierarchy{v1: map[string]string{}}
	unified := ""
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		fields, end := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(end) < 3 {
			continue
		}
		mount := fields[4]
		switch end[0] {
		case "cgroup2":
			if unified == "" {
				unified = mount
			}
			h.all = append(h.all, mount)
		case "cgroup":
			for option := range strings.SplitSeq(end[2], ",") {
				if option != "rw" && option != "xattr" {
					h.v1[option] = mount
				}
			}
			h.all = append(h.all, mount)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("find the cgroup mounts: %w", err)
	}
	if h.v1["memory"] == "" && unified != "" {
		h.unified = unified
		return h, nil
	}
	h.hybrid = unified
	for _, c := range needed {
		if h.v1[c] == "" {
			return nil, leapcell.Errorf(leapcell.CodeUnavailable,
				"this machine has no cgroup controller %q: mount cgroup2 at /sys/fs/cgroup, or the version 1 controllers %s", c, strings.Join(needed, ", "))
		}
	}
	return h, nil
}

// group is the cgroup id below parent.
func (h *hierarchy) group(parent, id string) cgroup {
	if h.unified != "" {
		return &cgroup2{h: h, parent: parent, id: id}
	}
	return &cgroup1{h: h, parent: parent, id: id}
}

// allowed are the cores that cells may be given.
func (h *hierarchy) allowed() ([]int, error) {
	name := filepath.Join(h.unified, "cpuset.cpus.effective")
	if h.unified == "" {
		name = filepath.Join(h.v1["cpuset"], "cpuset.cpus")
	}
	if text, err := readText(name); err == nil {
		if cpus, err := parseCPUs(text); err == nil && len(cpus) > 0 {
			return cpus, nil
		}
	}
	// No cpuset controller: what this process may use.
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read the CPU affinity: %w", err)
	}
	var cpus []int
	for c := range len(set) * strconv.IntSize {
		if set.IsSet(c) {
			cpus = append(cpus, c)
		}
	}
	return cpus, nil
}

// removeGroup deletes parent/id in every mount, also in those that only the runtime used.
func (h *hierarchy) removeGroup(parent, id string) error {
	var errs []error
	for _, mount := range h.all {
		errs = append(errs, removeTree(filepath.Join(mount, parent, id)))
	}
	return errors.Join(errs...)
}

// removeTree deletes a cgroup folder and those below it, deepest first. The kernel answers
// EBUSY for a moment after the last process died: there is no event for that in version 1.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	deadline := time.Now().Add(2 * time.Second)
	for pause := 100 * time.Microsecond; ; pause = min(pause*2, 20*time.Millisecond) {
		err = unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY && err != unix.EINTR || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		time.Sleep(pause)
	}
}

func readText(name string) (string, error) {
	b, err := os.ReadFile(name)
	return strings.TrimSpace(string(b)), err
}

func readUint(name string) (uint64, error) {
	text, err := readText(name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(text, 10, 64)
}

// readKeys reads a flat file of "name number" lines.
func readKeys(name string) (map[string]uint64, error) {
	text, err := readText(name)
	if err != nil {
		return nil, err
	}
	keys := make(map[string]uint64)
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 {
			if v, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				keys[f[0]] = v
			}
		}
	}
	return keys, nil
}

// writeText writes to a control file, which must exist: a missing one is a missing controller.
func writeText(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// writeOptional writes to a control file that not every kernel has.
func writeOptional(name, value string) error {
	if err := writeText(name, value); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// readProcs reads a cgroup.procs file.
func readProcs(name string) ([]int, error) {
	text, err := readText(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.FieldsSeq(text) {
		pid, err := strconv.Atoi(line)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if pid > 0 { // 0 is a process of a namespace that we do not see
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// killAll sends SIGKILL to the processes of g until none is new: some may fork meanwhile.
func killAll(g cgroup) error {
	seen := map[int]bool{}
	for {
		pids, err := g.procs()
		if err != nil {
			return err
		}
		fresh := false
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
			fresh = fresh || !seen[pid]
			seen[pid] = true
		}
		if !fresh {
			return nil
		}
	}
}

// freezeLimit is how long a freeze may take: a process deep in the kernel, such as one that
// waits for a disk, stops only when it comes out of it.
const freezeLimit = time.Second

var errFreezeTimeout = errors.New("some process of the cell did not stop within " + freezeLimit.String())

func micros(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }
