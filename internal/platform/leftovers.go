package platform

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// leftovers are the traces of one platform in the kernel. The names are those that the
// driver gives: cgroups leapcell-{name}…, network namespaces leapcell-{name}-…, links
// lc{name}…, and one nftables table leapcell_{name}.
type leftovers struct {
	name, dir string
}

// list names all that is there.
func (l leftovers) list() []string {
	var found []string
	for _, m := range l.mounts() {
		found = append(found, "mount "+m)
	}
	for _, n := range l.namespaces() {
		found = append(found, "network namespace "+n)
	}
	for _, n := range l.links() {
		found = append(found, "network link "+n)
	}
	for _, t := range l.tables() {
		found = append(found, "nftables table "+t.Name)
	}
	for _, c := range l.cgroups() {
		found = append(found, "cgroup "+c)
	}
	return found
}

func (l leftovers) remove() error {
	var failures []error
	for _, cgroup := range l.cgroups() {
		failures = append(failures, removeCgroup(cgroup))
	}
	mounts := l.mounts()
	for i := len(mounts) - 1; i >= 0; i-- { // the innermost was mounted last
		if err := unix.Unmount(mounts[i], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			failures = append(failures, fmt.Errorf("unmounting %s: %w", mounts[i], err))
		}
	}
	for _, name := range l.namespaces() {
		_ = unix.Unmount(name, unix.MNT_DETACH) // may be a plain file by now
		failures = append(failures, os.Remove(name))
	}
	for _, name := range l.links() {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if gone := (netlink.LinkNotFoundError{}); err != nil && !errors.As(err, &gone) {
			failures = append(failures, fmt.Errorf("removing link %s: %w", name, err))
		}
	}
	if tables := l.tables(); len(tables) > 0 {
		conn, err := nftables.New()
		if err != nil {
			return errors.Join(append(failures, err)...)
		}
		for _, t := range tables {
			conn.DelTable(t)
		}
		failures = append(failures, conn.Flush())
	}
	return errors.Join(failures...)
}

// mounts below the state folder, in the order they were made.
func (l leftovers) mounts() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if at := unescapeMount(fields[4]); strings.HasPrefix(at, l.dir+"/") {
			found = append(found, at)
		}
	}
	return found
}

// unescapeMount undoes the kernel's octal escapes: \040 is a space.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func (l leftovers) namespaces() []string {
	found, _ := filepath.Glob("/run/netns/leapcell-" + l.name + "-*")
	return found
}

func (l leftovers) links() []string {
	found, _ := filepath.Glob("/sys/class/net/lc" + l.name + "*")
	for i, path := range found {
		found[i] = filepath.Base(path)
	}
	return found
}

func (l leftovers) tables() []*nftables.Table {
	conn, err := nftables.New()
	if err != nil {
		return nil
	}
	all, err := conn.ListTables()
	if err != nil {
		return nil
	}
	var found []*nftables.Table
	for _, t := range all {
		if t.Name == "leapcell_"+l.name {
			found = append(found, t)
		}
	}
	return found
}

// cgroups of the platform in every hierarchy: one on a machine with cgroup v2, one for each
// controller with v1.
func (l leftovers) cgroups() []string {
	var found []string
	for _, depth := range []string{"", "*/"} {
		for _, suffix := range []string{"", "-nomad", ".slice"} {
			at, _ := filepath.Glob("/sys/fs/cgroup/" + depth + "leapcell-" + l.name + suffix)
			for _, path := range at {
				if info, err := os.Lstat(filepath.Dir(path)); err == nil && info.Mode()&fs.ModeSymlink == 0 {
					found = append(found, path) // cpu and cpuacct are links to cpu,cpuacct
				}
			}
		}
	}
	return found
}

// removeCgroup ends what runs in a cgroup and removes it with all below.
func removeCgroup(path string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := removeCgroupOnce(path)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond) // v1 has no event for an empty cgroup
	}
}

func removeCgroupOnce(path string) error {
	_ = os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)        // v2, since 5.14
	_ = os.WriteFile(filepath.Join(path, "freezer.state"), []byte("THAWED"), 0) // v1: the frozen cannot die
	_ = os.WriteFile(filepath.Join(path, "cgroup.freeze"), []byte("0"), 0)      // v2
	procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, field := range strings.Fields(string(procs)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // may have ended meanwhile
		}
	}
	children, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, c := range children {
		if c.IsDir() {
			if err := removeCgroupOnce(filepath.Join(path, c.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing cgroup %s: %w", path, err)
	}
	return nil
}

// defaultCgroups are those that Nomad makes whatever its cgroup_parent says, one for each
// controller with cgroup v1, one in all with v2: every agent of a machine shares them.
func defaultCgroups() []string {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/nomad")
	v2, _ := filepath.Glob("/sys/fs/cgroup/nomad.slice")
	return append(v1, v2...)
}

// removeDefaultCgroups removes them where they are empty, unless another agent runs, which
// would miss them.
func removeDefaultCgroups() {
	programs, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, program := range programs {
		// One that has ended and was not yet reaped has no program any more.
		if path, err := os.Readlink(program); err == nil && strings.TrimSuffix(filepath.Base(path), " (deleted)") == "nomad" {
			return
		}
	}
	for _, cgroup := range defaultCgroups() {
		below, _ := os.ReadDir(cgroup)
		for _, entry := range below {
			_ = unix.Rmdir(filepath.Join(cgroup, entry.Name())) // refused when something is in it, or it is a file
		}
		_ = unix.Rmdir(cgroup)
	}
}
