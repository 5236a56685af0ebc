package cell

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
)

// Config says what to run and in which sandbox.
type Config struct {
	ID  string // unique on this machine: letters, digits, - and _
	Dir string // of this cell's own files; made when missing, never removed
	// Rootfs is the mounted image. It has the folders and files that are mounted over, since a
	// read-only one cannot be given them; its /tmp has mode 1777, which some runtimes give on.
	Rootfs       string
	Mode         leapcell.TaskMode
	Args         []string
	Env          []string // all of it; only a missing HOME is added by the runtime
	WorkDir      string   // "" is /
	MemoryMB     int
	CPUs         int    // whole cores; builds only
	Nested       bool   // may make sandboxes of its own, in a user namespace; builds only
	User         User   // of instances; builds are root
	NetnsPath    string // "" is a new, empty one
	Hostname     string
	ResolvConf   []byte
	Stdout       *os.File
	Stderr       *os.File
	Mounts       []Mount
	CgroupParent string // "leapcell-<name>"; also names the runtime's state folder under /run
}

// User is who runs an instance; the zero value is the contract's. [ID1]
type User struct{ UID, GID int }

func (u User) orDefault() User {
	if u.UID == 0 {
		u.UID = leapcell.InstanceUID
	}
	if u.GID == 0 {
		u.GID = leapcell.InstanceGID
	}
	return u
}

// Mount binds a file or folder of the host into the cell.
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
}

// maxID is the largest number of a user or group: those above are of user namespaces.
const maxID = 1<<16 - 1

var idFormat = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// validate finds the mistakes that would otherwise come back from the runtime in its own words.
func (c Config) validate() error {
	invalid := func(format string, args ...any) error {
		return leapcell.Errorf(leapcell.CodeInvalid, "cell "+c.ID+": "+format, args...)
	}
	switch {
	case !idFormat.MatchString(c.ID):
		return leapcell.Errorf(leapcell.CodeInvalid, "cell ID %q: letters, digits, ., - and _ are allowed", c.ID)
	case !idFormat.MatchString(c.CgroupParent):
		return invalid("cgroup parent %q: letters, digits, ., - and _ are allowed", c.CgroupParent)
	case !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.Rootfs):
		return invalid("dir %q and rootfs %q must be absolute paths", c.Dir, c.Rootfs)
	case len(c.Args) == 0:
		return invalid("there is no command to run")
	case c.WorkDir != "" && !filepath.IsAbs(c.WorkDir):
		return invalid("working directory %q must be absolute", c.WorkDir)
	case c.User.UID < 0 || c.User.GID < 0 || c.User.UID > maxID || c.User.GID > maxID:
		return invalid("user %d:%d: numbers from 1 to %d are allowed", c.User.UID, c.User.GID, maxID)
	case c.MemoryMB <= 0:
		return invalid("memory is %d MB: it must be positive", c.MemoryMB)
	}
	switch c.Mode {
	case leapcell.TaskServerless, leapcell.TaskPersistent:
		if c.Nested {
			return invalid("only builds may make sandboxes of their own")
		}
	case leapcell.TaskBuild:
		if c.CPUs <= 0 {
			return invalid("cpus is %d: a build needs at least 1", c.CPUs)
		}
	default:
		return invalid("mode is %q: it must be serverless, persistent or build", c.Mode)
	}
	for _, m := range c.Mounts {
		if !filepath.IsAbs(m.Source) || !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) == "/" {
			return invalid("mount of %q at %q: absolute paths are needed, and not the root", m.Source, m.Target)
		}
	}
	for _, e := range c.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" || strings.ContainsRune(e, 0) {
			return invalid("an environment entry is not NAME=value")
		}
	}
	return nil
}

// limits are what the cgroup enforces.
type limits struct {
	MemoryBytes int64
	Pids        int64
	Quota       time.Duration // CPU time in each [leapcell.CPUPeriod]
	CPUs        []int         // the cores it sees
}

// buildPids bounds a build, whose compilers and package managers fork more than apps do.
const buildPids = 8192

// cores is how many cores the cell sees.
func (c Config) cores() int {
	if c.Mode == leapcell.TaskBuild {
		return c.CPUs
	}
	return leapcell.VisibleCores(c.MemoryMB)
}

// quota is the CPU time per period once the cell is ready.
func (c Config) quota() time.Duration {
	if c.Mode == leapcell.TaskBuild {
		return leapcell.CPUPeriod * time.Duration(c.CPUs)
	}
	return leapcell.CPUQuota(c.MemoryMB)
}

// limits are those of the start: at least one core until the app is ready. [CP3]
func (c Config) limits(cpus []int) limits {
	l := limits{
		MemoryBytes: int64(c.MemoryMB) << 20,
		Pids:        leapcell.PidsLimit,
		Quota:       max(c.quota(), leapcell.CPUPeriod),
		CPUs:        cpus,
	}
	if c.Mode == leapcell.TaskBuild {
		l.Pids = buildPids
	}
	return l
}
