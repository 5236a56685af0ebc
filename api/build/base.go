package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/leapcell/leapcell"
)

// progressEvery is how often somebody who waits for a base image hears that it goes on.
const progressEvery = 5 * time.Second

// flight is one assembly and those who wait for it.
type flight struct {
	done chan struct{}
	err  error // set before done is closed

	mu      sync.Mutex
	waiters map[int]func(string)
	next    int
}

func (f *flight) say(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, tell := range f.waiters {
		tell(line)
	}
}

// join makes tell hear what the assembly says until leave is called.
func (f *flight) join(tell func(string)) (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.next
	f.next++
	f.waiters[id] = tell
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.waiters, id)
	}
}

// Base makes sure that the system that builds of r stand on is in the registry and gives its
// repository and tag. The first call for a recipe takes half a minute or more, and tells progress
// of it; callers at the same time share it. It goes on when a caller leaves.
func (b *Builder) Base(ctx context.Context, r Runtime, progress func(string)) (repository, tag string, err error) {
	return b.system(ctx, r.Name, r.Base, progress)
}

// RunBase is [Builder.Base] for what instances of r stand on; "" says that it is the same.
func (b *Builder) RunBase(ctx context.Context, r Runtime, progress func(string)) (reference string, err error) {
	if r.Run == nil {
		return "", nil
	}
	repository, tag, err := b.system(ctx, runName(r), *r.Run, progress)
	if err != nil {
		return "", err
	}
	return b.cfg.Images.Resolve(ctx, repository, tag)
}

// runName names a run system: that of the built-in table is shared.
func runName(r Runtime) string {
	if r.Run.Image == "" && slices.Equal(r.Run.Packages, slim.Packages) {
		return "run"
	}
	return r.Name + "-run"
}

func (b *Builder) system(ctx context.Context, name string, base Base, progress func(string)) (repository, tag string, err error) {
	repository, tag = "base/"+name, base.tag(b.cfg.Suite)
	_, err = b.cfg.Images.Resolve(ctx, repository, tag)
	if leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		if err == nil {
			b.refresh(ctx, named{name, base}, progress)
		}
		return repository, tag, err // there, or the registry does not answer
	}
	f := b.board(name, base, progress)
	defer f.leave()
	select {
	case <-f.done:
		return repository, tag, f.err
	case <-ctx.Done():
		return "", "", ctx.Err()
	}
}

type seat struct {
	*flight
	leave func()
}

// board joins the assembly of the base of that name, or starts it.
func (b *Builder) board(name string, base Base, progress func(string)) seat {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := name + ":" + base.tag(b.cfg.Suite)
	if f, ok := b.flights[key]; ok {
		progress("waiting for the " + name + " base image, which is being made for another deployment")
		return seat{f, f.join(progress)}
	}
	f := &flight{done: make(chan struct{}), waiters: map[int]func(string){}}
	leave := f.join(progress)
	b.flights[key] = f
	b.running.Go(func() {
		f.err = b.makeBase(b.ctx, name, base, f.say)
		if f.err != nil {
			b.cfg.Log.Error("base image failed", "base", key, "err", f.err)
		}
		b.mu.Lock()
		b.failed[key] = f.err
		delete(b.flights, key)
		b.mu.Unlock()
		close(f.done)
	})
	return seat{f, leave}
}

func (b *Builder) makeBase(ctx context.Context, name string, base Base, say func(string)) error {
	start := time.Now()
	repository, tag := "base/"+name, base.tag(b.cfg.Suite)
	stop := tick(name, say)
	defer stop()
	if base.isZero() {
		img, err := baseImage()
		if err != nil {
			return fmt.Errorf("base image of %s: %w", name, err)
		}
		_, err = b.cfg.Images.Push(ctx, repository, tag, img)
		return err
	}
	if base.Image != "" {
		say("fetching the " + name + " base image " + base.Image + " (once)…")
		img, err := pull(ctx, base.Image)
		if err != nil {
			return leapcell.Wrap(leapcell.CodeUnavailable, err, "the base image "+base.Image+" could not be fetched")
		}
		_, err = b.cfg.Images.Push(ctx, repository, tag, made(img, start))
		return err
	}
	say("assembling the " + name + " base image (once, about half a minute)…")
	file := filepath.Join(b.cfg.Dir, name+"-"+tag+".tar")
	defer os.Remove(file)
	if err := b.assemble(ctx, name, base, file, say); err != nil {
		return err
	}
	layer, err := newLayer(file)
	if err != nil {
		return err
	}
	say(fmt.Sprintf("storing the %s base image (%d MB)", name, layer.size>>20))
	img, err := baseImage(layer)
	if err != nil {
		return fmt.Errorf("base image of %s: %w", name, err)
	}
	if _, err := b.cfg.Images.Push(ctx, repository, tag, made(img, start)); err != nil {
		return err
	}
	say(fmt.Sprintf("the %s base image is ready after %s", name, time.Since(start).Round(time.Second)))
	b.cfg.Log.Info("base image made", "base", name, "tag", tag, "bytes", layer.size, "took", time.Since(start))
	return nil
}

// tick says now and then how long it has been.
func tick(name string, say func(string)) (stop func()) {
	start := time.Now()
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(progressEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				say(fmt.Sprintf("… %s base image: %s", name, time.Since(start).Round(time.Second)))
			case <-done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

func pull(ctx context.Context, image string) (v1.Image, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, err
	}
	return remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
}
