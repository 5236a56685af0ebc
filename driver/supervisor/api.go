package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/gate"
	"github.com/leapcell/leapcell/driver/image"
)

// StartRequest is a task as the plugin got it from Nomad. It is stored for recovery, without
// the values of variables.
type StartRequest struct {
	ID        string              `json:"id"` // Nomad's ID of the task on this node
	Name      string              `json:"name"`
	AllocID   string              `json:"allocID"`
	Namespace string              `json:"namespace"`
	Dir       string              `json:"dir"`     // the allocation's folder
	Address   string              `json:"address"` // of the gate; "" in build mode
	MemoryMB  int                 `json:"memoryMB"`
	Config    leapcell.TaskConfig `json:"config"`
	// Env is the task's own env block and the templates that are variables.
	Env map[string]string `json:"env,omitempty"`
}

// lasting is the request as it is stored.
func (r StartRequest) lasting() StartRequest {
	r.Env = nil
	return r
}

func (r StartRequest) logDir() string { return filepath.Join(r.Dir, "alloc", "logs") }

// tokenFile is the identity with which this task opens its variables.
func (r StartRequest) tokenFile() string {
	return filepath.Join(r.Dir, r.Name, "secrets", "nomad_vault_leapcell.jwt")
}

// cellID is short and free of slashes, but begins like the allocation's ID.
func (r StartRequest) cellID() string {
	sum := sha256.Sum256([]byte(r.ID))
	return r.AllocID[:min(8, len(r.AllocID))] + "-" + hex.EncodeToString(sum[:4])
}

func (r StartRequest) validate() error {
	invalid := func(format string, args ...any) error { return leapcell.Errorf(leapcell.CodeInvalid, format, args...) }
	c := r.Config
	build, prefetch, forget := c.Mode == leapcell.TaskBuild, c.Mode == leapcell.TaskPrefetch, c.Mode == leapcell.TaskForget
	serves := !build && !prefetch && !forget
	switch {
	case r.ID == "" || r.Name == "" || r.AllocID == "" || r.Dir == "":
		return invalid("task %q: id, name, allocation and folder are needed", r.ID)
	case c.Mode != leapcell.TaskServerless && c.Mode != leapcell.TaskPersistent && serves:
		return invalid("task config: mode is %q: it must be serverless, persistent, build, prefetch or forget", c.Mode)
	case forget && c.ServiceID == "":
		return invalid("task config: mode forget needs service_id")
	case c.Image == "" && !forget:
		return invalid("task config: image is empty: it names what to run, as registry/repository:tag or registry/repository@sha256:…")
	case serves && r.Address == "":
		return invalid("the group has no port labelled %q: write network { port %q {} } into it; requests come in there", leapcell.PortLabel, leapcell.PortLabel)
	case serves && (c.Port < 0 || c.Port > 65535):
		return invalid("task config: port is %d: it must be from 1 to 65535, and is where the app listens inside", c.Port)
	case build && (c.Output == "" || c.StartCommand == "" && c.Dockerfile == "" && c.StaticOutput == "" || c.ServiceID == ""):
		return invalid("task config: mode build needs output, start_command or dockerfile, and service_id")
	case serves && (r.MemoryMB < leapcell.MinMemoryMB || r.MemoryMB > leapcell.MaxMemoryMB):
		return invalid("resources: memory is %d MB: it must be from %d to %d, the CPU follows from it", r.MemoryMB, leapcell.MinMemoryMB, leapcell.MaxMemoryMB)
	case r.MemoryMB <= 0:
		return invalid("resources: memory is %d MB: it must be positive", r.MemoryMB)
	case c.Concurrency < 0 || c.Concurrency > leapcell.MaxConcurrency:
		return invalid("task config: concurrency is %d: it must be from 1 to %d requests at a time", c.Concurrency, leapcell.MaxConcurrency)
	case c.DiskMB < 0 || c.CacheMB < 0 || c.ImageMB < 0 || c.Modified < 0:
		return invalid("task config: disk_mb, cache_mb, image_mb and modified must not be negative")
	case build && c.CPUs < 0:
		return invalid("task config: cpus is %d: a build needs at least 1", c.CPUs)
	}
	for _, d := range []struct{ name, value string }{
		{"start_timeout", c.StartTimeout}, {"request_timeout", c.RequestTimeout}, {"timeout", c.Timeout},
	} {
		if d.value == "" {
			continue
		}
		if v, err := time.ParseDuration(d.value); err != nil || v <= 0 {
			return invalid("task config: %s is %q: it must be a duration such as 90s or 5m", d.name, d.value)
		} else if d.name == "start_timeout" && v > leapcell.MaxStartTimeout {
			return invalid("task config: start_timeout is %q: at most %s are allowed", d.value, leapcell.MaxStartTimeout)
		}
	}
	for _, dir := range c.Caches {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			return invalid("task config: caches contains %q: absolute paths are needed, and not the root", dir)
		}
	}
	return nil
}

