package cdn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/front"
)

// Local is a store on this machine's disk.
type Local struct{ dir string }

// NewLocal makes a store in dir, and the folder when it is missing.
func NewLocal(dir string) (*Local, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("static files: %w", err)
	}
	return &Local{dir: dir}, nil
}

var serviceID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,127}$`)

// goodService reports whether a service's ID can be a folder's name: above all it is not "..".
func goodService(id string) bool { return serviceID.MatchString(id) }

// path is where a content is. Folders of a twohundredfiftysixth each stay small.
func (l *Local) path(service, sum string) (string, error) {
	if !goodService(service) || !front.IsSum(sum) {
		return "", leapcell.Errorf(leapcell.CodeInvalid, "%q of %q is no content", sum, service)
	}
	return filepath.Join(l.dir, service, sum[:2], sum), nil
}

// List gives the contents of a service.
func (l *Local) List(ctx context.Context, service string) (map[string]int64, error) {
	out := map[string]int64{}
	if !goodService(service) {
		return out, nil
	}
	err := filepath.WalkDir(filepath.Join(l.dir, service), func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || !front.IsSum(d.Name()) {
			return err
		}
		info, err := d.Info()
		if err == nil {
			out[d.Name()] = info.Size()
		}
		return err
	})
	return out, onDisk(errors.Join(err, ctx.Err()))
}

// Put stores a content.
func (l *Local) Put(ctx context.Context, service, sum string, size int64, content io.ReadSeeker) error {
	name, err := l.path(service, sum)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return onDisk(err)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return onDisk(err)
	}
	defer os.Remove(f.Name())
	n, err := io.Copy(f, content)
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d", n, size)
	}
	if err = errors.Join(err, ctx.Err(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	return onDisk(err)
}

// Flush waits until the disk has everything.
func (l *Local) Flush(context.Context) error {
	dir, err := os.Open(l.dir)
	if err != nil {
		return onDisk(err)
	}
	defer dir.Close()
	return onDisk(unix.Syncfs(int(dir.Fd())))
}

// Open gives a content.
func (l *Local) Open(_ context.Context, service, sum string) (io.ReadCloser, int64, error) {
	name, err := l.path(service, sum)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, leapcell.Wrap(leapcell.CodeNotFound, err, "the service has no such content")
	}
	if err != nil {
		return nil, 0, onDisk(err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, onDisk(err)
	}
	return f, info.Size(), nil
}

// Delete removes contents, or all of a service.
func (l *Local) Delete(ctx context.Context, service string, sums ...string) error {
	if !goodService(service) {
		return nil
	}
	if len(sums) == 0 {
		return onDisk(os.RemoveAll(filepath.Join(l.dir, service)))
	}
	for _, sum := range sums {
		name, err := l.path(service, sum)
		if err != nil {
			return err
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return onDisk(err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// onDisk gives an error of the disk words; what it is about may pass.
func onDisk(err error) error {
	var known *leapcell.Error
	switch {
	case err == nil, errors.As(err, &known), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "no space left on the disk for static files")
	}
	return leapcell.Wrap(leapcell.CodeUnavailable, err, "static files could not be stored or read")
}

// putBytes puts what is in memory.
func (o *Origin) putBytes(ctx context.Context, service, sum string, b []byte) error {
	return o.store.Put(ctx, service, sum, int64(len(b)), bytes.NewReader(b))
}
