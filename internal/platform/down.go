package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// drainTime is how long instances get to finish their requests when the platform goes down.
const drainTime = 15 * time.Second

// Down stops everything in the order of a visit, so that each part still finds what it
// needs to end well, and then removes whatever is left: of a part that was dead already, or
// of a command that was killed. The data stays, and a later Up brings the services back;
// with purge the state folder goes too. The error names what could not be removed.
func (p *Platform) Down(ctx context.Context, purge bool) error {
	// Whatever else is in a folder by mistake is not ours to remove.
	if _, err := os.Stat(p.cfg.path(configFile)); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(p.cfg.Out, "nothing to do: there is no platform in %s\n", p.cfg.StateDir)
		return nil
	}
	unlock, err := p.lock()
	if err != nil {
		return err
	}
	defer unlock()
	steps := []Step{
		{Title: "Edge", Run: p.stop(edgeName)},
		{Title: "Control plane", Run: p.stop(controlName)},
		{Title: "Instances: finishing requests", Run: p.drain},
		{Title: "Nomad", Run: p.stop("nomad")},
		{Title: "Node: instances, networks, images", Run: p.destroyNode},
		{Title: "Vault", Run: p.stop("vault")},
		{Title: "Leftovers", Run: p.sweep},
	}
	if purge {
		steps = append(steps, Step{Title: "State folder", Run: func(context.Context, func(string, ...any)) error {
			return os.RemoveAll(p.cfg.StateDir)
		}})
	}
	lines := &progress{out: p.cfg.Out}
	var failures []error
	for i, s := range steps {
		if ctx.Err() != nil {
			return leapcell.Errorf(leapcell.CodeCancelled, "stopped at %q: `leapcell down` goes on from here", s.Title)
		}
		// One part that resists must not keep the others running.
		if err := lines.run(ctx, i+1, len(steps), s); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", s.Title, err))
			if purge && i == len(steps)-2 {
				break // what could not be removed must stay findable
			}
		}
	}
	return errors.Join(failures...)
}

func (p *Platform) stop(name string) func(context.Context, func(string, ...any)) error {
	return func(ctx context.Context, note func(string, ...any)) error {
		path := p.cfg.path("run", name+".json")
		r, alive := readRecord(path)
		if !alive {
			note("was not running")
		} else if err := r.stop(ctx, stopGrace); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
}

// drain lets Nomad stop all instances, and remember to start them again on the next up.
// Whatever does not end in time is ended by destroyNode.
func (p *Platform) drain(ctx context.Context, note func(string, ...any)) error {
	if _, alive := readRecord(p.cfg.path("run", "nomad.json")); !alive {
		note("Nomad was not running")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	if err := p.drainNodes(ctx); err != nil {
		note("not all ended by themselves: %v", err) // they are ended next
	}
	return nil
}

func (p *Platform) drainNodes(ctx context.Context) error {
	client, err := p.nomadManager()
	if err != nil {
		return err
	}
	nodes, _, err := client.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	for _, n := range nodes {
		_, err := client.Nodes().UpdateDrain(n.ID, &nomad.DrainSpec{Deadline: -1}, false, (&nomad.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		q := &nomad.QueryOptions{} // the first answers at once, the next when something changed
		for left := 1; left > 0; {
			allocs, meta, err := client.Nodes().Allocations(n.ID, q.WithContext(ctx))
			if err != nil {
				return err
			}
			left = 0
			for _, a := range allocs {
				if a.ClientStatus == "running" || a.ClientStatus == "pending" {
					left++
				}
			}
			q = &nomad.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: drainTime}
		}
	}
	return nil
}

// destroyNode lets the driver remove what it made, its supervisor included.
func (p *Platform) destroyNode(ctx context.Context, note func(string, ...any)) error {
	if _, err := os.Stat(p.cfg.NodeDir()); errors.Is(err, fs.ErrNotExist) {
		return nil // no instance ever ran
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.driverBin(), "destroy", "--state-dir", p.cfg.NodeDir(), "--name", p.cfg.Name)
	cmd.Env = p.serverEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		note("%s: %v: %s", cmd.Path, err, bytes.TrimSpace(out)) // the sweep finds what it left
	}
	return nil
}

// sweep ends the processes and removes the mounts, networks and cgroups that are left.
func (p *Platform) sweep(ctx context.Context, note func(string, ...any)) error {
	left := leftovers{name: p.cfg.Name, dir: p.cfg.StateDir}
	// More than once: what is ended may have been about to start another.
	for round := marked(p.cfg.StateDir); len(round) > 0; round = marked(p.cfg.StateDir) {
		if err := stopAll(ctx, round, note); err != nil {
			return err
		}
	}
	if err := left.remove(); err != nil {
		return err
	}
	if _, err := os.Stat(p.madeCgroups()); err == nil {
		removeDefaultCgroups()
	}
	if rest := left.list(); len(rest) > 0 {
		return fmt.Errorf("could not be removed: %v", rest)
	}
	return nil
}

// stopAll ends processes side by side.
func stopAll(ctx context.Context, all []record, note func(string, ...any)) error {
	failures := make([]error, len(all))
	var done sync.WaitGroup
	for i, r := range all {
		note("ending process %d: %.100s", r.PID, commandLine(r.PID))
		done.Go(func() { failures[i] = r.stop(ctx, 5*time.Second) })
	}
	done.Wait()
	return errors.Join(failures...)
}
