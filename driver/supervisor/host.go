package supervisor

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lock makes sure that a state folder has one supervisor. It lasts until the file is closed in
// every process that has it; the kernel does so when a process ends, however it does.
func lock(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrRunning, filepath.Dir(name))
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}

// ProgramID tells one build of a program from another that has taken its path; "" when the
// path cannot be read.
func ProgramID(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d-%d-%d", st.Ino, st.Size, st.Mtim.Nano())
}

const tmpfsMagic = 0x01021994

// prepareRunDir makes a folder that is not on a disk: bundles and runtime states in it hold
// clear values of variables. [EN1] Where /run is on a disk, the folder gets a tmpfs.
func prepareRunDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if int64(st.Type) == tmpfsMagic {
		return nil
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,noswap")
	if err == unix.EINVAL { // Linux before 6.4
		err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700")
	}
	if err != nil {
		return fmt.Errorf("%s must not be on a disk, and no tmpfs could be mounted there: %w", dir, err)
	}
	return nil
}

// cgroupMounts are the mount points of all cgroup hierarchies.
func cgroupMounts() ([]string, error) {
	mounts, err := mountPoints()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range mounts {
		// An empty cpuset takes no process, and cells do not need ours.
		if (m.kind == "cgroup" || m.kind == "cgroup2") && filepath.Base(m.dir) != "cpuset" {
			out = append(out, m.dir)
		}
	}
	return out, nil
}

// leaveCgroup moves this process out of the cgroup of whoever started it, in each
// hierarchy. Cells get cgroups beside it.
func leaveCgroup(group string) error {
	dirs, err := cgroupMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		own := filepath.Join(dir, group, "supervisor")
		if err := os.MkdirAll(own, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0))
	}
	return errors.Join(errs...)
}

// letOthersFinish has this process, and the instances that it starts, wait for the end of a turn
// when they wake up, instead of interrupting whoever runs. Gate and app are in CPU groups of their
// own, and wake each other with each request: between groups the kernel then changes from one to
// the other and back for a single request, which costs both, visitor and edge more than half as
// much again as when they work off what has come meanwhile. A core that is free is taken at once,
// and shares stay as they are.
func letOthersFinish() error {
	// Threads have a policy each, and new ones that of their maker.
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		err = unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH}, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("scheduling of thread %d: %w", id, err)
		}
	}
	return nil
}

type mountPoint struct{ dir, kind string }

// mountPoints reads what is mounted, in the order of mounting.
func mountPoints() ([]mountPoint, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []mountPoint
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		dash := slices.Index(fields, "-")
		if dash < 5 || len(fields) < dash+2 {
			continue
		}
		// Spaces and the like are written in octal.
		dir := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		out = append(out, mountPoint{dir: dir, kind: fields[dash+1]})
	}
	return out, scanner.Err()
}
