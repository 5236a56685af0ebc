package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/store"
)

// retryAfter is how soon what failed is tried again.
const retryAfter = 5 * time.Second

// Store keeps sealed environments. SetEnv makes a new version; a version is pending until
// EnvApplied was called for it.
type Store interface {
	Services(ctx context.Context) ([]leapcell.Service, error)
	Service(ctx context.Context, nameOrID string) (leapcell.Service, error)
	Env(ctx context.Context, serviceID string) (leapcell.SealedEnv, error)
	SetEnv(ctx context.Context, serviceID string, change store.EnvChange) (leapcell.SealedEnv, error)
	EnvPending(ctx context.Context) ([]string, error)
	EnvApplied(ctx context.Context, serviceID string, version int) error
}

// Variables are Nomad's variables. Variable gives [leapcell.CodeNotFound] for one that is
// not there; deleting such a one is no error.
type Variables interface {
	PutVariable(ctx context.Context, path string, value []byte) error
	Variable(ctx context.Context, path string) ([]byte, error)
	DeleteVariable(ctx context.Context, path string) error
}

// Sealing seals values and shreds a service's key. [Sealer] does.
type Sealing interface {
	Seal(ctx context.Context, serviceID string, values map[string]string) (map[string]string, error)
	Shred(ctx context.Context, serviceID string) error
}

// KeeperConfig plugs a keeper together.
type KeeperConfig struct {
	Store     Store
	Variables Variables
	Sealer    Sealing
	// Changed brings a new environment to the running instances of a service, by replacing
	// them. It may be called more often than needed.
	Changed func(ctx context.Context, svc leapcell.Service) error
	Log     *slog.Logger
}

// Keeper brings environments from the API to where instances read them:
//
//	seal in Vault ─► store ─► Nomad variable ─► running instances are replaced ─► applied
//
// From the store on everything can be repeated. [Keeper.Run] does so after a restart and
// after failures, so that a kill -9 anywhere heals.
type Keeper struct {
	cfg  KeeperConfig
	kick chan struct{} // something may be pending; holds one

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by service: one writer of its variable at a time
	gone  map[string]bool        // services that are being deleted
	busy  map[string]bool        // services that have a worker
	sick  map[string]bool        // services whose last try failed: logged once
}

// NewKeeper makes a keeper. Run it.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Keeper{
		cfg: cfg, kick: make(chan struct{}, 1), locks: map[string]*sync.Mutex{},
		gone: map[string]bool{}, busy: map[string]bool{}, sick: map[string]bool{},
	}
}

// SetEnv seals, stores and publishes a change of a service's variables. It returns when
// instances that start from now on have it; running ones are replaced afterwards. [EN2]
func (k *Keeper) SetEnv(ctx context.Context, svc leapcell.Service, set map[string]string, unset []string) (leapcell.SealedEnv, error) {
	if err := leapcell.ValidateEnv(set); err != nil {
		return leapcell.SealedEnv{}, err
	}
	for _, name := range unset {
		if _, both := set[name]; both {
			return leapcell.SealedEnv{}, leapcell.Errorf(leapcell.CodeInvalid, "the variable %s is both set and removed", name)
		}
	}
	if k.isGone(svc.ID) {
		return leapcell.SealedEnv{}, leapcell.Errorf(leapcell.CodeConflict, "the service %s is being deleted", svc.Name)
	}
	sealed, err := k.cfg.Sealer.Seal(ctx, svc.ID, set)
	if err != nil {
		return leapcell.SealedEnv{}, err
	}
	change := store.EnvChange{Set: make(map[string]store.SealedValue, len(set)), Unset: slices.Clone(unset)}
	for name, value := range set {
		change.Set[name] = store.SealedValue{Sealed: sealed[name], Size: len(value)}
	}
	env, err := k.cfg.Store.SetEnv(ctx, svc.ID, change)
	if err != nil {
		return leapcell.SealedEnv{}, err
	}
	defer k.wake()
	if err := k.publish(ctx, svc.ID); err != nil {
		return leapcell.SealedEnv{}, leapcell.Wrap(leapcell.CodeUnavailable, err,
			"the change is stored and takes effect as soon as Nomad answers: "+leapcell.ErrorMessage(err))
	}
	return env, nil
}

