package supervisor

import (
	"fmt"
	"sync"
	"time"
)

// naps puts suspensions and resumptions into lines for the operator: the first of each at once,
// then sums. Nomad keeps the last ten events of a task and stores each in its state, so lines get
// rarer: a minute lies between two at first, then twice as long each time, at most an hour. A line is
// written when something happens, never by a clock: who sleeps costs nothing.
type naps struct {
	mu                 sync.Mutex
	suspended, resumed int // since the last line
	slept, woke        bool
	line               time.Time
	pause              time.Duration
}

const (
	napsFirst = time.Minute
	napsMost  = time.Hour
)

// note counts, and gives the line that is due or "".
func (n *naps) note(suspended bool, now time.Time, after time.Duration) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case suspended && !n.slept:
		n.slept = true
		n.line, n.pause = now, napsFirst
		return fmt.Sprintf("suspended: no request for %s", after)
	case !suspended && !n.woke:
		n.woke = true
		return "resumed by a request"
	case suspended:
		n.suspended++
	default:
		n.resumed++
	}
	past := now.Sub(n.line)
	if past < n.pause {
		return ""
	}
	text := fmt.Sprintf("suspended %d times and resumed %d times in %s", n.suspended, n.resumed, past.Round(time.Second))
	n.suspended, n.resumed, n.line, n.pause = 0, 0, now, min(2*n.pause, napsMost)
	return text
}

// napped is called by the gate.
func (t *task) napped(suspended bool) {
	if text := t.naps.note(suspended, time.Now(), t.sup.cfg.SuspendAfter); text != "" {
		t.event(nil, "%s", text)
	}
}
