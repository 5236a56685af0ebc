package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/test/vm/wire"
)

// channel leads outside. Output and events share it.
type channel struct {
	mu   sync.Mutex
	file *os.File
	open bool // a line has not ended yet
}

func (c *channel) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(b) > 0 {
		c.open = b[len(b)-1] != '\n'
	}
	return c.file.Write(b)
}

func (c *channel) tell(e wire.Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	line := append([]byte{wire.Mark}, append(b, '\n')...)
	if c.open {
		line = append([]byte{'\n'}, line...)
	}
	c.open = false
	_, err = c.file.Write(line)
	return err
}

// agent runs the jobs one after the other.
func agent() error {
	file, err := os.OpenFile(wire.Port, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	out := &channel{file: file}
	plan, err := prepare()
	if err != nil {
		return errors.Join(err, out.tell(wire.Event{Kind: wire.Fail, Text: err.Error()}))
	}
	if err := out.tell(wire.Event{Kind: wire.Up, Text: about()}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), plan.Limit)
	defer cancel()
	for _, job := range plan.Jobs {
		if err := out.tell(wire.Event{Kind: wire.Begin, Job: job.Name}); err != nil {
			return err
		}
		begin := time.Now()
		code := run(ctx, job, out)
		if code != 0 {
			showLogs(out)
		}
		if err := out.tell(wire.Event{Kind: wire.End, Job: job.Name, Code: code, Took: time.Since(begin)}); err != nil {
			return err
		}
	}
	return out.tell(wire.Event{Kind: wire.Done})
}

// prepare does what the tests expect of a machine, and reads the jobs.
func prepare() (*wire.Plan, error) {
	if err := pureV2(); err != nil {
		return nil, err
	}
	if err := swap("/swap", 128<<20); err != nil {
		return nil, err
	}
	// A way out that leads nowhere: a machine has a default route.
	for _, args := range []string{
		"link set lo up", "link add up0 type dummy", "addr add 192.168.77.2/24 dev up0", "link set up0 up", "route add default via 192.168.77.1",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	b, err := os.ReadFile(wire.JobsFile)
	if err != nil {
		return nil, err
	}
	plan := &wire.Plan{}
	if err := json.Unmarshal(b, plan); err != nil {
		return nil, fmt.Errorf("%s: %w", wire.JobsFile, err)
	}
	return plan, nil
}

const (
	cgroupRoot = "/sys/fs/cgroup"
	slice      = cgroupRoot + "/system.slice"
)

// pureV2 checks that the machine is what this is all about, and hands controllers down as
// systemd does: those that are nothing special, and not cpuset.
func pureV2() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), " - cgroup ") || !strings.Contains(string(mounts), " "+cgroupRoot+" ") {
		return errors.New("the control groups are not those of version 2 alone")
	}
	if err := os.Mkdir(slice, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{cgroupRoot, slice} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+cpu +memory +pids"), 0); err != nil {
			return err
		}
	}
	return nil
}

// swap adds swap space, so that a limit without swap differs from one with it.
func swap(name string, size int) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		return fmt.Errorf("swap: %w", err)
	}
	// The header of version 1: version and last page behind 1 KB of nothing, the name at the end.
	page := make([]byte, 4096)
	page[1024] = 1
	last := uint32(size/4096 - 1)
	page[1028], page[1029], page[1030], page[1031] = byte(last), byte(last>>8), byte(last>>16), byte(last>>24)
	copy(page[4086:], "SWAPSPACE2")
	if _, err := f.WriteAt(page, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if errno := swapOn(p); errno != 0 {
		return fmt.Errorf("swap: %w", errno)
	}
	return nil
}

func about() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // never fails
	controllers, _ := os.ReadFile(cgroupRoot + "/cgroup.controllers")
	return fmt.Sprintf("Linux %s, control groups of version 2: %s", unix.ByteSliceToString(u.Release[:]), strings.TrimSpace(string(controllers)))
}

// dumpLimit is how long a job may take to say what it does when its time is over.
const dumpLimit = 15 * time.Second

// run runs one job in a control group of its own, as a service of systemd has it, and gives
// its exit code.
func run(ctx context.Context, job wire.Job, out *channel) int {
	fail := func(err error) int {
		fmt.Fprintf(out, "%s: %v\n", job.Name, err)
		return 1
	}
	before := groups()
	group := filepath.Join(slice, strings.ReplaceAll(job.Name, "/", "-")+".service")
	if err := os.Mkdir(group, 0o755); err != nil {
		return fail(err)
	}
	dir, err := os.Open(group)
	if err != nil {
		return fail(err)
	}
	defer dir.Close()
	if ctx.Err() != nil {
		return fail(errors.New("not begun: there is no time left"))
	}
	ctx, cancel := context.WithTimeout(ctx, job.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, job.Args[0], job.Args[1:]...)
	cmd.Dir, cmd.Env = job.Dir, append([]string{path, "HOME=/root"}, job.Env...)
	if line, _ := os.ReadFile("/proc/cmdline"); strings.Contains(string(line), wire.EmulatedArgument) {
		cmd.Env = append(cmd.Env, wire.EmulatedVariable)
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // a Go program tells what all of it does
	cmd.WaitDelay = dumpLimit                                                // also for processes left behind that have our pipe
	err = cmd.Run()
	if ctx.Err() != nil {
		err = errors.New("not done in time: ended")
	}
	endRest(group, out)
	if left := slices.DeleteFunc(groups(), func(g string) bool { return slices.Contains(before, g) }); len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("control groups were left behind: %s", left))
	}
	if err != nil {
		return fail(err)
	}
	return 0
}

// endRest ends what a job left behind, and says what it was: a test's helper, perhaps.
func endRest(group string, out *channel) {
	left, _ := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	for pid := range strings.FieldsSeq(string(left)) {
		line, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		fmt.Fprintf(out, "left behind: %s\n", strings.ReplaceAll(string(line), "\x00", " "))
	}
	_ = os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0)
}

// groups are the control groups at the top: those of the platforms are there. Nomad leaves the
// one that it makes where its settings name none.
func groups() []string {
	entries, _ := os.ReadDir(cgroupRoot)
	var dirs []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != "nomad.slice" {
			dirs = append(dirs, e.Name())
		}
	}
	return dirs
}

// showLogs prints the ends of the logs of a platform: they are gone with the machine.
func showLogs(out *channel) {
	var logs []string
	for _, pattern := range []string{"/tmp/leapcell-test-*/logs/*.log", "/tmp/leapcell-test-*/node/*.log"} {
		found, _ := filepath.Glob(pattern)
		logs = append(logs, found...)
	}
	for _, name := range logs {
		b, _ := os.ReadFile(name)
		fmt.Fprintf(out, "---- the end of %s\n%s\n", name, b[max(0, len(b)-6000):])
	}
}
