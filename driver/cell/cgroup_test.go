package cell

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

const pureMounts = `22 27 0:21 / /proc rw - proc proc rw
33 24 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
`

const hybridMounts = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`

func TestParseHierarchy(t *testing.T) {
	pure, err := parseHierarchy(strings.NewReader(pureMounts))
	if err != nil {
		t.Fatal(err)
	}
	if pure.unified != "/sys/fs/cgroup" {
		t.Errorf("pure version 2 is at %q", pure.unified)
	}
	hybrid, err := parseHierarchy(strings.NewReader(hybridMounts))
	if err != nil {
		t.Fatal(err)
	}
	if hybrid.unified != "" || hybrid.v1["cpuacct"] != "/sys/fs/cgroup/cpu,cpuacct" || hybrid.v1["memory"] != "/sys/fs/cgroup/memory" {
		t.Errorf("hybrid is %+v", hybrid)
	}
	if len(hybrid.all) != 7 {
		t.Errorf("%d mounts have to be cleaned, want 7: %v", len(hybrid.all), hybrid.all)
	}
	for _, gone := range []string{"freezer", "pids", "cpuset"} {
		lines := slices.DeleteFunc(strings.SplitAfter(hybridMounts, "\n"), func(l string) bool { return strings.Contains(l, gone) })
		if _, err := parseHierarchy(strings.NewReader(strings.Join(lines, ""))); err == nil || !strings.Contains(err.Error(), gone) {
			t.Errorf("without %s: error is %v, want one that names it", gone, err)
		}
	}
}

// fake2 is a version 2 tree of plain files. The kernel would make the files of each group.
func fake2(t *testing.T, files map[string]string) *cgroup2 {
	t.Helper()
	root := t.TempDir()
	g := (&hierarchy{unified: root, all: []string{root}}).group("leapcell-x", "c1").(*cgroup2)
	for _, dir := range []string{"", "leapcell-x"} {
		put(t, filepath.Join(root, dir, "cgroup.controllers"), "cpuset cpu io memory pids\n")
		put(t, filepath.Join(root, dir, "cgroup.subtree_control"), "memory\n")
	}
	for _, name := range []string{"memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cpuset.cpus", "cgroup.freeze", "cgroup.kill"} {
		put(t, g.file(name), "")
	}
	for name, text := range files {
		put(t, g.file(name), text)
	}
	return g
}

func put(t *testing.T, name, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, name, want string) {
	t.Helper()
	if got, err := readText(name); err != nil || got != want {
		t.Errorf("%s holds %q (%v), want %q", filepath.Base(name), got, err, want)
	}
}

func TestCgroup2Create(t *testing.T) {
	g := fake2(t, nil)
	c := Config{Mode: leapcell.TaskServerless, MemoryMB: 256}
	if err := g.create(c.limits([]int{1, 3})); err != nil {
		t.Fatal(err)
	}
	expect(t, g.file("memory.max"), "268435456")
	expect(t, g.file("memory.swap.max"), "0")
	expect(t, g.file("memory.oom.group"), "1")
	expect(t, g.file("pids.max"), "1024")
	expect(t, g.file("cpu.max"), "20000 20000") // the boost of CP3
	expect(t, g.file("cpuset.cpus"), "1,3")
	if err := g.setQuota(c.quota()); err != nil {
		t.Fatal(err)
	}
	expect(t, g.file("cpu.max"), "2894 20000") // 14.47 % [CP1]
}

func TestCgroup2WithoutController(t *testing.T) {
	g := fake2(t, nil)
	put(t, filepath.Join(g.h.unified, "cgroup.controllers"), "cpu pids")
	put(t, filepath.Join(g.h.unified, "cgroup.subtree_control"), "cpu pids")
	err := g.create(limits{})
	if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(err.Error(), `"memory"`) {
		t.Errorf("error is %v, want one that names the controller", err)
	}
}

func TestCgroup2Stats(t *testing.T) {
	g := fake2(t, map[string]string{
		"memory.current": "5000\n", "memory.peak": "9000\n", "pids.current": "3\n", "memory.stat": "anon 1\ninactive_file 1000\n",
		"cpu.stat":      "usage_usec 7\nuser_usec 5\nnr_periods 4\nnr_throttled 2\nthrottled_usec 11\n",
		"memory.events": "low 0\noom 1\noom_kill 2\noom_group_kill 1\n", "cgroup.procs": "12\n7\n0\n", "cpuset.cpus": "0-1,3\n",
	})
	s, err := g.stats()
	want := Stats{CPUNanos: 7000, Memory: 4000, MaxMemory: 9000, Periods: 4, Throttled: 2, ThrottledNanos: 11000, Pids: 3}
	if err != nil || s != want {
		t.Errorf("stats are %+v (%v), want %+v", s, err, want)
	}
	if n, err := g.oomKills(); n != 2 || err != nil {
		t.Errorf("%d kills (%v), want 2", n, err)
	}
	if pids, err := g.procs(); !slices.Equal(pids, []int{7, 12}) || err != nil {
		t.Errorf("processes are %v (%v)", pids, err)
	}
	if cpus, err := g.cpus(); !slices.Equal(cpus, []int{0, 1, 3}) || err != nil {
		t.Errorf("cores are %v (%v)", cpus, err)
	}
}

func TestCgroup2FreezeGivesUp(t *testing.T) {
	g := fake2(t, map[string]string{"cgroup.events": "populated 1\nfrozen 0\n"})
	if err := g.freeze(); !errors.Is(err, errFreezeTimeout) {
		t.Errorf("error is %v, want the time limit", err)
	}
	expect(t, g.file("cgroup.freeze"), "0") // what is half frozen is thawed
}

// The core of version 2, which freezes and kills, is there on hybrid machines too.
func TestCgroup2OnTheKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroups")
	}
	h, err := detect()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(h.all, func(mount string) bool {
		_, err := os.Stat(filepath.Join(mount, "cgroup.controllers"))
		return err == nil
	})
	if i < 0 {
		t.Skip("this machine has no version 2 tree at all")
	}
	g := (&hierarchy{unified: h.all[i], all: h.all[i : i+1]}).group(testParent, "v2").(*cgroup2)
	if err := os.MkdirAll(g.file(""), 0o755); err != nil {
		t.Fatal(err)
	}
	defer g.remove()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if err := writeText(g.file("cgroup.procs"), itoa(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	from := time.Now()
	if err := g.freeze(); err != nil {
		t.Fatal(err)
	}
	t.Logf("freezing took %s", time.Since(from))
	if frozen, err := g.frozen(); !frozen || err != nil {
		t.Errorf("frozen is %v (%v)", frozen, err)
	}
	if err := g.kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process ended with %v, want a kill", err)
	}
	if err := g.remove(); err != nil {
		t.Error(err)
	}
	if err := g.kill(); err != nil {
		t.Errorf("killing a group that is gone: %v", err)
	}
}

func itoa(n int) string { return formatCPUs([]int{n}) }

func TestCPUPicker(t *testing.T) {
	var p cpuPicker
	all := []int{0, 1, 2, 3}
	if got := p.pick(all, 1); !slices.Equal(got, []int{0}) {
		t.Errorf("first is %v", got)
	}
	if got := p.pick(all, 2); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("second is %v, want the unused ones", got)
	}
	p.use([]int{3})
	p.release([]int{1, 2})
	if got := p.pick(all, 1); !slices.Equal(got, []int{1}) {
		t.Errorf("third is %v, want a released one", got)
	}
	if got := p.pick(all, 9); !slices.Equal(got, all) {
		t.Errorf("more than there are gives %v", got)
	}
}

func TestParseCPUs(t *testing.T) {
	for text, want := range map[string][]int{"0-2,5\n": {0, 1, 2, 5}, "": nil, "7": {7}} {
		if got, err := parseCPUs(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q is %v (%v), want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"a", "2-1", "1-", "-1", "0-99999999"} {
		if _, err := parseCPUs(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestForeignExit(t *testing.T) {
	// Other tests make this process the reaper of orphans; here it must not be.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	for what, after := range map[string]string{"not reaped": "exec sleep 5", "reaped": "wait; sleep 5"} {
		t.Run(what, func(t *testing.T) {
			// The process is the child of a shell, so its exit can only be asked of the kernel.
			cmd := exec.Command("sh", "-c", "(sleep 0.1; exit 5) & echo $!; "+after)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { cmd.Process.Kill(); cmd.Wait() }()
			pid, err := strconv.Atoi(line(t, out))
			if err != nil {
				t.Fatal(err)
			}
			p, err := openProcess(pid)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			exit, err := p.wait()
			if err != nil {
				t.Fatal(err)
			}
			var u unix.Utsname
			unix.Uname(&u)
			if exit.Code != 5 && (what == "not reaped" || exit.Code != -1) {
				t.Errorf("exit is %+v on Linux %s, want code 5, or -1 when reaped before Linux 6.15", exit, unix.ByteSliceToString(u.Release[:]))
			}
			t.Logf("exit is %+v", exit)
		})
	}
}
