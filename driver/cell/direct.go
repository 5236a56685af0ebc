package cell

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell/script"
)

// direct makes the app's process without any program in between: a child that works off the
// list of system calls which [sandbox] derives from the spec.
type direct struct {
	h       *hierarchy
	machine machine
	filters [policies][]byte // compiled
	empty   *os.File         // a mount namespace with nothing in it
	shared  sync.Map         // cgroup parent -> *sync.Once's result: groups that all its cells share
}

// machine is what of this machine a script depends on.
type machine struct {
	lastCap int
	groups  []v1Mount // version 1 hierarchies, in the order of mounting
	unified bool      // pure version 2
}

// v1Mount is a version 1 hierarchy: its mount and the options that name it.
type v1Mount struct {
	dir     string
	options string
	own     bool // each cell has a group of its own in it; else all share one
}

// sharedGroup is the group of all cells below one parent in hierarchies that limit nothing per
// cell. No cell has that name.
const sharedGroup = "_cells"

func directAvailable() error {
	if _, ok := nativeArch[runtime.GOARCH]; !ok {
		return leapcell.Errorf(leapcell.CodeUnavailable, "the runtime %s does not know the system calls of %s: use runc", Direct, runtime.GOARCH)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	var major, minor int
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil || major < 5 || major == 5 && minor < 12 {
		return leapcell.Errorf(leapcell.CodeUnavailable, "the runtime %s needs Linux 5.12 or later, this is %s: use runc", Direct, release)
	}
	// Between the change of the user and the program, the process still has our memory. The
	// kernel shields it from that user, unless it is told to dump the core of such processes.
	if text, err := readText("/proc/sys/fs/suid_dumpable"); err != nil || text != "0" && text != "2" {
		return leapcell.Errorf(leapcell.CodeUnavailable, "the runtime %s needs fs.suid_dumpable to be 0 or 2, it is %q: change it with sysctl, or use runc", Direct, text)
	}
	return nil
}

func newDirect(h *hierarchy) (*direct, error) {
	if err := sealed(); err != nil {
		return nil, err
	}
	d := &direct{h: h, machine: machine{unified: h.unified != ""}}
	text, err := readText("/proc/sys/kernel/cap_last_cap")
	if err == nil {
		d.machine.lastCap, err = strconv.Atoi(text)
	}
	if err != nil {
		return nil, fmt.Errorf("find the last capability: %w", err)
	}
	// Children have our memory until they are the program: nobody but root may look into it, nor
	// is it to be dumped.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("protect our memory: %w", err)
	}
	for p := range policies {
		if d.filters[p], err = compiled(p); err != nil {
			return nil, err
		}
	}
	d.machine.groups = h.mounts1()
	d.empty, err = emptyNamespace()
	return d, err
}

func (d *direct) Name() string { return Direct }

// run makes the process and waits until it is the app.
func (d *direct) run(ctx context.Context, cell *Cell, host Host) error {
	c := cell.config
	if err := d.groups(c); err != nil {
		return err
	}
	if err := prepareTargets(c); err != nil {
		return err
	}
	if err := giveOutput([]*os.File{c.Stdout, c.Stderr}, c); err != nil {
		return err
	}
	spec := Spec(c, host)
	s, err := sandbox(spec, d.machine, d.filter(c))
	if err != nil {
		return err
	}
	p := script.Process{
		Namespaces:     unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		MountNamespace: d.empty,
	}
	if c.NetnsPath == "" {
		p.Namespaces |= unix.CLONE_NEWNET
	}
	var open opened
	defer open.close()
	open.file(os.DevNull, unix.O_RDONLY) // until the cell has a /dev/null of its own
	p.Stdio = [3]*os.File{nil, c.Stdout, c.Stderr}
	open.file(cmp.Or(c.NetnsPath, os.DevNull), unix.O_RDONLY)
	open.tree(c.Rootfs, true)
	for _, m := range bindMounts(spec) {
		open.tree(m.Source, slices.Contains(m.Options, "rbind"))
	}
	open.tasks(d.machine, c)
	if open.err != nil {
		return open.err
	}
	p.Stdio[0], p.Files = open.files[0], open.files[1:]
	if p.Cgroup, err = d.born(c); err != nil {
		return err
	}
	defer p.Cgroup.Close() // nil does not mind
	if cell.process, err = begin(ctx, s, p); err != nil {
		return err
	}
	cell.started = time.Now()
	return nil
}

