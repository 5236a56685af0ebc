package harness

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// Load is a visitor who comes again and again while a test does harm elsewhere.
type Load struct {
	stop   context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	ok     int
	failed []string
}

// Visitors starts n of them on path; each waits a little between two visits.
func (s *Service) Visitors(t testing.TB, n int, path string) *Load {
	ctx, stop := context.WithCancel(context.Background())
	l := &Load{stop: stop}
	for range n {
		l.wg.Go(func() {
			visitor := s.p.Visitor()
			defer visitor.CloseIdleConnections()
			for ctx.Err() == nil {
				// The last visit is let finish: only then are all of them counted.
				r, err := s.Visit(context.Background(), visitor, path)
				l.count(r, err)
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
	}
	t.Cleanup(func() { stop(); l.wg.Wait() })
	return l
}

func (l *Load) count(r Reply, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		l.failed = append(l.failed, fmt.Sprintf("%s %v", time.Now().Format("15:04:05.000"), err))
	case r.Status != http.StatusOK || r.Err != nil:
		l.failed = append(l.failed, fmt.Sprintf("%s %d %.200q %v", time.Now().Format("15:04:05.000"), r.Status, r.Body, r.Err))
	default:
		l.ok++
	}
}

// Answered is how many visits succeeded so far.
func (l *Load) Answered() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ok
}

// enough visits are those that show something: a test may be done with its harm before that many were made.
const enough = 10

// Check ends the visits as soon as there were enough of them, and fails the test if one of them failed.
func (l *Load) Check(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(time.Minute); l.Answered() < enough && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	l.stop()
	l.wg.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d of %d visits failed; the first: %s; the last: %s",
			len(l.failed), len(l.failed)+l.ok, l.failed[0], l.failed[len(l.failed)-1])
	}
	if l.ok < enough {
		t.Errorf("only %d visits were made: this shows nothing", l.ok)
	}
	t.Logf("%d visits answered", l.ok)
}
