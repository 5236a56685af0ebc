package source

import (
	"bufio"
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
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

const (
	// partialAge is how long an upload that nobody goes on with is kept.
	partialAge = 24 * time.Hour
	// maxPartial is how many uploads may be on their way at once.
	maxPartial = 32
	// minFree is the room that an upload leaves on the disk.
	minFree = 64 << 20
)

var goodSum = regexp.MustCompile(`^[0-9a-f]{64}$`)

// An upload on its way is one file, "{sha256}.{size}" in a folder of its own: its length is how
// far it has come. Nothing else has to be kept, or to be repaired after a kill. That its content
// is what its name says is looked at when it is whole.

// Begin makes an upload of that SHA-256 and size, or finds it as far as it has come. One that is
// whole already is complete at once.
func (s *Store) Begin(ctx context.Context, sum string, size int64) (leapcell.Upload, error) {
	if !goodSum.MatchString(sum) {
		return leapcell.Upload{}, leapcell.Errorf(leapcell.CodeInvalid, "sha256 is %q: it must have 64 hexadecimal digits", sum)
	}
	if size < 1 {
		return leapcell.Upload{}, leapcell.Errorf(leapcell.CodeInvalid, "size is %d: it must be that of the archive in bytes", size)
	}
	if size > s.cfg.MaxUpload {
		return leapcell.Upload{}, s.errTooLarge()
	}
	unlock, err := s.uploading.lock(ctx, sum)
	if err != nil {
		return leapcell.Upload{}, err
	}
	defer unlock()
	if up, err := s.look(sum); err == nil && up.Size == size {
		return up, s.complete(up)
	} else if err != nil && leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		return leapcell.Upload{}, err
	}
	// What was begun with another size can never have this sum.
	if err := s.discard(sum); err != nil {
		return leapcell.Upload{}, err
	}
	others, err := os.ReadDir(s.partialDir())
	if err != nil {
		return leapcell.Upload{}, diskError(err, "the upload could not be begun")
	}
	if len(others) >= maxPartial {
		return leapcell.Upload{}, leapcell.Errorf(leapcell.CodeRateLimited, "%d uploads are on their way, and no more are possible at a time: wait until one of them ends", len(others))
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.partialDir(), &st); err == nil && int64(st.Bavail)*st.Bsize < size+minFree {
		return leapcell.Upload{}, leapcell.Errorf(leapcell.CodeUnavailable, "the platform's disk is full: there is no room for an upload of %s", megabytes(size))
	}
	f, err := os.OpenFile(s.partialPath(sum, size), os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return leapcell.Upload{}, diskError(err, "the upload could not be begun")
	}
	return s.look(sum)
}

// Upload says how far an upload has come, else CodeNotFound. It waits for who is sending.
func (s *Store) Upload(ctx context.Context, sum string) (leapcell.Upload, error) {
	unlock, err := s.uploading.lock(ctx, sum)
	if err != nil {
		return leapcell.Upload{}, err
	}
	defer unlock()
	up, err := s.look(sum)
	if err != nil {
		return up, err
	}
	return up, s.complete(up)
}

// Append adds what r gives at offset, and says how far the upload has come then; also with an
// error, for what came before that is kept. Another offset than where the upload is gives
// CodeConflict, more than its size CodeTooLarge. An upload that is whole and has not the content
// that its SHA-256 promises is removed with CodeInvalid.
func (s *Store) Append(ctx context.Context, sum string, offset int64, r io.Reader) (leapcell.Upload, error) {
	unlock, err := s.uploading.lock(ctx, sum)
	if err != nil {
		return leapcell.Upload{}, err
	}
	defer unlock()
	up, err := s.look(sum)
	if err != nil {
		return up, err
	}
	if offset != up.Offset {
		return up, leapcell.Errorf(leapcell.CodeConflict, "the upload is at byte %d, not %d: go on there", up.Offset, offset)
	}
	if up.Complete() {
		return up, s.complete(up) // the answer to the last bytes was lost
	}
	appendErr := s.appendTo(ctx, up, r)
	if now, err := s.look(sum); err == nil {
		up = now
	}
	if !up.Complete() {
		return up, appendErr
	}
	if err := s.complete(up); err != nil {
		return up, err
	}
	return up, appendErr
}

func (s *Store) appendTo(ctx context.Context, up leapcell.Upload, r io.Reader) error {
	f, err := os.OpenFile(s.partialPath(up.SHA256, up.Size), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return diskError(err, "the upload could not be kept")
	}
	rest := up.Size - up.Offset
	in := bufio.NewReader(contextReader{ctx, r})
	_, err = io.Copy(f, io.LimitReader(in, rest))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	var over *http.MaxBytesError
	var path *fs.PathError
	switch {
	case errors.As(err, &over):
		return s.errTooLarge()
	case errors.As(err, &path): // of the file, not of the network
		return diskError(err, "the upload could not be kept")
	case err != nil:
		return leapcell.Wrap(leapcell.CodeRequestTimeout, err, "the piece did not come to its end: go on from where the upload is")
	}
	if _, err := in.Peek(1); err == nil {
		return leapcell.Errorf(leapcell.CodeTooLarge, "more was sent than the %d bytes that the upload has", up.Size)
	}
	return nil
}

