package deploy

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// slots bounds the builds at the same time in a workspace. Who came first is first.
type slots struct {
	size int64

	mu  sync.Mutex
	all map[string]*semaphore.Weighted
}

func newSlots(size int) *slots {
	return &slots{size: int64(size), all: map[string]*semaphore.Weighted{}}
}

// take waits for a slot; full is called when it has to. Call release once.
func (s *slots) take(ctx context.Context, workspace string, full func()) (release func(), err error) {
	s.mu.Lock()
	sem, ok := s.all[workspace]
	if !ok {
		sem = semaphore.NewWeighted(s.size)
		s.all[workspace] = sem
	}
	s.mu.Unlock()
	if !sem.TryAcquire(1) {
		full()
		if err := sem.Acquire(ctx, 1); err != nil {
			return nil, err
		}
	}
	return func() { sem.Release(1) }, nil
}
