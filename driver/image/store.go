package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Config is what a [Store] needs to know.
type Config struct {
	Dir string // of the store; made when missing
	// Credentials says how to log in to a registry; user "" is nobody. insecure allows plain HTTP.
	Credentials func(registryHost string) (user, pass string, insecure bool)
	// Patience is how long a registry may be away, which is restarted with the control
	// plane; default 30 seconds.
	Patience time.Duration
	Log      *slog.Logger
}

// Store is the images of one node.
type Store struct {
	cfg     Config
	images  singleflight.Group // by digest
	layers  singleflight.Group // by diff ID
	persist sync.WaitGroup     // images on their way to disk

	mu    sync.Mutex
	known map[string]*Image // by digest
}

// Image is a pulled image, ready to be mounted.
type Image struct {
	Ref     string   // with digest
	Layers  []string // unpacked folders, lowest first
	Env     []string
	WorkDir string
	Cmd     []string
}

// stored is an Image on disk: with the names of its layers, so that the store can be moved.
type stored struct {
	Layers  []string `json:"layers"` // hex of the diff IDs
	Env     []string `json:"env,omitempty"`
	WorkDir string   `json:"workDir,omitempty"`
	Cmd     []string `json:"cmd,omitempty"`
}

// New opens the store in cfg.Dir and removes what a killed process left half done. One process
// at a time may have it open.
func New(cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "image store %q: an absolute path is needed", cfg.Dir)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Credentials == nil {
		cfg.Credentials = func(string) (string, string, bool) { return "", "", false }
	}
	if cfg.Patience == 0 {
		cfg.Patience = 30 * time.Second
	}
	s := &Store{cfg: cfg, known: map[string]*Image{}}
	if err := os.RemoveAll(s.path("tmp")); err != nil {
		return nil, s.plain(err)
	}
	for _, dir := range []string{"tmp", "layers", "images"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return nil, s.plain(err)
		}
	}
	if err := s.load(); err != nil {
		return nil, s.plain(err)
	}
	if err := s.makeMountPoints(); err != nil {
		return nil, s.plain(err)
	}
	return s, nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, parts...)...)
}

