package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/image"
)

// buildTimeout is the contract's build time where the task names none.
const buildTimeout = 10 * time.Minute

// runBuild runs the build command as root on a writable mount of the source image and
// pushes what it left as a new image.
func (t *task) runBuild(ctx context.Context) Exit {
	limit := duration(t.req.Config.Timeout)
	if limit == 0 {
		limit = buildTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	scratch := t.sup.scratch(t.id) // removed by cleanUp
	t.phase(leapcell.Building, "building")
	img, exit := t.runCommand(ctx, scratch)
	if exit == nil {
		exit = t.publish(ctx, img, scratch)
	}
	if exit.Code != 0 && exit.Message == "" {
		exit.Message = fmt.Sprintf("the build command exited with code %d", exit.Code)
	}
	switch {
	case t.isStopping():
		exit = &Exit{Code: 1, Message: "the build was stopped"}
	case exit.Code != 0 && errors.Is(ctx.Err(), context.DeadlineExceeded):
		exit = &Exit{Code: 1, Message: "build took longer than " + limit.String()}
	}
	if exit.Code != 0 {
		t.logs.drain()
		t.logs.say("leapcell: %s", exit.Message)
	}
	return *exit
}

// runCommand gives nil for a command that succeeded.
func (t *task) runCommand(ctx context.Context, scratch string) (*image.Image, *Exit) {
	failed := func(err error) (*image.Image, *Exit) {
		t.log.Error("build could not run", "error", err)
		return nil, &Exit{Code: 1, Message: describe(err)}
	}
	img, _, err := t.gather(ctx)
	if err != nil {
		return failed(err)
	}
	rootfs := t.path("rootfs")
	for _, dir := range []string{rootfs, scratch} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return failed(diskError(err))
		}
	}
	if err := t.sup.images.MountWritable(img, rootfs, scratch); err != nil {
		return failed(leapcell.Wrap(leapcell.CodeStartFailed, err, "the image could not be mounted: "+describe(err)))
	}
	t.mu.Lock()
	t.mounted = true
	t.mu.Unlock()
	cfg := t.cellConfig()
	cfg.Env = buildEnvironment(img.Env, t.sup.cfg.Build.Env)
	cfg.WorkDir, cfg.CPUs, cfg.Hostname = img.WorkDir, max(t.req.Config.CPUs, 1), "build"
	if cfg.Mounts, err = t.buildMounts(); err != nil {
		return failed(diskError(err))
	}
	c, err := t.sup.cells.Start(ctx, cfg)
	if err != nil {
		return failed(leapcell.Wrap(leapcell.CodeStartFailed, err, describe(err)))
	}
	if !t.adoptCell(c) {
		return failed(leapcell.Errorf(leapcell.CodeCancelled, "the build was stopped"))
	}
	t.save()
	end, err := c.Wait(ctx)
	if err != nil {
		_ = c.Kill()
		return failed(fmt.Errorf("build command: %w", err))
	}
	return img, t.judgeBuild(end)
}

func (t *task) judgeBuild(e cell.Exit) *Exit {
	switch {
	case e.OOM:
		return &Exit{Code: max(e.Code, 1), OOM: true, Message: fmt.Sprintf("out of memory: the build used more than its %d MB", t.req.MemoryMB)}
	case e.Code != 0 && t.sup.diskFull():
		return &Exit{Code: e.Code, Message: fmt.Sprintf("the build command exited with code %d; there is no space left on the node's disk", e.Code)}
	case e.Code != 0:
		return &Exit{Code: e.Code, Signal: e.Signal}
	}
	return nil
}

// publish makes the image of what the command left, and pushes it.
func (t *task) publish(ctx context.Context, base *image.Image, scratch string) *Exit {
	if err := t.cell.Delete(); err != nil {
		t.log.Error("build sandbox could not be removed", "error", err)
	}
	t.logs.drain() // the command's last words come before ours
	result := image.Result{
		Upper:   image.Upper(scratch),
		Exclude: append(slices.Clone(t.req.Config.Caches), slices.Sorted(maps.Keys(t.sup.cfg.Build.Files))...),
		Cmd:     []string{"bash", "-c", t.req.Config.StartCommand},
		WorkDir: base.WorkDir,
		Env:     base.Env,
	}
	digest, size, err := t.sup.images.Commit(ctx, base, result, t.req.Config.Output, t.phase)
	if err != nil {
		t.log.Error("build result could not be published", "error", err)
		return &Exit{Code: 1, Message: "the image could not be published: " + describe(diskError(err))}
	}
	t.logs.say("image %s, %.1f MB", digest, float64(size)/1e6)
	return &Exit{Message: "image " + digest}
}

// phase reports where the build stands: to the log, and as an event that the deployer reads.
func (t *task) phase(phase leapcell.State, text string) {
	if phase != leapcell.Building {
		t.logs.say("==> %s", text)
	}
	t.event(map[string]string{leapcell.PhaseAnnotation: string(phase)}, "%s", text)
}

// buildMounts are the operator's files and the service's caches.
func (t *task) buildMounts() ([]cell.Mount, error) {
	var out []cell.Mount
	files := t.sup.cfg.Build.Files
	for _, inside := range slices.Sorted(maps.Keys(files)) {
		out = append(out, cell.Mount{Source: files[inside], Target: inside, ReadOnly: true})
	}
	for _, dir := range t.req.Config.Caches {
		host := t.sup.cacheDir(t.req.Config.ServiceID, dir)
		if err := os.MkdirAll(host, 0o755); err != nil {
			return nil, err
		}
		out = append(out, cell.Mount{Source: host, Target: filepath.Clean(dir)})
	}
	return out, nil
}

// cacheDir is readable for an operator, and can be told apart whatever the path contains.
func (s *Supervisor) cacheDir(serviceID, dir string) string {
	dir = filepath.Clean(dir)
	sum := sha256.Sum256([]byte(dir))
	name := strings.ReplaceAll(strings.Trim(dir, "/"), "/", "-") + "-" + hex.EncodeToString(sum[:4])
	return filepath.Join(s.cfg.CacheDir, filepath.Base(serviceID), name)
}

// diskFull reports whether the disk for builds has less than a hundredth free.
func (s *Supervisor) diskFull() bool {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.ScratchDir, &st); err != nil {
		return false
	}
	return st.Bavail < st.Blocks/100 || (st.Files > 0 && st.Ffree < st.Files/100)
}

// diskError says in the owner's words that the disk is full, if that is what err means.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "no space left on the node's disk")
	}
	return err
}
