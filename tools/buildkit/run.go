package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/rootless/mountopts"
	"github.com/moby/sys/user"
)

// runner runs the commands of a Dockerfile. It implements BuildKit's executor: where that has an
// OCI runtime make a container, here the sandbox is the container, and a command gets mounts and
// process numbers of its own.
type runner struct {
	dir   string
	order order
}

func newRunner(dir string, o order) (*runner, error) {
	if err := os.RemoveAll(dir); err != nil { // of a killed build
		return nil, err
	}
	return &runner{dir, o}, os.MkdirAll(dir, 0o711)
}

// stepSpec is what the child that becomes the command does first.
type stepSpec struct {
	Root     string
	Readonly bool
	Mounts   []stepMount
	Hostname string
	UID, GID uint32
	Groups   []uint32
	Cwd      string
	Args     []string
	Env      []string
	Filter   []byte
}

// stepMount is bound to Target, which is below Root and there.
type stepMount struct {
	Source, Target string
	Readonly       bool
	Mount          *mount.Mount // instead of Source: something to mount
}

// Run runs one command and waits for it.
func (r *runner) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, p executor.ProcessInfo, started chan<- struct{}) (_ resourcestypes.Recorder, err error) {
	if started != nil {
		defer close(started)
	}
	if p.Meta.SecurityMode != pb.SecurityMode_SANDBOX {
		return nil, errors.New("RUN --security=insecure is not allowed here")
	}
	if p.Meta.NetMode == pb.NetMode_NONE {
		return nil, errors.New("RUN --network=none is not supported here")
	}
	dir, err := os.MkdirTemp(r.dir, "step")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var undo cleanup
	defer func() { err = errors.Join(err, undo.run()) }()

	rootfs, err := mountRoot(ctx, root, filepath.Join(dir, "rootfs"), &undo)
	if err != nil {
		return nil, err
	}
	// What has to be there to be mounted over is in no layer afterwards.
	clean := executor.MountStubsCleaner(context.WithoutCancel(ctx), rootfs, mounts, p.Meta.RemoveMountStubsRecursive)
	undo.add(func() error { clean(); return nil })

	spec := stepSpec{
		Root: rootfs, Readonly: root.Readonly || p.Meta.ReadonlyRootFS, Hostname: "build",
		Cwd: p.Meta.Cwd, Args: p.Meta.Args, Env: withEnv(p.Meta.Env, r.order.Env), Filter: r.order.Filter,
	}
	if spec.UID, spec.GID, spec.Groups, err = oci.GetUser(rootfs, p.Meta.User); err != nil {
		return nil, err
	}
	home, err := homeOf(rootfs, spec.UID)
	if err != nil {
		return nil, err
	}
	spec.Env = withEnv(spec.Env, []string{"HOME=" + home})
	if err := makeCwd(rootfs, spec); err != nil {
		return nil, err
	}
	if err := r.system(&spec, dir, p.Meta.ExtraHosts); err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if err := spec.add(ctx, m, &undo); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Dest, err)
		}
	}
	return nil, execute(ctx, spec, p)
}

// Exec is for debuggers and front ends that are none of ours.
func (r *runner) Exec(context.Context, string, executor.ProcessInfo) error {
	return errors.New("nothing can be executed beside a RUN")
}

// cleanup is what has to be undone, the last first.
type cleanup []func() error

func (c *cleanup) add(f func() error) { *c = append(*c, f) }

func (c *cleanup) run() error {
	var errs []error
	for _, f := range slices.Backward(*c) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func mountRoot(ctx context.Context, root executor.Mount, dir string, undo *cleanup) (string, error) {
	mounts, err := mountsOf(ctx, root, false, undo)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if mounts, err = mountopts.FixUp(mounts); err != nil {
		return "", err
	}
	if err := mount.All(mounts, dir); err != nil {
		return "", err
	}
	undo.add(func() error { return mount.Unmount(dir, syscall.MNT_DETACH) })
	return dir, nil
}

func mountsOf(ctx context.Context, m executor.Mount, readonly bool, undo *cleanup) ([]mount.Mount, error) {
	source, err := m.Src.Mount(ctx, readonly)
	if err != nil {
		return nil, err
	}
	mounts, release, err := source.Mount()
	if release != nil {
		undo.add(release)
	}
	return mounts, err
}

// system adds what every command sees of the sandbox.
func (r *runner) system(spec *stepSpec, dir string, hosts []executor.HostIP) error {
	names := []string{"/proc", "/sys", "/dev", "/etc/resolv.conf"}
	for _, name := range append(names, r.order.Files...) {
		if err := spec.bind(name, name, false); err != nil {
			return err
		}
	}
	b, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return err
	}
	text := bytes.NewBuffer(b)
	for _, h := range hosts {
		fmt.Fprintf(text, "\n%s %s\n", h.IP, h.Host)
	}
	file := filepath.Join(dir, "hosts")
	if err := os.WriteFile(file, text.Bytes(), 0o644); err != nil {
		return err
	}
	return spec.bind(file, "/etc/hosts", false)
}

