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
		if t.docker != nil {
			exit = t.publishDocker(ctx, scratch)
		} else {
			exit = t.publish(ctx, img, scratch)
		}
	}
	if exit.Code != 0 && exit.Message == "" {
		exit.Message = fmt.Sprintf("the build command exited with code %d", exit.Code)
	}
	switch {
	case t.isStopping():
		exit = &Exit{Code: 1, Message: "the build was stopped"}
	case exit.Code != 0 && errors.Is(ctx.Err(), context.DeadlineExceeded):
		exit = &Exit{Code: 1, Message: "the build took longer than its limit of " + leapcell.Duration(limit).String()}
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
	img, env, err := t.gather(ctx)
	if err != nil {
		return failed(err)
	}
	secrets := t.buildSecrets(env)
	t.logs.stdout.hide(secrets)
	rootfs := t.path("rootfs")
	for _, dir := range []string{rootfs, scratch} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return failed(diskError(err))
		}
	}
	if err := t.makeDisk(ctx); err != nil {
		return failed(err)
	}
	if err := t.sup.images.MountWritable(img, rootfs, scratch); err != nil {
		return failed(leapcell.Wrap(leapcell.CodeStartFailed, err, "the image could not be mounted: "+describe(err)))
	}
	t.mu.Lock()
	t.mounted = true
	t.mu.Unlock()
	if t.req.Config.Command == "" && t.req.Config.Dockerfile == "" {
		return img, nil // files that need no build
	}
	cfg := t.cellConfig()
	cfg.Env = buildEnvironment(img.Env, t.sup.cfg.Build.Env, secrets)
	cfg.WorkDir, cfg.CPUs, cfg.Hostname = img.WorkDir, max(t.req.Config.CPUs, 1), "build"
	if cfg.Mounts, err = t.buildMounts(ctx); err != nil {
		return failed(diskError(err))
	}
	if t.req.Config.Dockerfile != "" {
		done, err := t.prepareDocker(&cfg, scratch, secrets)
		if err != nil {
			return failed(diskError(err))
		}
		defer done()
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
		return &Exit{Code: max(e.Code, 1), OOM: true, Message: fmt.Sprintf("out of memory: the build was killed at %d MB", t.req.MemoryMB)}
	case e.Signal == int(unix.SIGKILL):
		// The kernel spares the first process of a sandbox what others in it send.
		return &Exit{Code: e.Code, Signal: e.Signal, Message: "the build command was killed from outside of its sandbox: deploy again"}
	case e.Code != 0 && t.ownDiskFull():
		return &Exit{Code: e.Code, Message: fmt.Sprintf("the build command exited with code %d; it has filled its disk of %d MB", e.Code, t.diskMB())}
	case e.Code != 0 && t.sup.diskFull():
		return &Exit{Code: e.Code, Message: fmt.Sprintf("the build command exited with code %d; there is no space left on the node's disk", e.Code)}
	case e.Code != 0 && t.docker != nil:
		return t.docker.exit(e.Code)
	case e.Code != 0:
		return &Exit{Code: e.Code, Signal: e.Signal}
	}
	return nil
}

// publish makes the image of what the command left, and pushes it.
func (t *task) publish(ctx context.Context, base *image.Image, scratch string) *Exit {
	if t.cell != nil {
		if err := t.cell.Delete(); err != nil {
			t.log.Error("build sandbox could not be removed", "error", err)
		}
	}
	t.logs.drain() // the command's last words come before ours
	if whole, exit := t.publishStatic(ctx, base, scratch); whole || exit != nil {
		return exit
	}
	result := image.Result{
		Upper:   image.Upper(scratch),
		Exclude: append(slices.Clone(t.req.Config.Caches), slices.Sorted(maps.Keys(t.sup.cfg.Build.Files))...),
		Cmd:     []string{"bash", "-c", t.req.Config.StartCommand},
		WorkDir: base.WorkDir,
		Env:     base.Env,
		Run:     t.req.Config.RunImage,
	}
	if at := t.req.Config.Modified; at > 0 {
		result.Modified = time.Unix(int64(at), 0)
	}
	result.MaxBytes = int64(t.req.Config.ImageMB) << 20
	digest, size, err := t.sup.images.Commit(ctx, base, result, t.req.Config.Output, t.phase)
	if leapcell.ErrorCode(err) == leapcell.CodeTooLarge {
		return &Exit{Code: 1, Message: leapcell.ErrorMessage(err)}
	}
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
func (t *task) buildMounts(ctx context.Context) ([]cell.Mount, error) {
	var out []cell.Mount
	files := t.sup.cfg.Build.Files
	for _, inside := range slices.Sorted(maps.Keys(files)) {
		out = append(out, cell.Mount{Source: files[inside], Target: inside, ReadOnly: true})
	}
	if len(t.req.Config.Caches) == 0 {
		return out, nil
	}
	folder, said, release, err := t.sup.caches.Take(ctx, t.cacheName(), t.cacheMB())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		t.log.Warn("build goes without its cache", "error", err)
		t.logs.say("leapcell: there is no build cache this time: %s", describe(err))
		return out, nil
	}
	t.releaseCache = release
	if said != "" {
		t.logs.say("leapcell: %s", said)
	}
	for _, dir := range t.req.Config.Caches {
		host := filepath.Join(folder, cacheDir(dir))
		if err := os.MkdirAll(host, 0o755); err != nil {
			return nil, err
		}
		out = append(out, cell.Mount{Source: host, Target: filepath.Clean(dir)})
	}
	return out, nil
}

func (t *task) cacheName() string {
	if t.req.Config.Cache != "" {
		return t.req.Config.Cache
	}
	return t.req.Config.ServiceID
}

func (t *task) cacheMB() int {
	if t.req.Config.CacheMB > 0 {
		return t.req.Config.CacheMB
	}
	return max(t.sup.cfg.DiskMB, 1024)
}

// cacheDir is readable for an operator, and can be told apart whatever the path contains.
func cacheDir(dir string) string {
	dir = filepath.Clean(dir)
	sum := sha256.Sum256([]byte(dir))
	return strings.ReplaceAll(strings.Trim(dir, "/"), "/", "-") + "-" + hex.EncodeToString(sum[:4])
}

// buildSecrets are the variables of the service that the build may see.
func (t *task) buildSecrets(env map[string]string) map[string]string {
	out := map[string]string{}
	for _, name := range t.req.Config.BuildEnv {
		if value, ok := env[name]; ok {
			out[name] = value
		}
	}
	return out
}

// ownDiskFull reports whether the build's own disk has no room any more.
func (t *task) ownDiskFull() bool {
	var own, node unix.Stat_t
	dir := t.sup.scratch(t.id)
	if unix.Stat(dir, &own) != nil || unix.Stat(t.sup.cfg.ScratchDir, &node) != nil || own.Dev == node.Dev {
		return false
	}
	percent, err := usedPercent(dir)
	return err == nil && percent >= 99
}

// diskFull reports whether the disk for builds has less than a hundredth free.
func (s *Supervisor) diskFull() bool {
	percent, err := usedPercent(s.cfg.ScratchDir)
	return err == nil && percent >= 99
}

// diskError says in the owner's words that the disk is full, if that is what err means.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "no space left on the node's disk")
	}
	return err
}