// Clean removes a service's variable and shreds its key. From then on the keeper writes
// nothing for it.
func (k *Keeper) Clean(ctx context.Context, svc leapcell.Service) error {
	k.mu.Lock()
	k.gone[svc.ID] = true
	k.mu.Unlock()
	l := k.lock(svc.ID)
	l.Lock()
	defer l.Unlock()
	if err := k.cfg.Variables.DeleteVariable(ctx, leapcell.EnvPrefix+svc.ID); err != nil {
		return err
	}
	return k.cfg.Sealer.Shred(ctx, svc.ID)
}

// publish makes the Nomad variable what the store says.
func (k *Keeper) publish(ctx context.Context, serviceID string) error {
	l := k.lock(serviceID)
	l.Lock()
	defer l.Unlock()
	if k.isGone(serviceID) {
		return nil
	}
	env, err := k.cfg.Store.Env(ctx, serviceID)
	if err != nil || env.Version == 0 {
		return err
	}
	want, err := json.Marshal(env)
	if err != nil {
		return fmt.Errorf("environment of %s: %w", serviceID, err)
	}
	path := leapcell.EnvPrefix + serviceID
	have, err := k.cfg.Variables.Variable(ctx, path)
	if err != nil && leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return err
	}
	if err == nil && bytes.Equal(have, want) {
		return nil
	}
	return k.cfg.Variables.PutVariable(ctx, path, want)
}

// Run brings every change to the running instances, until ctx ends. At first it makes all
// variables what the store says.
func (k *Keeper) Run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	k.wake()
	checked := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.kick:
		}
		err := k.startWorkers(ctx, &workers)
		if err == nil && !checked {
			err = k.publishAll(ctx)
			checked = err == nil
		}
		k.noteResult("", err)
		if err != nil {
			k.wakeLater()
		}
	}
}

func (k *Keeper) publishAll(ctx context.Context) error {
	services, err := k.cfg.Store.Services(ctx)
	if err != nil {
		return err
	}
	for _, svc := range services {
		if err := k.publish(ctx, svc.ID); err != nil {
			return err
		}
	}
	return nil
}

// startWorkers starts one worker for each service with something pending that has none.
func (k *Keeper) startWorkers(ctx context.Context, workers *sync.WaitGroup) error {
	pending, err := k.cfg.Store.EnvPending(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range pending {
		if k.busy[id] || k.gone[id] {
			continue
		}
		k.busy[id] = true
		workers.Go(func() {
			err := k.apply(ctx, id)
			k.mu.Lock()
			delete(k.busy, id)
			k.mu.Unlock()
			k.noteResult(id, err)
			if err != nil {
				k.wakeLater()
				return
			}
			k.wake() // there may be a newer version by now
		})
	}
	return nil
}

// apply publishes the newest version and replaces the instances that have an older one.
func (k *Keeper) apply(ctx context.Context, serviceID string) error {
	env, err := k.cfg.Store.Env(ctx, serviceID)
	if err != nil {
		return err
	}
	if err := k.publish(ctx, serviceID); err != nil {
		return err
	}
	svc, err := k.cfg.Store.Service(ctx, serviceID)
	if err != nil {
		if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
			return nil // deleted meanwhile
		}
		return err
	}
	if err := k.cfg.Changed(ctx, svc); err != nil {
		return err
	}
	return k.cfg.Store.EnvApplied(ctx, serviceID, env.Version)
}

// noteResult logs when a service's environment starts to fail and when it works again.
// serviceID "" stands for all of them.
func (k *Keeper) noteResult(serviceID string, err error) {
	k.mu.Lock()
	was := k.sick[serviceID]
	if err != nil {
		k.sick[serviceID] = true
	} else {
		delete(k.sick, serviceID)
	}
	k.mu.Unlock()
	switch {
	case err != nil && !was:
		k.cfg.Log.Warn("environment not brought to the instances yet", "service", serviceID, "err", err, "retry", retryAfter)
	case err == nil && was:
		k.cfg.Log.Info("environment brought to the instances again", "service", serviceID)
	}
}

func (k *Keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default: // it is awake already
	}
}

func (k *Keeper) wakeLater() { time.AfterFunc(retryAfter, k.wake) }

func (k *Keeper) isGone(serviceID string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gone[serviceID]
}

func (k *Keeper) lock(serviceID string) *sync.Mutex {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.locks[serviceID]
	if l == nil {
		l = &sync.Mutex{}
		k.locks[serviceID] = l
	}
	return l
}
