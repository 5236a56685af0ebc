package cell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// emulated says that the processor is: whatever is told by the clock comes late.
var emulated = os.Getenv("LEAPCELL_TEST_EMULATED") != ""

func TestServerlessSandbox(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		v := look(t, l, func(c *Config) { c.MemoryMB = 192 })
		equal := func(what string, got, want any) {
			t.Helper()
			if got != want {
				t.Errorf("%s is %v, want %v", what, got, want)
			}
		}
		equal("uid", v.UID, leapcell.InstanceUID)
		equal("gid", v.GID, leapcell.InstanceGID)
		equal("pid", v.PID, 1)
		equal("cpus", v.CPUs, 1)
		equal("cwd", v.Cwd, "/app")
		equal("hostname", v.Hostname, "python-1")
		equal("stdin", v.Stdin, "")
		equal("env", strings.Join(v.Env, " "), "PATH=/bin HOME=/tmp SECRET=kept in memory only")
		equal("resolv.conf", v.ResolvConf, "nameserver 192.0.2.53\n")
		equal("effective capabilities", v.CapEff, "0000000000000000")
		equal("bounding capabilities", v.CapBnd, "0000000000000000")
		equal("no_new_privs", v.NoNewPrivs, "1")
		equal("seccomp", v.Seccomp, "2")
		equal("/tmp MB", v.TmpMB, 192)
		equal("/tmp mode", v.TmpMode, "dtrwxrwxrwx")
		equal("processes", strings.Join(v.Procs, " "), "/proc/1")
		equal("/proc/keys", v.Keys, "")

		errno := func(what, got, want string) {
			t.Helper()
			if !strings.HasSuffix(got, want) || want == "" && got != "" {
				t.Errorf("%s gives %q, want %q", what, got, want)
			}
		}
		errno("write /", v.Write["/"], "read-only file system")
		errno("write /tmp", v.Write["/tmp"], "")
		errno("write /dev/shm", v.Write["/dev/shm"], "permission denied")
		errno("write /proc/sys", v.Write["/proc/sys/kernel/hostname"], "read-only file system")
		errno("write /etc/resolv.conf", v.Write["/etc/resolv.conf"], "read-only file system")
		for _, name := range []string{"/proc/sysrq-trigger", "/sys/kernel/x"} {
			if v.Write[name] == "" {
				t.Errorf("%s can be written to", name)
			}
		}
		for _, w := range v.CgroupWrite {
			if strings.HasSuffix(w, ": ") {
				t.Errorf("cgroup file can be written to: %s", w)
			}
		}
		for _, call := range []string{"mount", "unshare", "user namespace", "chown", "mknod", "chroot", "socket alg", "socket alg in disguise", "socket vsock"} {
			errno(call, v.Calls[call], "operation not permitted")
		}
		errno("socket inet", v.Calls["socket inet"], "")
		errno("socket netlink", v.Calls["socket netlink"], "")
		for _, kind := range []string{"pid", "mnt", "ipc", "uts", "net", "cgroup"} {
			host, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			if v.NS[kind] == "" || v.NS[kind] == host {
				t.Errorf("the %s namespace is that of the host", kind)
			}
		}
		for mount := range strings.Lines(v.Mounts) {
			// The root is the test's own folder here; that of an image tells nothing.
			if f := strings.Fields(mount); f[4] != "/" && strings.Contains(f[3], os.TempDir()) {
				t.Errorf("a path of the host is visible: %s", mount)
			}
		}
		if strings.Contains(v.Cgroup, "leapcell") {
			t.Errorf("the host's cgroup path is visible: %s", v.Cgroup)
		}
	})
}

func TestPersistentSandbox(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		v := look(t, l, func(c *Config) { c.Mode, c.MemoryMB = leapcell.TaskPersistent, 1024 })
		for _, where := range []string{"/", "cwd", "/tmp", "/dev/shm"} {
			if v.Write[where] != "" {
				t.Errorf("writing to %s fails: %s", where, v.Write[where])
			}
		}
		if v.TmpMB != leapcell.TmpMaxMB {
			t.Errorf("/tmp has %d MB, want %d", v.TmpMB, leapcell.TmpMaxMB)
		}
		if v.UID != leapcell.InstanceUID || v.CapEff != "0000000000000000" {
			t.Errorf("uid %d with capabilities %s, want an unprivileged user", v.UID, v.CapEff)
		}
	})
}

func TestInstanceUser(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		v := look(t, l, func(c *Config) { c.User = User{UID: 1234, GID: 2345} })
		if v.UID != 1234 || v.GID != 2345 || v.CapEff != "0000000000000000" || v.NoNewPrivs != "1" {
			t.Errorf("user %d:%d with capabilities %s", v.UID, v.GID, v.CapEff)
		}
	})
}

