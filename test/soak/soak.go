package soak

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/network"
	"github.com/leapcell/leapcell/test/harness"
)

// atATime is how many instances live at a time.
const atATime = 4

// Run takes cycles instances through start, request, suspension, resumption and stop, and
// fails the test if anything is left of them. Every tenth is a persistent one.
func Run(t testing.TB, p *harness.Platform, cycles int) {
	t.Helper()
	service := p.Probe(t, harness.Spec{})
	service.Reload(t)
	image := p.Deployment(t, service.Live).Image
	n := NewNode(t, p, nil)
	// The first ones fill caches: of images, of connections, of the allocator.
	n.cycles(t, image, max(20, min(100, cycles/10)))
	before := n.figures(t)
	begin := time.Now()
	n.cycles(t, image, cycles/2)
	between := n.figures(t) // what grows goes on growing in the second half
	n.cycles(t, image, cycles-cycles/2)
	took := time.Since(begin)
	// What is removed in the background is given time to be.
	var after figures
	harness.Eventually(t, time.Minute, "what is removed in the background is gone", func() bool {
		after = n.figures(t)
		return len(after.leaks(before, cycles)) == 0 || time.Since(begin) > took+20*time.Second
	})
	t.Logf("%d cycles in %s, %d at a time; before, after half of them, after all:\n%s", cycles, took.Round(time.Millisecond), atATime, table(before, between, after))
	for _, leak := range after.leaks(before, cycles) {
		t.Error(leak)
	}
}

func (n *Node) cycles(t testing.TB, image string, count int) {
	t.Helper()
	var next atomic.Int64
	group, ctx := errgroup.WithContext(t.Context())
	for range atATime {
		group.Go(func() error {
			for i := next.Add(1); i <= int64(count); i = next.Add(1) {
				mode := leapcell.TaskServerless
				if i%10 == 0 {
					mode = leapcell.TaskPersistent
				}
				if err := n.cycle(ctx, image, mode); err != nil {
					return fmt.Errorf("cycle %d, %s: %w", i, mode, err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func (n *Node) cycle(ctx context.Context, image string, mode leapcell.TaskMode) error {
	i, err := n.Start(ctx, image, mode)
	if err != nil {
		return err
	}
	if mode == leapcell.TaskServerless {
		// Nobody announces a suspension.
		for deadline := time.Now().Add(20 * time.Second); !i.Frozen(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				return errors.New("the idle instance is not suspended")
			}
		}
	}
	if _, err := i.Get(ctx, "/log?out=resumed"); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	return i.Stop(ctx)
}

// figures is what there is at a moment, by name.
type figures map[string]int64

// slack is what may differ without being a leak; all else must not grow at all.
func slack(name string, cycles int) int64 {
	switch name {
	case "supervisor threads":
		return 10 // the runtime starts them as it likes
	case "supervisor descriptors":
		return 4 // idle connections
	case "supervisor PSS KiB", "supervisor private KiB":
		return 6<<10 + int64(cycles) // of the collector's mood, and a KiB a cycle
	case "memory groups in the kernel", "conntrack entries":
		return 1 << 40 // the kernel's to collect: printed only
	}
	return 0
}

func (f figures) leaks(before figures, cycles int) []string {
	var out []string
	for _, name := range f.names() {
		if d := f[name] - before[name]; d > slack(name, cycles) {
			out = append(out, fmt.Sprintf("%s: %d before, %d after", name, before[name], f[name]))
		}
	}
	return out
}

func (f figures) names() []string {
	var out []string
	for name := range f {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func table(before, between, after figures) string {
	var b strings.Builder
	for _, name := range after.names() {
		fmt.Fprintf(&b, "  %-28s %8d %8d %8d %+d\n", name, before[name], between[name], after[name], after[name]-before[name])
	}
	return b.String()
}

func (n *Node) figures(t testing.TB) figures {
	t.Helper()
	own := harness.Process{PID: n.PID}
	f := figures{
		"supervisor descriptors":  count(t, fmt.Sprintf("/proc/%d/fd", n.PID)),
		"supervisor threads":      count(t, fmt.Sprintf("/proc/%d/task", n.PID)),
		"mounts":                  int64(strings.Count(own.File("mountinfo"), n.Config.StateDir) + strings.Count(own.File("mountinfo"), n.Config.RunDir())),
		"files in the run folder": files(n.Config.RunDir(), ""),
		"files of the state":      files(n.Config.StateDir, "images"),
	}
	f["supervisor PSS KiB"], f["supervisor private KiB"] = own.Memory()
	f["processes"] = int64(len(harness.Processes(func(p harness.Process) bool {
		return p.Env("LEAPCELL_SERVICE") == "soak" || strings.Contains(p.File("cgroup"), n.Config.Group()+"/")
	})))
	f.network(t, n.Config.Name)
	f.groups(n.Config.Group())
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range loops {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), n.Config.StateDir) {
			f["loop devices"]++
		}
	}
	return f
}

func count(t testing.TB, dir string) int64 {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(entries))
}

// files are those below dir, without one of its folders.
func files(dir, without string) (n int64) {
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && without != "" && p == filepath.Join(dir, without) {
			return filepath.SkipDir
		}
		if err == nil { // what goes meanwhile is no matter
			n++
		}
		return nil
	})
	return n
}

func (f figures) network(t testing.TB, name string) {
	t.Helper()
	links, err := network.Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "lc"+name+"-") {
			f["network links"]++
		}
	}
	bound, _ := filepath.Glob("/run/netns/leapcell-" + name + "-*")
	f["network namespaces"] = int64(len(bound))
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chains {
		if !strings.HasSuffix(c.Table.Name, name) {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			t.Fatal(err)
		}
		f["firewall rules"] += int64(len(rules))
	}
	if b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count"); err == nil {
		f["conntrack entries"], _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	}
}

// groups counts control groups: ours, and all of the machine that the kernel has not freed yet,
// although they may be removed.
func (f figures) groups(group string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, "/"+group+"/") {
			f["control groups"]++
		}
		return nil
	})
	b, _ := os.ReadFile("/proc/cgroups")
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) == 4 && fields[0] == "memory" {
			f["memory groups in the kernel"], _ = strconv.ParseInt(fields[2], 10, 64)
		}
	}
}
