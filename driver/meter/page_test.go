package meter

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

var task = Task{AllocID: "0a1b-2c", Name: "shop", ServiceID: "shop-main-abcdefgh", Deployment: "shop-1", Mode: leapcell.TaskServerless, MemoryMB: 256}

func create(t *testing.T, path string, task Task) *Page {
	t.Helper()
	p, err := Create(path, task)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func open(t *testing.T, path string) *Page {
	t.Helper()
	p, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestMain is also the process that is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("METER_PAGE"); path != "" {
		count(path)
	}
	os.Exit(m.Run())
}

// count adds to a page and dies without a chance to tidy up.
func count(path string) {
	p, err := Open(path)
	if err != nil {
		os.Exit(3)
	}
	for range 1000 {
		p.Request()
		p.Egress(10)
	}
	p.Compute(7)
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
}

func TestSurvivesKill9(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page")
	p := create(t, path, task)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "METER_PAGE="+path)
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("the other process was not killed: %v", err)
	}
	want := leapcell.Counters{Requests: 1000, ComputeMS: 7, EgressBytes: 10_000}
	if got := open(t, path).Counters(); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if got := p.Counters(); got != want {
		t.Errorf("who had the page before sees %+v", got)
	}
}

// Over a handover two processes count on one page.
func TestTwoMappingsAddUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page")
	pages := []*Page{create(t, path, task), open(t, path)}
	if pages[0].ID() != pages[1].ID() || pages[1].Task() != task {
		t.Errorf("%s %+v, %s %+v", pages[0].ID(), pages[0].Task(), pages[1].ID(), pages[1].Task())
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 1000 {
				pages[i%2].Request()
				pages[i%2].Compute(2)
				pages[i%2].Egress(3)
			}
		})
	}
	all.Wait()
	pages[0].ColdStart()
	pages[1].ColdStart() // a start is one start, whoever saw it
	for _, p := range pages {
		if got, want := p.Counters(), (leapcell.Counters{Requests: 8000, ComputeMS: 16_000, EgressBytes: 24_000, ColdStarts: 1}); got != want {
			t.Errorf("counted %+v, want %+v", got, want)
		}
	}
}

func TestWallTime(t *testing.T) {
	for mode, of := range map[leapcell.TaskMode]func(leapcell.Counters) int64{
		leapcell.TaskPersistent: func(c leapcell.Counters) int64 { return c.RunningMS },
		leapcell.TaskBuild:      func(c leapcell.Counters) int64 { return c.BuildMS },
	} {
		t.Run(string(mode), func(t *testing.T) {
			now := int64(5 * time.Hour)
			clock := func() int64 { return now }
			own := task
			own.Mode = mode
			path := filepath.Join(t.TempDir(), "page")
			p := create(t, path, own)
			p.clock = clock
			p.Start()
			now += int64(1500*time.Millisecond) + 1
			p.Tick()
			if got := of(p.Counters()); got != 1501 {
				t.Errorf("%d ms, want 1501: rounded up", got)
			}
			// The process goes; the next one takes over a minute later and finds it running.
			now += int64(time.Minute)
			next := open(t, path)
			next.clock = clock
			next.Start()
			next.Tick()
			p.Tick() // the old one is not quite gone yet
			if got := of(p.Counters()); got != 61_501 {
				t.Errorf("%d ms, want 61501: the pause counts, once", got)
			}
			now -= int64(time.Hour) // a clock that goes back, as after a reboot, takes nothing away
			next.Tick()
			if err := next.End(); err != nil {
				t.Fatal(err)
			}
			now += int64(48 * time.Hour)
			next.Tick()
			if got := of(next.Counters()); got != 61_501 {
				t.Errorf("%d ms after the end, want 61501", got)
			}
		})
	}
}

func TestServerlessHasNoWallTime(t *testing.T) {
	p := Memory(task)
	now := int64(1)
	p.clock = func() int64 { return now }
	p.Start()
	now += int64(time.Hour)
	p.Tick()
	if got := p.Counters(); got != (leapcell.Counters{}) {
		t.Errorf("counted %+v", got)
	}
}

// The monotonic clock is that of the kernel and not of the process: it goes on in the next.
func TestMonotonicClock(t *testing.T) {
	a, b := monotonic(), monotonic()
	if a <= 0 || b < a {
		t.Errorf("%d, then %d", a, b)
	}
}

func TestAnEndedTasksPathIsFree(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "page")
	first := create(t, path, task)
	first.Request()
	if err := first.End(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the page is still there: %v", err)
	}
	second := create(t, path, task)
	first.Request() // an answer that was on its way
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 2 || second.Counters().Requests != 0 || first.Counters().Requests != 2 || first.ID() == second.ID() {
		t.Errorf("files %q, first %+v, second %+v", files, first.Counters(), second.Counters())
	}
	for _, p := range []*Page{first, second} {
		if err := errors.Join(p.Remove(), p.Remove()); err != nil {
			t.Error(err)
		}
		p.Request() // late, for nobody, and harmless
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) > 0 {
		t.Errorf("left: %q", files)
	}
}

func TestDamagedPages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page")
	create(t, path, task)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty":           {},
		"cut":             whole[:size-1],
		"of another kind": append([]byte("something else!!"), whole[16:]...),
		"wrong length":    append(append(append([]byte{}, whole[:lengthAt]...), 255, 255, 255, 255), whole[taskAt:]...),
		"wrong task":      append(append([]byte{}, whole[:taskAt]...), make([]byte, size-taskAt)...),
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := open(t, path).Task(); got != task {
		t.Errorf("%+v", got)
	}
}

// On a full tmpfs no page is made, rather than one that kills the process when it is written.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	var made []*Page
	for i := range 8 {
		p, err := Create(filepath.Join(dir, string(rune('a'+i))), task)
		if err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("error is %v", err)
			}
			break
		}
		made = append(made, p)
	}
	if len(made) == 0 || len(made) > 2 {
		t.Fatalf("%d pages of 4 KB on 8 KB", len(made))
	}
	for _, p := range made {
		p.Request()
		p.Compute(1)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new")); len(left) > 0 {
		t.Errorf("half a page is left: %q", left)
	}
}

// A page that nobody has any more gives its address space back.
func TestUnmapped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "the-only-page-of-this-name")
	create(t, path, task)
	mapped := func() bool {
		b, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), path)
	}
	for end := time.Now().Add(10 * time.Second); mapped(); runtime.GC() {
		if time.Now().After(end) {
			t.Fatal("the page is still mapped")
		}
	}
}

func BenchmarkCount(b *testing.B) {
	p, err := Create(filepath.Join(b.TempDir(), "page"), task)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p.Request()
		p.Compute(1)
		p.Egress(1000)
	}
}

func BenchmarkCreate(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		p, err := Create(filepath.Join(dir, "page"), task)
		if err != nil {
			b.Fatal(err)
		}
		p.Tick()
	}
}
