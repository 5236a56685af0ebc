package hook

import (
	"context"
	"net/http"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/store"
)

// Receive takes in what a host tells of a connection's repository. It returns when the event
// is stored; why says why nothing will come of it, "" if something will.
func (h *Hub) Receive(ctx context.Context, connection string, header http.Header, body []byte) (why string, err error) {
	c, err := h.cfg.Store.Connection(ctx, connection)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return "", errForged
	}
	if err != nil {
		return "", err
	}
	secret, err := h.cfg.Keys.hook(ctx, c)
	if err != nil {
		return "", err
	}
	in := request{header, body}
	p := in.provider()
	if !in.signed(p, secret) {
		h.cfg.Log.Warn("event refused: its signature is wrong", "connection", c.ID)
		return "", errForged
	}
	event, why, err := in.parse(p)
	if err != nil || why != "" {
		return why, err
	}
	if why := idle(c.Connection, event); why != "" {
		return why, nil
	}
	added, err := h.cfg.Store.AddGitEvent(ctx, c.ID, in.deliveries(p), event)
	if err != nil {
		return "", err
	}
	if !added {
		return "it was delivered before", nil
	}
	h.wake()
	return "", nil
}

// idle says why nothing comes of an event.
func idle(c leapcell.Connection, e leapcell.GitEvent) string {
	switch {
	case e.Branch == c.Branch && e.Kind != leapcell.GitPush:
		return "the branch is the one that is deployed" // it is deployed by its pushes alone
	case e.Branch != c.Branch && !c.Previews && e.Kind != leapcell.GitBranchGone && e.Kind != leapcell.GitChangeEnded:
		return "the branch is not the one that is deployed, and previews are switched off"
	}
	return ""
}

func (h *Hub) wake() {
	select {
	case h.events <- struct{}{}:
	default: // it is awake already
	}
}

const (
	// keepDeliveries is how long a delivery is known again. Hosts offer to repeat one for
	// some days.
	keepDeliveries = 30 * 24 * time.Hour
	forgetEvery    = time.Hour
	maxPause       = time.Minute
)

// Run acts on events and tells hosts what came of deployments, until ctx ends.
func (h *Hub) Run(ctx context.Context) {
	told := make(chan struct{})
	go func() {
		defer close(told)
		h.runReports(ctx)
	}()
	h.runEvents(ctx)
	h.asides.Wait()
	<-told
}

func (h *Hub) runEvents(ctx context.Context) {
	forget := time.NewTicker(forgetEvery)
	defer forget.Stop()
	h.wake() // for what a former process left
	pause := h.cfg.Pause
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-forget.C:
			if err := h.cfg.Store.ForgetDeliveries(ctx, time.Now().Add(-keepDeliveries)); err != nil && ctx.Err() == nil {
				h.cfg.Log.Warn("old deliveries not forgotten", "err", err)
			}
			continue
		case <-h.events:
		case <-again:
		}
		again = nil
		if h.act(ctx) {
			pause = h.cfg.Pause
			continue
		}
		again, pause = time.After(pause), min(2*pause, maxPause)
	}
}

// act works through the events and reports whether all are done. One that fails for want of
// something that comes back does not hold up those of other services.
func (h *Hub) act(ctx context.Context) (done bool) {
	all, err := h.cfg.Store.GitEvents(ctx)
	if err != nil {
		if ctx.Err() == nil {
			h.cfg.Log.Warn("events not read", "err", err)
		}
		return false
	}
	done = true
	waiting := map[string]bool{} // connections whose events wait, in their order
	for _, e := range all {
		if waiting[e.ConnectionID] {
			continue
		}
		err := h.handle(ctx, e)
		if ctx.Err() != nil {
			return false
		}
		if code := leapcell.ErrorCode(err); code == leapcell.CodeUnavailable || code == leapcell.CodeInternal {
			h.cfg.Log.Warn("event not acted on yet", "connection", e.ConnectionID, "kind", e.Event.Kind, "err", err)
			waiting[e.ConnectionID], done = true, false
			continue
		}
		if err != nil { // it will not get better
			h.cfg.Log.Warn("event not acted on", "connection", e.ConnectionID, "kind", e.Event.Kind, "err", err)
		}
		if err := h.cfg.Store.GitEventDone(ctx, e.ID); err != nil {
			h.cfg.Log.Warn("event not forgotten", "connection", e.ConnectionID, "err", err)
			return false
		}
	}
	return done
}