// opened are files of the host that a script needs, in its order. After an error nothing more is opened.
type opened struct {
	files []*os.File
	err   error
}

func (o *opened) add(what, name string, open func() (int, error)) {
	if o.err != nil {
		return
	}
	fd, err := open()
	if err != nil {
		o.err = fmt.Errorf("%s %s: %w", what, name, err)
		return
	}
	o.files = append(o.files, os.NewFile(uintptr(fd), name))
}

func (o *opened) file(name string, flags int) {
	o.add("open", name, func() (int, error) { return unix.Open(name, flags|unix.O_CLOEXEC, 0) })
}

// tree opens a mount of the folder or file that is nowhere yet.
func (o *opened) tree(name string, recursive bool) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	o.add("mount", name, func() (int, error) { return unix.OpenTree(unix.AT_FDCWD, name, flags) })
}

// tasks opens the files by which a process moves itself into c's version 1 groups.
func (o *opened) tasks(m machine, c Config) {
	for _, g := range m.groups {
		id := sharedGroup
		if g.own {
			id = c.ID
		}
		o.file(filepath.Join(g.dir, c.CgroupParent, id, "tasks"), unix.O_WRONLY)
	}
}

func (o *opened) close() {
	for _, f := range o.files {
		_ = f.Close()
	}
}

func (d *direct) filter(c Config) []byte { return d.filters[policyOf(c)] }

// begin starts a process and holds it.
func begin(ctx context.Context, s *script.Script, p script.Process) (*process, error) {
	pid, err := script.Start(ctx, s, p)
	if pid == 0 {
		return nil, err
	}
	var held *process
	if err == nil {
		held, err = openProcess(pid)
	}
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // not reaped yet: it is still ours
		for {
			if _, e := unix.Wait4(pid, nil, 0, nil); e != unix.EINTR {
				break
			}
		}
		return nil, err
	}
	return held, nil
}

// groups makes the cgroups beyond those that have limits: one for all cells in each version 1
// hierarchy that limits nothing, and one in a version 2 tree beside them.
func (d *direct) groups(c Config) error {
	if d.h.unified != "" {
		return nil
	}
	once, _ := d.shared.LoadOrStore(c.CgroupParent, sync.OnceValue(func() error { return d.share(c.CgroupParent) }))
	if err := once.(func() error)(); err != nil {
		d.shared.Delete(c.CgroupParent) // the next start tries again
		return err
	}
	if d.h.hybrid != "" {
		if err := os.MkdirAll(filepath.Join(d.h.hybrid, c.CgroupParent, c.ID), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

// born is the version 2 cgroup that c's processes are born in; nil where there is no version 2.
func (d *direct) born(c Config) (*os.File, error) {
	if d.tree() == "" {
		return nil, nil
	}
	return os.Open(filepath.Join(d.tree(), c.CgroupParent, c.ID))
}

// tree is the mount of version 2, "" without one.
func (d *direct) tree() string { return d.h.unified + d.h.hybrid } // one of the two

// emptyNamespace makes a mount namespace that holds an empty folder, and nothing else. Cells begin
// with a copy of it: a copy of the host's would take longer with each mount that is there, and
// getting rid of it again longer still.
func emptyNamespace() (*os.File, error) {
	var ns *os.File
	var err error
	onThread(func() { ns, err = makeEmpty() })
	if err != nil {
		return nil, fmt.Errorf("make an empty mount namespace: %w", err)
	}
	return ns, nil
}

// makeEmpty changes the thread it is called on for good.
func makeEmpty() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid()))
	if err != nil {
		return nil, err
	}
	const flags, where = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "/dev" // a folder that is everywhere
	for _, step := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("tmpfs", where, "tmpfs", flags, "mode=555,nr_inodes=2,size=4k") },
		func() error { return unix.Chdir(where) },
		func() error { return unix.PivotRoot(".", ".") },
		func() error { return unix.Unmount(".", unix.MNT_DETACH) },
		func() error { return unix.Mount("", "/", "", flags|unix.MS_REMOUNT|unix.MS_RDONLY, "") },
	} {
		if err := step(); err != nil {
			_ = ns.Close()
			return nil, err
		}
	}
	return ns, nil
}

