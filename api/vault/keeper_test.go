package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/store"
)

// fakeParts stands in for Vault, Nomad and the deployer.
type fakeParts struct {
	store   *store.Store
	mu      sync.Mutex
	vars    map[string]string
	down    error // Nomad's
	changed chan string
	slow    chan struct{} // set: the deployer takes its time until applied
	fail    error         // of the next replacement
	shred   []string
}

func (f *fakeParts) Seal(_ context.Context, id string, values map[string]string) (map[string]string, error) {
	sealed := map[string]string{}
	for name, value := range values {
		sealed[name] = fmt.Sprintf("vault:v1:%s:%d", id, len(value))
	}
	return sealed, nil
}

func (f *fakeParts) Shred(_ context.Context, id string) error {
	f.shred = append(f.shred, id)
	return nil
}

func (f *fakeParts) PutVariable(_ context.Context, path string, value []byte) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down == nil {
		f.vars[path] = string(value)
	}
	return 1, f.down
}

func (f *fakeParts) Variable(_ context.Context, path string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return nil, f.down
	}
	v, ok := f.vars[path]
	if !ok {
		return nil, leapcell.Errorf(leapcell.CodeNotFound, "no")
	}
	return []byte(v), nil
}

func (f *fakeParts) DeleteVariable(_ context.Context, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.vars, path)
	return f.down
}