// A nested build may make sandboxes, but only as nobody and in no network of its own.
func TestNestedBuild(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		v := look(t, l, func(c *Config) { c.Mode, c.CPUs, c.Nested = leapcell.TaskBuild, 1, true })
		if v.Calls["user namespace"] != "" {
			t.Errorf("it gets no user namespace: %s", v.Calls["user namespace"])
		}
		for _, what := range []string{"net namespace", "mount", "mknod", "unshare"} {
			if v.Calls[what] == "" {
				t.Errorf("%s is allowed", what)
			}
		}
	})
}

func TestBuildSandbox(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		secret := filepath.Join(t.TempDir(), "pip.conf")
		if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		v := look(t, l, func(c *Config) {
			c.Mode, c.CPUs = leapcell.TaskBuild, 2
			c.Mounts = []Mount{{Source: secret, Target: "/etc/pip.conf", ReadOnly: true}}
		})
		if v.UID != 0 {
			t.Errorf("uid is %d, want 0", v.UID)
		}
		for _, what := range []string{"chown", "chroot"} {
			if v.Calls[what] != "" {
				t.Errorf("%s fails: %s", what, v.Calls[what])
			}
		}
		for _, what := range []string{"mount", "mknod", "unshare", "user namespace"} {
			if v.Calls[what] == "" {
				t.Errorf("%s is allowed", what)
			}
		}
		if v.Write["/"] != "" {
			t.Errorf("writing to / fails: %s", v.Write["/"])
		}
		if !strings.Contains(v.Mounts, " /etc/pip.conf ") {
			t.Error("the extra mount is missing")
		}
	})
}

func TestExitCode(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		c, _ := testConfig(t, "exit", "3")
		cell := start(t, l, c)
		if exit := wait(t, cell); exit != (Exit{Code: 3}) {
			t.Errorf("exit is %+v, want code 3", exit)
		}
	})
}

func TestNothingIsLeft(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		c, out := testConfig(t, "sleep")
		cell := start(t, l, c)
		line(t, out)
		state := filepath.Join("/run", testParent, c.ID)
		if err := filepath.WalkDir(state, func(name string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil // not every runtime has a folder
			}
			if err == nil && d.Type().IsRegular() {
				b, _ := os.ReadFile(name)
				if strings.Contains(string(b), "kept in memory only") {
					t.Errorf("%s holds the environment", name)
				}
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := cell.Delete(); err != nil {
				t.Fatal(err)
			}
		}
		left := []string{state, ownFiles(state), filepath.Join(c.Dir, "config.json")}
		for _, mount := range l.(*launcher).h.all {
			left = append(left, filepath.Join(mount, testParent, c.ID))
		}
		for _, name := range left {
			if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left", name)
			}
		}
		if exit := wait(t, cell); exit.Signal != int(unix.SIGKILL) {
			t.Errorf("exit is %+v, want a kill", exit)
		}
	})
}

func TestFreezeStopsTheClockOfTheCPU(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		c, out := testConfig(t, "spin")
		cell := start(t, l, c)
		line(t, out)
		cpu := func() uint64 {
			t.Helper()
			s, err := cell.Stats()
			if err != nil {
				t.Fatal(err)
			}
			return s.CPUNanos
		}
		if err := cell.Freeze(); err != nil {
			t.Fatal(err)
		}
		if !cell.Frozen() {
			t.Error("it does not say that it is frozen")
		}
		before := cpu()
		time.Sleep(50 * time.Millisecond) // the time in which it must not run
		if after := cpu(); after != before {
			t.Errorf("a frozen cell used %d ns", after-before)
		}
		if err := cell.Thaw(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(5 * time.Second); cpu() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a thawed cell does not run")
			}
		}
	})
}

func TestCap(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		c, out := testConfig(t, "spin")
		c.MemoryMB = 512 // 28.9 % of a core
		cell := start(t, l, c)
		line(t, out)
		measure := func(d time.Duration) (cores float64, throttled uint64) {
			t.Helper()
			before, err := cell.Stats()
			if err != nil {
				t.Fatal(err)
			}
			from := time.Now()
			time.Sleep(d)
			after, err := cell.Stats()
			if err != nil {
				t.Fatal(err)
			}
			return float64(after.CPUNanos-before.CPUNanos) / float64(time.Since(from)), after.Throttled - before.Throttled
		}
		// How much it gets depends on what else runs here; that nothing holds it back does not,
		// unless the processor is emulated and its periods come late.
		if cores, throttled := measure(300 * time.Millisecond); throttled > 3 && !emulated {
			t.Errorf("it was held back %d times at %.2f cores before it was ready, want a whole core", throttled, cores)
		}
		if err := cell.SetReady(); err != nil {
			t.Fatal(err)
		}
		measure(50 * time.Millisecond) // into the next period
		want := 512.0 / leapcell.MemoryPerCoreMB
		if cores, throttled := measure(time.Second); cores > want*1.1 || throttled == 0 {
			t.Errorf("it has %.3f cores and was held back %d times, want at most %.3f", cores, throttled, want)
		}
	})
}