// load reads the images on disk and removes the layers that none of them has: an image is
// written after the data of its layers has reached the disk, so others may be incomplete.
func (s *Store) load() error {
	files, err := os.ReadDir(s.path("images"))
	if err != nil {
		return err
	}
	wanted := map[string]bool{mountPoints: true}
	for _, f := range files {
		var on stored
		text, err := os.ReadFile(s.path("images", f.Name()))
		if err == nil {
			err = json.Unmarshal(text, &on)
		}
		img := &Image{Env: on.Env, WorkDir: on.WorkDir, Cmd: on.Cmd}
		for _, l := range on.Layers {
			img.Layers = append(img.Layers, s.path("layers", l))
			if _, missing := os.Stat(s.path("layers", l)); err == nil {
				err = missing
			}
		}
		if err != nil {
			s.cfg.Log.Warn("an image in the store cannot be read: it will be pulled again", "file", f.Name(), "error", err)
			if err := os.Remove(s.path("images", f.Name())); err != nil {
				return err
			}
			continue
		}
		for _, l := range on.Layers {
			wanted[l] = true
		}
		s.known["sha256:"+strings.TrimSuffix(f.Name(), ".json")] = img
	}
	layers, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	for _, l := range layers {
		if !wanted[l.Name()] {
			if err := os.RemoveAll(s.path("layers", l.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close waits until everything pulled is safe on disk.
func (s *Store) Close() error {
	s.persist.Wait()
	return nil
}

// pullLimit bounds one pull, which goes on when the caller that began it has left: others may wait for it.
const pullLimit = 15 * time.Minute

// Pull makes the image ref, which carries a digest, ready on this node. One that is there
// already costs no network.
func (s *Store) Pull(ctx context.Context, ref string) (*Image, error) {
	digest, err := s.parse(ref)
	if err != nil {
		return nil, err
	}
	if img, ok := s.find(digest.DigestStr()); ok {
		img.Ref = ref
		return img, nil
	}
	result := s.images.DoChan(digest.DigestStr(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pullLimit)
		defer cancel()
		var img *Image
		err := s.patiently(ctx, func() (err error) {
			img, err = s.pull(ctx, digest)
			return err
		})
		return img, err
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, s.explain(r.Err, ref)
		}
		img := *r.Val.(*Image)
		img.Ref = ref
		return &img, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Store) find(digest string) (*Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, ok := s.known[digest]
	if !ok {
		return nil, false
	}
	found := *img
	return &found, true
}

func (s *Store) parse(ref string) (name.Digest, error) {
	digest, err := name.NewDigest(ref, s.nameOptions(ref)...)
	if err != nil {
		return name.Digest{}, leapcell.Errorf(leapcell.CodeInvalid, "image %q: registry/repository@sha256:… is needed", ref)
	}
	return digest, nil
}

// nameOptions allow plain HTTP to the registries that may be spoken to so.
func (s *Store) nameOptions(ref string) []name.Option {
	host, _, _ := strings.Cut(ref, "/")
	if _, _, insecure := s.cfg.Credentials(host); insecure {
		return []name.Option{name.Insecure}
	}
	return nil
}

func (s *Store) remoteOptions(ctx context.Context, host string) []remote.Option {
	options := []remote.Option{remote.WithContext(ctx), remote.WithJobs(2), remote.WithUserAgent("leapcell-node")}
	if user, pass, _ := s.cfg.Credentials(host); user != "" {
		options = append(options, remote.WithAuth(&authn.Basic{Username: user, Password: pass}))
	}
	return options
}

// pull fetches and unpacks what is missing.
func (s *Store) pull(ctx context.Context, digest name.Digest) (*Image, error) {
	img, err := remote.Image(digest, s.remoteOptions(ctx, digest.RegistryStr())...)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	if len(layers) != len(config.RootFS.DiffIDs) {
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "image %s has %d layers but names %d", digest, len(layers), len(config.RootFS.DiffIDs))
	}
	on := stored{Env: config.Config.Env, WorkDir: config.Config.WorkingDir, Cmd: config.Config.Cmd}
	out := &Image{Ref: digest.String(), Env: on.Env, WorkDir: on.WorkDir, Cmd: on.Cmd}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for i, layer := range layers {
		id := config.RootFS.DiffIDs[i]
		on.Layers = append(on.Layers, id.Hex)
		out.Layers = append(out.Layers, s.path("layers", id.Hex))
		group.Go(func() error { return s.ensureLayer(ctx, id, layer) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.known[digest.DigestStr()] = out
	s.mu.Unlock()
	s.persist.Go(func() {
		if err := s.save(digest.DigestStr(), on); err != nil {
			// It works until the next start of this process, which pulls it again.
			s.cfg.Log.Warn("an image could not be noted on disk", "image", digest.String(), "error", err)
		}
	})
	return out, nil
}

// save writes the image's file after the data of its layers is on disk.
func (s *Store) save(digest string, on stored) error {
	dir, err := os.Open(s.path("layers"))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return err
	}
	text, err := json.Marshal(on)
	if err != nil {
		return err
	}
	hex := strings.TrimPrefix(digest, "sha256:")
	temp := s.path("tmp", hex+".json")
	if err := os.WriteFile(temp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, s.path("images", hex+".json"))
}

// ensureLayer unpacks a layer unless it is there.
func (s *Store) ensureLayer(ctx context.Context, id v1.Hash, layer v1.Layer) error {
	_, err, _ := s.layers.Do(id.Hex, func() (any, error) {
		if _, err := os.Stat(s.path("layers", id.Hex)); err == nil {
			return nil, nil
		}
		return nil, s.unpackLayer(ctx, id, layer)
	})
	return err
}

func (s *Store) unpackLayer(ctx context.Context, id v1.Hash, layer v1.Layer) (err error) {
	temp, err := os.MkdirTemp(s.path("tmp"), "layer")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temp))
		}
	}()
	stream, err := layer.Compressed() // checks the digest at its end
	if err != nil {
		return err
	}
	defer stream.Close()
	got, err := Unpack(ctx, stream, temp, DefaultLimits)
	if err != nil {
		return err
	}
	if got != id.String() {
		return leapcell.Errorf(leapcell.CodeUnprocessable, "a layer of the image is not what the image says: its content is %s instead of %s", got, id)
	}
	return os.Rename(temp, s.path("layers", id.Hex))
}

// patiently repeats op while the registry cannot be reached, or breaks off.
func (s *Store) patiently(ctx context.Context, op func() error) error {
	end := time.Now().Add(s.cfg.Patience)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := op()
		if !isAway(err) || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// isAway reports whether err is of a registry that may be back in a moment.
func isAway(err error) bool {
	var broken *net.OpError
	var answer *transport.Error
	return errors.As(err, &broken) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.As(err, &answer) && (answer.StatusCode == http.StatusBadGateway || answer.StatusCode == http.StatusServiceUnavailable)
}

// plain puts a full disk in plain words.
func (s *Store) plain(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, fmt.Sprintf("no space left on the disk of %s: free some or move the state folder", s.cfg.Dir))
	}
	return err
}

// explain makes errors of pulls and pushes readable for operators.
func (s *Store) explain(err error, ref string) error {
	err = s.plain(err)
	var known *leapcell.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	host, _, _ := strings.Cut(ref, "/")
	var answer *transport.Error
	switch {
	case errors.As(err, &answer) && answer.StatusCode == 404:
		return leapcell.Wrap(leapcell.CodeNotFound, err, fmt.Sprintf("the image %s is not in its registry", ref))
	case errors.As(err, &answer) && (answer.StatusCode == 401 || answer.StatusCode == 403):
		return leapcell.Wrap(leapcell.CodeForbidden, err, fmt.Sprintf("the registry %s refuses this node's credentials", host))
	case errors.As(err, &answer):
		return leapcell.Wrap(leapcell.CodeUnavailable, err, fmt.Sprintf("the registry %s answered with status %d", host, answer.StatusCode))
	}
	return leapcell.Wrap(leapcell.CodeUnavailable, err, fmt.Sprintf("the image %s could not be transferred", ref))
}
