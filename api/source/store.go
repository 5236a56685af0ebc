package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/outbound"
)

// Config is what [New] needs to know. Zero limits mean the defaults.
type Config struct {
	Dir         string        // for uploads and work in progress
	MaxUpload   int64         // bytes of an archive as it is sent; default 100 MB
	MaxUnpacked int64         // bytes of all files of a tree; default 1 GB
	MaxFiles    int           // default 100,000
	MaxFile     int64         // bytes of one file of a git repository; default 256 MB
	GitTimeout  time.Duration // default 5 minutes
	// Networks are the private networks that repositories may be in.
	Networks outbound.Networks
	// Access gives the credentials of a connection, by its ID; nil when there are none.
	Access func(ctx context.Context, connection string) (Access, error)
	// AllowFileURLs lets git read repositories on the control plane's own disk. It is for
	// one-machine platforms and tests: with it, who may deploy may read those.
	AllowFileURLs bool
	// Heads are the names of files at the top of a tree whose text [Tree.Heads] has.
	Heads []string
}

// The limits of a [Config] that leaves them out.
const (
	DefaultMaxUpload   = 100 << 20
	DefaultMaxUnpacked = 1 << 30
	DefaultMaxFiles    = 100_000
	DefaultMaxFile     = 256 << 20
	DefaultGitTimeout  = 5 * time.Minute
)

// Store keeps uploads until they are built, and makes layers.
type Store struct {
	cfg       Config
	web       *http.Client        // for what strangers name
	gitSlots  *semaphore.Weighted // unpacking a repository takes memory
	sweeping  sync.Mutex          // held while uploads are removed, or kept from that
	uploading locks               // by SHA-256, of uploads on their way
}

// gitFetches are done at a time.
const gitFetches = 2

// New makes the folders it needs and removes what a killed process left half done.
func New(cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("source: no folder is set")
	}
	setDefault(&cfg.MaxUpload, DefaultMaxUpload)
	setDefault(&cfg.MaxUnpacked, DefaultMaxUnpacked)
	setDefault(&cfg.MaxFiles, DefaultMaxFiles)
	setDefault(&cfg.MaxFile, DefaultMaxFile)
	setDefault(&cfg.GitTimeout, DefaultGitTimeout)
	s := &Store{cfg: cfg, web: cfg.Networks.Client(0), gitSlots: semaphore.NewWeighted(gitFetches)}
	s.web.Transport = boundedRefs{s.web.Transport}
	if err := os.RemoveAll(s.workDir()); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	for _, dir := range []string{s.uploadDir(), s.partialDir(), s.workDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("source: %w", err)
		}
	}
	return s, nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

func (s *Store) uploadDir() string { return filepath.Join(s.cfg.Dir, "uploads") }
func (s *Store) workDir() string   { return filepath.Join(s.cfg.Dir, "work") }

func (s *Store) uploadPath(sum string) string {
	return filepath.Join(s.uploadDir(), sum+".tar.gz")
}

// Save keeps the archive that r gives and returns its sha256, by which
// [leapcell.Source.Upload] names it. Over the limit it fails with CodeTooLarge, and with
// CodeInvalid when it is not gzip; nothing of it is kept then.
func (s *Store) Save(ctx context.Context, r io.Reader) (string, error) {
	f, err := os.CreateTemp(s.workDir(), "upload-")
	if err != nil {
		return "", diskError(err, "the upload could not be kept")
	}
	defer os.Remove(f.Name())
	defer f.Close()

	hash := sha256.New()
	limited := io.LimitReader(contextReader{ctx, r}, s.cfg.MaxUpload+1)
	n, err := io.Copy(io.MultiWriter(f, hash), limited)
	var over *http.MaxBytesError // of the server's own limit
	switch {
	case errors.As(err, &over):
		fallthrough
	case err == nil && n > s.cfg.MaxUpload:
		return "", s.errTooLarge()
	case err != nil:
		return "", diskError(err, "the upload could not be received")
	}
	if err := checkGzip(f); err != nil {
		return "", err
	}
	// Synced, since the row that names it is written next and must not outlive it.
	sum := hex.EncodeToString(hash.Sum(nil))
	return sum, s.keep(f, sum)
}

func checkGzip(f *os.File) error {
	magic := make([]byte, 2)
	if _, err := f.ReadAt(magic, 0); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return leapcell.Errorf(leapcell.CodeInvalid, "the upload is not a tar.gz archive")
	}
	return nil
}

// Renew makes an upload young, so that [Store.Sweep] leaves it; CodeNotFound says that it is gone.
func (s *Store) Renew(sum string) error {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	now := time.Now()
	err := os.Chtimes(s.uploadPath(sum), now, now)
	if errors.Is(err, fs.ErrNotExist) {
		return leapcell.Errorf(leapcell.CodeNotFound, "the uploaded source is no longer there: deploy again")
	}
	if err != nil {
		return fmt.Errorf("source: renew: %w", err)
	}
	return nil
}

// Sweep removes uploads on their way that nobody goes on with, and whole ones that are not in keep
// and older than age: young ones may belong to
// a deployment that is not stored yet.
func (s *Store) Sweep(keep map[string]bool, age time.Duration) error {
	entries, err := os.ReadDir(s.uploadDir())
	if err != nil {
		return fmt.Errorf("source: sweep: %w", err)
	}
	failed := s.sweepPartial()
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	for _, entry := range entries {
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		sum := strings.TrimSuffix(entry.Name(), ".tar.gz")
		if err != nil || keep[sum] || time.Since(info.ModTime()) < age {
			continue
		}
		failed = errors.Join(failed, os.Remove(filepath.Join(s.uploadDir(), entry.Name())))
	}
	return failed
}

// diskError tells a full disk, which an operator must hear of, from everything else.
func diskError(err error, what string) error {
	if isDisk(err) {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, what+": the platform's disk is full")
	}
	if asKnown(err) != nil {
		return err
	}
	return leapcell.Wrap(leapcell.CodeInternal, err, what)
}

// asKnown is the error in err that may be shown, nil for none.
func asKnown(err error) *leapcell.Error {
	var known *leapcell.Error
	errors.As(err, &known)
	return known
}

// boundedRefs bounds what a git host may say of its branches and tags: it is read into memory.
type boundedRefs struct{ http.RoundTripper }

func (b boundedRefs) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err == nil && strings.HasSuffix(req.URL.Path, "/info/refs") {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxRefs), resp.Body}
	}
	return resp, err
}

func isDisk(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func megabytes(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%d MB", n>>20)
}

// contextReader ends a copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
