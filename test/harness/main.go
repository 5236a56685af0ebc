package harness

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

var current *Platform

// Main runs the tests of a package on a platform and ends the process. With -short it runs
// none: a platform needs root and minutes.
func Main(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped by -short: these tests bring up a whole platform")
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p, release, err := Acquire(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	current = p
	code := m.Run()
	if err := release(); err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	return code
}

// Get is the platform of this test run.
func Get(t testing.TB) *Platform {
	t.Helper()
	if current == nil {
		t.Fatal("TestMain does not call harness.Main")
	}
	return current
}
