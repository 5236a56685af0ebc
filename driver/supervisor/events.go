package supervisor

import (
	"context"
	"sync"
	"time"
)

// eventsKept is how many events a reader may fall behind.
const eventsKept = 1024

// events is a log of the last events that many readers follow at their own pace.
type events struct {
	mu   sync.Mutex
	seq  int64
	ring []Event
	more chan struct{} // closed and replaced with each event
}

func newEvents() *events {
	// Sequence numbers go on where an earlier supervisor cannot have been, so that readers
	// that outlived it miss nothing.
	return &events{seq: time.Now().UnixMicro(), more: make(chan struct{})}
}

func (e *events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	ev.Seq, ev.Time = e.seq, time.Now()
	if len(e.ring) == eventsKept {
		e.ring = append(e.ring[:0], e.ring[1:]...)
	}
	e.ring = append(e.ring, ev)
	close(e.more)
	e.more = make(chan struct{})
}

// all is what is kept.
func (e *events) all() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]Event(nil), e.ring...)
}

// restore puts the events of the former supervisor before those to come.
func (e *events) restore(former []Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ring = append(e.ring, former...)
	if n := len(former); n > 0 {
		e.seq = max(e.seq, former[n-1].Seq)
	}
}

// last is the number of the newest event.
func (e *events) last() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seq
}

// after waits for events newer than seq; it returns none when ctx is done first.
func (e *events) after(ctx context.Context, seq int64) []Event {
	for {
		e.mu.Lock()
		var out []Event
		for _, ev := range e.ring {
			if ev.Seq > seq {
				out = append(out, ev)
			}
		}
		more := e.more
		e.mu.Unlock()
		if len(out) > 0 {
			return out
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}
