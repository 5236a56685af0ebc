package cell

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Exit is how a cell ended.
type Exit struct {
	Code   int  // of the app; 128+Signal when a signal ended it; -1 when nobody knows
	Signal int  // that ended it, else 0
	OOM    bool // the kernel killed some process of it for want of memory
}

// Stats is what a cell uses and has used.
type Stats struct {
	CPUNanos       uint64 // since the start
	Memory         uint64 // bytes now, without file pages that can be dropped
	MaxMemory      uint64 // bytes, most ever
	Periods        uint64 // CPU periods in which it ran
	Throttled      uint64 // periods in which it hit its cap
	ThrottledNanos uint64
	Pids           uint64 // processes and threads
}

// Cell is a running instance or build.
type Cell struct {
	config  Config
	beside  func() (*direct, error) // makes the processes of commands
	group   cgroup
	process *process
	started time.Time
	cpus    []int
	release func([]int) // gives the cores back
	state   string      // the runtime's folder for this cell
	log     *slog.Logger
	stopOOM func()

	done chan struct{} // closed when the app has ended; exit and failed are set before
	exit Exit
	err  error

	mu      sync.Mutex // freeze, thaw, signals, deletion
	frozen  bool
	doomed  bool        // somebody killed it while it was frozen: thawed, it dies
	killed  unix.Signal // the signal that we turned into a kill, see Signal
	deleted bool
}

// watch starts what accompanies a running cell.
func (c *Cell) watch() {
	c.done = make(chan struct{})
	stop, err := c.group.watchOOM(func() {
		// Some process is gone: the instance is replaced as a whole. [ID6]
		if err := c.group.kill(); err != nil {
			c.log.Error("kill a cell that is out of memory", "cell", c.config.ID, "error", err)
		}
	})
	if err != nil {
		c.log.Warn("out-of-memory kills of child processes will not be noticed", "cell", c.config.ID, "error", err)
		stop = func() {}
	}
	c.stopOOM = stop
	go func() {
		defer close(c.done)
		c.exit, c.err = c.process.wait()
		c.process.close()
		if kills, err := c.group.oomKills(); err == nil {
			c.exit.OOM = kills > 0
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.killed != 0 && c.exit.Signal == int(unix.SIGKILL) && !c.exit.OOM {
			c.exit.Signal, c.exit.Code = int(c.killed), 128+int(c.killed)
		}
	}()
}

// PID is the host's number of the cell's first process.
func (c *Cell) PID() int { return c.process.pid }

// StartedAt is when the app's process began.
func (c *Cell) StartedAt() time.Time { return c.started }

// Wait returns when the app has ended; any number of callers may wait.
func (c *Cell) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-c.done:
		return c.exit, c.err
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Signal sends sig to every process of the cell, thawing it first.
//
// The kernel shields the first process of a pid namespace from signals that it has no handler
// for: a plain `node app.js` would sit out the whole grace period of a stop. When it is
// alone, Signal does what the kernel does with any other process: it ends it.
func (c *Cell) Signal(sig unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended() {
		return nil
	}
	if err := c.thaw(); err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		return c.group.kill()
	}
	pids, err := c.group.procs()
	if err != nil {
		return fmt.Errorf("signal cell %s: %w", c.config.ID, err)
	}
	if len(pids) == 1 && pids[0] == c.process.pid && endsByDefault(sig) && leavesToDefault(c.process.pid, sig) {
		c.killed = sig
		return c.group.kill()
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signal cell %s: process %d: %w", c.config.ID, pid, err)
		}
	}
	return nil
}

func endsByDefault(sig unix.Signal) bool {
	return slices.Contains([]unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGPIPE}, sig)
}

func (c *Cell) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return c.deleted
	}
}

// Freeze takes the CPU away; it returns when nothing inside runs any more. A cell that has
// ended is no error.
func (c *Cell) Freeze() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen || c.ended() {
		return nil
	}
	if err := c.group.freeze(); err != nil {
		return fmt.Errorf("freeze cell %s: %w", c.config.ID, err)
	}
	c.frozen = true
	return nil
}

