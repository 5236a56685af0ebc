package deploy

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// slots bounds the builds at the same time in a workspace. Who came first is first, also after a
// restart, and before all whoever was building then.
type slots struct {
	size int

	mu  sync.Mutex
	all map[string]*queue // by workspace
}

type queue struct {
	busy    int
	waiting []*ticket // the next one first
}

// ticket is a place in a queue.
type ticket struct {
	id      string // of the deployment
	begun   bool   // it was building when the process ended
	created time.Time
	turn    chan struct{} // closed when it has its slot
	moved   chan struct{} // has one element when its place changed
}

func newSlots(size int) *slots {
	return &slots{size: size, all: map[string]*queue{}}
}

func (s *slots) queue(workspace string) *queue {
	q, ok := s.all[workspace]
	if !ok {
		q = &queue{}
		s.all[workspace] = q
	}
	return q
}

// take waits for a slot; waits is told the place in the queue, 1 for the next, at first and when
// it changes. Call release once.
func (s *slots) take(ctx context.Context, workspace string, t *ticket, waits func(place int)) (release func(), err error) {
	t.turn, t.moved = make(chan struct{}), make(chan struct{}, 1)
	s.mu.Lock()
	q := s.queue(workspace)
	at, _ := slices.BinarySearchFunc(q.waiting, t, before)
	q.waiting = slices.Insert(q.waiting, at, t)
	s.advance(q)
	s.mu.Unlock()
	for place := 0; ; {
		if now := s.place(workspace, t.id); now > 0 && now != place {
			place = now
			waits(place)
		}
		select {
		case <-t.turn:
			return sync.OnceFunc(func() { s.leave(workspace, t) }), nil
		case <-t.moved:
		case <-ctx.Done():
			s.leave(workspace, t)
			return nil, ctx.Err()
		}
	}
}

func before(a, b *ticket) int {
	if a.begun != b.begun {
		if a.begun {
			return -1
		}
		return 1
	}
	return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id))
}

// advance gives free slots to the next ones and tells the others. The caller holds mu.
func (s *slots) advance(q *queue) {
	for q.busy < s.size && len(q.waiting) > 0 {
		close(q.waiting[0].turn)
		q.waiting = q.waiting[1:]
		q.busy++
	}
	for _, t := range q.waiting {
		select {
		case t.moved <- struct{}{}:
		default:
		}
	}
}

// leave gives back the slot of t, or its place.
func (s *slots) leave(workspace string, t *ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue(workspace)
	if i := slices.Index(q.waiting, t); i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
	} else {
		q.busy--
	}
	s.advance(q)
	if q.busy == 0 && len(q.waiting) == 0 {
		delete(s.all, workspace)
	}
}

// place is that of a deployment in the queue of its workspace, 1 for the next; 0 says that it does
// not wait.
func (s *slots) place(workspace, id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q, ok := s.all[workspace]; ok {
		return slices.IndexFunc(q.waiting, func(t *ticket) bool { return t.id == id }) + 1
	}
	return 0
}
