package cell

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/driver/cell/script"
)

// exec makes a process beside the app: in its cgroups and namespaces, restricted as it is,
// whoever made the app's. It gives our side of its terminal, if it has one; stdio is for a process
// without. The process is a child of this one.
func (d *direct) exec(ctx context.Context, cell *Cell, spec *specs.Process, stdio [3]*os.File) (*process, *os.File, error) {
	c := cell.config
	groups, err := d.groupsOf(cell.process.pid)
	if err != nil {
		return nil, nil, err
	}
	var open opened
	defer open.close()
	for _, m := range d.machine.groups {
		open.file(filepath.Join(m.dir, groups[m.options], "tasks"), unix.O_WRONLY)
	}
	if open.err != nil {
		return nil, nil, open.err
	}
	p := script.Process{Stdio: stdio, PIDNamespace: cell.process.fd, Files: append([]*os.File{cell.process.fd}, open.files...)}
	var terminal *os.File
	if spec.Terminal {
		master, slave, err := openTerminal(cell.process.pid, int(spec.User.UID))
		if err != nil {
			return nil, nil, err
		}
		defer slave.Close()
		terminal, p.Stdio = master, [3]*os.File{slave, slave, slave}
	}
	if tree := d.tree(); tree != "" {
		if p.Cgroup, err = os.Open(filepath.Join(tree, groups[""])); err == nil {
			defer p.Cgroup.Close()
		}
	}
	var s *script.Script
	if err == nil {
		s, err = beside(spec, d.machine, d.filter(c))
	}
	var held *process
	if err == nil {
		held, err = begin(ctx, s, p)
	}
	if err != nil && terminal != nil {
		_ = terminal.Close()
	}
	if err != nil {
		return nil, nil, err
	}
	return held, terminal, nil
}

// groupsOf are the cgroups of a process by the options of their hierarchies, "" for version 2.
func (d *direct) groupsOf(pid int) (map[string]string, error) {
	text, err := readText(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("find the app's cgroups: %w", err)
	}
	groups := map[string]string{}
	for line := range strings.Lines(text) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			options := strings.Split(parts[1], ",")
			slices.Sort(options)
			groups[strings.Join(options, ",")] = parts[2]
		}
	}
	return groups, nil
}

// beside is the script of a process in a cell that runs. Descriptor [script.FirstFile] is
// the app's process; the tasks files of the cgroups follow.
func beside(spec *specs.Process, m machine, filter []byte) (*script.Script, error) {
	p := &plan{spec: &specs.Spec{Process: spec}, machine: m, filter: filter}
	p.Do("begin a session", unix.SYS_SETSID)
	if spec.Terminal {
		p.Do("take the terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	p.enter(script.FirstFile + 1)
	p.Do("enter the namespaces", unix.SYS_SETNS, script.FirstFile,
		unix.CLONE_NEWNS|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWNET|unix.CLONE_NEWCGROUP)
	p.Do("leave the app", unix.SYS_CLOSE, script.FirstFile)
	return p.finish()
}

const devptsMagic = 0x1cd1

// openTerminal makes a terminal in the cell's own /dev/pts: whoever looks from inside finds it
// there. The image's links are not followed.
func openTerminal(pid, owner int) (master, slave *os.File, err error) {
	fail := func(err error) (*os.File, *os.File, error) {
		if master != nil {
			_ = master.Close()
		}
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	root, err := os.OpenFile(filepath.Join("/proc", fmt.Sprint(pid), "root"), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fail(err)
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), "dev/pts/ptmx", &unix.OpenHow{
		Flags: unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return fail(err)
	}
	master = os.NewFile(uintptr(fd), "terminal") // not blocking: reads have deadlines
	var where unix.Statfs_t
	if err := unix.Fstatfs(fd, &where); err != nil || where.Type != devptsMagic {
		return fail(fmt.Errorf("/dev/pts is of another kind: %w", unix.ENOTTY))
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fail(errno)
	}
	slave = os.NewFile(peer, "terminal")
	if err := slave.Chown(owner, -1); err != nil {
		_ = slave.Close()
		return fail(err)
	}
	return master, slave, nil
}
