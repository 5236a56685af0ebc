package cell

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/leapcell/leapcell"
)

var update = flag.Bool("update", false, "write the golden files")

// What the runtime really gets, to be read and compared as a whole.
func TestSpecGolden(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the golden files name the amd64 system call table")
	}
	for _, name := range []string{"serverless", "persistent", "build", "nested"} {
		mode := leapcell.TaskMode(name)
		if name == "nested" {
			mode = leapcell.TaskBuild
		}
		c := Config{
			ID: "python-1-4f2a", Dir: "/state/cells/1", Rootfs: "/state/roots/1", Mode: mode, Args: []string{"bash", "-c", "./app"},
			Env: []string{"PATH=/usr/bin", "PORT=8080"}, WorkDir: "/app", MemoryMB: 256, NetnsPath: "/run/netns/leapcell-x-1", Hostname: "python-1",
			Nested: name == "nested",
		}
		if mode == leapcell.TaskBuild {
			c.CPUs = 2
			c.Mounts = []Mount{{Source: "/etc/pip.conf", Target: "/etc/pip.conf", ReadOnly: true}, {Source: "/state/cache", Target: "/root/.cache/"}}
		}
		spec := Spec(c, Host{CgroupsPath: "/leapcell-x/1", OpenFiles: 1 << 20, ResolvConf: "/state/cells/1/resolv.conf", Hosts: "/state/cells/1/hosts", Hostname: "/state/cells/1/hostname"})
		got, err := json.MarshalIndent(spec, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		golden := filepath.Join("testdata", "spec-"+name+".json")
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("the spec of a %s cell differs from %s; look at the change with -update and git diff", name, golden)
		}
	}
}
