package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/image"
)

// A Dockerfile is built by the program leapcell-build (tools/buildkit), which runs in the sandbox of
// the build in place of a command and makes a user namespace in it. These are where it finds
// what it needs, and root of that namespace as the host counts.
const (
	dockerProgram = "leapcell-build"
	dockerSelf    = "/.leapcell/build"
	dockerSocket  = "/.leapcell/socket"
	dockerOut     = "/.leapcell/out"
	dockerRoot    = 0x4C430000
)

// dockerOrder is what to build, as leapcell-build reads it. It is in no file and no environment.
type dockerOrder struct {
	Dockerfile string            `json:"dockerfile"`
	Args       map[string]string `json:"args"`
	Secrets    map[string]string `json:"secrets"`
	Env        []string          `json:"env"`
	Files      []string          `json:"files"`
	Filter     []byte            `json:"filter"`
	CacheBytes int64             `json:"cacheBytes"`
}

// dockerFailure is what leapcell-build says when it gives up.
type dockerFailure struct {
	Message  string `json:"message"`
	ExitCode int    `json:"exitCode"`
}

// dockerHub answers one build.
type dockerHub struct {
	order  dockerOrder
	images http.Handler

	mu      sync.Mutex
	failure *dockerFailure
}

// ServeHTTP takes requests from the sandbox: nothing in them is trusted.
func (h *dockerHub) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch {
	case req.Method == http.MethodGet && req.URL.Path == "/order":
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(h.order)
	case req.Method == http.MethodPost && req.URL.Path == "/failure":
		var f dockerFailure
		if json.NewDecoder(io.LimitReader(req.Body, 64<<10)).Decode(&f) == nil {
			f.Message = shorten(f.Message)
			h.mu.Lock()
			h.failure = &f
			h.mu.Unlock()
		}
	default:
		h.images.ServeHTTP(w, req)
	}
}

// shorten makes one line of what a build says of itself.
func shorten(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "")), " ")
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	return text
}

// exit is a failed build in the words of leapcell-build, if it had any.
func (h *dockerHub) exit(code int) *Exit {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failure == nil {
		return &Exit{Code: code, Message: fmt.Sprintf("the Dockerfile build ended with code %d", code)}
	}
	return &Exit{Code: code, Message: h.failure.Message}
}

// prepareDocker makes cfg run leapcell-build. Call close when it has ended.
func (t *task) prepareDocker(cfg *cell.Config, scratch string, secrets map[string]string) (close func(), err error) {
	program, err := findProgram()
	if err != nil {
		return nil, err
	}
	filter, err := cell.BuildFilter()
	if err != nil {
		return nil, err
	}
	out := filepath.Join(scratch, "out")
	if err := ownedFolder(out); err != nil {
		return nil, err
	}
	unlock, err := t.dockerState(cfg, scratch)
	if err != nil {
		return nil, err
	}
	operator := t.sup.cfg.Build
	h := &dockerHub{order: dockerOrder{
		Dockerfile: t.req.Config.Dockerfile, Args: map[string]string{}, Secrets: secrets, Filter: filter,
		Env: list(operator.Env), Files: slices.Sorted(maps.Keys(operator.Files)), CacheBytes: int64(t.req.Config.KeepMB) << 20,
	}}
	for _, a := range t.req.Config.BuildArgs {
		name, value, _ := strings.Cut(a, "=")
		h.order.Args[name] = value
	}
	stop, err := t.serveDocker(h)
	if err != nil {
		unlock()
		return nil, err
	}
	t.docker = h
	cfg.Nested, cfg.Args, cfg.WorkDir = true, []string{dockerSelf}, "/"
	cfg.Env = buildEnvironment(nil, nil, nil) // what a RUN sees comes with the order
	cfg.Mounts = append(cfg.Mounts,
		cell.Mount{Source: program, Target: dockerSelf, ReadOnly: true},
		cell.Mount{Source: t.path("docker.sock"), Target: dockerSocket},
		cell.Mount{Source: out, Target: dockerOut},
	)
	return func() {
		stop()
		unlock()
	}, nil
}

