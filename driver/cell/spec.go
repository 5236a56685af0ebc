package cell

import (
	"fmt"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/leapcell/leapcell"
)

// maskedPaths tell of the host or let it be disturbed; they look empty inside. [FS4]
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
	"/proc/latency_stats", "/proc/pressure", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

// readonlyPaths are controls of the whole kernel. [FS4]
var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys/fs/cgroup"}

// buildCapabilities are what apt, dpkg, pip and tar need to install files of several owners,
// and no more: none that reaches the host, devices or the network's set-up.
var buildCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// maxOpenFiles is the limit of open files of every process inside.
const maxOpenFiles = 65536

// oomScore has the kernel end an instance before anything of the machine when that runs out of memory.
// It is never the agent's, which may be exempt: the limit of an instance could then not be enforced. [ID6]
const oomScore = 500

// Host is what a spec says of the machine.
type Host struct {
	CgroupsPath string
	OpenFiles   uint64 // at most: more than our own limit cannot be given
	// The cell's own files, bound over those of the image.
	ResolvConf, Hosts, Hostname string
}

// Spec turns c into the OCI runtime spec of the contract. It is a pure function: the same
// Config gives the same spec.
func Spec(c Config, host Host) *specs.Spec {
	build := c.Mode == leapcell.TaskBuild
	open, user, score := min(host.OpenFiles, maxOpenFiles), c.User.orDefault(), oomScore
	s := &specs.Spec{
		Version:  "1.0.2",
		Hostname: c.Hostname,
		Root:     &specs.Root{Path: c.Rootfs, Readonly: c.Mode == leapcell.TaskServerless}, // FS1
		Process: &specs.Process{
			Args:            c.Args,
			Env:             c.Env,
			Cwd:             c.WorkDir,
			User:            specs.User{UID: uint32(user.UID), GID: uint32(user.GID)}, // ID1
			NoNewPrivileges: true,
			OOMScoreAdj:     &score,
			Capabilities:    &specs.LinuxCapabilities{},
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: open, Hard: open},
				// A core dump would go where the host sends its own, with all the app's secrets.
				{Type: "RLIMIT_CORE"},
			},
		},
		Mounts: mounts(c, host),
		Linux: &specs.Linux{
			CgroupsPath:   host.CgroupsPath,
			Namespaces:    namespaces(c.NetnsPath),
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
			Seccomp:       seccomp(policyOf(c)),
		},
	}
	if s.Process.Cwd == "" {
		s.Process.Cwd = "/"
	}
	if build {
		s.Process.User = specs.User{}
		s.Process.NoNewPrivileges = false // a build may call sudo or su
		s.Process.Capabilities = &specs.LinuxCapabilities{
			Bounding: buildCapabilities, Effective: buildCapabilities, Permitted: buildCapabilities,
		}
	}
	return s
}

// namespaces are those of ID2. [ID2]
func namespaces(netns string) []specs.LinuxNamespace {
	return []specs.LinuxNamespace{
		{Type: specs.PIDNamespace},
		{Type: specs.MountNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.CgroupNamespace},
		{Type: specs.NetworkNamespace, Path: netns},
	}
}

func mounts(c Config, host Host) []specs.Mount {
	tmpfs := func(target string, options ...string) specs.Mount {
		return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: options}
	}
	bind := func(source, target string) specs.Mount {
		return specs.Mount{Destination: target, Type: "bind", Source: source,
			Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"}}
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		tmpfs("/dev", "nosuid", "noexec", "strictatime", "mode=755", "size=65536k"),
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		shm(c.Mode),
		bind(host.ResolvConf, "/etc/resolv.conf"),
		bind(host.Hosts, "/etc/hosts"),
		bind(host.Hostname, "/etc/hostname"),
	}
	if c.Mode != leapcell.TaskBuild { // a build's /tmp is on disk: compilers fill it
		list = append(list, tmpfs("/tmp", "nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%dm", leapcell.TmpSizeMB(c.MemoryMB)))) // FS2
	}
	for _, m := range c.Mounts {
		options := []string{"rbind", "rw", "nosuid", "nodev"}
		if m.ReadOnly {
			options[1] = "ro"
		}
		list = append(list, specs.Mount{Destination: filepath.Clean(m.Target), Type: "bind", Source: m.Source, Options: options})
	}
	return list
}

// shm is /dev/shm. A serverless instance gets one that nobody may write to: the refusal must
// be "Permission denied", so it is not mounted read-only. [FS3]
func shm(mode leapcell.TaskMode) specs.Mount {
	m := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"}
	if mode == leapcell.TaskServerless {
		m.Options = []string{"nosuid", "noexec", "nodev", "mode=0555", "size=4k"}
	} else {
		m.Options = []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%dm", leapcell.PersistentShmMB)}
	}
	return m
}
