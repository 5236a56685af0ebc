package image

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/disk"
)

// old makes an image one that was last used so long ago.
func (s *Store) old(t testing.TB, ref string, age time.Duration) {
	t.Helper()
	digest, _ := digestOf(ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.known[digest]; ok {
		e.used = time.Now().Add(-age)
		return
	}
	t.Errorf("%s is not there", ref)
}

// digests are of all images that are here, sorted.
func (s *Store) digests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.known))
}

func (s *Store) has(ref string) bool {
	digest, _ := digestOf(ref)
	return slices.Contains(s.digests(), digest)
}

// pulled is a store with n images, of which the first is the oldest, an hour apart.
func pulled(t testing.TB, r *testRegistry, s *Store, n int) (refs []string) {
	t.Helper()
	for i := range n {
		ref := r.push(t, gzipped(t, file{name: fmt.Sprint("own", i), text: noise(1000 + i)}))
		pull(t, s, ref)
		refs = append(refs, ref)
	}
	for i, ref := range refs {
		s.old(t, ref, time.Duration(n-i)*time.Hour)
	}
	return refs
}

// crowd makes the disk as full as each image takes ten percent of it.
func crowd(s *Store) {
	s.disk = func(string) (usage, error) {
		n := int64(len(s.digests())) * 10
		return usage{Used: n, Free: 100 - n}, nil
	}
}

func TestCollectByAge(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	s.cfg.Collect = Collect{Age: 150 * time.Minute}
	refs := pulled(t, r, s, 4)
	img := pull(t, s, refs[0]) // asked for: in use again
	if done := s.collect(0); done.removed != 1 {
		t.Errorf("%d were removed", done.removed)
	}
	for i, want := range []bool{true, false, true, true} {
		if s.has(refs[i]) != want {
			t.Errorf("image %d is there: %v", i, !want)
		}
	}
	if _, err := os.Stat(img.Layers[0]); err != nil {
		t.Error(err)
	}
	s.Close()
	nothingHalf(t, s)
	if layers, _ := os.ReadDir(s.path("layers")); len(layers) != 4 {
		t.Errorf("layers are %v, want three and the mount points", layers)
	}
}

// The least recently used go first, until the disk has room again, not below.
func TestCollectByDisk(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	s.cfg.Collect = Collect{High: 60, Low: 30}
	refs := pulled(t, r, s, 5)
	crowd(s)
	if done := s.collect(0); done.removed != 0 {
		t.Errorf("%d were removed at 50 %%", done.removed)
	}
	refs = append(refs, r.push(t, gzipped(t, file{name: "one more", text: "1"})))
	pull(t, s, refs[5])
	s.old(t, refs[1], time.Minute) // by now the most recent but one
	done := s.collect(0)
	if done.removed != 3 || done.before.percent() != 60 || done.after.percent() != 30 {
		t.Errorf("round %+v", done)
	}
	for i, want := range []bool{false, true, false, false, true, true} {
		if s.has(refs[i]) != want {
			t.Errorf("image %d is there: %v", i, !want)
		}
	}
}

// What is mounted stays whatever the disk says, also when another process mounted it; so does
// what was used a moment ago, and layers that another image has.
func TestCollectKeepsWhatIsNeeded(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	base := gzipped(t, file{name: "base", text: "1"})
	running := r.push(t, base, gzipped(t, file{name: "app", text: "1"}))
	gone := r.push(t, base, gzipped(t, file{name: "app", text: "2"}))
	recent := r.push(t, base, gzipped(t, file{name: "app", text: "3"}))
	root := filepath.Join(t.TempDir(), "root")
	if err := s.Mount(pull(t, s, running), root); err != nil {
		t.Fatal(err)
	}
	defer disk.Unmount(root)
	pull(t, s, gone)
	pull(t, s, recent)
	for round, life := range []string{"of this process", "of the next one"} {
		s.old(t, running, 1000*time.Hour)
		if round == 0 {
			s.old(t, gone, 1000*time.Hour)
		}
		s.old(t, recent, Grace-time.Minute)
		s.cfg.Collect = Collect{Age: Grace, High: 1, Low: 0}
		s.collect(1 << 60)
		if !s.has(running) || s.has(gone) || !s.has(recent) {
			t.Errorf("%s: running %v, gone %v, recent %v", life, s.has(running), s.has(gone), s.has(recent))
		}
		if got := tree(t, root); got["base"] == "" || !strings.HasSuffix(got["app"], " 1") {
			t.Errorf("%s: the instance sees %v", life, got)
		}
		if round == 0 {
			cfg := s.cfg
			cfg.Collect = Collect{}
			s = openStore(t, cfg) // without Close, as after a kill
			s.work.Wait()
		}
	}
	if err := s.Unmount(root); err != nil {
		t.Fatal(err)
	}
	if s.collect(1 << 60); !s.has(running) {
		t.Error("an image went as soon as it was unmounted")
	}
	s.old(t, running, time.Hour)
	if s.collect(1 << 60); s.has(running) {
		t.Error("an image stays although nobody needs it")
	}
	if left, _ := os.ReadDir(s.path("mounts")); len(left) > 0 {
		t.Errorf("noted as mounted: %v", left)
	}
}

