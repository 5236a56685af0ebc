package wake

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
)

// Jobs is what there is to know of jobs that the platform did not deploy, and how the edges
// agree that one may sleep. The methods with a context may block.
type Jobs interface {
	// Routes are those of all such jobs, from memory.
	Routes() []*leapcell.Route
	// Failing reports, from memory, whether an instance has failed and Nomad waits before it
	// starts one again.
	Failing(deployment string) bool
	// Claim tells all edges that this one wants the job awake until then.
	Claim(ctx context.Context, route *leapcell.Route, until time.Time) error
	// Sleep takes all instances of the job away, unless another edge wants it awake: then it
	// gives the time until when.
	Sleep(ctx context.Context, route *leapcell.Route) (until time.Time, err error)
}

const (
	probeTimeout = 2 * time.Second
	// plainIdleFor is how long a connection to a plain app is kept: apps close theirs after
	// some seconds, and a request must not be written to one that closes in this moment.
	plainIdleFor = time.Second
	// mostPause is after how long at most another try is made to claim a job or to put it to
	// sleep. Nomad refuses the latter while a deployment of the job is under way.
	mostPause = 10 * time.Second
	// stopFor is how long instances that are being taken away are left alone; the table
	// drops them within milliseconds.
	stopFor = 5 * time.Second
)

// hours are the waking hours of a plain job as this edge sees them; they belong to the
// service's mu.
//
//	used ──── idle ────► nobody claims it ─► asleep ─► a request ─► used
//	  └─ claimed until at least used + idle, for other edges
type hours struct {
	awakeSince time.Time // an instance is there since; zero: none
	used       time.Time // a request came or ended
	claimed    time.Time // other edges know that it is wanted until then
	claimAgain time.Time // not before, after a claim that failed
	sleepAgain time.Time // not before, after it could not be put to sleep
	failing    bool      // it was logged that it cannot be put to sleep
}

func (s *service) plain() bool { return s.route != nil && s.route.Plain != nil }

// noteUse notes that a request came or ended. Called with mu held.
func (s *service) noteUse() {
	if !s.plain() || s.route.DormantAfter <= 0 {
		return
	}
	t := &s.hours
	t.used = time.Now()
	if t.claimed.Before(t.used.Add(time.Duration(s.route.DormantAfter))) && !t.claimAgain.After(t.used) {
		select {
		case s.h.use <- struct{}{}:
		default:
		}
	}
}

