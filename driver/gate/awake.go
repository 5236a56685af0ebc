package gate

import (
	"errors"
	"sync"
	"time"
)

// Awake thaws the instance and keeps it awake until release is called, more than once is as once:
// for an operator's command or a signal. It is no request: nobody is charged for it, and a drain does
// not wait for it. There is an error when the instance has no process, or ends.
func (g *Gate) Awake() (release func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.backend == nil || g.left.Load() || g.state == Failed || g.state == Stopped {
		return nil, errors.New("the instance is not running")
	}
	if g.thaw() != nil {
		return nil, errors.New("the instance could not be resumed")
	}
	g.awake++
	return sync.OnceFunc(g.mayRest), nil
}

func (g *Gate) mayRest() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.awake--
	if g.awake == 0 && g.inFlight == 0 && (g.state == Ready || g.left.Load()) {
		g.goIdle(time.Now())
	}
	g.checkOver()
}