func TestSignal(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		tests := []struct {
			name   string
			args   []string
			frozen bool
			want   Exit
			says   string
		}{
			{"handled", []string{"graceful"}, false, Exit{Code: 7}, "terminated"},
			{"handled when frozen", []string{"graceful"}, true, Exit{Code: 7}, "terminated"},
			{"left to its default", []string{"plain"}, false, Exit{Code: 143, Signal: 15}, ""},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				c, out := testConfig(t, tt.args...)
				cell := start(t, l, c)
				line(t, out)
				if tt.frozen {
					if err := cell.Freeze(); err != nil {
						t.Fatal(err)
					}
				}
				if err := cell.Signal(unix.SIGTERM); err != nil {
					t.Fatal(err)
				}
				if exit := wait(t, cell); exit != tt.want {
					t.Errorf("exit is %+v, want %+v", exit, tt.want)
				}
				if tt.says != "" {
					if got := line(t, out); got != tt.says {
						t.Errorf("the app says %q, want %q", got, tt.says)
					}
				}
			})
		}
	})
}

func TestSignalReachesChildren(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		c, out := testConfig(t, "parent", "graceful")
		cell := start(t, l, c)
		line(t, out) // of the child
		if err := cell.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := line(t, out); got != "terminated" {
			t.Errorf("the child says %q, want the signal's name", got)
		}
	})
}

func TestKillFrozen(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		c, out := testConfig(t, "sleep")
		cell := start(t, l, c)
		line(t, out)
		if err := cell.Freeze(); err != nil {
			t.Fatal(err)
		}
		if err := cell.Kill(); err != nil {
			t.Fatal(err)
		}
		if exit := wait(t, cell); exit != (Exit{Code: 137, Signal: 9}) {
			t.Errorf("exit is %+v, want signal 9", exit)
		}
	})
}

// Version 1 lets a frozen process that somebody killed die only when it is thawed. Whoever thaws it
// for a request hears that there is nobody to send it to, also when asking again.
func TestKilledByOthersWhenFrozen(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		c, out := testConfig(t, "sleep")
		cell := start(t, l, c)
		line(t, out)
		if err := cell.Freeze(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(cell.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		v2 := l.(*launcher).h.unified != ""
		if err := cell.Thaw(); !errors.Is(err, errDoomed) && !v2 { // there it is dead already
			t.Errorf("Thaw gives %v", err)
		}
		if exit := wait(t, cell); exit != (Exit{Code: 137, Signal: 9}) {
			t.Errorf("exit is %+v, want signal 9", exit)
		}
		if err := cell.Thaw(); !errors.Is(err, errDoomed) && !v2 {
			t.Errorf("the second Thaw gives %v", err)
		}
	})
}

// deadChildren are the stat lines of ours that nobody waited for.
func deadChildren(t *testing.T) (stats []string) {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		stat, _ := os.ReadFile(name)
		if strings.Contains(string(stat), fmt.Sprintf(") Z %d ", os.Getpid())) {
			stats = append(stats, string(stat))
		}
	}
	return stats
}

// What a runtime leaves behind is reaped, the cell's process too if it ends at once or if the start
// is cancelled in the middle.
func TestNobodyIsLeft(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		for i := range 5 {
			c, _ := testConfig(t, "exit", "7")
			if exit := wait(t, start(t, l, c)); exit.Code != 7 {
				t.Errorf("exit is %+v, want 7", exit)
			}
			c, _ = testConfig(t, "sleep")
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(5*i)*time.Millisecond)
			if cell, err := l.Start(ctx, c); err == nil {
				_ = cell.Delete() // it was quicker
			}
			cancel()
			c, out := testConfig(t, "sleep")
			cell := start(t, l, c)
			line(t, out)
			if err := cell.Delete(); err != nil {
				t.Error(err)
			}
		}
		// What a start that was cancelled left ends a moment later, and is reaped by the next one.
		var left []string
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			reapDead(l.Name())
			if left = deadChildren(t); len(left) == 0 || time.Now().After(deadline) {
				break
			}
		}
		for _, stat := range left {
			t.Errorf("a process is left: %s", stat)
		}
	})
}

