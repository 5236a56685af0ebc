package deploy

import (
	"context"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// placementCheck is how often a job without a node is asked why.
const placementCheck = time.Second

type snapshot struct {
	allocs []*api.AllocationListStub
	err    error
}

// see is called with each change of a job's allocations, until it reports true or an error.
type see func(ctx context.Context, allocs []*api.AllocationListStub) (done bool, err error)

// watch calls see with the allocations of a job as they change. While there are none it
// calls unplaced now and then. It rides out that Nomad does not answer.
func (d *Deployer) watch(ctx context.Context, job string, see see, unplaced func(context.Context) error) error {
	return d.watchWith(ctx, job, see, unplaced, nil, nil)
}

// watchWith is watch with a second source of news.
func (d *Deployer) watchWith(ctx context.Context, job string, see see, unplaced func(context.Context) error,
	answers <-chan probeResult, hear func(context.Context, probeResult) (bool, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	snapshots := make(chan snapshot)
	go d.poll(ctx, job, snapshots)
	check := time.NewTicker(placementCheck)
	defer check.Stop()
	placed := false
	for {
		var done bool
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s := <-snapshots:
			if s.err != nil {
				return s.err
			}
			placed = len(s.allocs) > 0
			done, err = see(ctx, s.allocs)
		case p := <-answers:
			done, err = hear(ctx, p)
		case <-check.C:
			if !placed {
				err = unplaced(ctx)
			}
		}
		if done || err != nil {
			return err
		}
	}
}

// poll sends each newer list of allocations, and an error after which there is no more.
func (d *Deployer) poll(ctx context.Context, job string, out chan<- snapshot) {
	var index uint64
	var since time.Time // of the first of the errors in a row
	pause := d.cfg.Pause
	for {
		allocs, next, err := d.cfg.Nomad.WaitAllocs(ctx, job, index)
		if err != nil && leapcell.ErrorCode(err) == leapcell.CodeUnavailable {
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) < d.cfg.Patience {
				if sleep(ctx, pause) != nil {
					return
				}
				pause = min(2*pause, maxPause)
				continue
			}
		}
		if err == nil {
			since, pause = time.Time{}, d.cfg.Pause
			if next < index {
				next = 0 // Nomad was restored from a snapshot: indexes begin anew
			}
			unchanged := next == index
			index = next
			if unchanged {
				continue
			}
		}
		select {
		case out <- snapshot{allocs, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// placement makes a check for jobs that no node takes: it says why in the log, and gives up
// when the patience is at its end.
func (d *Deployer) placement(job string, w *worker) func(context.Context) error {
	begun, said := time.Now(), ""
	return func(ctx context.Context) error {
		metric, err := d.cfg.Nomad.FailedPlacement(ctx, job)
		if err != nil || metric == nil {
			return nil // not knowing why is no reason to give up
		}
		message := placementText(metric)
		if time.Since(begun) > d.cfg.PlacementPatience {
			return leapcell.Errorf(leapcell.CodeStartFailed, "Nomad found no node within %s: %s", d.cfg.PlacementPatience, message)
		}
		if message != said {
			said = message
			w.log.say("waiting for a node: %s", message)
		}
		return nil
	}
}
