package gate

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwakeKeepsAnInstanceFromSleeping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var naps []bool
		f := newFixture(t, Config{SuspendAfter: 20 * time.Millisecond, Naps: func(suspended bool) {
			mu.Lock()
			defer mu.Unlock()
			naps = append(naps, suspended)
		}}, hello)
		if _, err := f.gate.Awake(); err == nil {
			t.Error("an instance without a process was woken")
		}
		f.ready()
		time.Sleep(time.Second)
		release, err := f.gate.Awake()
		if err != nil || f.app.isFrozen() {
			t.Fatalf("not woken: %v", err)
		}
		f.want(f.get("/"), 200, "hello")
		time.Sleep(time.Hour)
		if s := f.gate.Stats(); f.app.isFrozen() || s.Requests != 1 || s.ComputeMS > 1 {
			t.Errorf("frozen %v; charged for %+v, want the one request", f.app.isFrozen(), s)
		}
		release()
		release() // the second does nothing
		time.Sleep(time.Second)
		if !f.app.isFrozen() {
			t.Error("never suspended again")
		}
		f.want(f.get("/"), 200, "hello")
		time.Sleep(time.Second)
		// What an operator's command causes is no news for the operator.
		mu.Lock()
		defer mu.Unlock()
		if want := []bool{true, true, false, true}; !slices.Equal(naps, want) {
			t.Errorf("told of %v, want %v", naps, want)
		}
	})
}

func TestDrainDoesNotWaitForACommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Config{}, hello)
		f.ready()
		release, err := f.gate.Awake()
		if err != nil {
			t.Fatal(err)
		}
		if err := f.gate.Drain(context.Background()); err != nil { // would never come back
			t.Error(err)
		}
		release()
	})
}