func TestOutOfMemory(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		for _, args := range [][]string{{"eat"}, {"parent", "eat"}} {
			t.Run(strings.Join(args, " "), func(t *testing.T) {
				c, _ := testConfig(t, args...)
				cell := start(t, l, c)
				exit := wait(t, cell)
				if !exit.OOM || exit.Signal != int(unix.SIGKILL) {
					t.Errorf("exit is %+v, want a kill for want of memory", exit)
				}
			})
		}
	})
}

// Of a cell that ended while nobody looked, its cgroup still tells that it was for want of memory.
func TestAdoptAfterTheEnd(t *testing.T) {
	l := testLauncher(t, Direct)
	for program, killed := range map[string]bool{"eat": true, "exit": false} {
		c, _ := testConfig(t, program, "3")
		cell, err := l.Start(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		wait(t, cell)
		_, err = Adopt(l, c, cell.PID())
		if leapcell.ErrorCode(err) != leapcell.CodeNotFound || errors.Is(err, ErrOutOfMemory) != killed {
			t.Errorf("%s: %v", program, err)
		}
		if _, err := os.Stat(filepath.Join(l.(*launcher).h.all[0], testParent, c.ID)); err == nil {
			t.Errorf("%s: its cgroup is left", program)
		}
	}
}

// A kill that came before anybody watched has no event any more.
func TestOutOfMemoryBeforeTheWatch(t *testing.T) {
	c, _ := testConfig(t, "eat")
	cell := start(t, testLauncher(t, Direct), c)
	wait(t, cell)
	if _, whole := cell.group.(*cgroup2); whole {
		t.Skip("version 2 kills the whole cell by itself")
	}
	told := make(chan struct{})
	stop, err := cell.group.watchOOM(func() { close(told) })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	select {
	case <-told:
	case <-time.After(20 * time.Second):
		t.Error("nobody hears of it")
	}
}

func TestAdopt(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		c, out := testConfig(t, "graceful")
		first := start(t, l, c)
		line(t, out)
		if err := first.Freeze(); err != nil {
			t.Fatal(err)
		}
		second, err := Adopt(l, c, first.PID())
		if err != nil {
			t.Fatal(err)
		}
		if !second.Frozen() || second.PID() != first.PID() {
			t.Errorf("adopted: frozen %v, pid %d; want true, %d", second.Frozen(), second.PID(), first.PID())
		}
		if d := second.StartedAt().Sub(first.StartedAt()).Abs(); d > 500*time.Millisecond && !emulated {
			t.Errorf("the start is told %s apart", d)
		}
		if err := second.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		wait(t, second)
		if err := second.Delete(); err != nil {
			t.Fatal(err)
		}

		if _, err := Adopt(l, c, os.Getpid()); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
			t.Errorf("adopting a process of another: %v, want not_found", err)
		}
	})
}

func TestStartErrors(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		tests := []struct {
			name   string
			change func(*Config)
			want   string
		}{
			{"no program", func(c *Config) { c.Args = []string{"bash", "-c", "true"} }, `the image has no program "bash"`},
			{"not executable", func(c *Config) { c.Args = []string{"/etc/hosts"} }, `cannot be executed`},
			{"no command", func(c *Config) { c.Args = nil }, "no command"},
			{"no rootfs", func(c *Config) { c.Rootfs += "/missing" }, "sandbox could not be made"},
			{"network namespace gone", func(c *Config) { c.NetnsPath = "/run/netns/missing" }, "sandbox could not be made"},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				c, _ := testConfig(t, "sleep")
				tt.change(&c)
				_, err := l.Start(t.Context(), c)
				if err == nil || !strings.Contains(leapcell.ErrorMessage(err), tt.want) {
					t.Fatalf("error is %v, want %q in it", err, tt.want)
				}
				for _, mount := range l.(*launcher).h.all {
					if _, err := os.Stat(filepath.Join(mount, testParent, c.ID)); err == nil {
						t.Errorf("a cgroup is left in %s", mount)
					}
				}
			})
		}
	})
}

func TestStartCancelled(t *testing.T) {
	onEach(t, func(t *testing.T, l Launcher) {
		c, _ := testConfig(t, "sleep")
		for _, after := range []time.Duration{0, 2 * time.Millisecond, 6 * time.Millisecond, 10 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			cell, err := l.Start(ctx, c)
			cancel()
			if err == nil {
				if err := cell.Delete(); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error is %v, want the context's", err)
			}
			for _, mount := range l.(*launcher).h.all {
				if _, err := os.Stat(filepath.Join(mount, testParent, c.ID)); err == nil {
					t.Errorf("a cgroup is left in %s after %s", mount, after)
				}
			}
		}
	})
}
