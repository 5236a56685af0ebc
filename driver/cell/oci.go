package cell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/driver/cell/script"
)

// oci launches with an OCI runtime. The process that it leaves behind becomes a child of this
// one, because this one is a subreaper.
type oci struct {
	name   string
	binary string
	hidden string // a mount that the runtime must not see, "" for none
	// restricted are more paths that the runtime must make read-only.
	restricted []string
}

func newOCI(name string, h *hierarchy) (*oci, error) {
	binary, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	o := &oci{name: name, binary: binary}
	if name == "crun" && h.unified == "" {
		o.hidden = h.hybrid          // crun takes a machine with both versions for one of version 2 only, and refuses it
		for _, mount := range h.v1 { // and makes only the folder that they are mounted in read-only [FS4]
			if path := filepath.Join("/sys/fs/cgroup", filepath.Base(mount)); !slices.Contains(o.restricted, path) {
				o.restricted = append(o.restricted, path)
			}
		}
	}
	return o, nil
}

func (o *oci) Name() string { return o.name }

// bundle puts the spec where the runtime looks for it. It holds the environment in clear, so it
// never reaches a disk: the name leads to a file in our memory, which ends with done. [EN1]
func (o *oci) bundle(c Config, host Host) (done func(), err error) {
	given := Spec(c, host)
	given.Linux.ReadonlyPaths = slices.Concat(given.Linux.ReadonlyPaths, o.restricted)
	spec, err := json.Marshal(given)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the spec: %w", err)
	}
	memory := os.NewFile(uintptr(fd), "spec")
	name := filepath.Join(c.Dir, "config.json")
	done = func() {
		memory.Close()
		os.Remove(name) // else it would lead nowhere
	}
	if _, err = memory.Write(spec); err == nil {
		if err = os.Remove(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			err = os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), name)
		}
	}
	if err != nil {
		done()
		return nil, fmt.Errorf("make the spec: %w", err)
	}
	return done, nil
}

// run has the runtime make the process, and takes it over.
func (o *oci) run(ctx context.Context, cell *Cell, host Host) error {
	c := cell.config
	pidFile, logFile := filepath.Join(c.Dir, "pid"), filepath.Join(c.Dir, "runtime.log")
	for _, name := range []string{pidFile, logFile} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// What a killed process left under this ID; the cgroup is empty, or create would have failed.
	if err := os.RemoveAll(cell.state); err != nil {
		return err
	}
	done, err := o.bundle(c, host)
	if err != nil {
		return err
	}
	defer done()
	patient, stop := outlasting(ctx, patience)
	defer stop()
	pid, err := o.execute(patient, []string{
		"--root", stateRoot(c.CgroupParent), "--log", logFile, "--log-format", "json",
		"run", "--detach", "--bundle", c.Dir, "--pid-file", pidFile, "--no-new-keyring", c.ID,
	}, [3]*os.File{nil, c.Stdout, c.Stderr})
	if pid != 0 {
		reapRuntime(pid, o.name)
	}
	if err == nil {
		err = cell.take(pidFile)
	}
	if err == nil {
		if err = ctx.Err(); err == nil && o.name == "crun" {
			err = forgetEnv(c, host, cell.state)
		}
		if err != nil {
			cell.process.close() // the caller ends what is in the cell's cgroup
		}
	}
	return o.failure(ctx, logFile, err)
}

// patience is how long a runtime may go on after its start was cancelled. Killed in the middle it
// would leave processes that nobody knows, so that is only for one that hangs.
const patience = 5 * time.Second

// outlasting is a context that ends some time after ctx does.
func outlasting(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(by, cancel) })
	return longer, func() { stop(); cancel() }
}

// failure puts an error of execute into the runtime's own words.
func (o *oci) failure(ctx context.Context, logFile string, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) || errors.Is(err, errRuntime) {
		return &runtimeError{text: lastError(logFile), err: err}
	}
	return err
}

// forgetEnv takes the environment out of the copy of the spec that crun keeps. [EN1]
func forgetEnv(c Config, host Host, state string) error {
	spec := Spec(c, host)
	spec.Process.Env = nil
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(state, "config.json"), b, 0o600)
}

var errRuntime = errors.New("it ended with an error")

// runtimeEnv is all that a runtime gets of an environment. It lives for milliseconds: collecting
// garbage meanwhile would only make it slower.
var runtimeEnv = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOGC=off"}

// execute runs the runtime as the leader of a process group, until it ends. Files that are nil
// are /dev/null.
func (o *oci) execute(ctx context.Context, args []string, stdio [3]*os.File) (pid int, err error) {
	if o.hidden != "" {
		return o.executeHidden(ctx, args, stdio)
	}
	cmd := exec.CommandContext(ctx, o.binary, args...)
	cmd.Env = runtimeEnv
	if stdio[0] != nil { // a nil file in an interface is not nil
		cmd.Stdin = stdio[0]
	}
	if stdio[1] != nil {
		cmd.Stdout = stdio[1]
	}
	if stdio[2] != nil {
		cmd.Stderr = stdio[2]
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	err = cmd.Run()
	if cmd.Process != nil {
		pid = cmd.Process.Pid
	}
	return pid, err
}

// executeHidden is execute in a mount namespace without the hidden mount. A tmpfs is in its
// place: the runtime makes folders there all the same, which must not stay.
func (o *oci) executeHidden(ctx context.Context, args []string, stdio [3]*os.File) (pid int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	for i := range stdio {
		if stdio[i] == nil {
			stdio[i] = null
		}
	}
	var s script.Script
	s.Do("begin a process group", unix.SYS_SETPGID, 0, 0)
	s.Do("make mounts private", unix.SYS_MOUNT, nil, "/", nil, unix.MS_REC|unix.MS_PRIVATE, nil)
	s.Do("hide "+o.hidden, unix.SYS_UMOUNT2, o.hidden, unix.MNT_DETACH)
	s.Do("cover "+o.hidden, unix.SYS_MOUNT, "tmpfs", o.hidden, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755")
	s.Do("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, bytesOf(0, 0), nil, 8)
	s.Exec(append([]string{o.binary}, args...), runtimeEnv, "")
	pid, err = script.Start(ctx, &s, script.Process{Namespaces: unix.CLONE_NEWNS, Stdio: stdio})
	if err != nil {
		return pid, err
	}
	p, err := openProcess(pid)
	if err != nil {
		return pid, err
	}
	defer p.close()
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = unix.PidfdSendSignal(int(p.fd.Fd()), unix.SIGKILL, nil, 0) // it may have ended
	})
	exit, err := p.wait()
	if !stop() {
		<-killed
	}
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%w: code %d", errRuntime, exit.Code)
	}
	return pid, err
}

// take makes the process that the runtime started the cell's own.
func (c *Cell) take(pidFile string) error {
	text, err := readText(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("read %s: %w", pidFile, err)
	}
	// It cannot be another by now: were it dead, it would wait for us to reap it.
	if c.process, err = openProcess(pid); err != nil {
		return err
	}
	inherit(pid)
	c.started = time.Now()
	return nil
}

// runtimeError is a failure as the runtime tells it.
type runtimeError struct {
	text string
	err  error
}

func (e *runtimeError) Error() string { return e.text + " (" + e.err.Error() + ")" }
func (e *runtimeError) Unwrap() error { return e.err }

// lastError is the last error in the runtime's log.
func lastError(logFile string) string {
	b, err := os.ReadFile(logFile)
	if err != nil {
		return "the runtime left no log"
	}
	text := "the runtime gave no reason"
	for line := range bytes.Lines(b) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			text = entry.Msg
		}
	}
	return text
}
