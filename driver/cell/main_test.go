package cell

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

var probe string // the built probe

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		if err := Seal(); err != nil {
			panic(err)
		}
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "probe")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		probe = filepath.Join(dir, "probe")
		cmd := exec.Command("go", "build", "-o", probe, "./testdata/probe")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("build the probe: %v\n%s", err, out))
		}
		defer Destroy(testParent)
		return m.Run()
	}())
}

var testParent = fmt.Sprintf("leapcell-test%d", os.Getpid())

var serial atomic.Int64

// testRootfs is an image with the probe as its only program.
func testRootfs(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"bin", "proc", "sys", "dev", "tmp", "etc", "app"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"resolv.conf", "hosts", "hostname"} {
		if err := os.WriteFile(filepath.Join(root, "etc", f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(probe, filepath.Join(root, "bin/probe")); err != nil {
		b, err := os.ReadFile(probe)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "bin/probe"), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func testLauncher(t testing.TB, runtime string) Launcher {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroups and namespaces")
	}
	if err := Available(runtime); err != nil {
		t.Skip(err)
	}
	l, err := NewLauncher(runtime, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// conforming are the runtimes that pass all tests.
var conforming = []string{"runc", "crun", Direct}

// onEach runs a test with each of the runtimes that is installed.
func onEach(t *testing.T, f func(t *testing.T, l Launcher)) {
	for _, runtime := range conforming {
		t.Run(runtime, func(t *testing.T) { f(t, testLauncher(t, runtime)) })
	}
}

// testConfig runs the probe with args in a serverless cell; out gets what it writes.
func testConfig(t testing.TB, args ...string) (c Config, out *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return Config{
		ID: fmt.Sprintf("c%d", serial.Add(1)), Dir: t.TempDir(), Rootfs: testRootfs(t), Mode: leapcell.TaskServerless,
		Args: append([]string{"/bin/probe"}, args...), Env: []string{"PATH=/bin", "HOME=/tmp", "SECRET=kept in memory only"}, WorkDir: "/app", MemoryMB: 128,
		Hostname: "python-1", ResolvConf: []byte("nameserver 192.0.2.53\n"),
		Stdout: w, Stderr: w, CgroupParent: testParent,
	}, r
}

func start(t testing.TB, l Launcher, c Config) *Cell {
	t.Helper()
	cell, err := l.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cell.Delete(); err != nil {
			t.Error(err)
		}
	})
	return cell
}

// line reads the next line of the cell's output.
func line(t testing.TB, r io.Reader) string {
	t.Helper()
	text, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(text)
}

func wait(t testing.TB, c *Cell) Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	exit, err := c.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

// view is what the probe tells of the inside.
type view struct {
	UID, GID, PID, CPUs int
	Env, Procs, Dev     []string
	Cwd, Hostname       string
	Stdin               string
	Write, Calls, NS    map[string]string
	ResolvConf          string   `json:"/etc/resolv.conf"`
	Hosts               string   `json:"/etc/hosts"`
	HostnameFile        string   `json:"/etc/hostname"`
	Mounts              string   `json:"/proc/self/mountinfo"`
	Cgroup              string   `json:"/proc/self/cgroup"`
	Kcore               string   `json:"/proc/kcore"`
	Keys                string   `json:"/proc/keys"`
	CgroupWrite         []string `json:"cgroup write"`
	TmpMB               int      `json:"tmp MB"`
	TmpMode             string   `json:"tmp mode"`
	CapEff, CapBnd      string
	NoNewPrivs, Seccomp string
	Restrictions        []string
}

func look(t *testing.T, l Launcher, change func(*Config)) view {
	t.Helper()
	c, out := testConfig(t, "look")
	if change != nil {
		change(&c)
	}
	cell := start(t, l, c)
	var v view
	if err := json.NewDecoder(out).Decode(&v); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, cell); exit != (Exit{}) {
		t.Errorf("exit is %+v, want a clean one", exit)
	}
	return v
}