// duration reads a setting that validate has checked; the empty one is 0.
func duration(s string) time.Duration {
	d, _ := time.ParseDuration(s)
	return d
}

// Caches are folders that builds keep for the next one.
type Caches interface {
	// Recover puts in order what a former supervisor left. It is called once, when nothing of
	// that one's builds is left.
	Recover()
	// Take gives the folder of a cache until release is called; said is for the log of its user.
	Take(ctx context.Context, name string, megabytes int) (folder, said string, release func(), err error)
	// Forget removes caches; those in use when they are released.
	Forget(names ...string) error
}

// State is where a task stands.
//
//	Starting ──► Running ──► Exited
//	    └───────────────────────┘
type State string

// The states of a task.
const (
	Starting State = "starting" // no process yet
	Running  State = "running"
	Exited   State = "exited" // nothing is left but the result
)

// Exit is how a task ended. Message is for its owner.
type Exit struct {
	Code    int    `json:"code"`
	Signal  int    `json:"signal,omitempty"`
	OOM     bool   `json:"oom,omitempty"`
	Message string `json:"message,omitempty"`
}

// Status is a task as it is now.
type Status struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	State       State      `json:"state"`
	Dir         string     `json:"dir,omitempty"` // the allocation's folder
	StartedAt   time.Time  `json:"startedAt,omitzero"`
	CompletedAt time.Time  `json:"completedAt,omitzero"`
	Exit        *Exit      `json:"exit,omitempty"`
	PID         int        `json:"pid,omitempty"`
	Gate        gate.Stats `json:"gate"`
}

// TaskStats is what a task uses.
type TaskStats struct {
	Time time.Time  `json:"time"`
	Cell cell.Stats `json:"cell"`
	Gate gate.Stats `json:"gate"`
}

// Event is something that happened to a task, for its operator.
type Event struct {
	Seq         int64             `json:"seq"`
	TaskID      string            `json:"taskID"`
	TaskName    string            `json:"taskName"`
	AllocID     string            `json:"allocID"`
	Time        time.Time         `json:"time"`
	Message     string            `json:"message"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Health is what the supervisor says about itself.
type Health struct {
	Version string `json:"version"`
	Program string `json:"program"` // which build it is, see [ProgramID]
	PID     int    `json:"pid"`
	Tasks   int    `json:"tasks"`   // that have not ended
	LastSeq int64  `json:"lastSeq"` // of the newest event
	// Handover is the version of the handover that it speaks; 0 for none.
	Handover int `json:"handover,omitempty"`
}

// ErrNotFound is returned for a task that the supervisor does not know.
var ErrNotFound = errors.New("no such task")

// describe is the text of err for a task's owner.
func describe(err error) string {
	if leapcell.ErrorCode(err) == leapcell.CodeInternal {
		return err.Error()
	}
	return leapcell.ErrorMessage(err)
}

// The seams to the packages below; wire.go has the real ones.

// Images is the node's image store.
type Images interface {
	Pull(ctx context.Context, ref string) (*image.Image, error)
	Mount(img *image.Image, dir string) error
	MountWritable(img *image.Image, dir, scratch string) error
	Unmount(dir string) error
	// PushLayout pushes what a build left as a folder in OCI image layout, which is not trusted.
	PushLayout(ctx context.Context, dir, output string, maxBytes int64, progress func(phase leapcell.State, text string)) (digest string, size int64, err error)
	// Mirror reads images of elsewhere by the registry that ref is in. Close the closer.
	Mirror(ref string) (http.Handler, io.Closer, error)
	Push(ctx context.Context, artifact v1.Image, output string) error
	Commit(ctx context.Context, base *image.Image, r image.Result, output string, progress func(phase leapcell.State, text string)) (digest string, size int64, err error)
}

// Networks hands out network namespaces.
type Networks interface {
	Get(ctx context.Context) (Namespace, error)
	Adopt(name string) (Namespace, error)
	Put(Namespace)
	// Settle gives back what an earlier supervisor had handed out and nobody adopted.
	Settle()
	ResolvConf() []byte
	Close() error
}

// Namespace is one network namespace.
type Namespace interface {
	NetnsName() string
	NetnsPath() string
	Dial(ctx context.Context, address string) (net.Conn, error)
}

// Cells starts sandboxes.
type Cells interface {
	Start(ctx context.Context, c cell.Config) (Cell, error)
	Adopt(c cell.Config, pid int) (Cell, error)
}

// Cell is one sandbox.
type Cell interface {
	PID() int
	StartedAt() time.Time
	Wait(ctx context.Context) (cell.Exit, error)
	Signal(sig unix.Signal) error
	Freeze() error
	Thaw() error
	Frozen() bool
	SetReady() error
	Stats() (cell.Stats, error)
	Exec(ctx context.Context, e cell.ExecConfig) (cell.Exit, error)
	Kill() error
	Delete() error
}

// Envs opens a task's variables.
type Envs interface {
	// Read gives the clear values for the task; nil when it has none.
	Read(ctx context.Context, r StartRequest) (map[string]string, error)
}
