package wake

import (
	"net/http"
	"time"

	"github.com/leapcell/leapcell"
)

const (
	firstBackoff = time.Second
	lastBackoff  = time.Minute
)

// backoff keeps visitors from a service that cannot start. Those who waited for the start
// were told that it failed; whoever comes next is told at once, until the next try is due.
// An instance that was not tried yet deserves a try, and so does a new deployment.
type backoff struct {
	failures int       // starts in a row
	until    time.Time // nobody is let through before
}

// backingOff gives the answer for requests that come between two tries. As long as an
// instance is good, or may be, starts that fail are not the visitors' concern. Called with
// mu held.
func (s *service) backingOff(now time.Time) *refusal {
	left := s.backoff.until.Sub(now)
	if left <= 0 {
		return nil
	}
	for _, in := range s.instances {
		if in.start.Load() != startFailed {
			return nil
		}
	}
	return &refusal{status: http.StatusServiceUnavailable, reason: reasonBackingOff, text: leapcell.TextStartFailed, after: left}
}

// heard takes notice of how an instance answered: with the app's answer, or with a code of
// its gate.
func (s *service) heard(in *instance, code leapcell.Code) {
	failed := code == leapcell.CodePortNotListening || code == leapcell.CodeStartExited || code == leapcell.CodeStartFailed
	if !failed && in.start.Load() == startGood {
		return // nothing new, and no lock on the path of each request
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !failed {
		in.start.Store(startGood)
		s.backoff = backoff{}
		return
	}
	in.start.Store(startFailed)
	s.startFailed(time.Now())
}

// startFailed notes a start that failed. Called with mu held.
func (s *service) startFailed(now time.Time) {
	if s.backoff.until.After(now) {
		return // of the same start: they waited together
	}
	s.backoff.until = now.Add(min(firstBackoff<<min(s.backoff.failures, 10), lastBackoff))
	s.backoff.failures++
}
