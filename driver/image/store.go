package image

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Config is what a [Store] needs to know.
type Config struct {
	Dir string // of the store; made when missing
	// Registries gives the settings of a registry, as [Registries] reads them from a file. Nil is
	// nobody, by HTTPS, everywhere.
	Registries func(host string) Registry
	// Patience is how long a registry may be away, which is restarted with the control
	// plane; default 30 seconds.
	Patience time.Duration
	Collect  Collect
	Verify   Verify
	Log      *slog.Logger
}

// Store is the images of one node.
type Store struct {
	cfg    Config
	limits Limits
	disk   func(dir string) (usage, error)
	images singleflight.Group // by digest
	layers singleflight.Group // by diff ID
	slots  chan struct{}      // one for each layer that is being unpacked
	work   sync.WaitGroup     // in the background
	end    chan struct{}      // closed when the store is
	wake   chan struct{}      // of the collector; has room for one
	once   sync.Once

	collecting sync.Mutex // held over a round
	token      string     // in the file "owner", as long as no other process has opened the store
	checks     checks     // of signatures
	strange    bool       // something is mounted that is not known: no unknown layer may go

	mu        sync.Mutex
	known     map[string]*entry // by digest
	tags      map[string]string // digests by full reference with tag, as last seen
	layerRefs map[string]int    // by hex of the diff ID: of known images and of pulls
	mounts    map[string]string // digests by mount point
}

// entry is an image of the store. Its fields are guarded by the store's mu.
type entry struct {
	img    Image
	layers []string // hex of the diff IDs, all of them
	mounts int
	used   time.Time // last asked for or unmounted
}

// Image is a pulled image, ready to be mounted.
type Image struct {
	Ref     string   // with digest
	Layers  []string // unpacked folders, lowest first
	Env     []string
	WorkDir string
	Cmd     []string
	User    string // as the image says it: name or number, and group
	Stop    string // signal that asks it to end; "" is SIGTERM
	Pulled  int64  // bytes of its layers, when they came with this call of Pull; 0 when it was here
	Warning string // what is wrong with its signature, where that is no reason to refuse it
}

// stored is an Image on disk: with the names of its layers, so that the store can be moved.
type stored struct {
	Ref     string   `json:"ref,omitempty"` // by which it was pulled
	Tag     string   `json:"tag,omitempty"` // and the tag, if it was one
	Layers  []string `json:"layers"`        // hex of the diff IDs
	Env     []string `json:"env,omitempty"`
	WorkDir string   `json:"workDir,omitempty"`
	Cmd     []string `json:"cmd,omitempty"`
	User    string   `json:"user,omitempty"`
	Stop    string   `json:"stop,omitempty"`
	Boot    string   `json:"boot,omitempty"` // of the machine, while the layers may not be on disk
}

// The folders of a store. An image goes from pending to images when the data of its layers has
// reached the disk; what is in pending is good until the machine is booted again. Layers that no
// image has, and everything in tmp, are rubbish of a killed process.
var folders = []string{"tmp", "layers", "images", "pending", "mounts", "signed"}

// New opens the store in cfg.Dir, takes over the mounts of a former process, and removes what a
// killed one left half done. A process that has it open still must not mount or pull any more; it
// can unmount. Close it.
func New(cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "image store %q: an absolute path is needed", cfg.Dir)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Registries == nil {
		cfg.Registries = func(string) Registry { return Registry{} }
	}
	if cfg.Patience == 0 {
		cfg.Patience = 30 * time.Second
	}
	s := &Store{
		cfg: cfg, limits: DefaultLimits, disk: diskUsage,
		slots: make(chan struct{}, max(2, runtime.NumCPU())), end: make(chan struct{}), wake: make(chan struct{}, 1),
		known: map[string]*entry{}, tags: map[string]string{}, layerRefs: map[string]int{}, mounts: map[string]string{},
	}
	if err := s.open(); err != nil {
		return nil, s.plain(err)
	}
	if cfg.Collect.on() {
		s.work.Go(s.collector)
	}
	return s, nil
}

