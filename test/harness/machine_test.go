package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A check for leftovers that overlooks one is worse than none.
func TestLeftSeesMountsAndProcesses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	before := Snap(dir)
	if left := mine(Left(before, dir, "")); len(left) > 0 {
		t.Fatalf("nothing happened, yet there is left: %q", left)
	}
	target := filepath.Join(dir, "mount")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", target, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(target, 0) })
	cmd := exec.Command("sleep", "1000")
	cmd.Env = []string{"LEAPCELL_PLATFORM=" + dir}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	left := Left(before, dir, "")
	for _, want := range []string{"mount " + target, "sleep 1000"} {
		if !slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("%q was overlooked: %q", want, left)
		}
	}
}

// mine leaves out what others on this machine do meanwhile.
func mine(left []string) []string {
	return slices.DeleteFunc(left, func(s string) bool { return !strings.Contains(s, "TestLeft") })
}

func TestCgroupOfThisProcess(t *testing.T) {
	group := (Process{os.Getpid()}).Cgroup()
	if len(group.paths) == 0 {
		t.Fatal("no control group was found")
	}
	if group.Frozen() {
		t.Error("this test is suspended, and yet it runs")
	}
}