// tend claims the plain jobs that this edge has traffic for, and puts those to sleep that
// had none for their time. It ends with the handler.
func (h *Handler) tend() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h.background.Go(func() {
		select {
		case <-h.closed:
			cancel()
		case <-ctx.Done():
		}
	})
	for {
		changed := h.cfg.Table.Changed()
		next := time.Now().Add(time.Hour)
		for _, route := range h.cfg.Jobs.Routes() {
			if at := h.service(route).tend(ctx, route); !at.IsZero() && at.Before(next) {
				next = at
			}
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-changed:
		case <-h.use:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// tend does what is due for one job and says when to look again; zero for when something
// happens.
func (s *service) tend(ctx context.Context, route *leapcell.Route) time.Time {
	claim, sleep, next := s.due(route, time.Now())
	switch {
	case claim:
		s.claim(ctx, route)
	case sleep:
		s.sleep(ctx, route)
	default:
		return next
	}
	_, _, next = s.due(route, time.Now())
	return next
}

// due says what is to be done now, or when something will be.
func (s *service) due(route *leapcell.Route, now time.Time) (claim, sleep bool, next time.Time) {
	idle := time.Duration(route.DormantAfter)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == "" { // no request came here yet
		host, path, _ := strings.Cut(route.Hosts[0], "/")
		s.host, s.path = host, "/"+path
	}
	s.refresh()
	t := &s.hours
	if !s.plain() || idle <= 0 {
		return false, false, time.Time{}
	}
	busy := s.inFlight > 0 || s.queue.Len() > 0
	if len(s.instances) == 0 {
		t.awakeSince = time.Time{}
		if !busy {
			return false, false, time.Time{}
		}
	} else if t.awakeSince.IsZero() {
		t.awakeSince = now
	}
	if busy {
		t.used = now
	}
	wantedUntil := t.used.Add(idle)
	if !t.used.IsZero() && wantedUntil.After(now) && t.claimed.Before(wantedUntil) {
		if !now.Before(t.claimAgain) {
			return true, false, now
		}
		return false, false, t.claimAgain
	}
	if busy {
		return false, false, later(t.claimed.Add(-idle), now.Add(time.Millisecond))
	}
	at := later(later(t.used, t.awakeSince).Add(idle), t.sleepAgain)
	return false, !now.Before(at), at
}

// claim tells the other edges that the job is in use. It is for twice the idle time and
// renewed after one, so that it always outlasts the last request by the idle time.
func (s *service) claim(ctx context.Context, route *leapcell.Route) {
	ctx, cancel := context.WithTimeout(ctx, scaleTimeout)
	defer cancel()
	until := time.Now().Add(2 * time.Duration(route.DormantAfter))
	err := s.h.cfg.Jobs.Claim(ctx, route, until)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.hours.claimAgain = time.Now().Add(pause(route))
		s.noteTrouble(ctx, "another edge may put the job to sleep while this one has traffic for it; trying again", err)
		return
	}
	s.hours.claimed, s.hours.failing = until, false
}

// pause is the time between two tries.
func pause(route *leapcell.Route) time.Duration {
	return min(time.Duration(route.DormantAfter)/2, mostPause)
}

// noteTrouble logs once that what should be done cannot be. Called with mu held.
func (s *service) noteTrouble(ctx context.Context, text string, err error) {
	if s.hours.failing || errors.Is(context.Cause(ctx), context.Canceled) {
		return
	}
	s.hours.failing = true
	s.h.cfg.Log.Warn(text, "service", s.id, "error", err)
}

// sleep takes the job's instances away. Requests that come meanwhile wait: they wake it
// again, or go on if it stays.
func (s *service) sleep(ctx context.Context, route *leapcell.Route) {
	ctx, cancel := context.WithTimeout(ctx, scaleTimeout)
	defer cancel()
	s.mu.Lock()
	if s.inFlight > 0 || s.queue.Len() > 0 {
		s.mu.Unlock()
		return
	}
	held := s.instances
	for _, in := range held {
		in.goneUntil = time.Now().Add(scaleTimeout)
	}
	s.mu.Unlock()

	until, err := s.h.cfg.Jobs.Sleep(ctx, route)

	s.mu.Lock()
	defer s.mu.Unlock()
	stays := err != nil || !until.IsZero()
	for _, in := range held {
		in.goneUntil = time.Time{}
		if !stays {
			in.goneUntil = time.Now().Add(stopFor)
		}
	}
	switch {
	case err != nil:
		s.hours.sleepAgain = time.Now().Add(pause(route))
		s.noteTrouble(ctx, "the job could not be put to sleep; trying again", err)
	case stays:
		s.hours.sleepAgain = until
	default:
		s.hours.awakeSince, s.hours.failing = time.Time{}, false
		s.hours.sleepAgain = time.Now().Add(stopFor)
		s.askAt = time.Time{} // whoever comes now may ask at once
		s.h.cfg.Log.Info("a job without requests sleeps", "service", s.id, "after", time.Duration(route.DormantAfter))
	}
	s.dispatch()
	s.kickPump()
}

// leftTable takes notice of an instance that is gone. Without a gate nobody says that a
// start has failed: it has if the instance never answered and Nomad is to start it again.
// Called with mu held.
func (s *service) leftTable(in *instance) {
	if s.plain() && len(s.instances) == 0 && in.start.Load() != startGood && s.h.cfg.Jobs != nil && s.h.cfg.Jobs.Failing(s.deployment) {
		s.startFailed(time.Now())
		s.refuseAll(refuseStartFailed)
	}
}

// startTimedOut takes notice of a request that has waited for a start in vain. Called with
// mu held.
func (s *service) startTimedOut() {
	if !s.plain() {
		return
	}
	for _, in := range s.instances {
		in.start.CompareAndSwap(startUnknown, startFailed)
	}
	s.startFailed(time.Now())
}

// open dials an instance. That of a plain job must answer its probe, too, if it has one: its
// port may be open before the app listens, when something forwards it.
func (s *service) open(in *instance) (*gateConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout+probeTimeout)
	defer cancel()
	c, err := s.h.cfg.Dial(ctx, in.address)
	if err != nil {
		return nil, err
	}
	conn := newGateConn(c)
	s.mu.Lock()
	route := s.route
	s.mu.Unlock()
	if route == nil || route.Plain == nil || route.Plain.Probe == "" {
		return conn, nil
	}
	host, _, _ := strings.Cut(route.Hosts[0], "/")
	err = conn.probe(host, route.Plain.Probe)
	conn.Close() // whatever is left of the answer is no concern of the first request
	if err != nil {
		return nil, err
	}
	if c, err = s.h.cfg.Dial(ctx, in.address); err != nil {
		return nil, err
	}
	return newGateConn(c), nil
}

// probe asks for a path, and gives an error if the answer is none that an app gives that is
// ready: a status from 200 to 399.
func (c *gateConn) probe(host, path string) error {
	if err := c.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
		return err
	}
	fmt.Fprintf(c.w, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: leapcell-edge\r\nConnection: close\r\n\r\n", path, host)
	if err := c.w.Flush(); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("the probe of %s got %s", path, resp.Status)
	}
	return nil
}

// retryDial is the pause before an instance is dialled again that could not be reached for
// some time.
func (s *service) retryDial(waited time.Duration, wanted bool) time.Duration {
	switch {
	case s.plain(): // may take seconds, and its probe is work for the app
		return min(max(waited/20, time.Millisecond), 100*time.Millisecond)
	case !wanted:
		return min(max(waited/20, 5*time.Millisecond), 20*time.Millisecond)
	}
	// A fortieth of what was waited is not noticed; of many starts at once, dialling each
	// millisecond took a sixth of the processor time.
	return min(max(waited/40, time.Millisecond), 20*time.Millisecond)
}
