package cell

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/driver/cell/script"
)

// durations are samples of one thing.
type durations []time.Duration

func (d durations) at(percent int) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return float64(d[(len(d)-1)*percent/100].Microseconds()) / 1000
}

// startPhases are the parts of a start, in their order; the last is their sum.
var startPhases = []string{"mount", "files", "cgroup", "launch", "start"}

// BenchmarkStart takes a start apart, for each launcher that is installed, beside what the kernel
// needs at least: another program in a process that is ours, and the same in new namespaces. All are
// interleaved. "output" is from the beginning until the app has said something.
func BenchmarkStart(b *testing.B) {
	launchers := map[string]*launcher{}
	names := slices.DeleteFunc([]string{"runc", "crun", Direct}, func(name string) bool { return Available(name) != nil })
	for _, name := range names {
		launchers[name] = testLauncher(b, name).(*launcher)
	}
	netns := benchNetns(b)
	samples := map[string]map[string]durations{}
	add := func(row, phase string, d time.Duration) {
		if samples[row] == nil {
			samples[row] = map[string]durations{}
		}
		samples[row][phase] = append(samples[row][phase], d)
	}
	for b.Loop() {
		for row, flags := range map[string]uintptr{
			"(bare)": 0, "(namespaces)": unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		} {
			started, said := startBare(b, flags)
			add(row, "start", started)
			add(row, "output", said)
		}
		for _, name := range names {
			startInPhases(b, launchers[name], netns, func(phase string, d time.Duration) { add(name, phase, d) })
		}
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(out, "\nstart, milliseconds, p10/p50/p90 of %d, interleaved\t\n", b.N)
	columns := append(slices.Clone(startPhases), "output")
	for _, c := range append([]string{"launcher"}, columns...) {
		fmt.Fprintf(out, "%s\t", c)
	}
	fmt.Fprintln(out)
	for _, row := range append([]string{"(bare)", "(namespaces)"}, names...) {
		fmt.Fprintf(out, "%s\t", row)
		for _, c := range columns {
			fmt.Fprintf(out, "%.1f/%.1f/%.1f\t", samples[row][c].at(10), samples[row][c].at(50), samples[row][c].at(90))
		}
		fmt.Fprintln(out)
	}
	out.Flush()
}

// startInPhases does what [launcher.Start] does, with an image mounted as an instance's is.
func startInPhases(b *testing.B, l *launcher, netns string, add func(string, time.Duration)) {
	c, out := testConfig(b, "graceful")
	lower, root := c.Rootfs, filepath.Join(b.TempDir(), "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		b.Fatal(err)
	}
	c.Rootfs, c.NetnsPath = root, netns
	cell := l.cell(c)
	cell.cpus = []int{0}
	host, err := l.host(c)
	if err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	last := begin
	phase := func(name string, err error) {
		b.Helper()
		if err != nil {
			b.Fatal(name, err)
		}
		now := time.Now()
		add(name, now.Sub(last))
		last = now
	}
	phase("mount", unix.Mount("overlay", root, "overlay", unix.MS_RDONLY|unix.MS_NODEV, "lowerdir="+lower+":"+b.TempDir()))
	phase("files", l.prepare(c, host))
	phase("cgroup", cell.group.create(c.limits(cell.cpus)))
	phase("launch", l.run(b.Context(), cell, host))
	add("start", time.Since(begin))
	line(b, out)
	add("output", time.Since(begin))
	cell.watch()
	if err := cell.Delete(); err != nil {
		b.Fatal(err)
	}
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
		b.Fatal(err)
	}
}

// startBare starts the program alone, in new namespaces if there are flags.
func startBare(b *testing.B, flags uintptr) (started, said time.Duration) {
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	from := time.Now()
	if flags == 0 {
		cmd := exec.Command(probe, "graceful")
		cmd.Stdout = w
		err = cmd.Start()
		started = time.Since(from)
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	} else {
		var s script.Script
		s.Exec([]string{probe, "graceful"}, nil, "")
		var p *process
		p, err = begin(b.Context(), &s, script.Process{Namespaces: flags, Stdio: [3]*os.File{w, w, w}})
		started = time.Since(from)
		defer func() { _ = p.kill(); _, _ = p.wait(); p.close() }()
	}
	w.Close()
	if err != nil {
		b.Fatal(err)
	}
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		b.Fatal(err)
	}
	return started, time.Since(from)
}

// benchNetns is a network namespace that is there, as those of the pool are.
func benchNetns(b *testing.B) string {
	name := make(chan string)
	end := make(chan struct{})
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with the namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			b.Error(err)
		}
		name <- fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		<-end
	}()
	b.Cleanup(func() { close(end) })
	return <-name
}

func BenchmarkFreezeThaw(b *testing.B) {
	c, out := testConfig(b, "graceful")
	cell := start(b, testLauncher(b, "runc"), c)
	line(b, out)
	var freeze, thaw durations
	for b.Loop() {
		from := time.Now()
		if err := cell.Freeze(); err != nil {
			b.Fatal(err)
		}
		freeze = append(freeze, time.Since(from))
		from = time.Now()
		if err := cell.Thaw(); err != nil {
			b.Fatal(err)
		}
		thaw = append(thaw, time.Since(from))
	}
	b.ReportMetric(freeze.at(50), "freeze-p50-ms")
	b.ReportMetric(thaw.at(50), "thaw-p50-ms")
}
