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

const (
	// retryAfter is how soon what failed is tried again.
	retryAfter = 5 * time.Second
	// tellAgain is how long a change may be under way before the deployer is told again: it
	// is longer than the longest drain.
	tellAgain = 20 * time.Minute
	// lookAgain is how often that is looked at.
	lookAgain = time.Minute
)

// Store keeps sealed environments. SetEnv makes a new version; it is pending until every
// running instance has it.
type Store interface {
	Services(ctx context.Context) ([]leapcell.Service, error)
	Service(ctx context.Context, nameOrID string) (leapcell.Service, error)
	Env(ctx context.Context, serviceID string) (leapcell.SealedEnv, error)
	SetEnv(ctx context.Context, serviceID string, change store.EnvChange) (leapcell.SealedEnv, error)
	EnvPending(ctx context.Context) ([]string, error)
}

// Variables are Nomad's variables. Variable gives [leapcell.CodeNotFound] for one that is
// not there; deleting such a one is no error.
type Variables interface {
	PutVariable(ctx context.Context, path string, value []byte) (index uint64, err error)
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
	// Changed has a new environment brought to the running instances of a service. It
	// returns at once; whoever does it notes the version as applied in the store.
	Changed func(ctx context.Context, svc leapcell.Service) error
	Log     *slog.Logger
}

// Keeper brings environments from the API to where instances read them:
//
//	seal in Vault ─► store ─► Nomad variable ─► Changed: the deployer replaces running
//	                                            instances and notes the version as applied
//
// From the store on everything can be repeated. [Keeper.Run] does so after a restart and
// after failures, so that a kill -9 anywhere heals.
type Keeper struct {
	cfg  KeeperConfig
	kick chan struct{} // something may be pending; holds one

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by service: one writer of its variable at a time
	gone  map[string]bool        // services that are being deleted
	sick  map[string]bool        // services whose last try failed: logged once
	told  map[string]told        // services of whose change the deployer knows
}

// told says which version the deployer was told of, and when.
type told struct {
	version int
	at      time.Time
}

// NewKeeper makes a keeper. Run it.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Keeper{
		cfg: cfg, kick: make(chan struct{}, 1), locks: map[string]*sync.Mutex{},
		gone: map[string]bool{}, sick: map[string]bool{}, told: map[string]told{},
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
	if err := k.cfg.Sealer.Shred(ctx, svc.ID); err != nil {
		return err
	}
	return k.cfg.Sealer.Shred(ctx, SourceKey(svc.ID))
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
	_, err = k.cfg.Variables.PutVariable(ctx, path, want)
	return err
}

// Run brings every change to the running instances, until ctx ends. At first it makes all
// variables what the store says.
func (k *Keeper) Run(ctx context.Context) {
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	k.wake()
	checked := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.kick:
		case <-look.C:
		}
		failed := k.applyPending(ctx)
		if !checked {
			err := k.publishAll(ctx)
			k.noteResult("", err)
			checked, failed = err == nil, failed || err != nil
		}
		if failed {
			time.AfterFunc(retryAfter, k.wake)
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

// applyPending applies every change that is not in effect, and reports whether one failed.
func (k *Keeper) applyPending(ctx context.Context) (failed bool) {
	pending, err := k.cfg.Store.EnvPending(ctx)
	if err != nil {
		k.noteResult("", err)
		return true
	}
	for _, id := range pending {
		err := k.apply(ctx, id)
		k.noteResult(id, err)
		failed = failed || err != nil
	}
	return failed
}

// apply publishes the newest version and tells the deployer of it.
func (k *Keeper) apply(ctx context.Context, serviceID string) error {
	env, err := k.cfg.Store.Env(ctx, serviceID)
	if err != nil || k.wasTold(serviceID, env.Version) {
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
	k.mu.Lock()
	k.told[serviceID] = told{env.Version, time.Now()}
	k.mu.Unlock()
	return nil
}

func (k *Keeper) wasTold(serviceID string, version int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.told[serviceID]
	return t.version == version && time.Since(t.at) < tellAgain
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
