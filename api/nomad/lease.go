package nomad

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// Lease makes one process at a time the leader in something. It is a variable with the name
// of its holder that the holder writes again and again. Nomad's own locks would do as well,
// but they keep a process that was killed and is back waiting for ten seconds and more:
// here it has a name by which it is known again. No clocks are compared: a lease is over
// when somebody has seen it unchanged for TTL.
type Lease struct {
	Path   string        // of the variable
	Holder string        // the same after a restart, different for any two processes
	TTL    time.Duration // default 10 seconds
	Log    *slog.Logger
}

// Lead calls work whenever this process is the leader, with a context that ends when it may
// no longer be. It returns when ctx ends, or with work's error. While Nomad does not answer,
// a leader goes on for TTL.
func (c *Client) Lead(ctx context.Context, l Lease, work func(ctx context.Context) error) error {
	if l.TTL == 0 {
		l.TTL = 10 * time.Second
	}
	if l.Log == nil {
		l.Log = slog.New(slog.DiscardHandler)
	}
	var seen uint64
	since := time.Now()
	for {
		holder, index, err := c.lease(ctx, l)
		if err == nil && index != seen {
			seen, since = index, time.Now()
		}
		if err == nil && (index == 0 || holder == l.Holder || time.Since(since) >= l.TTL) {
			var won bool
			if index, won, err = c.renew(ctx, l, index); won {
				l.Log.Info("leading", "lease", l.Path, "after", holder)
				if err := c.lead(ctx, l, index, work); err != nil || ctx.Err() != nil {
					return err
				}
				l.Log.Warn("no longer leading", "lease", l.Path)
				continue
			}
		}
		if err != nil && ctx.Err() == nil {
			l.Log.Debug("lease not read", "lease", l.Path, "err", err)
		}
		if !wait(ctx, l.TTL/5) {
			return ctx.Err()
		}
	}
}

// lead does the work until it ends, or the lease does.
func (c *Client) lead(ctx context.Context, l Lease, index uint64, work func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- work(ctx) }()
	timer := time.NewTicker(l.TTL / 5)
	defer timer.Stop()
	for renewed := time.Now(); ; {
		select {
		case err := <-done:
			return err
		case <-timer.C:
		}
		begun := time.Now()
		next, held, err := c.renew(ctx, l, index)
		switch {
		case held:
			index, renewed = next, begun
		case err == nil, time.Since(renewed) >= l.TTL:
			// Another has it, or may by now.
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		}
	}
}

// lease reads who holds it; index 0: nobody ever did.
func (c *Client) lease(ctx context.Context, l Lease) (holder string, index uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.TTL/2)
	defer cancel()
	v, _, err := c.api.Variables().Peek(l.Path, c.query(ctx))
	if err != nil || v == nil {
		return "", 0, err
	}
	return v.Items[leapcell.VariableItem], v.ModifyIndex, nil
}

// renew writes the lease if it is as it was at index.
func (c *Client) renew(ctx context.Context, l Lease, index uint64) (uint64, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, l.TTL/2)
	defer cancel()
	v, _, err := c.api.Variables().CheckedUpdate(&api.Variable{
		Namespace: c.cfg.Namespace, Path: l.Path, ModifyIndex: index,
		Items: api.VariableItems{leapcell.VariableItem: l.Holder},
	}, c.write(ctx))
	var conflict api.ErrCASConflict
	if errors.As(err, &conflict) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	return v.ModifyIndex, true, nil
}

// wait reports whether the time passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
