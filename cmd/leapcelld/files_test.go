package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestOneWorksInADataFolder(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	unlock, err := lockDataDir(t.Context(), dir, false, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDataDir(t.Context(), dir, false, log); err == nil || !strings.Contains(err.Error(), "--standby") {
		t.Errorf("a second one in the same folder: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() { _, err := lockDataDir(ctx, dir, true, log); gaveUp <- err }()
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("one that was told to end while it stood by: %v", err)
	}

	type turn struct {
		unlock func()
		err    error
	}
	next := make(chan turn)
	go func() { unlock, err := lockDataDir(t.Context(), dir, true, log); next <- turn{unlock, err} }()
	select {
	case <-next:
		t.Fatal("two have the folder at the same time")
	default:
	}
	unlock()
	// The first standby waits in the kernel as well, and lets go at once when it has its turn.
	second := <-next
	if second.err != nil {
		t.Fatal(second.err)
	}
	second.unlock()
}
