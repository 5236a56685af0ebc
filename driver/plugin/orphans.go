package plugin

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/leapcell/leapcell/driver/supervisor"
)

// A supervisor outlives the agent. When the agent comes back without its memory, because its
// data folder was wiped or the plugin's answer to a start never reached it, the supervisor has
// tasks that nobody will ever stop.
//
// An agent restores its tasks before it does anything else, and asks us about each: to recover
// it, to wait for it, to measure it. So a task is an orphan if it is older than this plugin
// process and was never named to it in a time that is long for a restore. Where even the
// allocation's folder is gone, Nomad cannot have the task any more, and less time will do.
const (
	orphanAfter = 10 * time.Minute // nobody has named the task
	orphanSoon  = time.Minute      // nor has it a folder
	orphanStop  = 30 * time.Second // to finish its requests
)

// know notes that Nomad has named a task to this process.
func (d *Driver) know(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = map[string]bool{}
	}
	d.known[id] = true
}

// forget undoes know, when Nomad has destroyed the task.
func (d *Driver) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.known, id)
}

// orphans are the tasks of list that Nomad does not know, age after this process has begun.
func (d *Driver) orphans(list []supervisor.Status, age time.Duration) (out []supervisor.Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range list {
		if d.known[s.ID] || d.ending[s.ID] {
			continue
		}
		_, err := os.Stat(s.Dir)
		gone := s.Dir != "" && errors.Is(err, os.ErrNotExist)
		if age >= orphanAfter || gone && age >= orphanSoon {
			out = append(out, s)
		}
	}
	return out
}

// endOrphans stops and forgets what Nomad does not know. It returns at once.
func (d *Driver) endOrphans(ctx context.Context, client *supervisor.Client, age time.Duration) {
	if age < orphanSoon {
		return
	}
	list, err := client.List(ctx)
	if err != nil {
		return // the fingerprint says so
	}
	for _, s := range d.orphans(list, age) {
		d.log.Warn("Nomad does not know this task any more: it is ended", "task_id", s.ID, "state", s.State)
		d.mu.Lock()
		if d.ending == nil {
			d.ending = map[string]bool{}
		}
		d.ending[s.ID] = true
		d.mu.Unlock()
		go d.endOrphan(s.ID)
	}
}

func (d *Driver) endOrphan(id string) {
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.ending, id)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), orphanStop+2*quick)
	defer cancel()
	err := d.ask(ctx, func(c *supervisor.Client) error { return c.Stop(ctx, id, orphanStop, "SIGTERM") })
	if err == nil {
		err = d.ask(ctx, func(c *supervisor.Client) error { return c.Destroy(ctx, id, true) })
	}
	if err != nil && !errors.Is(err, supervisor.ErrNotFound) {
		d.log.Error("a task that Nomad does not know could not be ended", "task_id", id, "error", err)
	}
}
