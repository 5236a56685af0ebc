package cell

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Launcher starts cells.
type Launcher interface {
	Name() string
	// Start returns when the app's process exists. After an error nothing is left behind but
	// Config.Dir. ctx bounds the start only.
	Start(ctx context.Context, c Config) (*Cell, error)
}

// engine is what launchers differ in.
type engine interface {
	Name() string
	// run makes the process of a cell whose cgroup and files are there, as host and [Spec] say, and
	// fills in cell.process and cell.started. The process is a child of this one, so that
	// its exit code is known. After an error nothing runs that is not in the cell's cgroup.
	run(ctx context.Context, cell *Cell, host Host) error
}

// launcher is all that does not depend on the runtime.
type launcher struct {
	engine
	h    *hierarchy
	cpus cpuPicker
	log  *slog.Logger
	// beside makes the processes of commands, whichever runtime made the app's.
	beside func() (*direct, error)
}

// Direct is the name of the runtime that needs no program: this package makes the process.
const Direct = "leapcell"

// Runtimes are the names that [NewLauncher] takes.
var Runtimes = []string{Direct, "runc", "crun"}

// Choose is the runtime of a machine whose operator names none, and why it is not [Direct] when it is not.
func Choose() (name string, fallback error) { return choose(Available) }

func choose(available func(string) error) (name string, fallback error) {
	if err := available(Direct); err != nil {
		return "runc", err
	}
	return Direct, nil
}

// Available says what is missing on this machine for the runtime of that name.
func Available(name string) error {
	if name == "runsc" {
		return leapcell.Errorf(leapcell.CodeInvalid, "the runtime runsc cannot be used: its sandbox is not in the instance's control group, so that neither limits nor suspension hold; set %s", strings.Join(Runtimes, ", "))
	}
	if !slices.Contains(Runtimes, name) {
		return leapcell.Errorf(leapcell.CodeInvalid, "the runtime %q is not known: it must be one of %s", name, strings.Join(Runtimes, ", "))
	}
	if name == Direct {
		return directAvailable()
	}
	if _, err := exec.LookPath(name); err != nil {
		return leapcell.Errorf(leapcell.CodeUnavailable, "%s is not on PATH: install it (Debian: apt-get install %s)", name, name)
	}
	return nil
}

// NewLauncher gives the launcher of that name, one of [Runtimes]. It makes this process the
// reaper of all its orphaned descendants.
func NewLauncher(name string, log *slog.Logger) (Launcher, error) {
	if err := Available(name); err != nil {
		return nil, err
	}
	h, err := detect()
	if err != nil {
		return nil, err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the reaper of orphaned processes: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &launcher{h: h, log: log, beside: sync.OnceValues(func() (*direct, error) {
		if err := directAvailable(); err != nil {
			return nil, err
		}
		return newDirect(h)
	})}
	if name == Direct {
		l.engine, err = l.beside()
	} else {
		l.engine, err = newOCI(name, h)
	}
	return l, err
}

// Start makes files, cgroup and process, in this order, and undoes all of it on failure.
func (l *launcher) Start(ctx context.Context, c Config) (*Cell, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	allowed, err := l.h.allowed()
	if err != nil {
		return nil, err
	}
	cell := l.cell(c)
	cell.cpus = l.cpus.pick(allowed, c.cores())
	host, err := l.host(c)
	if err == nil {
		err = l.prepare(c, host)
	}
	if err == nil {
		err = cell.group.create(c.limits(cell.cpus))
	}
	if err == nil {
		err = l.run(ctx, cell, host)
	}
	if err != nil {
		l.cpus.release(cell.cpus)
		if cleaning := discard(cell.group, cell.state); cleaning != nil {
			l.log.Error("clean up after a failed start", "cell", c.ID, "error", cleaning)
		}
		return nil, startError(c, err)
	}
	cell.watch()
	return cell, nil
}

// cell is c with its places, nothing of it made yet.
func (l *launcher) cell(c Config) *Cell {
	return &Cell{
		config: c, beside: l.beside, group: l.h.group(c.CgroupParent, c.ID), release: l.cpus.release,
		state: filepath.Join(stateRoot(c.CgroupParent), c.ID), log: l.log,
	}
}

// host is the machine as c's spec names it.
func (l *launcher) host(c Config) (Host, error) {
	var open unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &open); err != nil {
		return Host{}, fmt.Errorf("read the limit of open files: %w", err)
	}
	dir := ownFiles(filepath.Join(stateRoot(c.CgroupParent), c.ID))
	return Host{
		CgroupsPath: l.h.group(c.CgroupParent, c.ID).path(),
		OpenFiles:   open.Max,
		ResolvConf:  filepath.Join(dir, "resolv.conf"),
		Hosts:       filepath.Join(dir, "hosts"),
		Hostname:    filepath.Join(dir, "hostname"),
	}, nil
}

