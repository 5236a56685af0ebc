package disk

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func mount(t *testing.T, c Config) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	fallback, err := Mount(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(c.Dir); err != nil {
			t.Error(err)
		}
	})
	if fallback != nil {
		t.Logf("in memory: %v", fallback)
	}
}

// fill writes until there is no more room, and gives how much it was.
func fill(t *testing.T, name string, limit int64) int64 {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	var written int64
	for written <= limit {
		n, err := f.Write(block)
		written += int64(n)
		if errors.Is(err, unix.ENOSPC) {
			return written
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("%d bytes were written, and there is still room", written)
	return 0
}

func TestDiskHasItsSizeOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	const size = 32 << 20
	mount(t, Config{Dir: dir, Bytes: size, MemoryBytes: size})
	if n := fill(t, filepath.Join(dir, "big"), size); n < size*3/4 {
		t.Errorf("only %d of %d bytes could be written", n, size)
	}
	// Files without content have an end as well.
	if err := os.Remove(filepath.Join(dir, "big")); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil && i < 1<<17; i++ {
		var f *os.File
		if f, err = os.Create(filepath.Join(dir, strconv.Itoa(i))); err == nil {
			f.Close()
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("files without end: %v", err)
	}
}

func TestDiskTakesOnlyWhatIsWritten(t *testing.T) {
	parent := t.TempDir()
	var before, after unix.Statfs_t
	if err := unix.Statfs(parent, &before); err != nil {
		t.Fatal(err)
	}
	mount(t, Config{Dir: filepath.Join(parent, "disk"), Bytes: 4 << 30, MemoryBytes: 16 << 20})
	if err := unix.Statfs(parent, &after); err != nil {
		t.Fatal(err)
	}
	if used := int64(before.Bfree-after.Bfree) * after.Bsize; used > 1<<30 {
		t.Errorf("an empty disk of 4 GB takes %d bytes", used)
	}
	entries, err := os.ReadDir(parent)
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the disk there is something: %v, %v", entries, err)
	}
}

func TestUnmountFreesAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disk")
	mount(t, Config{Dir: dir, Bytes: 32 << 20, MemoryBytes: 16 << 20})
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if err := Unmount(dir); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("after unmounting there is %v, %v", entries, err)
	}
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range backing {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), filepath.Dir(dir)) {
			t.Errorf("%s still has %s", name, b)
		}
	}
}

func TestMountRefusesNonsense(t *testing.T) {
	for _, c := range []Config{
		{Dir: "relative", Bytes: 1 << 30, MemoryBytes: 1 << 20},
		{Dir: "/nowhere", Bytes: 1, MemoryBytes: 1 << 20},
		{Dir: "/nowhere", Bytes: 1 << 30},
	} {
		if _, err := Mount(t.Context(), c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}
