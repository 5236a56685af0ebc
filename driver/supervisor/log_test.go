package supervisor

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRotation(t *testing.T) {
	base := filepath.Join(t.TempDir(), "shop.stdout")
	log := slog.New(slog.DiscardHandler)
	r, err := newRotator(base, log)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 1<<20-1) + "\n"
	for range 15 {
		r.Write([]byte("short\n" + line))
	}
	r.close()
	if got := r.numbers(); len(got) != 2 || got[1] != 1 {
		t.Fatalf("files %v", got)
	}
	for _, n := range r.numbers() {
		b, _ := os.ReadFile(r.name(n))
		if len(b) > logFileSize || b[len(b)-1] != '\n' {
			t.Errorf("file %d: %d bytes, ends in %q", n, len(b), b[len(b)-1])
		}
	}
	r, err = newRotator(base, log) // a restart goes on with the newest
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		r.Write([]byte(line))
	}
	r.Write(bytes.Repeat([]byte("y"), logFileSize+5)) // a line longer than a file
	r.close()
	if got := r.numbers(); len(got) != logFiles {
		t.Errorf("files %v", got)
	}
}

func TestPipeLosesNothing(t *testing.T) {
	dir := t.TempDir()
	r, err := newRotator(filepath.Join(dir, "shop.stdout"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPipe(filepath.Join(dir, "pipe"), r)
	if err != nil {
		t.Fatal(err)
	}
	const lines = 20000
	for i := range lines {
		fmt.Fprintf(p.app, "line %d\n", i)
	}
	p.close()
	r.close()
	b, _ := os.ReadFile(r.name(0))
	got := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(got) != lines || got[lines-1] != fmt.Sprintf("line %d", lines-1) {
		t.Errorf("%d lines, the last is %q", len(got), got[len(got)-1])
	}
}

// Only a flood is slowed down, and to what the rate allows.
func TestLogPause(t *testing.T) {
	for _, c := range []struct {
		copied int64
		took   time.Duration
		want   time.Duration
	}{
		{logBurst, 0, 250 * time.Millisecond},
		{logBurst, 100 * time.Millisecond, 150 * time.Millisecond},
		{logBurst, time.Hour, 0},
		{logRate, 0, time.Second},
		{100 * logRate, 0, time.Second},
	} {
		if got := logPause(c.copied, c.took); got != c.want {
			t.Errorf("%d bytes in %s: a pause of %s, want %s", c.copied, c.took, got, c.want)
		}
	}
}