// prepare writes the files bound into the cell.
func (l *launcher) prepare(c Config, own Host) error {
	for _, dir := range []string{c.Dir, filepath.Dir(own.ResolvConf)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if c.Hostname != "" {
		hosts += "127.0.1.1\t" + c.Hostname + "\n"
	}
	for _, f := range []struct {
		name string
		text []byte
		mode fs.FileMode
	}{
		{own.ResolvConf, c.ResolvConf, 0o644},
		{own.Hosts, []byte(hosts), 0o644},
		{own.Hostname, []byte(c.Hostname + "\n"), 0o644},
	} {
		if err := os.WriteFile(f.name, f.text, f.mode); err != nil {
			return err
		}
	}
	if c.Mode == leapcell.TaskPersistent {
		return handOver(c.Rootfs, c.WorkDir, c.User.orDefault())
	}
	return nil
}

// handOver makes the app's user the owner of the root folder and of everything in the working
// directory: a persistent instance may write there. [FS1]
func handOver(rootfs, workDir string, user User) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	own := func(name string) error { return root.Lchown(name, user.UID, user.GID) }
	if err := own("."); err != nil {
		return err
	}
	rel := strings.TrimPrefix(filepath.Clean("/"+workDir), "/")
	if rel == "" {
		return nil
	}
	return fs.WalkDir(root.FS(), rel, func(name string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the runtime makes a missing working directory
		}
		if err != nil {
			return err
		}
		return own(name)
	})
}

// discard ends what runs in the group and removes it with the runtime's folder.
func discard(g cgroup, state string) error {
	pids, err := g.procs()
	if err != nil {
		return err
	}
	if err := g.kill(); err != nil {
		return err
	}
	for _, pid := range pids {
		inherit(pid) // a runtime that was stopped in the middle
		for {
			// A child's end is waited for; ECHILD at once for others.
			if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
				break
			}
		}
	}
	return removeCell(g, state)
}

// ErrOutOfMemory says that the kernel has killed some process of a cell for want of memory.
var ErrOutOfMemory = errors.New("it was killed for want of memory")

// Adopt takes over a cell that an earlier process started with the same Config. When it is not
// running any more, what it left is removed and the error has [leapcell.CodeNotFound]. How it ended is
// lost with the process whose child it was, but for [ErrOutOfMemory], which its cgroup tells.
func Adopt(with Launcher, c Config, pid int) (*Cell, error) {
	l, ok := with.(*launcher)
	if !ok {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "the runtime %s cannot take over running cells", with.Name())
	}
	if !idFormat.MatchString(c.ID) || !idFormat.MatchString(c.CgroupParent) {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "cell ID %q or cgroup parent %q is not valid", c.ID, c.CgroupParent)
	}
	cell := l.cell(c)
	if err := cell.adopt(pid); err != nil {
		if kills, unread := cell.group.oomKills(); unread == nil && kills > 0 {
			err = errors.Join(ErrOutOfMemory, err)
		}
		if cleaning := discard(cell.group, cell.state); cleaning != nil {
			l.log.Error("clean up after a cell that has ended", "cell", c.ID, "error", cleaning)
		}
		return nil, leapcell.Wrap(leapcell.CodeNotFound, err, "cell "+c.ID+" is not running any more")
	}
	l.cpus.use(cell.cpus)
	cell.watch()
	return cell, nil
}

// adopt fills in what Start would have. The number of a process may have been given to
// another since: only one that is in the cell's group is taken.
func (c *Cell) adopt(pid int) (err error) {
	if c.process, err = openProcess(pid); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.process.close()
		}
	}()
	pids, err := c.group.procs()
	if err != nil {
		return err
	}
	if !slices.Contains(pids, pid) {
		return fmt.Errorf("process %d is not of this cell", pid)
	}
	if c.started, err = startTime(pid); err != nil {
		return err
	}
	if c.frozen, err = c.group.frozen(); err != nil {
		return err
	}
	c.cpus, _ = c.group.cpus() // only for an even spread
	return nil
}

// startError puts the failures that an owner or operator can do something about in plain words.
func startError(c Config, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	text := strings.ToLower(err.Error()) // runtimes differ in it
	has := func(parts ...string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, strings.ToLower(p)) })
	}
	message := "the sandbox could not be made"
	switch {
	case errors.Is(err, unix.ENOSPC) || has("no space left on device"):
		message = "no space left on the node's disk: free some or move the state folder"
	case has("executable file", "not found"), has("exec", c.Args[0], "no such file or directory"):
		message = fmt.Sprintf("the image has no program %q", c.Args[0])
	case has("exec", c.Args[0], "permission denied"), has("open executable: permission denied"):
		message = fmt.Sprintf("the program %q cannot be executed by user %d", c.Args[0], c.User.orDefault().UID)
	case has("exec format error"):
		message = fmt.Sprintf("the program %q is not made for this machine (%s)", c.Args[0], unameMachine())
	case has("cannot allocate memory"), has("container init was oom-killed"):
		message = fmt.Sprintf("the memory of %d MB is too small to start", c.MemoryMB)
	case has("chdir to cwd"):
		message = fmt.Sprintf("the working directory %q cannot be entered", c.WorkDir)
	}
	return leapcell.Wrap(leapcell.CodeStartFailed, err, message)
}

func unameMachine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Machine[:])
}
