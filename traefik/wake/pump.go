package wake

import (
	"context"
	"time"

	"github.com/leapcell/leapcell"
)

// startPump makes sure that the service's pump runs. Called with mu held.
func (s *service) startPump() {
	if s.pumping {
		s.kickPump()
		return
	}
	s.pumping = true
	s.h.background.Go(s.pump)
}

func (s *service) kickPump() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// pump runs while requests wait for a service: it is the one flight that asks Nomad for an
// instance, follows the table, dials what appears there, and hands out slots. It ends with
// the queue, and each request in it has its own deadline.
func (s *service) pump() {
	for {
		changed := s.h.cfg.Table.Changed() // before the table is read: see Table.Changed
		s.mu.Lock()
		s.refresh()
		if s.route == nil {
			s.refuseAll(refuseNoRoute)
		}
		s.dispatch()
		if s.queue.Len() == 0 {
			s.pumping = false
			s.mu.Unlock()
			return
		}
		again := s.work(time.Now())
		s.mu.Unlock()

		var timer <-chan time.Time
		if again > 0 {
			timer = time.After(again)
		}
		select {
		case <-changed:
		case <-s.kick:
		case <-timer:
		case <-s.h.closed:
			s.mu.Lock()
			s.refuseAll(refuseNoTable)
			s.pumping = false
			s.mu.Unlock()
			return
		}
	}
}

// work starts what the queue needs and says after how long to look again by the clock, 0
// for only when something happens. Called with mu held.
func (s *service) work(now time.Time) time.Duration {
	if len(s.instances) == 0 {
		switch {
		case s.asking:
			return 0
		case s.askAt.After(now):
			return s.askAt.Sub(now)
		}
		s.asking = true
		s.asked = now
		route := s.route
		s.h.background.Go(func() { s.ask(route) })
		return 0
	}
	var again time.Duration
	for _, in := range s.instances {
		if left := in.goneUntil.Sub(now); left > 0 {
			if again == 0 || left < again {
				again = left
			}
		} else {
			s.startReach(in)
		}
	}
	return again
}

// startReach makes sure that an instance is being dialled until it can be reached. Called
// with mu held.
func (s *service) startReach(in *instance) {
	if in.reachable || in.dialling || in.retired {
		return
	}
	in.dialling = true
	s.h.background.Go(func() { s.reach(in) })
}

// ask tells Nomad, once, that the deployment needs an instance.
func (s *service) ask(route *leapcell.Route) {
	// It must not end with the request that happened to come first.
	ctx, cancel := context.WithTimeout(context.Background(), scaleTimeout)
	defer cancel()
	s.h.sums.wakes.Add(1)
	if o := s.h.cfg.Observer; o != nil {
		o.Woke(route)
	}
	err := s.h.cfg.Scaler.Wake(ctx, route)

	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.kickPump()
	s.asking = false
	if route.Deployment != s.deployment {
		return // another deployment went live meanwhile
	}
	if err == nil {
		s.failures = 0
		s.askAt = time.Now().Add(askAgain)
		return
	}
	s.failures++
	s.askAt = time.Now().Add(min(100*time.Millisecond<<min(s.failures-1, 6), 2*time.Second))
	if s.failures == 1 {
		s.h.cfg.Log.Error("could not wake the deployment; trying again while requests wait",
			"service", s.id, "deployment", route.Deployment, "error", err)
	}
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		s.refuseAll(refuseStartFailed)
	}
}

// reach dials an instance until its gate answers: while somebody waits for it, else for as
// long as a start may take. The first connection is kept for the first request.
func (s *service) reach(in *instance) {
	began := time.Now()
	for {
		conn, err := s.open(in)
		s.mu.Lock()
		if err == nil {
			in.put(conn)
			in.reachable, in.dialling = true, false
			if s.plain() { // no gate has said more of its start than this
				in.start.CompareAndSwap(startFailed, startUnknown)
			}
			s.dialled = time.Now()
			s.dispatch()
			s.kickPump()
			s.mu.Unlock()
			return
		}
		waited, wanted := time.Since(began), s.queue.Len() > 0
		if in.retired || !wanted && waited > leapcell.MaxStartTimeout {
			in.dialling = false
			s.kickPump() // somebody may have queued up in this very moment
			s.mu.Unlock()
			return
		}
		// There is no event for "the port is bound": the gate binds it within
		// milliseconds of the allocation's appearance.
		pause := s.retryDial(waited, wanted)
		s.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-s.h.closed:
			return
		}
	}
}

// served notes that an instance answered after a start. Should the deployment have none
// again, then somebody took it away and it is asked for at once; while starts fail it is
// not, because Nomad restarts by itself.
func (s *service) served() {
	s.mu.Lock()
	s.askAt = time.Time{}
	s.mu.Unlock()
}