// A note about a mount that is gone, as after a restart of the machine, keeps nothing.
func TestMountsThatAreGone(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	ref := r.push(t, gzipped(t, file{name: "a", text: "1"}))
	root := filepath.Join(t.TempDir(), "ro ot")
	if err := s.Mount(pull(t, s, ref), root); err != nil {
		t.Fatal(err)
	}
	s.Close()
	again := openStore(t, s.cfg)
	if again.mounts[root] == "" {
		t.Error("a mount point with a space in its name is not found again")
	}
	if err := disk.Unmount(root); err != nil {
		t.Fatal(err)
	}
	last := openStore(t, s.cfg)
	if left, _ := os.ReadDir(s.path("mounts")); len(left) > 0 || len(last.mounts) > 0 {
		t.Errorf("noted as mounted: %v", left)
	}
}

// A supervisor that gave its work to another one removes nothing any more.
func TestFormerOwnerRemovesNothing(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	ref := pulled(t, r, s, 1)[0]
	next := openStore(t, s.cfg)
	root := filepath.Join(t.TempDir(), "root")
	if err := next.Mount(pull(t, next, ref), root); err != nil {
		t.Fatal(err)
	}
	defer next.Unmount(root)
	if done := s.collect(1 << 60); done.removed > 0 || !s.has(ref) {
		t.Errorf("it removed %d", done.removed)
	}
}

// A round does not go on for ever, and says so; each says what it did in one line.
func TestCollectBounded(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	var log bytes.Buffer
	s.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	s.cfg.Collect = Collect{Age: Grace}
	refs := pulled(t, r, s, roundLimit+3)
	if done := s.collect(0); done.removed != roundLimit || !done.more {
		t.Errorf("round %+v", done)
	}
	if !s.has(refs[roundLimit]) {
		t.Error("the more recent ones went first")
	}
	if done := s.collect(0); done.removed != 3 || done.more {
		t.Errorf("round %+v", done)
	}
	s.collect(0)
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "removed=32 for_age=32 for_disk=0 more=true kept=3 mounted=0 disk_before=") {
		t.Errorf("log:\n%s", log.String())
	}
}

// The collector works by itself: after a pull, and at each interval.
func TestCollector(t *testing.T) {
	r := newRegistry(t)
	needRoot(t)
	s := openStore(t, Config{Dir: filepath.Join(t.TempDir(), "store")})
	first := pulled(t, r, s, 1)[0]
	s.Close()
	s = openStore(t, Config{Dir: s.cfg.Dir, Collect: Collect{Age: time.Minute + Grace, Every: time.Hour}})
	if !s.has(first) {
		t.Fatal("the image is gone")
	}
	second := r.push(t, gzipped(t, file{name: "b", text: "1"}))
	pull(t, s, second)
	for end := time.Now().Add(10 * time.Second); s.has(first); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing was collected after a pull")
		}
	}
	s.old(t, second, time.Hour)
	s.Close()
	s = openStore(t, Config{Dir: s.cfg.Dir, Collect: Collect{Age: Grace, Every: time.Millisecond}})
	for end := time.Now().Add(10 * time.Second); s.has(second); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing was collected by and by")
		}
	}
}

