package gate

import (
	"container/list"
	"context"
	"net/http"
	"time"

	"github.com/leapcell/leapcell"
)

// waiter is a request that waits for the start or for a free place. result is sent to
// once, when the waiter has been taken off the list: nil means that it holds a place.
type waiter struct {
	result chan *refusal
	place  *list.Element // nil once off the list
}

// enter takes a place in the app for one request and makes sure that the app runs. It
// waits, in order of arrival, while the app starts or is full. waited says whether the
// request saw the start. After a nil refusal the caller must call leave.
func (g *Gate) enter(ctx context.Context) (waited bool, r *refusal) {
	g.mu.Lock()
	if g.state == Ready && g.inFlight < g.cfg.Concurrency {
		r = g.admit()
		g.mu.Unlock()
		return false, r
	}
	if g.state != Starting && g.state != Ready {
		r = g.refusal()
		g.mu.Unlock()
		return false, r
	}
	if g.waiting.Len() >= g.cfg.QueueLimit {
		g.mu.Unlock()
		return false, queueFull
	}
	starting := g.state == Starting
	w := &waiter{result: make(chan *refusal, 1)}
	w.place = g.waiting.PushBack(w)
	g.mu.Unlock()
	return starting, g.wait(ctx, w, starting)
}

// wait blocks until w got a place or was refused. A request held for the start gives up
// when the start may no longer succeed [RQ5], one that waits for a place when its own time
// is over [RQ1].
func (g *Gate) wait(ctx context.Context, w *waiter, starting bool) *refusal {
	limit, late := g.cfg.RequestTimeout, requestTimeout
	if starting {
		limit, late = g.cfg.StartTimeout+leapcell.HoldGrace, startTimeout
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-w.result:
		return r
	case <-ctx.Done():
		late = clientGone
	case <-timer.C:
	}
	g.mu.Lock()
	if w.place != nil {
		g.waiting.Remove(w.place)
		g.mu.Unlock()
		return late
	}
	g.mu.Unlock()
	return <-w.result // it was decided just now
}

// next takes the oldest waiter off the list; nil if there is none. The caller holds mu.
func (g *Gate) next() *waiter {
	front := g.waiting.Front()
	if front == nil {
		return nil
	}
	w := g.waiting.Remove(front).(*waiter)
	w.place = nil
	return w
}

// admit counts a request in; the first one thaws the app. The caller holds mu: whoever
// comes meanwhile needs the thaw as well, and none may pass before it.
func (g *Gate) admit() *refusal {
	if g.frozen {
		if r := g.thaw(); r != nil {
			return r
		}
		if g.cfg.Naps != nil {
			g.cfg.Naps(false)
		}
	}
	g.inFlight++
	if g.inFlight == 1 {
		g.begin(time.Now())
	}
	return nil
}

// leave gives a place back: to the oldest waiter if there is one.
func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.giveBack()
}

// giveBack is leave. The caller holds mu.
func (g *Gate) giveBack() {
	if g.state == Ready {
		if w := g.next(); w != nil {
			w.result <- nil
			return
		}
	}
	g.inFlight--
	if g.inFlight > 0 {
		return
	}
	end := time.Now()
	g.meter(end)
	if g.state == Ready || g.left.Load() {
		g.goIdle(end)
	}
	if g.state != Ready {
		g.closeIdle()
	}
	g.checkOver()
}

// goIdle begins the time after which the app is suspended. The timer is not stopped by the
// next request: when it fires it looks whether it still has a reason. So a busy gate
// touches a timer once in SuspendAfter and not twice for each request.
func (g *Gate) goIdle(now time.Time) {
	g.idleSince = now
	if (g.serverless() || g.left.Load()) && !g.armed && !g.frozen && !g.paused && g.awake == 0 {
		g.armed = true
		g.timer.Reset(g.cfg.SuspendAfter)
	}
}

// suspend is run by the timer. [CP4]
func (g *Gate) suspend() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = false
	if g.state != Ready && !g.left.Load() || g.inFlight > 0 || g.awake > 0 || g.frozen || g.paused {
		return
	}
	if rest := g.cfg.SuspendAfter - time.Since(g.idleSince); rest > 0 {
		g.armed = true
		g.timer.Reset(rest)
		return
	}
	if err := g.backend.Freeze(); err != nil {
		// Most likely the app is just exiting. Should it not be, it may run on for a
		// second: better than asking a broken freezer all the time.
		g.cfg.Log.Warn("instance could not be suspended", "instance", g.cfg.Instance, "error", err)
		g.armed = true
		g.timer.Reset(time.Second)
		return
	}
	g.frozen = true
	g.counts.Suspensions++
	if g.cfg.Naps != nil {
		g.cfg.Naps(true)
	}
}

// thaw lets the app run. [CP5] The caller holds mu.
func (g *Gate) thaw() *refusal {
	if !g.frozen {
		return nil
	}
	if err := g.backend.Thaw(); err != nil {
		g.cfg.Log.Error("instance could not be resumed", "instance", g.cfg.Instance, "error", err)
		return gone
	}
	g.frozen = false
	return nil
}

// refusal is what new requests are told in a state that takes none. The caller holds mu.
func (g *Gate) refusal() *refusal {
	if g.state != Failed || g.wasReady || g.killed {
		return gone
	}
	r := &refusal{status: http.StatusBadGateway, code: g.failure.Code, text: leapcell.TextStartFailed}
	if g.failure.Code == leapcell.CodePortNotListening {
		r.text = leapcell.PortNotListeningText(g.cfg.Port)
	}
	return r
}
