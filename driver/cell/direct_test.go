package cell

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// stricter are the lines in which our own launcher differs from runc, by their beginnings, and why.
var stricter = map[string]string{
	"status SigIgn: ":       "runc leaves signals ignored that whoever started it ignored",
	"mount / ":              "runc forgets nodev when it makes the root read-only",
	"mount /etc/":           "runc leaves files that are bound in followers of the host's mounts, where those are shared, as systemd has them",
	"device /dev/core ":     "runc makes a link to /proc/kcore, which is masked, where the kernel has that",
	"mount /sys/fs/cgroup ": "runc leaves the tmpfs writable below a read-only mount of it",
}

// What an app is forbidden is the same with our own launcher as with runc, which is the
// reference. Both are printed: go test -v -run SameAsRunc.
func TestSameAsRunc(t *testing.T) {
	reference, ours := testLauncher(t, "runc"), testLauncher(t, Direct)
	for _, mode := range []leapcell.TaskMode{leapcell.TaskServerless, leapcell.TaskPersistent, leapcell.TaskBuild} {
		t.Run(string(mode), func(t *testing.T) {
			change := func(c *Config) { c.Mode, c.CPUs = mode, 1 }
			a, b := restrictions(look(t, reference, change)), restrictions(look(t, ours, change))
			explained := func(line string) bool {
				for prefix := range stricter {
					if strings.HasPrefix(line, prefix) {
						return true
					}
				}
				return false
			}
			for _, line := range a {
				if slices.Contains(b, line) {
					t.Logf("both: %s", line)
					continue
				}
				t.Logf("runc: %s", line)
				if !explained(line) {
					t.Errorf("only runc has %q", line)
				}
			}
			for _, line := range b {
				if slices.Contains(a, line) {
					continue
				}
				t.Logf("ours: %s", line)
				if !explained(line) {
					t.Errorf("only we have %q", line)
				}
			}
		})
	}
}

// Where the kernel lacks something, runc takes over, and it is said why.
func TestChoose(t *testing.T) {
	lacking := errors.New("the kernel is too old")
	if name, err := choose(func(string) error { return lacking }); name != "runc" || err != lacking {
		t.Errorf("%s, %v", name, err)
	}
	if name, err := choose(func(string) error { return nil }); name != Direct || err != nil {
		t.Errorf("%s, %v", name, err)
	}
	for name, why := range map[string]string{"runsc": "control group", "docker": "not known"} {
		if err := Available(name); err == nil || !strings.Contains(leapcell.ErrorMessage(err), why) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// restrictions are the lines to compare; only we know which namespaces are the machine's.
func restrictions(v view) []string {
	out := v.Restrictions
	for kind, ns := range v.NS {
		whose := "its own"
		if host, err := os.Readlink("/proc/self/ns/" + kind); err != nil || host == ns {
			whose = "the machine's"
		}
		out = append(out, "namespace "+kind+" "+whose)
	}
	return out
}

// Both filters are read from the kernel, and asked about every system call there could be.
func TestSameFilterAsRunc(t *testing.T) {
	for _, mode := range []leapcell.TaskMode{leapcell.TaskServerless, leapcell.TaskBuild} {
		t.Run(string(mode), func(t *testing.T) {
			var filters [2]*bpf.VM
			for i, runtime := range []string{"runc", Direct} {
				c, out := testConfig(t, "parent", "sleep")
				c.Mode, c.CPUs = mode, 1
				cell := start(t, testLauncher(t, runtime), c)
				line(t, out)
				pids, err := cell.group.procs()
				child := slices.IndexFunc(pids, func(pid int) bool { return pid != cell.PID() }) // the first is waited for
				if err != nil || child < 0 {
					t.Fatalf("processes %v, %v", pids, err)
				}
				filters[i] = loadedFilter(t, pids[child])
			}
			arguments := []uint64{0, 1, 2, 8, 10, 16, 38, 40, 0x20000, 0x20008, 1<<32 - 1, 1 << 32, 1<<32 | 38, 1<<64 - 1}
			for bit := range 64 {
				arguments = append(arguments, 1<<bit)
			}
			const unknown, newer = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS), unix.SYS_MEMFD_SECRET
			asked, allowed := 0, 0
			for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, 0} {
				for _, table := range []uint32{0, 1 << 30} { // the second is that of x32
					for number := range uint32(1024) {
						for _, a := range arguments {
							results := [2]uint32{decide(t, filters[0], arch, table|number, a), decide(t, filters[1], arch, table|number, a)}
							asked++
							if results[1] == unix.SECCOMP_RET_ALLOW {
								allowed++
							}
							if results[0] == unknown && number >= newer {
								continue // its library does not know the call: there is no rule to compare
							}
							if results[0] == unix.SECCOMP_RET_KILL_THREAD {
								results[0] = unix.SECCOMP_RET_KILL_PROCESS // ours ends all of it
							}
							if results[0] != results[1] {
								t.Fatalf("call %d of table %#x on %#x with %#x: runc's filter says %#x, ours %#x", number, table, arch, a, results[0], results[1])
							}
						}
					}
				}
			}
			t.Logf("%d questions, %d of them allowed", asked, allowed)
			if allowed == 0 || allowed == asked {
				t.Error("the filters do not tell calls apart")
			}
		})
	}
}

