package harness

import (
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

// Process is a process of this machine as the kernel shows it to root.
type Process struct{ PID int }

// Processes are those for which keep is true.
func Processes(keep func(Process) bool) []Process {
	var out []Process
	entries, _ := os.ReadDir("/proc") // it is there, or nothing works
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && keep(Process{pid}) {
			out = append(out, Process{pid})
		}
	}
	return out
}

// File is a file of /proc/{pid}, empty when the process is gone.
func (p Process) File(name string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID, name))
	if err != nil {
		return ""
	}
	return string(b)
}

// Args is the command line.
func (p Process) Args() []string {
	return strings.Split(strings.TrimRight(p.File("cmdline"), "\x00"), "\x00")
}

// Env is one variable of the process as it was started.
func (p Process) Env(name string) string {
	for kv := range strings.SplitSeq(p.File("environ"), "\x00") {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// Memory is what /proc says of the process, in KiB: its share of all pages, and private what
// would be free without it.
func (p Process) Memory() (pss, private int64) {
	for line := range strings.Lines(p.File("smaps_rollup")) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		kib, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "Pss:":
			pss = kib
		case "Private_Clean:", "Private_Dirty:":
			private += kib
		}
	}
	return pss, private
}

// Alive reports whether the process still runs. One whose first thread has ended has its files
// and ports until the last one has, too.
func (p Process) Alive() bool {
	stat := p.File("stat")
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 18 {
		return false
	}
	state, threads := fields[0], fields[17]
	return state != "X" && (state != "Z" || threads != "1")
}

// Started is when it was, in the kernel's ticks; 0 when it is gone.
func (p Process) Started() int64 {
	stat := p.File("stat")
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0
	}
	ticks, _ := strconv.ParseInt(fields[19], 10, 64)
	return ticks
}

// Namespace is the identity of one of the process's namespaces.
func (p Process) Namespace(kind string) string {
	link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID, kind))
	return link
}

// Parts finds the platform's own processes by the name of the executable and the first of
// their arguments that is not a flag or its value: "agent", "supervisor", or "" for none.
func (p *Platform) Parts(executable, command string) []Process {
	return Processes(func(q Process) bool {
		args := append(q.Args(), "")
		if filepath.Base(args[0]) != executable || !q.of(p.Config.StateDir) {
			return false
		}
		return args[1] == command || command == "" && strings.HasPrefix(args[1], "-")
	})
}

// of reports whether the process belongs to the platform in dir.
func (p Process) of(dir string) bool {
	return strings.Contains(p.File("cmdline"), dir) || p.Env("LEAPCELL_PLATFORM") == dir
}

// Inside is the probe app's process of an instance, as the machine sees it.
func (s *Service) Inside(t testing.TB, instance string) Process {
	t.Helper()
	found := slices.DeleteFunc(Members(instance), func(p Process) bool {
		return filepath.Base(p.Args()[0]) != "probe" || slices.Contains(p.Args(), "child")
	})
	if len(found) != 1 {
		t.Fatalf("instance %q of %s: %d processes of the probe app on this machine, want 1", instance, s.Name, len(found))
	}
	return found[0]
}

// Members are the processes of an instance.
func Members(instance string) []Process {
	return Processes(func(p Process) bool { return p.Env("LEAPCELL_INSTANCE") == instance })
}

// Builder is the first process in the sandbox of the build that a Nomad job runs, with which the others
// end; none when it has ended.
func (p *Platform) Builder(t testing.TB, job string) []Process {
	t.Helper()
	allocs, _, err := p.Nomad.Jobs().Allocations(job, true, (&nomad.QueryOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatalf("allocations of %s: %v", job, err)
	}
	return Processes(func(q Process) bool {
		return slices.ContainsFunc(allocs, func(a *nomad.AllocationListStub) bool { return strings.Contains(q.File("cgroup"), "/"+a.ID[:8]+"-") }) && q.leads()
	})
}

// leads reports whether the process is the first one of a namespace that is directly below ours.
func (p Process) leads() bool {
	_, rest, _ := strings.Cut(p.File("status"), "\nNSpid:")
	line, _, _ := strings.Cut(rest, "\n")
	ids := strings.Fields(line)
	return len(ids) == 2 && ids[1] == "1"
}

// Cgroup is the control group of a process, whichever version this machine has.
type Cgroup struct{ paths map[string]string }

// Cgroup finds where each controller of the process is.
func (p Process) Cgroup() Cgroup {
	c := Cgroup{map[string]string{}}
	for line := range strings.Lines(p.File("cgroup")) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[1] == "" {
			c.paths["v2"] = filepath.Join(unified(), parts[2])
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			if dir := filepath.Join("/sys/fs/cgroup", controller, parts[2]); controller != "" && exists(dir) {
				c.paths[controller] = dir
			}
		}
	}
	return c
}