// complete looks whether an upload that is whole is what its name says, and puts it where
// deployments find it. A kill may have come before it: it is done for whoever asks next.
func (s *Store) complete(up leapcell.Upload) error {
	if !up.Complete() {
		return nil
	}
	path := s.partialPath(up.SHA256, up.Size)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is there already
	}
	if err != nil {
		return diskError(err, "the upload could not be read")
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return diskError(err, "the upload could not be read")
	}
	if hex.EncodeToString(hash.Sum(nil)) != up.SHA256 {
		return errors.Join(leapcell.Errorf(leapcell.CodeInvalid, "the upload was damaged on its way: begin it again"), os.Remove(path))
	}
	if err := checkGzip(f); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return s.keep(f, up.SHA256)
}

// keep puts a whole file where deployments find it.
func (s *Store) keep(f *os.File, sum string) error {
	// Synced, since the row that names it is written next and must not outlive it.
	if err := f.Sync(); err != nil {
		return diskError(err, "the upload could not be kept")
	}
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	now := time.Now()
	if err := errors.Join(os.Chtimes(f.Name(), now, now), os.Rename(f.Name(), s.uploadPath(sum))); err != nil {
		return diskError(err, "the upload could not be kept")
	}
	return nil
}

// Discard removes an upload that is on its way.
func (s *Store) Discard(ctx context.Context, sum string) error {
	unlock, err := s.uploading.lock(ctx, sum)
	if err != nil {
		return err
	}
	defer unlock()
	return s.discard(sum)
}

func (s *Store) discard(sum string) error {
	paths, err := s.partials(sum)
	for _, path := range paths {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// look reads from the disk how far an upload is.
func (s *Store) look(sum string) (leapcell.Upload, error) {
	if !goodSum.MatchString(sum) {
		return leapcell.Upload{}, errNoUpload
	}
	if err := s.Renew(sum); err == nil {
		info, err := os.Stat(s.uploadPath(sum))
		if err != nil {
			return leapcell.Upload{}, diskError(err, "the upload could not be read")
		}
		return leapcell.Upload{SHA256: sum, Size: info.Size(), Offset: info.Size()}, nil
	}
	paths, err := s.partials(sum)
	if err != nil || len(paths) == 0 {
		return leapcell.Upload{}, errors.Join(errNoUpload, err)
	}
	info, err := os.Stat(paths[0])
	if err != nil {
		return leapcell.Upload{}, diskError(err, "the upload could not be read")
	}
	size, err := strconv.ParseInt(strings.TrimPrefix(filepath.Base(paths[0]), sum+"."), 10, 64)
	if err != nil {
		return leapcell.Upload{}, fmt.Errorf("source: %s: %w", paths[0], err)
	}
	return leapcell.Upload{SHA256: sum, Size: size, Offset: info.Size(), ExpiresAt: info.ModTime().Add(partialAge).UTC()}, nil
}

var errNoUpload = leapcell.Errorf(leapcell.CodeNotFound, "there is no such upload: it was never begun, or given up on for a day")

func (s *Store) partialDir() string { return filepath.Join(s.cfg.Dir, "partial") }

func (s *Store) partialPath(sum string, size int64) string {
	return filepath.Join(s.partialDir(), sum+"."+strconv.FormatInt(size, 10))
}

func (s *Store) partials(sum string) ([]string, error) {
	return filepath.Glob(filepath.Join(s.partialDir(), sum+".*"))
}

// sweepPartial removes uploads that nobody goes on with.
func (s *Store) sweepPartial() error {
	entries, err := os.ReadDir(s.partialDir())
	if err != nil {
		return fmt.Errorf("source: sweep: %w", err)
	}
	var failed error
	for _, entry := range entries {
		sum, _, _ := strings.Cut(entry.Name(), ".")
		unlock, ok := s.uploading.try(sum)
		if !ok {
			continue // somebody sends
		}
		if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > partialAge {
			failed = errors.Join(failed, os.Remove(filepath.Join(s.partialDir(), entry.Name())))
		}
		unlock()
	}
	return failed
}

func (s *Store) errTooLarge() error {
	return leapcell.Errorf(leapcell.CodeTooLarge, "the upload is over the limit of %s: leave out what the build makes or downloads by .gitignore or .dockerignore", megabytes(s.cfg.MaxUpload))
}
