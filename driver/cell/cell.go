package cell

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Config says what to run and in which sandbox.
type Config struct {
	ID           string // unique on this machine: letters, digits, - and _
	Dir          string // of this cell's own files; made when missing
	Rootfs       string // the mounted image
	Mode         leapcell.TaskMode
	Args         []string
	Env          []string // all of it: nothing is added
	WorkDir      string
	MemoryMB     int
	CPUs         int // whole cores; builds only
	NetnsPath    string
	Hostname     string
	ResolvConf   []byte
	Stdout       *os.File
	Stderr       *os.File
	Mounts       []Mount
	CgroupParent string // "leapcell-<name>"
}

// Mount binds a file or folder of the host into the cell.
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
}

// Launcher starts cells.
type Launcher interface {
	Name() string
	// Start returns when the app's process exists. After an error nothing is left behind.
	Start(ctx context.Context, c Config) (*Cell, error)
}

// NewLauncher gives the launcher of that name: "runc".
func NewLauncher(name string, log *slog.Logger) (Launcher, error) { return nil, errors.ErrUnsupported }

// Exit is how a cell ended.
type Exit struct {
	Code   int // of the app; 128+Signal when a signal ended it; -1 when nobody knows
	Signal int
	OOM    bool // the kernel killed it for want of memory
}

// Stats is what a cell uses and has used.
type Stats struct {
	CPUNanos       uint64 // since the start
	Memory         uint64 // bytes, now
	MaxMemory      uint64 // bytes, most ever
	Periods        uint64 // CPU periods in which it ran
	Throttled      uint64 // periods in which it hit its cap
	ThrottledNanos uint64
	Pids           uint64
}

// Cell is a running instance or build.
type Cell struct{}

// Adopt takes over a cell that an earlier process started.
func Adopt(launcher Launcher, c Config, pid int) (*Cell, error) { return nil, errors.ErrUnsupported }

// PID is the host's number of the cell's first process.
func (c *Cell) PID() int { return 0 }

// StartedAt is when the app's process began.
func (c *Cell) StartedAt() time.Time { return time.Time{} }

// Wait returns when the app has ended; any number of callers may wait.
func (c *Cell) Wait(ctx context.Context) (Exit, error) { return Exit{}, errors.ErrUnsupported }

// Signal sends sig to every process of the cell, thawing it first.
func (c *Cell) Signal(sig unix.Signal) error { return errors.ErrUnsupported }

// Freeze takes the CPU away; it returns when nothing inside runs any more.
func (c *Cell) Freeze() error { return errors.ErrUnsupported }

// Thaw undoes Freeze.
func (c *Cell) Thaw() error { return errors.ErrUnsupported }

// Frozen reports whether the cell is frozen.
func (c *Cell) Frozen() bool { return false }

// SetReady ends the boost of the start: from now on the cap of CP1 holds.
func (c *Cell) SetReady() error { return errors.ErrUnsupported }

// Stats reads the cell's counters.
func (c *Cell) Stats() (Stats, error) { return Stats{}, errors.ErrUnsupported }

// Kill ends every process of the cell at once.
func (c *Cell) Kill() error { return errors.ErrUnsupported }

// Delete removes all that the cell has on this machine but its Dir; a second call does nothing.
func (c *Cell) Delete() error { return errors.ErrUnsupported }