// handle does what an event asks for. It can be repeated.
func (h *Hub) handle(ctx context.Context, e store.StoredEvent) error {
	c, err := h.cfg.Store.Connection(ctx, e.ConnectionID)
	if leapcell.ErrorCode(err) == leapcell.CodeNotFound {
		return nil // disconnected meanwhile
	}
	if err != nil {
		return err
	}
	svc, err := h.cfg.Store.Service(ctx, c.ServiceID)
	if err != nil {
		return err
	}
	label := ""
	if e.Event.Branch != c.Branch {
		label = leapcell.BranchLabel(svc.Host, e.Event.Branch)
	}
	switch e.Event.Kind {
	case leapcell.GitPush, leapcell.GitChange:
		return h.deploy(ctx, svc, c.Connection, e, label)
	case leapcell.GitBranchGone, leapcell.GitChangeEnded:
		if label == "" {
			return nil
		}
		return h.cfg.Deployer.EndPreview(ctx, svc, label)
	}
	return nil
}

// deploy makes a deployment of the event's commit, unless there is one.
func (h *Hub) deploy(ctx context.Context, svc leapcell.Service, c leapcell.Connection, e store.StoredEvent, label string) error {
	if done, err := h.deployed(ctx, svc, e, label); err != nil || done {
		return err
	}
	src := leapcell.Source{GitURL: c.GitURL, Branch: e.Event.Branch, Commit: e.Event.Commit, RootDir: c.RootDir, Connection: c.ID}
	origin := leapcell.Origin{Trigger: leapcell.Push, StartedBy: e.Event.By, Preview: label, ChangeNumber: e.Event.Change}
	if e.Event.Kind == leapcell.GitChange {
		origin.Trigger = leapcell.Change
	}
	dep, err := h.cfg.Deployer.Submit(ctx, svc, src, origin, nil)
	if leapcell.ErrorCode(err) == leapcell.CodeRateLimited { // who pushed looks at the host, not into our log
		h.asides.Go(func() { h.refuse(ctx, c, e.Event.Commit, err) })
	}
	if err != nil {
		return err
	}
	h.cfg.Log.Info("event deploys", "connection", c.ID, "deployment", dep.ID, "preview", label)
	return h.begun(ctx, dep)
}

// deployed reports whether the event's commit was deployed by this very event, which was
// acted on before and not forgotten, or is what the newest deployment of the branch has: a
// push to a branch with an open change is told twice.
func (h *Hub) deployed(ctx context.Context, svc leapcell.Service, e store.StoredEvent, label string) (bool, error) {
	all, err := h.cfg.Store.Deployments(ctx, svc.ID, 0)
	if err != nil {
		return false, err
	}
	newest := true
	for _, dep := range all { // newest first
		if dep.Preview != label || !dep.Automatic() {
			continue
		}
		same := dep.Source.Commit == e.Event.Commit
		if same && dep.CreatedAt.After(e.At) {
			return true, h.begun(ctx, dep)
		}
		if same && newest && label != "" && dep.PreviewEnded.IsZero() && dep.State != leapcell.Failed && dep.State != leapcell.Cancelled {
			return true, nil
		}
		newest = false
	}
	return false, nil
}

// begun does what belongs to each deployment by an event.
func (h *Hub) begun(ctx context.Context, dep leapcell.Deployment) error {
	if err := h.cfg.Deployer.Overtake(ctx, dep); err != nil {
		return err
	}
	if err := h.cfg.Store.WantReport(ctx, dep.ID); err != nil {
		return err
	}
	select {
	case h.report <- dep.ID:
	case <-ctx.Done():
	}
	return nil
}
