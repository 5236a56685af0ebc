package harness

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBasesAreKeptAndLent(t *testing.T) {
	state, next := t.TempDir(), t.TempDir()
	kept := bases{filepath.Join(t.TempDir(), "cache")}
	from := bases{filepath.Join(state, registryStore)}
	image := func(name, digit string) {
		t.Helper()
		hex := strings.Repeat(digit, 64)
		for path, text := range map[string]string{
			from.blob(hex): "layer " + digit,
			filepath.Join(from.repository(name), "_layers/sha256", hex, "link"):       "sha256:" + hex,
			filepath.Join(from.repository(name), "_manifests/tags/t/current", "link"): "sha256:" + hex,
		} {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	try(kept.lend(next)) // nothing is kept yet
	image("go", "a")
	image("old", "b")
	try(kept.keep(state))
	// Another one under the same name takes its place, and what only the first had goes.
	try(os.RemoveAll(from.repository("go")))
	image("go", "c")
	try(kept.keep(state))
	yesterday := time.Now().Add(-keptFor)
	try(os.Chtimes(kept.repository("old"), yesterday, yesterday))
	try(kept.keep(state)) // what is the same stays as old as it is
	if _, err := os.Stat(kept.blob(strings.Repeat("a", 64))); err == nil {
		t.Error("the layer of the former one is still there")
	}
	for range 2 {
		try(kept.lend(next))
	}
	to := bases{filepath.Join(next, registryStore)}
	if names := to.names(); !slices.Equal(names, []string{"go"}) {
		t.Errorf("lent are %v", names)
	}
	layer, err := os.ReadFile(to.blob(strings.Repeat("c", 64)))
	if err != nil || string(layer) != "layer c" {
		t.Errorf("lent is %q, %v", layer, err)
	}
	// What a registry writes into its links stays its own.
	link := "_manifests/tags/t/current/link"
	try(os.WriteFile(filepath.Join(to.repository("go"), link), []byte("other"), 0o644))
	if b, err := os.ReadFile(filepath.Join(kept.repository("go"), link)); err != nil || string(b) == "other" {
		t.Errorf("kept is what the other wrote: %q, %v", b, err)
	}
}
