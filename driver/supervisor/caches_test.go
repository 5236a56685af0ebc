package supervisor

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What a file system keeps for itself does not count as used: caches would go for nothing.
func TestUsedPercentIsThatOfDf(t *testing.T) {
	dir := t.TempDir()
	out, err := exec.Command("df", "--output=pcent", dir).Output()
	if err != nil {
		t.Skip("no df:", err)
	}
	lines := strings.Fields(string(out))
	want, err := strconv.Atoi(strings.TrimSuffix(lines[len(lines)-1], "%"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := usedPercent(dir); err != nil || got < want-2 || got > want+2 {
		t.Errorf("%d %%, %v; df says %d %%", got, err, want)
	}
}

func TestCaches(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	begin := func() *caches {
		return newCaches(filepath.Join(dir, "files"), filepath.Join(dir, "mounts"), 101, slog.New(slog.DiscardHandler))
	}
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := begin()
	take := func(c *caches, name string) (folder, said string, release func()) {
		t.Helper()
		folder, said, release, err := c.Take(t.Context(), name, 64)
		if err != nil {
			t.Skip("no loop device:", err)
		}
		return folder, said, release
	}
	has := func(folder string) bool { _, err := os.Stat(filepath.Join(folder, "x")); return err == nil }
	put := func(folder string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, "x"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one, _, release := take(c, "one")
	put(one)
	again, _, other := take(c, "one") // two builds of a service at a time share it
	release()
	if !has(again) {
		t.Error("the second user has not what the first wrote")
	}
	other()
	two, _, release := take(c, "two")
	if has(two) {
		t.Error("a service has the cache of another")
	}
	release()
	one, _, _ = take(c, "one")
	if !has(one) {
		t.Error("nothing was kept for the next build")
	}
	// The supervisor dies in the middle of the build.
	c = begin()
	c.Recover()
	one, _, release = take(c, "one")
	if !has(one) {
		t.Error("nothing was kept over a crash of the supervisor")
	}
	// One that is nearly full begins anew.
	if err := os.WriteFile(filepath.Join(one, "big"), make([]byte, 54<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	release()
	one, said, release := take(c, "one")
	if has(one) || !strings.Contains(said, "begins anew") {
		t.Errorf("a full one is kept; said %q", said)
	}
	put(one)
	if err := c.Forget("one"); err != nil { // while it is in use
		t.Fatal(err)
	}
	release()
	one, _, release = take(c, "one")
	if has(one) {
		t.Error("what was forgotten is there")
	}
	release()
	for _, bad := range []string{"../x", "a/b", ".hidden", "x.disk"} {
		if _, _, _, err := c.Take(t.Context(), bad, 64); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
