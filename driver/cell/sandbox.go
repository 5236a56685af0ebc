package cell

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/driver/cell/script"
)

// plan is a sandbox's script in the making.
type plan struct {
	script.Script
	spec    *specs.Spec
	machine machine
	filter  []byte
}

// here is the AT_FDCWD of the *at calls, whose other forms arm64 does not have.
const here = uint64(1<<64 - 100)

// sandbox turns an OCI spec into what the new process has to do before it is the app: the
// order is that in which each step needs the last ones. It knows as much of the spec as [Spec]
// uses, and refuses the rest. Every step has to succeed.
//
// The process begins as root in new pid, mount, ipc and uts namespaces. All that it has of the host are
// its outputs and the descriptors of [files], from [script.FirstFile] on.
func sandbox(spec *specs.Spec, m machine, filter []byte) (*script.Script, error) {
	p := &plan{spec: spec, machine: m, filter: filter}
	p.Do("begin a session", unix.SYS_SETSID)
	binds := bindMounts(spec)
	p.enter(script.FirstFile + 2 + len(binds))
	p.Do("make a cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP) // what it is in now is the root that it sees
	p.network()
	if spec.Hostname != "" {
		p.Do("set the host name", unix.SYS_SETHOSTNAME, []byte(spec.Hostname), len(spec.Hostname))
	}
	if err := p.root(binds); err != nil {
		return nil, err
	}
	for _, mount := range spec.Mounts {
		if err := p.mount(mount); err != nil {
			return nil, err
		}
	}
	p.hide()
	p.Do("open /dev/null", unix.SYS_OPENAT, here, "/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0).Min(script.FirstFile)
	p.Do("set the input", unix.SYS_DUP3, script.FirstFile, 0, 0) // it was that of the host
	p.Do("close /dev/null", unix.SYS_CLOSE, script.FirstFile)
	if spec.Root.Readonly {
		p.Do("make / read-only", unix.SYS_MOUNT, nil, "/", nil, unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NODEV, nil)
	}
	return p.finish()
}

// finish gives up what the program must not have, and ends the script with it.
func (p *plan) finish() (*script.Script, error) {
	if err := p.limits(); err != nil {
		return nil, err
	}
	if err := p.drop(); err != nil {
		return nil, err
	}
	p.program()
	return &p.Script, nil
}

// program ends the script.
func (p *plan) program() {
	path := ""
	for _, e := range p.spec.Process.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	p.Exec(p.spec.Process.Args, withHome(p.spec.Process), path)
}

// withHome adds the HOME that an OCI runtime would.
func withHome(p *specs.Process) []string {
	if slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		return p.Env
	}
	home := "/"
	if p.User.UID == 0 {
		home = "/root"
	}
	return append(slices.Clone(p.Env), "HOME="+home)
}

// network enters the namespace of the spec, or sets up the new one.
func (p *plan) network() {
	for _, ns := range p.spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace && ns.Path != "" {
			p.Do("enter the network namespace", unix.SYS_SETNS, script.FirstFile, unix.CLONE_NEWNET)
			p.Do("close the network namespace", unix.SYS_CLOSE, script.FirstFile)
			return
		}
	}
	request := append([]byte("lo"), make([]byte, 38)...) // struct ifreq
	request[16] = unix.IFF_UP
	p.Do("close the empty file", unix.SYS_CLOSE, script.FirstFile)
	p.Do("open a socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0).Min(script.FirstFile)
	p.Do("set the loopback up", unix.SYS_IOCTL, script.FirstFile, unix.SIOCSIFFLAGS, request)
	p.Do("close the socket", unix.SYS_CLOSE, script.FirstFile)
}

// enter moves the process into its version 1 cgroups, whose tasks files are the descriptors from
// first on. By writing 0 to it a single thread moves itself: the kernel need not stop all forks
// on the machine for that, which costs a grace period of RCU.
func (p *plan) enter(first int) {
	for i, g := range p.machine.groups {
		p.Do("enter the cgroup of "+g.options, unix.SYS_WRITE, first+i, []byte("0"), 1)
		p.Do("close the cgroup of "+g.options, unix.SYS_CLOSE, first+i)
	}
}

// bindMounts are the mounts that lead to the host.
func bindMounts(spec *specs.Spec) []specs.Mount {
	return slices.DeleteFunc(slices.Clone(spec.Mounts), func(m specs.Mount) bool { return m.Type != "bind" })
}

// root makes the image the root and binds into it what the spec names of the host. Before, there
// is nothing in the mount namespace but an empty folder, which stays below. The image is not
// trusted: its links are followed only where they can lead nowhere else, and before /proc is there,
// through which they could.
func (p *plan) root(binds []specs.Mount) error {
	const tree = script.FirstFile + 1
	p.Do("mount the root", unix.SYS_MOVE_MOUNT, tree, "", here, "/", unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.Do("enter the root", unix.SYS_FCHDIR, tree)
	p.Do("change the root", unix.SYS_CHROOT, ".")
	p.Do("enter /", unix.SYS_CHDIR, "/")
	p.Do("close the root", unix.SYS_CLOSE, tree)
	p.Do("make mounts private", unix.SYS_MOUNT, nil, "/", nil, unix.MS_REC|unix.MS_PRIVATE, nil)
	for i, m := range binds {
		flags, data := mountFlags(m.Options)
		if len(data) > 0 {
			return fmt.Errorf("mount %s: the option %s is not supported", m.Destination, data[0])
		}
		for _, special := range p.spec.Mounts {
			if special.Type != "bind" && (m.Destination == special.Destination || strings.HasPrefix(m.Destination, special.Destination+"/")) {
				return fmt.Errorf("mount %s: it would be below %s, which is mounted over it", m.Destination, special.Destination)
			}
		}
		p.Do("mount "+m.Destination, unix.SYS_MOVE_MOUNT, tree+1+i, "", here, m.Destination, unix.MOVE_MOUNT_F_EMPTY_PATH)
		p.Do("restrict "+m.Destination, unix.SYS_MOUNT, nil, m.Destination, nil,
			flags&^unix.MS_REC|unix.MS_BIND|unix.MS_REMOUNT, nil)
		p.Do("close "+m.Destination, unix.SYS_CLOSE, tree+1+i)
	}
	p.Do("forget the umask", unix.SYS_UMASK, 0)
	return nil
}

// mountFlags splits the options of a mount into flags and what the file system gets.
func mountFlags(options []string) (flags int, data []string) {
	known := map[string]int{
		"ro": unix.MS_RDONLY, "rw": 0, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME,
	}
	for _, o := range options {
		if flag, ok := known[o]; ok {
			flags |= flag
		} else {
			data = append(data, o)
		}
	}
	return flags, data
}

// mount adds one mount that is not a bind.
func (p *plan) mount(m specs.Mount) error {
	flags, data := mountFlags(m.Options)
	switch m.Type {
	case "bind":
		return nil // root did it
	case "cgroup":
		p.cgroups(m.Destination, flags)
		return nil
	case "proc", "tmpfs", "devpts", "mqueue", "sysfs":
	default:
		return fmt.Errorf("mount %s: the type %s is not supported", m.Destination, m.Type)
	}
	if strings.HasPrefix(m.Destination, "/dev/") { // others are there in every image
		p.Do("make "+m.Destination, unix.SYS_MKDIRAT, here, m.Destination, 0o755)
	}
	p.Do("mount "+m.Destination, unix.SYS_MOUNT, m.Source, m.Destination, m.Type, flags, strings.Join(data, ","))
	if m.Destination == "/dev" {
		p.devices()
	}
	return nil
}

// devices fills /dev with what every program may expect.
func (p *plan) devices() {
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		p.Do("make /dev/"+d.name, unix.SYS_MKNODAT, here, "/dev/"+d.name, unix.S_IFCHR|0o666, unix.Mkdev(d.major, d.minor))
	}
	for _, l := range [][2]string{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
		{"ptmx", "pts/ptmx"},
	} {
		p.Do("make /dev/"+l[0], unix.SYS_SYMLINKAT, l[1], here, "/dev/"+l[0])
	}
}

// cgroups shows the process its own groups.
func (p *plan) cgroups(target string, flags int) {
	if p.machine.unified {
		p.Do("mount "+target, unix.SYS_MOUNT, "cgroup2", target, "cgroup2", flags&^unix.MS_RDONLY, nil)
		p.Do("restrict "+target, unix.SYS_MOUNT, nil, target, nil, flags|unix.MS_BIND|unix.MS_REMOUNT, nil)
		return
	}
	p.Do("mount "+target, unix.SYS_MOUNT, "tmpfs", target, "tmpfs", flags&^unix.MS_RDONLY, "mode=755")
	for _, g := range p.machine.groups {
		dir := filepath.Join(target, filepath.Base(g.dir))
		p.Do("make "+dir, unix.SYS_MKDIRAT, here, dir, 0o755)
		p.Do("mount "+dir, unix.SYS_MOUNT, "cgroup", dir, "cgroup", flags&^unix.MS_RDONLY, g.options)
		p.Do("restrict "+dir, unix.SYS_MOUNT, nil, dir, nil, flags|unix.MS_BIND|unix.MS_REMOUNT, nil)
		for controller := range strings.SplitSeq(g.options, ",") {
			if link := filepath.Join(target, controller); link != dir && !strings.Contains(controller, "=") {
				p.Do("make "+link, unix.SYS_SYMLINKAT, filepath.Base(g.dir), here, link)
			}
		}
	}
	p.Do("restrict "+target, unix.SYS_MOUNT, nil, target, nil, flags|unix.MS_BIND|unix.MS_REMOUNT, nil)
}

// hide takes masked paths out of sight and makes others read-only. A file is covered by
// /dev/null and a folder by an empty one: of the two mounts one succeeds, or there is nothing to hide.
func (p *plan) hide() {
	for _, path := range p.spec.Linux.ReadonlyPaths {
		p.Do("bind "+path, unix.SYS_MOUNT, path, path, nil, unix.MS_BIND|unix.MS_REC, nil).Accept(unix.ENOENT)
		p.Do("restrict "+path, unix.SYS_MOUNT, nil, path, nil,
			unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, nil).Accept(unix.ENOENT)
	}
	for _, path := range p.spec.Linux.MaskedPaths {
		p.Do("mask "+path, unix.SYS_MOUNT, "/dev/null", path, nil, unix.MS_BIND, nil).Accept(unix.ENOENT, unix.ENOTDIR)
		p.Do("mask "+path, unix.SYS_MOUNT, "tmpfs", path, "tmpfs", unix.MS_RDONLY, nil).Accept(unix.ENOENT, unix.ENOTDIR)
	}
}

// resources are the limits that specs name.
var resources = map[string]int{"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_CORE": unix.RLIMIT_CORE}

func (p *plan) limits() error {
	for _, r := range p.spec.Process.Rlimits {
		number, ok := resources[r.Type]
		if !ok {
			return fmt.Errorf("the limit %s is not supported", r.Type)
		}
		p.Do("set "+r.Type, unix.SYS_PRLIMIT64, 0, number, rlimit(r), nil)
	}
	p.Do("set the umask", unix.SYS_UMASK, 0o022)
	if score := p.spec.Process.OOMScoreAdj; score != nil {
		text := []byte(strconv.Itoa(*score))
		p.Do("open the score for want of memory", unix.SYS_OPENAT, here, "/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0).Min(script.FirstFile)
		p.Do("set it", unix.SYS_WRITE, script.FirstFile, text, len(text)).Min(len(text))
		p.Do("close it", unix.SYS_CLOSE, script.FirstFile)
	}
	return nil
}

// drop gives up everything that the app must not have. The filter comes last; without
// no_new_privs it has to come while the process may still set one, and lets pass what follows.
func (p *plan) drop() error {
	proc := p.spec.Process
	if proc.NoNewPrivileges {
		p.Do("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	} else {
		p.seccomp()
	}
	keep, err := capabilities(proc.Capabilities)
	if err != nil {
		return err
	}
	for c := range p.machine.lastCap + 1 {
		if keep&(1<<c) == 0 {
			p.Do("drop a capability", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
	}
	p.Do("clear the groups", unix.SYS_SETGROUPS, 0, nil)
	p.Do("set the group", unix.SYS_SETRESGID, proc.User.GID, proc.User.GID, proc.User.GID)
	p.Do("set the user", unix.SYS_SETRESUID, proc.User.UID, proc.User.UID, proc.User.UID)
	p.Do("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	low, high := uint32(keep), uint32(keep>>32)
	p.Do("set the capabilities", unix.SYS_CAPSET, bytesOf(unix.LINUX_CAPABILITY_VERSION_3, 0), bytesOf(low, low, 0, high, high, 0))
	p.Do("chdir to cwd", unix.SYS_CHDIR, proc.Cwd)
	p.Do("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, bytesOf(0, 0), nil, 8)
	if proc.NoNewPrivileges {
		p.seccomp()
	}
	return nil
}

func (p *plan) seccomp() {
	p.Do("set the system call filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, script.Filter(p.filter))
}

// capabilityBits are the numbers of those that specs name.
var capabilityBits = map[string]uint{
	"CAP_AUDIT_WRITE": unix.CAP_AUDIT_WRITE, "CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE,
	"CAP_FOWNER": unix.CAP_FOWNER, "CAP_FSETID": unix.CAP_FSETID, "CAP_KILL": unix.CAP_KILL,
	"CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "CAP_SETFCAP": unix.CAP_SETFCAP, "CAP_SETGID": unix.CAP_SETGID,
	"CAP_SETPCAP": unix.CAP_SETPCAP, "CAP_SETUID": unix.CAP_SETUID, "CAP_SYS_CHROOT": unix.CAP_SYS_CHROOT,
}

// capabilities is the one set that is bounding, effective and permitted.
func capabilities(c *specs.LinuxCapabilities) (keep uint64, err error) {
	if len(c.Inheritable) > 0 || len(c.Ambient) > 0 || !slices.Equal(c.Bounding, c.Effective) || !slices.Equal(c.Bounding, c.Permitted) {
		return 0, fmt.Errorf("capabilities: only equal bounding, effective and permitted sets are supported")
	}
	for _, name := range c.Bounding {
		bit, ok := capabilityBits[name]
		if !ok {
			return 0, fmt.Errorf("capability %s is not supported", name)
		}
		keep |= 1 << bit
	}
	return keep, nil
}