// errDoomed says that an app will never answer again.
var errDoomed = errors.New("its first process was killed while it was frozen")

// Thaw undoes Freeze. It fails for a cell that somebody killed meanwhile: version 1 of cgroups
// lets it die only when it is thawed, and nothing must be sent to it any more. [RQ6]
func (c *Cell) Thaw() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended() {
		if err := c.thaw(); err != nil {
			return err
		}
	}
	if c.doomed {
		return fmt.Errorf("thaw cell %s: %w", c.config.ID, errDoomed)
	}
	return nil
}

func (c *Cell) thaw() error {
	if !c.frozen {
		return nil
	}
	c.doomed = awaits(c.process.pid, unix.SIGKILL)
	if err := c.group.thaw(); err != nil {
		return fmt.Errorf("thaw cell %s: %w", c.config.ID, err)
	}
	c.frozen = false
	return nil
}

// Frozen reports whether the cell is frozen.
func (c *Cell) Frozen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frozen
}

// SetReady ends the boost of the start: from now on the cap of CP1 holds.
func (c *Cell) SetReady() error {
	if err := c.group.setQuota(c.config.quota()); err != nil {
		return fmt.Errorf("cap the CPU of cell %s: %w", c.config.ID, err)
	}
	return nil
}

// Stats reads the cell's counters. They stay readable after its end, until Delete.
func (c *Cell) Stats() (Stats, error) {
	s, err := c.group.stats()
	if err != nil {
		return Stats{}, fmt.Errorf("read the counters of cell %s: %w", c.config.ID, err)
	}
	return s, nil
}

// Kill ends every process of the cell at once, frozen or not.
func (c *Cell) Kill() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended() {
		return nil
	}
	if err := c.group.kill(); err != nil {
		return fmt.Errorf("kill cell %s: %w", c.config.ID, err)
	}
	c.frozen = false
	return nil
}

// deathLimit is how long a killed process may take to be gone.
const deathLimit = 10 * time.Second

// Delete kills what still runs and removes all that the cell has on this machine but its Dir;
// a second call does nothing.
func (c *Cell) Delete() error {
	if err := c.Kill(); err != nil {
		return err
	}
	select {
	case <-c.done:
	case <-time.After(deathLimit):
		return leapcell.Errorf(leapcell.CodeUnavailable, "cell %s: process %d was killed but is not gone after %s: it may wait for a disk", c.config.ID, c.process.pid, deathLimit)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted {
		return nil
	}
	c.stopOOM()
	if err := removeCell(c.group, c.state); err != nil {
		return fmt.Errorf("delete cell %s: %w", c.config.ID, err)
	}
	c.release(c.cpus)
	c.deleted = true
	return nil
}

// removeCell removes the group and the runtime's folder of a cell of which nothing runs.
func removeCell(g cgroup, state string) error {
	return errors.Join(g.remove(), os.RemoveAll(state), os.RemoveAll(ownFiles(state)))
}

// ownFiles is the folder of the files bound into the cell whose runtime folder is state. A cell
// sees its path in the mount table: it must not tell where the platform keeps its state. [FS5]
func ownFiles(state string) string { return state + ".files" }

// stateRoot is where the runtime keeps what it knows of the cells below one cgroup parent.
func stateRoot(parent string) string { return filepath.Join("/run", parent) }

// Destroy ends every cell below the cgroup parent and removes what they have on this machine:
// for taking a whole platform down. What is not there is no error.
func Destroy(parent string) error {
	if !idFormat.MatchString(parent) {
		return leapcell.Errorf(leapcell.CodeInvalid, "cgroup parent %q: letters, digits, ., - and _ are allowed", parent)
	}
	h, err := detect()
	if err != nil {
		return err
	}
	var errs []error
	for _, mount := range h.all {
		entries, err := os.ReadDir(filepath.Join(mount, parent))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			if e.IsDir() {
				g := h.group(parent, e.Name())
				errs = append(errs, g.kill(), g.remove())
			}
		}
		errs = append(errs, removeTree(filepath.Join(mount, parent)))
	}
	return errors.Join(append(errs, os.RemoveAll(stateRoot(parent)))...)
}