// findProgram looks beside our own program, then on the path.
func findProgram() (string, error) {
	// The supervisor runs from a mount of its own; its first argument says where it came from.
	if self := os.Args[0]; filepath.IsAbs(self) {
		beside := filepath.Join(filepath.Dir(self), dockerProgram)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(dockerProgram)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", leapcell.Wrap(leapcell.CodeUnavailable, err, "this node builds no Dockerfiles: an operator puts the program "+dockerProgram+" beside nomad-driver-leapcell")
	}
	return path, nil
}

// dockerState finds the cache among the mounts and gives it to the build. One build at a time may
// have it; others go without.
func (t *task) dockerState(cfg *cell.Config, scratch string) (unlock func(), err error) {
	i := slices.IndexFunc(cfg.Mounts, func(m cell.Mount) bool { return m.Target == leapcell.DockerState })
	if i >= 0 {
		dir := cfg.Mounts[i].Source
		if err := ownedFolder(dir); err != nil {
			return nil, err
		}
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { f.Close() }, nil
		}
		f.Close()
		cfg.Mounts = slices.Delete(cfg.Mounts, i, i+1)
		t.logs.say("leapcell: another build of the service has the build cache: this one goes without")
	}
	dir := filepath.Join(scratch, "state")
	cfg.Mounts = append(cfg.Mounts, cell.Mount{Source: dir, Target: leapcell.DockerState})
	return func() {}, ownedFolder(dir)
}

func ownedFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chown(dir, dockerRoot, dockerRoot)
}

// serveDocker listens in the task's folder, which nobody but root may enter.
func (t *task) serveDocker(h *dockerHub) (stop func(), err error) {
	images, link, err := t.sup.images.Mirror(t.req.Config.Output)
	if err != nil {
		return nil, err
	}
	h.images = images
	name := t.path("docker.sock")
	_ = os.Remove(name) // of a killed supervisor
	listener, err := net.Listen("unix", name)
	if err == nil {
		err = os.Chmod(name, 0o666) // root of the build is none here
	}
	if err != nil {
		return nil, errors.Join(err, link.Close())
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	return func() {
		_ = server.Close()
		<-done
		_ = link.Close()
	}, nil
}

// publishDocker pushes what leapcell-build left.
func (t *task) publishDocker(ctx context.Context, scratch string) *Exit {
	if err := t.cell.Delete(); err != nil {
		t.log.Error("build sandbox could not be removed", "error", err)
	}
	t.logs.drain()
	digest, size, err := t.sup.images.PushLayout(ctx, filepath.Join(scratch, "out"), t.req.Config.Output, int64(t.req.Config.ImageMB)<<20, t.phase)
	switch leapcell.ErrorCode(err) {
	case "":
	case leapcell.CodeTooLarge, leapcell.CodeUnprocessable:
		return &Exit{Code: 1, Message: leapcell.ErrorMessage(err)}
	default:
		t.log.Error("build result could not be published", "error", err)
		return &Exit{Code: 1, Message: "the image could not be published: " + describe(diskError(err))}
	}
	t.logs.say("image %s, %.1f MB", digest, float64(size)/1e6)
	return &Exit{Message: "image " + digest}
}

// program is what an instance runs: the service's command by a shell [LC1], else what the image
// says, as it says it.
func program(command string, img *image.Image, rootfs string) []string {
	if command == "" {
		return img.Cmd
	}
	for _, shell := range []string{"bash", "sh"} {
		for _, dir := range []string{"usr/bin", "bin", "usr/local/bin"} {
			if _, err := os.Lstat(filepath.Join(rootfs, dir, shell)); err == nil {
				return []string{shell, "-c", command}
			}
		}
	}
	return []string{"bash", "-c", command} // what is missing is said when it is started
}