// Layers of a pull that failed are there for the next attempt, but not for ever.
func TestOrphans(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	good, bad := gzipped(t, file{name: "a", text: "1"}), gzipped(t, file{name: "../b", text: "2"})
	if _, err := s.Pull(t.Context(), r.push(t, good, gzipped(t, file{name: "ok", text: "2"}), bad)); leapcell.ErrorCode(err) != leapcell.CodeUnprocessable {
		t.Fatal(err)
	}
	before := r.blobs.Load()
	s.collect(0)
	img := pull(t, s, r.push(t, good))
	if n := r.blobs.Load() - before; n > 2 {
		t.Errorf("%d blobs were fetched", n)
	}
	s.collect(1)
	if layers, _ := os.ReadDir(s.path("layers")); len(layers) != 2 {
		t.Errorf("layers are %v, want %v and the mount points", layers, img.Layers)
	}
}

// tiny is a store on a disk of its own.
func tiny(t *testing.T, size string) *Store {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return openStore(t, Config{Dir: dir, Patience: 300 * time.Millisecond})
}

func TestDiskFull(t *testing.T) {
	r, s := newRegistry(t), tiny(t, "256k")
	ref := r.push(t, gzipped(t, file{name: "a", text: strings.Repeat("x", 1<<20)}))
	_, err := s.Pull(t.Context(), ref)
	for _, want := range []string{"no space left on the disk of " + s.cfg.Dir, "of 0.3 MB and ", " inodes are free", ref, "0 unused images were removed"} {
		if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(leapcell.ErrorMessage(err), want) {
			t.Errorf("error is %v, want one with %q", err, want)
		}
	}
	nothingHalf(t, s)
}

// A disk that is full gives up what nobody needs, and the pull succeeds.
func TestDiskFullMakesRoom(t *testing.T) {
	r, s := newRegistry(t), tiny(t, "1m")
	var refs []string
	for i := range 3 {
		refs = append(refs, r.push(t, gzipped(t, file{name: fmt.Sprint(i), text: noise(300_000)})))
		pull(t, s, refs[i])
		s.old(t, refs[i], time.Duration(3-i)*time.Hour)
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := s.Mount(pull(t, s, refs[0]), root); err != nil {
		t.Fatal(err)
	}
	defer s.Unmount(root)
	pull(t, s, r.push(t, gzipped(t, file{name: "new", text: noise(400_000)})))
	if !s.has(refs[0]) || s.has(refs[1]) {
		t.Errorf("the one that is mounted is there: %v, the oldest other: %v", s.has(refs[0]), s.has(refs[1]))
	}
}

// Whatever happens at a time, an image that is mounted is whole.
func TestCollectWhileInUse(t *testing.T) {
	r, s := newRegistry(t), newStore(t)
	s.cfg.Collect = Collect{Age: time.Nanosecond}
	base := gzipped(t, file{name: "base", text: "1"})
	var refs []string
	for i := range 3 {
		refs = append(refs, r.push(t, base, gzipped(t, file{name: "app", text: fmt.Sprint(i)})))
	}
	stop := make(chan struct{})
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			s.mu.Lock()
			for _, e := range s.known {
				e.used = e.used.Add(-Grace) // as if nobody had used it for a while
			}
			s.mu.Unlock()
			s.collect(0)
		}
	})
	var using sync.WaitGroup
	for i, ref := range refs {
		using.Go(func() { useOften(t, s, ref, fmt.Sprint(i)) })
	}
	using.Wait()
	close(stop)
	collecting.Wait()
}

func useOften(t *testing.T, s *Store, ref, want string) {
	root := filepath.Join(t.TempDir(), "root")
	for range 20 {
		img, err := s.Pull(t.Context(), ref)
		if err != nil {
			t.Error(err)
			return
		}
		err = s.Mount(img, root)
		if errors.As(err, new(*leapcell.Error)) && leapcell.ErrorCode(err) == leapcell.CodeUnavailable {
			continue // it was collected between the two, which the grace prevents
		}
		if err != nil {
			t.Error(err)
			return
		}
		for name, text := range map[string]string{"base": "1", "app": want} {
			if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != text {
				t.Errorf("%s holds %q (%v)", name, b, err)
			}
		}
		if err := s.Unmount(root); err != nil {
			t.Error(err)
		}
	}
}
