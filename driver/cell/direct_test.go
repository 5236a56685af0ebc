package cell

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
)

// stricter are the lines in which our own launcher differs from runc, by their beginnings, and why.
var stricter = map[string]string{
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
			a, b := look(t, reference, change).Restrictions, look(t, ours, change).Restrictions
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
