package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell"
)

const (
	// pullLimit bounds one pull, which goes on when the caller that began it has left: others may wait for it.
	pullLimit = 15 * time.Minute
	// configLimit bounds what of an image is read into memory.
	configLimit = 8 << 20
	// maxLayers is what one overlay takes, with its own two.
	maxLayers = 200
)

// platform is what is taken of an image for several.
var platform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// Pull makes the image ref ready on this node. With a digest (registry/repository@sha256:…) one that is
// there already costs no network and no disk. With a tag the registry is asked each time; should it be away,
// what the tag was before is taken. The result names the digest in both cases. Errors have
// [leapcell.CodeInvalid] for a bad reference, CodeNotFound, CodeForbidden (also for want of a signature), CodeUnprocessable for an image
// that is refused, and CodeUnavailable for what may pass: the registry or the disk.
func (s *Store) Pull(ctx context.Context, ref string) (*Image, error) {
	if digest, ok := digestOf(ref); ok && s.trusted(digest) {
		if img, ok := s.find(digest); ok {
			img.Ref = ref
			return img, nil
		}
	}
	digest, tag, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	warning, err := s.verify(ctx, digest)
	if err != nil {
		return nil, err
	}
	if img, ok := s.find(digest.DigestStr()); ok {
		img.Ref, img.Warning = digest.String(), warning
		s.tagged(tag, digest.DigestStr())
		return img, nil
	}
	result := s.images.DoChan(digest.DigestStr(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pullLimit)
		defer cancel()
		return s.pullWithRoom(ctx, digest, tag)
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, s.explain(r.Err, ref)
		}
		s.tagged(tag, digest.DigestStr())
		img := *r.Val.(*Image)
		img.Ref, img.Warning = digest.String(), warning
		return &img, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// resolve reads a reference. A tag is looked up; without either, "latest" is meant.
func (s *Store) resolve(ctx context.Context, ref string) (digest name.Digest, tag string, err error) {
	parsed, err := name.ParseReference(ref, s.nameOptions(ref)...)
	if err != nil {
		return digest, "", leapcell.Errorf(leapcell.CodeInvalid, "image %q: registry/repository@sha256:… or registry/repository:tag is needed", ref)
	}
	if digest, ok := parsed.(name.Digest); ok {
		return digest, "", nil
	}
	tag = parsed.Name()
	s.mu.Lock()
	known, ok := s.tags[tag]
	s.mu.Unlock()
	var found string
	look := func() (err error) {
		found, err = s.lookUp(ctx, parsed)
		return err
	}
	if ok {
		err = look()
	} else {
		err = s.patiently(ctx, look)
	}
	if ok && isAway(err) {
		s.cfg.Log.Warn("the registry is away: a tag is taken for what it was before", "image", tag, "digest", known, "error", err)
		found, err = known, nil
	}
	if err != nil {
		return digest, "", s.explain(err, ref)
	}
	return parsed.Context().Digest(found), tag, nil
}

func (s *Store) lookUp(ctx context.Context, ref name.Reference) (string, error) {
	l, err := s.link(ref.Context().RegistryStr())
	if err != nil {
		return "", err
	}
	defer l.Close()
	head, err := remote.Head(ref, l.options(ctx)...)
	if err == nil {
		return head.Digest.String(), nil
	}
	if isAway(err) {
		return "", err
	}
	full, err := remote.Get(ref, l.options(ctx)...) // not every registry tells digests in headers
	if err != nil {
		return "", err
	}
	return full.Digest.String(), nil
}

// pullWithRoom pulls, and makes room when the disk turns out to be full.
func (s *Store) pullWithRoom(ctx context.Context, digest name.Digest, tag string) (*Image, error) {
	p := &transfer{s: s, ref: digest, tag: tag, held: map[string]bool{}}
	defer p.release()
	var img *Image
	attempt := func() (err error) {
		img, err = p.run(ctx)
		return err
	}
	err := s.patiently(ctx, attempt)
	if !isFull(err) {
		return img, err
	}
	done := s.collect(max(4*p.size, 1)) // what is unpacked is seldom larger than that
	if done.removed > 0 {
		err = s.patiently(ctx, attempt)
	}
	if isFull(err) {
		return nil, s.full(err, fmt.Sprintf("the image %s has %s to transfer and more to unpack, and %d unused images were removed for it", digest, megabytes(p.size), done.removed))
	}
	return img, err
}

// transfer is one image on its way here. Layers that it holds are not collected.
type transfer struct {
	s    *Store
	ref  name.Digest
	tag  string
	size int64           // of all layers, as they are transferred
	held map[string]bool // layers, by hex of the diff ID
}

// run fetches and unpacks what is missing.
func (p *transfer) run(ctx context.Context) (*Image, error) {
	l, err := p.s.link(p.ref.RegistryStr())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	login, err := l.login(ctx, p.ref.Context(), transport.PullScope)
	if err != nil {
		return nil, err
	}
	manifest, config, err := p.describe(ctx, login)
	if err != nil {
		return nil, err
	}
	on := stored{Ref: p.ref.String(), Tag: p.tag, Env: config.Config.Env, WorkDir: config.Config.WorkingDir, Cmd: command(config.Config), User: config.Config.User, Stop: config.Config.StopSignal}
	for _, id := range config.RootFS.DiffIDs {
		on.Layers = append(on.Layers, id.Hex)
	}
	p.hold(on.Layers)
	left := &atomic.Int64{}
	left.Store(p.s.limits.Bytes)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for i, desc := range manifest.Layers {
		group.Go(func() error { return p.layer(ctx, login, config.RootFS.DiffIDs[i], desc, left) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	img, err := p.s.add(p.ref.DigestStr(), on)
	if err == nil {
		img.Pulled = p.size
	}
	return img, err
}

// command is what the image runs by itself.
func command(c v1.Config) []string {
	return append(append([]string(nil), c.Entrypoint...), c.Cmd...)
}

// describe reads manifest and configuration, and refuses what cannot become an instance before anything large is transferred.
func (p *transfer) describe(ctx context.Context, login http.RoundTripper) (*v1.Manifest, *v1.ConfigFile, error) {
	refuse := func(format string, args ...any) (*v1.Manifest, *v1.ConfigFile, error) {
		return nil, nil, leapcell.Errorf(leapcell.CodeUnprocessable, "the image %s is refused: "+format, append([]any{p.ref}, args...)...)
	}
	img, err := remote.Image(p.ref, remote.WithContext(ctx), remote.WithTransport(login), remote.WithPlatform(platform))
	if err != nil {
		return nil, nil, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return refuse("its manifest cannot be read: %w", err)
	}
	if manifest.Config.Size < 0 || manifest.Config.Size > configLimit {
		return refuse("its configuration has %d bytes, more than %d MB", manifest.Config.Size, configLimit>>20)
	}
	if n := len(manifest.Layers); n > maxLayers {
		return refuse("it has %d layers, more than %d", n, maxLayers)
	}
	p.size = 0
	for _, l := range manifest.Layers {
		if l.Size < 0 || len(l.URLs) > 0 {
			return refuse("its layer %s is not in the registry, or has no size", l.Digest)
		}
		if p.size += l.Size; p.size > p.s.limits.Bytes {
			return refuse("its layers have more than %d MB", p.s.limits.Bytes>>20)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, nil, err
	}
	if len(manifest.Layers) != len(config.RootFS.DiffIDs) {
		return refuse("it has %d layers, but names %d", len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	for _, id := range config.RootFS.DiffIDs {
		if id.Algorithm != "sha256" || len(id.Hex) != 64 {
			return refuse("its layer %s has no sha256 digest", id)
		}
	}
	return manifest, config, nil
}

// layer unpacks a layer unless it is there. Of several images that need it one does so; should that
// one be given up, the next goes on.
func (p *transfer) layer(ctx context.Context, login http.RoundTripper, id v1.Hash, desc v1.Descriptor, left *atomic.Int64) error {
	for {
		_, err, shared := p.s.layers.Do(id.Hex, func() (any, error) {
			if _, err := os.Stat(p.s.path("layers", id.Hex)); err == nil {
				return nil, nil
			}
			select {
			case p.s.slots <- struct{}{}:
				defer func() { <-p.s.slots }()
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return nil, p.unpack(ctx, login, id, desc, left)
		})
		if !shared || !errors.Is(err, context.Canceled) || ctx.Err() != nil {
			return err
		}
	}
}

func (p *transfer) unpack(ctx context.Context, login http.RoundTripper, id v1.Hash, desc v1.Descriptor, left *atomic.Int64) (err error) {
	temp, err := os.MkdirTemp(p.s.path("tmp"), "layer")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	if err := os.Chmod(temp, 0o755); err != nil { // of layers that say nothing about their root
		return err
	}
	at := url.URL{Scheme: p.ref.Scheme(), Host: p.ref.RegistryStr(), Path: "/v2/" + p.ref.RepositoryStr() + "/blobs/" + desc.Digest.String()}
	stream := &blob{ctx: ctx, client: &http.Client{Transport: login}, url: at.String(), digest: desc.Digest, size: desc.Size, patience: p.s.cfg.Patience}
	defer stream.Close()
	limits := p.s.limits
	limits.image = left
	got, err := Unpack(ctx, desc.Digest.String(), stream, temp, limits)
	if err != nil {
		return err
	}
	// Whoever reads compressed data stops at its end, which need not be the end of the blob.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return err
	}
	if got != id.String() {
		return leapcell.Errorf(leapcell.CodeUnprocessable, "layer %s is not what the image says: its content is %s instead of %s", desc.Digest, got, id)
	}
	return os.Rename(temp, p.s.path("layers", id.Hex))
}

// hold keeps layers from being collected before their image is known.
func (p *transfer) hold(layers []string) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for _, l := range layers {
		if !p.held[l] {
			p.held[l] = true
			p.s.layerRefs[l]++
		}
	}
}

func (p *transfer) release() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for l := range p.held {
		p.s.dropLayer(l)
	}
}