// onThread calls f on a thread that ends with it. It is not the process's first one, which cannot
// end, and whose view /proc/self shows.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onThread(f) // elsewhere, for as long as this one is taken
			runtime.UnlockOSThread()
			close(done)
			return
		}
		defer close(done)
		f() // never unlocked
	}()
	<-done
}

// deviceRules are what the app may do with device nodes, should it ever get one: those of
// /dev and the pseudo terminals.
var deviceRules = []string{
	"c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm",
}

// share makes the groups that all cells of a parent share.
func (d *direct) share(parent string) error {
	for _, m := range d.machine.groups {
		if m.own {
			continue
		}
		dir := filepath.Join(m.dir, parent, sharedGroup)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if m.options != "devices" {
			continue
		}
		if err := writeText(filepath.Join(dir, "devices.deny"), "a"); err != nil {
			return fmt.Errorf("deny devices: %w", err)
		}
		for _, rule := range deviceRules {
			if err := writeText(filepath.Join(dir, "devices.allow"), rule); err != nil {
				return fmt.Errorf("allow device %s: %w", rule, err)
			}
		}
	}
	return nil
}

// mounts1 are the version 1 hierarchies; none on pure version 2.
func (h *hierarchy) mounts1() []v1Mount {
	byDir := map[string][]string{}
	for option, dir := range h.v1 {
		byDir[dir] = append(byDir[dir], option)
	}
	var out []v1Mount
	for _, dir := range h.all {
		options := byDir[dir]
		if len(options) == 0 || h.unified != "" {
			continue
		}
		slices.Sort(options)
		own := slices.ContainsFunc(options, func(o string) bool { return slices.Contains(needed, o) })
		out = append(out, v1Mount{dir: dir, options: strings.Join(options, ","), own: own})
	}
	return out
}

// giveOutput lets the app open /dev/stdout and /dev/stderr anew, where they are pipes.
func giveOutput(files []*os.File, c Config) error {
	if c.Mode == leapcell.TaskBuild {
		return nil // root may anyway
	}
	for _, f := range files {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeNamedPipe != 0 {
			if err := f.Chown(c.User.orDefault().UID, -1); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepareTargets makes what is mounted over or changed into and may be missing in a writable
// image. No link of the image leads out of it.
func prepareTargets(c Config) error {
	if c.Mode == leapcell.TaskServerless && len(c.Mounts) == 0 {
		return nil
	}
	root, err := os.OpenRoot(c.Rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	if dir := inRoot(c.WorkDir); c.Mode != leapcell.TaskServerless && dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, m := range c.Mounts {
		if err := prepareTarget(root, m); err != nil {
			return fmt.Errorf("prepare the mount at %s: %w", m.Target, err)
		}
	}
	return nil
}

func prepareTarget(root *os.Root, m Mount) error {
	source, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	target := inRoot(m.Target)
	if _, err := root.Stat(target); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if source.IsDir() {
		return root.MkdirAll(target, 0o755)
	}
	if err := root.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// inRoot is an absolute path as seen from the root folder.
func inRoot(path string) string {
	if rel := strings.TrimPrefix(filepath.Clean("/"+path), "/"); rel != "" {
		return rel
	}
	return "."
}

// bytesOf writes 32-bit numbers as the kernel reads them.
func bytesOf(words ...uint32) []byte {
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

func rlimit(r specs.POSIXRlimit) []byte {
	return binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, r.Soft), r.Hard)
}
