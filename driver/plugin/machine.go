package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/supervisor"
)

// machine is what a task needs of the machine. Its fields are what tests replace.
type machine struct {
	root      string                     // of /proc and /sys
	uid       func() int                 // of this process
	available func(runtime string) error // what is missing for it
	nftables  func() error

	mu       sync.Mutex
	versions map[string]string // of runtimes, by path, size and time of the program
}

func newMachine() *machine {
	return &machine{root: "/", uid: os.Geteuid, available: cell.Available, nftables: listTables, versions: map[string]string{}}
}

// missing is all that is not there, said at once.
func (m *machine) missing(cfg supervisor.Config) error {
	var errs []error
	if m.uid() != 0 {
		errs = append(errs, errors.New("the Nomad agent does not run as root: namespaces, mounts and cgroups need that"))
	}
	if err := m.available(cfg.Runtime); err != nil {
		if leapcell.ErrorCode(err) != leapcell.CodeInternal {
			err = errors.New(leapcell.ErrorMessage(err))
		}
		errs = append(errs, err)
	}
	if b, err := os.ReadFile(m.path("proc/filesystems")); err == nil && !bytes.Contains(b, []byte("\toverlay\n")) {
		errs = append(errs, errors.New("the kernel has no overlay file system: modprobe overlay"))
	}
	if _, lacking := m.cgroups(); len(lacking) > 0 {
		errs = append(errs, fmt.Errorf("the cgroup controllers %s are missing: mount cgroup2 at /sys/fs/cgroup, and remove cgroup_disable= from the kernel's command line", strings.Join(lacking, ", ")))
	}
	if err := m.nftables(); err != nil && m.uid() == 0 {
		errs = append(errs, fmt.Errorf("the kernel has no nftables: modprobe nf_tables (%w)", err))
	}
	return errors.Join(errs...)
}

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

// cgroups is the version of control groups, "v1" or "v2", and the controllers that are missing.
func (m *machine) cgroups() (version string, lacking []string) {
	if b, err := os.ReadFile(m.path("sys/fs/cgroup/cgroup.controllers")); err == nil {
		have := " " + strings.TrimSpace(string(b)) + " "
		for _, c := range []string{"cpu", "memory", "pids"} {
			if !strings.Contains(have, " "+c+" ") {
				lacking = append(lacking, c)
			}
		}
		return "v2", lacking
	}
	for _, c := range []string{"cpu", "memory", "pids", "freezer"} {
		if _, err := os.Stat(m.path("sys/fs/cgroup/" + c + "/cgroup.procs")); err != nil {
			lacking = append(lacking, c)
		}
	}
	return "v1", lacking
}

func listTables() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	_, err = conn.ListTables()
	return err
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// runtimeVersion is what the runtime says of itself; the driver's own has the driver's. A program is asked
// once.
func (m *machine) runtimeVersion(ctx context.Context, runtime string) string {
	if runtime == cell.Direct {
		return supervisor.Version
	}
	program, err := exec.LookPath(runtime)
	if err != nil {
		return ""
	}
	key := program + " " + supervisor.ProgramID(program)
	m.mu.Lock()
	defer m.mu.Unlock()
	if v, ok := m.versions[key]; ok {
		return v
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	fields := strings.Fields(line) // "runc version 1.1.5", "crun version 1.8.1"
	if len(fields) == 0 {
		return ""
	}
	m.versions[key] = fields[len(fields)-1]
	return m.versions[key]
}