func (s *Store) open() error {
	rubbish, err := s.sweepAside()
	if err != nil {
		return err
	}
	for _, dir := range folders {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	if err := s.own(); err != nil {
		return err
	}
	if err := s.load("images", ""); err != nil {
		return err
	}
	if err := s.load("pending", bootID()); err != nil {
		return err
	}
	if err := s.loadChecked(); err != nil {
		return err
	}
	if err := s.loadMounts(); err != nil {
		return err
	}
	unknown, err := s.setAsideUnknown()
	if err != nil {
		return err
	}
	if rubbish = append(rubbish, unknown...); len(rubbish) > 0 {
		s.work.Go(func() { s.remove(rubbish) })
	}
	return s.makeMountPoints()
}

// own says to a former process that has the store open still, because it has requests to finish,
// that it is not to remove images any more: it does not know what this one mounts.
func (s *Store) own() error {
	s.token = rand.Text()
	temp := s.path("tmp", "owner")
	if err := os.WriteFile(temp, []byte(s.token), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, s.path("owner"))
}

func (s *Store) isOwner() bool {
	token, err := os.ReadFile(s.path("owner"))
	return err == nil && string(token) == s.token
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, parts...)...)
}

// sweepAside renames the temporary folder of a former process: instances wait to be taken
// over, and what is in it may take a while to remove.
func (s *Store) sweepAside() ([]string, error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	aside := s.path("old-" + time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.Rename(s.path("tmp"), aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	files, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, f := range files {
		if strings.HasPrefix(f.Name(), "old-") {
			all = append(all, s.path(f.Name()))
		}
	}
	return all, nil
}

// setAsideUnknown moves layers that no image has out of the way.
func (s *Store) setAsideUnknown() ([]string, error) {
	if s.strange {
		return nil, nil
	}
	layers, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var aside []string
	for _, l := range layers {
		if l.Name() != mountPoints && s.layerRefs[l.Name()] == 0 {
			aside = s.setAside(l.Name(), aside)
		}
	}
	return aside, nil
}

func (s *Store) remove(dirs []string) {
	for _, d := range dirs {
		if err := os.RemoveAll(d); err != nil {
			s.cfg.Log.Warn("a folder of the image store could not be removed: it is tried again at the next start", "folder", d, "error", err)
		}
	}
}

// load reads the images in a folder; those of another boot than the one asked for are gone with it.
func (s *Store) load(folder, boot string) error {
	files, err := os.ReadDir(s.path(folder))
	if err != nil {
		return err
	}
	for _, f := range files {
		on, used, err := s.readImage(folder, f.Name())
		if err == nil && on.Boot != boot {
			err = errors.New("the machine was restarted before it was safe on disk")
		}
		if err != nil {
			s.cfg.Log.Warn("an image in the store cannot be read: it will be pulled again", "file", f.Name(), "error", err)
			if err := os.Remove(s.path(folder, f.Name())); err != nil {
				return err
			}
			continue
		}
		digest := "sha256:" + strings.TrimSuffix(f.Name(), ".json")
		s.mu.Lock()
		s.know(digest, on, used)
		s.mu.Unlock()
		if folder == "pending" {
			s.work.Go(func() { s.settle(digest) })
		}
	}
	return nil
}

func (s *Store) readImage(folder, file string) (on stored, used time.Time, err error) {
	text, err := os.ReadFile(s.path(folder, file))
	if err != nil {
		return on, used, err
	}
	if err := json.Unmarshal(text, &on); err != nil {
		return on, used, err
	}
	for _, l := range on.Layers {
		if _, err := os.Stat(s.path("layers", l)); err != nil {
			return on, used, err
		}
	}
	info, err := os.Stat(s.path(folder, file))
	if err != nil {
		return on, used, err
	}
	return on, info.ModTime(), nil
}

// know puts an image among the known ones. The caller holds mu.
func (s *Store) know(digest string, on stored, used time.Time) *entry {
	if e, ok := s.known[digest]; ok {
		return e
	}
	e := &entry{layers: on.Layers, used: used, img: Image{Ref: on.Ref, Env: on.Env, WorkDir: on.WorkDir, Cmd: on.Cmd, User: on.User, Stop: on.Stop}}
	for _, l := range on.Layers {
		s.layerRefs[l]++
		if s.isOpaque(l) { // overlay itself does not look at the root of a layer
			e.img.Layers = nil
		}
		e.img.Layers = append(e.img.Layers, s.path("layers", l))
	}
	s.known[digest] = e
	if on.Tag != "" {
		s.tags[on.Tag] = digest
	}
	return e
}

// isOpaque reports whether a layer deletes everything below it.
func (s *Store) isOpaque(layer string) bool {
	value := make([]byte, 8)
	n, err := unix.Lgetxattr(s.path("layers", layer), opaqueXattr, value)
	return err == nil && string(value[:n]) == "y"
}

// Close ends the collector and waits until everything pulled is safe on disk. Mounts stay.
func (s *Store) Close() error {
	s.once.Do(func() { close(s.end) })
	s.work.Wait()
	if s.isOwner() {
		s.noteUse()
	}
	return nil
}

// add makes a pulled image known. It outlives a kill of this process from here on, and
// a crash of the machine from a moment later on.
func (s *Store) add(digest string, on stored) (*Image, error) {
	on.Boot = bootID()
	if err := s.write("pending", digest, on); err != nil {
		return nil, err
	}
	s.mu.Lock()
	e := s.know(digest, on, time.Now())
	img := e.img
	s.mu.Unlock()
	s.work.Go(func() { s.settle(digest) })
	select {
	case s.wake <- struct{}{}: // the disk may be fuller than it should be
	default:
	}
	return &img, nil
}

func (s *Store) write(folder, digest string, on stored) error {
	text, err := json.Marshal(on)
	if err != nil {
		return err
	}
	temp := s.path("tmp", folder+fileName(digest))
	if err := os.WriteFile(temp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, s.path(folder, fileName(digest)))
}

// settle brings the data of an image to the disk, then its file where it counts for good.
func (s *Store) settle(digest string) {
	err := func() error {
		on, _, err := s.readImage("pending", fileName(digest))
		if err != nil {
			return err
		}
		on.Boot = ""
		if err := s.write("tmp", digest, on); err != nil {
			return err
		}
		dir, err := os.Open(s.path("layers"))
		if err != nil {
			return err
		}
		defer dir.Close()
		if err := unix.Syncfs(int(dir.Fd())); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.known[digest] == nil {
			return os.Remove(s.path("tmp", fileName(digest))) // collected meanwhile
		}
		if err := os.Rename(s.path("tmp", fileName(digest)), s.path("images", fileName(digest))); err != nil {
			return err
		}
		return os.Remove(s.path("pending", fileName(digest)))
	}()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// It works until the machine restarts, and is pulled again then.
		s.cfg.Log.Warn("an image could not be noted on disk", "image", digest, "error", err)
	}
}

func fileName(digest string) string { return strings.TrimPrefix(digest, "sha256:") + ".json" }

// bootID is the kernel's name for the time since the machine was started.
var bootID = sync.OnceValue(func() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Sprintf("process %d", os.Getpid()) // good for as long as this process lives
	}
	return strings.TrimSpace(string(id))
})

// digestOf is what a reference has after its "@".
func digestOf(ref string) (string, bool) {
	i := strings.LastIndex(ref, "@sha256:")
	if i < 0 {
		return "", false
	}
	return ref[i+1:], true
}

func (s *Store) find(digest string) (*Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.known[digest]
	if !ok {
		return nil, false
	}
	e.used = time.Now()
	img := e.img
	return &img, true
}

// tagged notes what a tag was found to be.
func (s *Store) tagged(tag, digest string) {
	if tag == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tags[tag] = digest
}