// loadedFilter reads the first filter of a process from the kernel.
func loadedFilter(t *testing.T, pid int) *bpf.VM {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		t.Fatal(err)
	}
	defer unix.PtraceDetach(pid)
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	var code [4096]unix.SockFilter
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), 0, uintptr(unsafe.Pointer(&code)), 0, 0)
	if errno == unix.EIO {
		t.Skip("this kernel does not show filters")
	}
	if errno != 0 {
		t.Fatal(errno)
	}
	var list []bpf.Instruction
	for _, c := range code[:n] {
		list = append(list, bpf.RawInstruction{Op: c.Code, Jt: c.Jt, Jf: c.Jf, K: c.K}.Disassemble())
	}
	vm, err := bpf.NewVM(list)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// decide asks a filter about a call of which each argument is a.
func decide(t *testing.T, filter *bpf.VM, arch, number uint32, a uint64) uint32 {
	t.Helper()
	data := make([]byte, 64) // struct seccomp_data, in words of network order: the machine of bpf reads those
	binary.BigEndian.PutUint32(data, number)
	binary.BigEndian.PutUint32(data[4:], arch)
	for i := 16; i < len(data); i += 8 {
		binary.BigEndian.PutUint32(data[i:], uint32(a))
		binary.BigEndian.PutUint32(data[i+4:], uint32(a>>32))
	}
	result, err := filter.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(result)
}

// Whoever gets hold of our program through /proc can change nothing about it, not even as root.
func TestSeal(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	if err := sealed(); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"mode": os.Chmod(program, 0o755), "owner": os.Chown(program, 0, 0), "times": os.Chtimes(program, time.Time{}, time.Now()),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("its %s: %v, want it refused as read-only", what, err)
		}
	}
}

// What the new process really does, to be read and compared as a whole.
func TestScriptGolden(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the golden files are those of the amd64 filter")
	}
	one := machine{lastCap: 40, groups: []v1Mount{{"/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct", true}, {"/sys/fs/cgroup/systemd", "name=systemd", false}}}
	two := machine{lastCap: 40, unified: true}
	for name, m := range map[string]machine{"serverless-v1": one, "serverless-v2": two, "persistent-v2": two, "build-v2": two} {
		mode, _, _ := strings.Cut(name, "-")
		c := Config{
			ID: "python-1-4f2a", Rootfs: "/state/roots/1", Mode: leapcell.TaskMode(mode), Args: []string{"bash", "-c", "./app"}, CgroupParent: "leapcell-x",
			Env: []string{"PATH=/usr/local/bin:/usr/bin", "PORT=8080"}, WorkDir: "/app", MemoryMB: 256, NetnsPath: "/run/netns/leapcell-x-1", Hostname: "python-1",
		}
		if c.Mode == leapcell.TaskBuild {
			c.CPUs = 2
			c.Mounts = []Mount{{Source: "/etc/pip.conf", Target: "/etc/pip.conf", ReadOnly: true}, {Source: "/state/cache", Target: "/root/.cache/"}}
		}
		spec := Spec(c, Host{CgroupsPath: "/leapcell-x/1", OpenFiles: 1 << 20, ResolvConf: "/run/1/resolv.conf", Hosts: "/run/1/hosts", Hostname: "/run/1/hostname"})
		s, err := sandbox(spec, m, make([]byte, 800))
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", "script-"+name+".txt")
		if *update {
			if err := os.WriteFile(golden, []byte(s.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if s.String() != string(want) {
			t.Errorf("the script of %s differs from %s; look at the change with -update and git diff", name, golden)
		}
	}
}
