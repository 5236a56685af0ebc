package source

import (
	"context"
	"sync"
)

// locks are one for each key, for those who may wait no longer than their context.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is free again
}

// lock waits until nobody has the lock of key. Call unlock.
func (l *locks) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		unlock, free := l.take(key)
		if free == nil {
			return unlock, nil
		}
		select {
		case <-free:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// try is lock for those who do not wait.
func (l *locks) try(key string) (unlock func(), ok bool) {
	unlock, free := l.take(key)
	return unlock, free == nil
}

func (l *locks) take(key string) (unlock func(), free <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if free, ok := l.held[key]; ok {
		return nil, free
	}
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	mine := make(chan struct{})
	l.held[key] = mine
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, key)
		close(mine)
	}, nil
}
