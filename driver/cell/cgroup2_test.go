package cell

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// pure2 is the hierarchy of a machine with version 2 alone, such as that of `make test-v2`.
func pure2(t *testing.T) *hierarchy {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroups")
	}
	h, err := detect()
	if err != nil {
		t.Fatal(err)
	}
	if h.unified == "" {
		t.Skip("needs a machine with cgroup version 2 alone")
	}
	return h
}

// resident is a process in the cgroup dir, which is made.
func resident(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // by the kill
		if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	})
	if err := writeText(filepath.Join(dir, "cgroup.procs"), itoa(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
}

// A parent that has processes, as in a container whose root is Nomad's own cgroup.
func TestCgroup2ParentInUse(t *testing.T) {
	h := pure2(t)
	parent := testParent + "-used"
	resident(t, filepath.Join(h.unified, parent))
	g := h.group(parent, "c1")
	err := g.create(Config{Mode: leapcell.TaskServerless, MemoryMB: 128}.limits([]int{0}))
	if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), parent+" has processes") {
		t.Errorf("error is %v, want one that tells what to do", err)
	}
}

// The kernel enables what the groups below need, takes exactly our limits, and does not let
// processes into swap.
func TestCgroup2Limits(t *testing.T) {
	h := pure2(t)
	g := h.group(testParent, "limits").(*cgroup2)
	defer g.remove()
	c := Config{Mode: leapcell.TaskServerless, MemoryMB: 256}
	if err := g.create(c.limits([]int{0})); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"memory.max": "268435456", "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "1024",
		"cpu.max": "20000 20000", "cpuset.cpus": "0", "cpuset.cpus.effective": "0",
	} {
		expect(t, g.file(name), want)
	}
	if err := g.setQuota(c.quota()); err != nil {
		t.Fatal(err)
	}
	expect(t, g.file("cpu.max"), "2894 20000")
	if cpus, err := h.allowed(); err != nil || len(cpus) == 0 {
		t.Errorf("cores that cells may have: %v (%v)", cpus, err)
	}
}

// Whoever removes a group right after the kill must not see the kernel's refusal.
func TestCgroup2RemoveWaits(t *testing.T) {
	h := pure2(t)
	for range 20 {
		g := h.group(testParent, "dying").(*cgroup2)
		resident(t, g.file(""))
		if err := errors.Join(g.kill(), g.remove()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(g.file("")); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the group is still there: %v", err)
		}
	}
}