// add adds a mount that the Dockerfile asks for.
func (s *stepSpec) add(ctx context.Context, m executor.Mount, undo *cleanup) error {
	if m.Src == nil {
		return errors.New("there is no source")
	}
	mounts, err := mountsOf(ctx, m, m.Readonly, undo)
	if err != nil {
		return err
	}
	if len(mounts) == 1 && mounts[0].Type == "tmpfs" {
		target, err := s.target(m.Dest, true)
		if err != nil {
			return err
		}
		s.Mounts = append(s.Mounts, stepMount{Target: target, Mount: &mounts[0]})
		return nil
	}
	local := snapshot.LocalMounterWithMounts(mounts)
	source, err := local.Mount()
	if err != nil {
		return err
	}
	undo.add(local.Unmount)
	// The selector is the Dockerfile's: no link may lead out of the mount.
	if source, err = fs.RootPath(source, m.Selector); err != nil {
		return err
	}
	return s.bind(source, m.Dest, m.Readonly)
}

// bind adds a bind mount at dest, and makes dest.
func (s *stepSpec) bind(source, dest string, readonly bool) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	target, err := s.target(dest, info.IsDir())
	if err != nil {
		return err
	}
	s.Mounts = append(s.Mounts, stepMount{Source: source, Target: target, Readonly: readonly})
	return nil
}

// target makes what is mounted over. No link of the image leads out of it.
func (s *stepSpec) target(dest string, dir bool) (string, error) {
	if !filepath.IsAbs(dest) {
		dest = filepath.Join(s.Cwd, dest)
	}
	target, err := fs.RootPath(s.Root, dest)
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(target); err == nil {
		return target, nil
	}
	if dir {
		return target, os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return "", err
	}
	return target, os.WriteFile(target, nil, 0o644)
}

func makeCwd(rootfs string, spec stepSpec) error {
	dir, err := fs.RootPath(rootfs, spec.Cwd)
	if err != nil {
		return fmt.Errorf("the working directory %s leads nowhere: %w", spec.Cwd, err)
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chown(dir, int(spec.UID), int(spec.GID))
}

// homeOf is the HOME of a user by the image's own list, as an OCI runtime has it where nobody has set
// another.
func homeOf(rootfs string, uid uint32) (string, error) {
	list, err := fs.RootPath(rootfs, "/etc/passwd")
	if err != nil {
		return "", fmt.Errorf("/etc/passwd leads nowhere: %w", err)
	}
	found, err := user.ParsePasswdFileFilter(list, func(u user.User) bool { return u.Uid == int(uid) && u.Home != "" })
	if err != nil || len(found) == 0 { // no list, or not in it
		return "/", nil
	}
	return found[0].Home, nil
}

// withEnv adds what of more is not set.
func withEnv(env, more []string) []string {
	out := slices.Clone(env)
	for _, e := range more {
		name, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(env, func(have string) bool { return strings.HasPrefix(have, name+"=") }) {
			out = append(out, e)
		}
	}
	return out
}

// execute starts the child that becomes the command, and waits for it.
func execute(ctx context.Context, spec stepSpec, p executor.ProcessInfo) error {
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd := exec.CommandContext(ctx, self, "step")
	cmd.Env = []string{}
	if p.Stdin != nil {
		cmd.Stdin = p.Stdin
	}
	cmd.Stdout, cmd.Stderr = p.Stdout, p.Stderr
	cmd.ExtraFiles = []*os.File{read}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		write.Close()
		return fmt.Errorf("the command could not be started: %w", err)
	}
	_, err = write.Write(b)
	write.Close()
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		_ = cmd.Process.Kill()
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	code := exit.ExitCode()
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	if slices.Contains(p.Meta.ValidExitCodes, code) {
		return nil
	}
	return &gatewaypb.ExitError{ExitCode: uint32(code)}
}