func unified() string {
	if exists("/sys/fs/cgroup/cgroup.controllers") {
		return "/sys/fs/cgroup"
	}
	return "/sys/fs/cgroup/unified"
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// read gives a file of the named v1 controller, else of v2.
func (c Cgroup) read(controller, v1, v2 string) string {
	path := filepath.Join(c.paths["v2"], v2)
	if dir, ok := c.paths[controller]; ok {
		path = filepath.Join(dir, v1)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Frozen reports whether the group is suspended, all of it.
func (c Cgroup) Frozen() bool {
	s := c.read("freezer", "freezer.state", "cgroup.events")
	return s == "FROZEN" || strings.Contains(s, "frozen 1")
}

// HoldsKilled reports whether the group is suspended in the way of version 1, in which a process
// that somebody kills dies only when it is resumed.
func (c Cgroup) HoldsKilled() bool { return c.paths["freezer"] != "" && c.Frozen() }

// CPU is the CPU time that the group used.
func (c Cgroup) CPU(t testing.TB) time.Duration {
	t.Helper()
	s := c.read("cpuacct", "cpuacct.usage", "cpu.stat")
	if rest, ok := strings.CutPrefix(s, "usage_usec "); ok {
		first, _, _ := strings.Cut(rest, "\n")
		return time.Duration(atoi(t, first)) * time.Microsecond
	}
	return time.Duration(atoi(t, s))
}

// Quota is the CPU time that the group may use in each period.
func (c Cgroup) Quota(t testing.TB) (quota, period time.Duration) {
	t.Helper()
	if s := c.read("cpu", "cpu.cfs_quota_us", "cpu.max"); strings.Contains(s, " ") {
		a, b, _ := strings.Cut(s, " ")
		return time.Duration(atoi(t, a)) * time.Microsecond, time.Duration(atoi(t, b)) * time.Microsecond
	} else {
		return time.Duration(atoi(t, s)) * time.Microsecond, time.Duration(atoi(t, c.read("cpu", "cpu.cfs_period_us", ""))) * time.Microsecond
	}
}

// MemoryLimit is in bytes.
func (c Cgroup) MemoryLimit(t testing.TB) int64 {
	t.Helper()
	return atoi(t, c.read("memory", "memory.limit_in_bytes", "memory.max"))
}

func atoi(t testing.TB, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatalf("the control group says %q where a number should be", s)
	}
	return n
}

// Snapshot is what of a machine a platform touches: each thing is one line of text.
type Snapshot map[string]bool

// Snap takes a snapshot. Of processes only those count that could be a platform's: those of
// the folder dir, and those whose executable has one of the names that platforms run.
func Snap(dir string) Snapshot {
	s := Snapshot{}
	for _, p := range Processes(func(p Process) bool { return p.Alive() && (dir != "" && p.of(dir) || platformExecutable(p)) }) {
		s[fmt.Sprintf("process %d: %s", p.PID, strings.Join(p.Args(), " "))] = true
	}
	for line := range strings.Lines(Process{os.Getpid()}.File("mountinfo")) {
		if f := strings.Fields(line); len(f) > 5 {
			s["mount "+f[4]] = true
		}
	}
	for _, dir := range []string{"/run/netns", "/var/run/netns"} {
		names, _ := os.ReadDir(dir) // absent until the first one is made
		for _, n := range names {
			s["network namespace "+n.Name()] = true
		}
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		s["network link "+l.Name] = true
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() { // those that vanish meanwhile are no matter
			s["control group "+p] = true
		}
		return nil
	})
	var rules bytes.Buffer
	nft := exec.Command("nft", "list", "tables")
	nft.Stdout = &rules
	if nft.Run() == nil { // where there is no nft there are no rules of ours
		for line := range strings.Lines(rules.String()) {
			s["firewall "+strings.TrimSpace(line)] = true
		}
	}
	return s
}

func platformExecutable(p Process) bool {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
	switch name := strings.TrimSuffix(filepath.Base(exe), " (deleted)"); name {
	case "nomad", "vault", "leapcelld", "leapcell-edge", "nomad-driver-leapcell", "runc", "crun", "probe", "mmdebstrap":
		return true
	}
	return false
}

// Left is what there is now and was not before. On a machine that is shared with others, only
// what names the platform or its folder.
func Left(before Snapshot, dir, name string) []string {
	shared := os.Getenv("LEAPCELL_TEST_SHARED") != ""
	var left []string
	for thing := range Snap(dir) {
		ours := strings.Contains(thing, dir) || name != "" && strings.Contains(thing, name)
		if !before[thing] && (ours || !shared) {
			left = append(left, thing)
		}
	}
	slices.Sort(left)
	return left
}