func (f *fakeParts) Changed(ctx context.Context, svc leapcell.Service) error {
	f.mu.Lock()
	err := f.fail
	f.fail = nil
	f.mu.Unlock()
	env, envErr := f.store.Env(ctx, svc.ID)
	if err = errors.Join(err, envErr); err == nil && f.slow == nil {
		err = f.store.EnvApplied(ctx, svc.ID, env.Version)
	}
	select {
	case f.changed <- fmt.Sprintf("%s %d", svc.Name, env.Version):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fakeParts) set(down, fail error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down, f.fail = down, fail
}

func (f *fakeParts) variable(t *testing.T, id string) leapcell.SealedEnv {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var env leapcell.SealedEnv
	if err := json.Unmarshal([]byte(f.vars[leapcell.EnvPrefix+id]), &env); err != nil {
		t.Fatalf("variable of %s: %v", id, err)
	}
	return env
}

func newKeeper(t *testing.T) (*Keeper, *fakeParts, *store.Store, leapcell.Service) {
	t.Helper()
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	svc := leapcell.Service{ID: "python-default-abcdefgh", Name: "python"}
	if err := st.CreateService(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	f := &fakeParts{store: st, vars: map[string]string{}, changed: make(chan string)}
	return NewKeeper(KeeperConfig{Store: st, Variables: f, Sealer: f, Changed: f.Changed}), f, st, svc
}

// run runs k and returns what stops it and waits for that.
func run(t *testing.T, k *Keeper) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { k.Run(ctx); close(done) }()
	return func() { cancel(); <-done }
}

func TestSetEnvReachesInstances(t *testing.T) {
	k, f, _, svc := newKeeper(t)
	defer run(t, k)()
	env, err := k.SetEnv(t.Context(), svc, map[string]string{"KEY": "hunter2"}, nil)
	if err != nil || env.Version != 1 {
		t.Fatalf("%+v, %v", env, err)
	}
	// It is published when the call returns.
	if got := f.variable(t, svc.ID); got.Version != 1 || got.Values["KEY"] != "vault:v1:python-default-abcdefgh:7" {
		t.Errorf("variable is %+v", got)
	}
	if got := <-f.changed; got != "python 1" {
		t.Errorf("replaced the instances of %s", got)
	}
	if _, err := k.SetEnv(t.Context(), svc, map[string]string{"KEY": "other"}, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-f.changed; got != "python 2" {
		t.Errorf("then replaced the instances of %s", got)
	}
}

// TestDeployerIsToldOnce: while the deployer is at work, further looks do not start it again.
func TestDeployerIsToldOnce(t *testing.T) {
	k, f, _, svc := newKeeper(t)
	f.slow = make(chan struct{})
	f.changed = make(chan string, 100)
	if _, err := k.SetEnv(t.Context(), svc, map[string]string{"A": "v"}, nil); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if k.applyPending(t.Context()) {
			t.Fatal("failed")
		}
	}
	if n := len(f.changed); n != 1 {
		t.Errorf("told %d times", n)
	}
	if _, err := k.SetEnv(t.Context(), svc, map[string]string{"A": "longer"}, nil); err != nil {
		t.Fatal(err)
	}
	k.applyPending(t.Context())
	if n := len(f.changed); n != 2 {
		t.Errorf("told %d times after another change", n)
	}
}

func TestSetEnvRefuses(t *testing.T) {
	k, f, _, svc := newKeeper(t)
	_, err := k.SetEnv(t.Context(), svc, map[string]string{"1X": "v"}, nil)
	wantCode(t, err, leapcell.CodeInvalid, "1X")
	_, err = k.SetEnv(t.Context(), svc, map[string]string{"X": "v"}, []string{"X"})
	wantCode(t, err, leapcell.CodeInvalid, "both")
	_, err = k.SetEnv(t.Context(), svc, map[string]string{"X": strings.Repeat("v", leapcell.MaxEnvBytes)}, nil)
	wantCode(t, err, leapcell.CodeUnprocessable, "3073")
	// Two that fit alone but not together.
	for i, name := range []string{"A", "B"} {
		_, err = k.SetEnv(t.Context(), svc, map[string]string{name: strings.Repeat("v", 2000)}, nil)
		if i == 0 && err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, err, leapcell.CodeUnprocessable, "4002")
	if got := f.variable(t, svc.ID); got.Version != 1 || len(got.Values) != 1 {
		t.Errorf("a refused change left %+v", got)
	}
}

// TestHealsAfterKill: whatever was left undone between store and applied is done by the
// next process.
func TestHealsAfterKill(t *testing.T) {
	_, f, st, svc := newKeeper(t)
	change := store.EnvChange{Set: map[string]store.SealedValue{"A": {Sealed: "vault:v1:x", Size: 1}}}
	if _, err := st.SetEnv(t.Context(), svc.ID, change); err != nil { // stored, then killed
		t.Fatal(err)
	}
	k := NewKeeper(KeeperConfig{Store: st, Variables: f, Sealer: f, Changed: f.Changed})
	stop := run(t, k)
	<-f.changed
	stop()
	if got := f.variable(t, svc.ID); got.Version != 1 {
		t.Errorf("variable is %+v", got)
	}
	// A variable that somebody changed is put right at the next start, without a replacement.
	f.mu.Lock()
	f.vars[leapcell.EnvPrefix+svc.ID] = `{"version":99}`
	f.mu.Unlock()
	k = NewKeeper(KeeperConfig{Store: st, Variables: f, Sealer: f, Changed: f.Changed})
	if err := k.publishAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.variable(t, svc.ID); got.Version != 1 {
		t.Errorf("variable is still %+v", got)
	}
}

func TestNomadAwayIsSaidAndMadeUpFor(t *testing.T) {
	k, f, _, svc := newKeeper(t)
	f.set(leapcell.Errorf(leapcell.CodeUnavailable, "Nomad at x does not answer"), nil)
	_, err := k.SetEnv(t.Context(), svc, map[string]string{"A": "v"}, nil)
	wantCode(t, err, leapcell.CodeUnavailable, "stored", "Nomad at x")
	f.set(nil, nil)
	defer run(t, k)()
	<-f.changed
	if got := f.variable(t, svc.ID); got.Version != 1 {
		t.Errorf("variable is %+v", got)
	}
}

func TestFailedReplacementIsRepeated(t *testing.T) {
	k, f, st, svc := newKeeper(t)
	f.set(nil, errors.New("not now"))
	if _, err := k.SetEnv(t.Context(), svc, map[string]string{"A": "v"}, nil); err != nil {
		t.Fatal(err)
	}
	defer run(t, k)()
	<-f.changed // fails
	if pending, err := st.EnvPending(t.Context()); err != nil || len(pending) != 1 {
		t.Fatalf("pending %v, %v", pending, err)
	}
	k.wake() // as the timer would
	<-f.changed
}

func TestCleanIsFinal(t *testing.T) {
	k, f, _, svc := newKeeper(t)
	if _, err := k.SetEnv(t.Context(), svc, map[string]string{"A": "v"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := k.Clean(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	if err := k.publishAll(t.Context()); err != nil { // what a worker may still try
		t.Fatal(err)
	}
	if len(f.vars) != 0 || fmt.Sprint(f.shred) != "[python-default-abcdefgh source.python-default-abcdefgh]" {
		t.Errorf("left: %v, shredded: %v", f.vars, f.shred)
	}
	_, err := k.SetEnv(t.Context(), svc, map[string]string{"A": "v"}, nil)
	wantCode(t, err, leapcell.CodeConflict, "deleted")
}
