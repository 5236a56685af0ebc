package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Limits bound what one layer may unpack to.
type Limits struct {
	Bytes   int64
	Entries int
}

// DefaultLimits are those of the largest image that the platform takes.
var DefaultLimits = Limits{Bytes: 10 << 30, Entries: 2_000_000}

// whiteout marks in layers, and their form in overlay file systems.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	paxXattr       = "SCHILY.xattr."
)

// Unpack writes the layer in r, compressed or not, into the empty folder dir, in the form that
// overlay takes: deleted files are character devices 0:0, replaced folders are marked opaque. It gives
// the digest of the uncompressed layer. Layers are not trusted: whatever would reach out of dir, make
// a device or go over the limits is an error with [leapcell.CodeUnprocessable].
func Unpack(ctx context.Context, r io.Reader, dir string, limits Limits) (digest string, err error) {
	plain, closePlain, err := decompress(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return "", hostile("it is not a layer: %v", err)
	}
	defer closePlain()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	hash := sha256.New()
	u := &unpacker{root: root, limits: limits, dirs: map[string]time.Time{}}
	defer u.forget()
	// Padding may follow the archive's end: it counts for the digest and, when compressed, for the limit.
	all := io.TeeReader(&bounded{ctx: ctx, r: plain, left: limits.Bytes + int64(limits.Entries)*2048}, hash)
	if err := u.unpack(tar.NewReader(all)); err != nil {
		return "", err
	}
	if _, err := io.Copy(io.Discard, all); err != nil {
		return "", err
	}
	if err := u.finish(); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(hash.Sum(nil)), nil
}

func hostile(format string, args ...any) error {
	return leapcell.Errorf(leapcell.CodeUnprocessable, "a layer of the image is refused: "+format, args...)
}

// bounded stops at the end of ctx or of the bytes that are left.
type bounded struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.left <= 0 {
		return 0, hostile("it is larger than allowed")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// decompress looks at the first bytes, which are surer than media types.
func decompress(r *bufio.Reader) (io.Reader, func(), error) {
	magic, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return r, func() {}, nil
}

// unpacker writes entries. All names go through an os.Root, which no link leads out of.
type unpacker struct {
	root    *os.Root
	limits  Limits
	entries int
	bytes   int64
	dirs    map[string]time.Time // set at the end: writing into a folder changes its time

	// The folder of the last entry, kept open: entries come folder by folder.
	lastName string
	last     *os.Root
}

func (u *unpacker) unpack(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return u.damaged(err)
		}
		if u.entries++; u.entries > u.limits.Entries {
			return hostile("it has more than %d entries", u.limits.Entries)
		}
		if err := u.entry(h, r); err != nil {
			return u.damaged(fmt.Errorf("unpack %q: %w", h.Name, err))
		}
	}
}

// damaged tells errors of the layer from those of the disk.
func (u *unpacker) damaged(err error) error {
	var known *leapcell.Error
	var errno unix.Errno
	switch {
	case errors.As(err, &known), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &errno) && (errno == unix.ENOSPC || errno == unix.EDQUOT || errno == unix.EIO || errno == unix.EROFS || errno == unix.EMFILE):
		return err
	}
	return leapcell.Wrap(leapcell.CodeUnprocessable, err, "a layer of the image cannot be unpacked")
}

// clean gives the name inside the layer, "." for its root.
func clean(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", hostile("a name has a zero byte")
	}
	c := path.Clean(strings.TrimLeft(name, "/"))
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", hostile("the name %q leads out of it", name)
	}
	return c, nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeChar, tar.TypeBlock:
		if name == "dev" || strings.HasPrefix(name, "dev/") {
			return nil // a cell has its own /dev over it
		}
		return hostile("%q is a device", name)
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return hostile("its root is not a folder")
		}
		return u.attributes(u.root, ".", name, h)
	}
	parent, err := u.folder(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(parent, base)
	}
	opaque, err := u.makeWay(parent, base, h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.mkdir(parent, base, name, h, opaque)
	case tar.TypeReg:
		return u.file(parent, base, h, content)
	case tar.TypeSymlink:
		if err := parent.Symlink(h.Linkname, base); err != nil {
			return err
		}
		return parent.Lchown(base, h.Uid, h.Gid)
	case tar.TypeLink:
		target, err := clean(h.Linkname)
		if err != nil {
			return err
		}
		return u.root.Link(target, name)
	case tar.TypeFifo:
		if err := mknod(parent, base, unix.S_IFIFO); err != nil {
			return err
		}
		return u.attributes(parent, base, name, h)
	}
	return hostile("%q is of an unknown kind", name)
}

// folder opens a folder of the layer, making it when a layer names only what is in it.
func (u *unpacker) folder(name string) (*os.Root, error) {
	if name == "." {
		return u.root, nil
	}
	if u.last != nil && u.lastName == name {
		return u.last, nil
	}
	u.forget()
	if err := u.root.MkdirAll(name, 0o755); err != nil {
		return nil, err
	}
	dir, err := u.root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	u.lastName, u.last = name, dir
	return dir, nil
}

func (u *unpacker) forget() {
	if u.last != nil {
		u.last.Close()
		u.last = nil
	}
}

// makeWay removes what an earlier entry put there, but not a folder for a folder. It reports
// whether that was a whiteout: then a folder in its place hides those below.
func (u *unpacker) makeWay(parent *os.Root, base string, forFolder bool) (wasWhiteout bool, err error) {
	info, err := parent.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || info.IsDir() && forFolder {
		return false, err
	}
	wasWhiteout = info.Mode()&fs.ModeCharDevice != 0
	return wasWhiteout, parent.RemoveAll(base)
}

// whiteout hides what lower layers have. The order of entries does not matter: what this
// layer itself has of that name stays.
func (u *unpacker) whiteout(parent *os.Root, base string) error {
	if base == whiteoutOpaque {
		return setXattr(parent, ".", opaqueXattr, []byte("y"))
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // another file system's notes
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return hostile("the whiteout %q names nothing", base)
	}
	info, err := parent.Lstat(hidden)
	if errors.Is(err, fs.ErrNotExist) {
		return mknod(parent, hidden, unix.S_IFCHR)
	}
	if err == nil && info.IsDir() {
		return setXattr(parent, hidden, opaqueXattr, []byte("y"))
	}
	return err
}

func (u *unpacker) mkdir(parent *os.Root, base, name string, h *tar.Header, opaque bool) error {
	if err := parent.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if opaque {
		if err := setXattr(parent, base, opaqueXattr, []byte("y")); err != nil {
			return err
		}
	}
	return u.attributes(parent, base, name, h)
}

func (u *unpacker) file(parent *os.Root, base string, h *tar.Header, content io.Reader) error {
	if u.bytes += h.Size; u.bytes > u.limits.Bytes {
		return hostile("it is larger than %d MB", u.limits.Bytes>>20)
	}
	f, err := parent.OpenFile(base, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err == nil {
		err = dress(f, h)
	}
	return errors.Join(err, f.Close())
}

// attributes are those of folders and pipes, which are opened by name.
func (u *unpacker) attributes(parent *os.Root, base, name string, h *tar.Header) error {
	f, err := parent.OpenFile(base, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if h.Typeflag == tar.TypeDir {
		u.dirs[name] = h.ModTime
	}
	return dress(f, h)
}

// dress gives a file its owner, mode, extended attributes and time. The owner comes first:
// changing it takes setuid bits and capabilities away.
func dress(f *os.File, h *tar.Header) error {
	fd := int(f.Fd())
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		// Only what programs mean for programs; trusted.overlay.* above all is ours.
		if !ok || attr != "security.capability" && !strings.HasPrefix(attr, "user.") {
			continue
		}
		if err := unix.Fsetxattr(fd, attr, []byte(value), 0); err != nil && err != unix.ENOTSUP {
			return fmt.Errorf("set %s: %w", attr, err)
		}
	}
	return setTime(fd, h.ModTime)
}

func setTime(fd int, t time.Time) error {
	if t.Unix() < 0 || t.Unix() > 1<<33 {
		t = time.Unix(0, 0)
	}
	tv := unix.NsecToTimeval(t.UnixNano())
	return unix.Futimes(fd, []unix.Timeval{tv, tv})
}

// finish sets the times of folders.
func (u *unpacker) finish() error {
	for name, t := range u.dirs {
		f, err := u.root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // replaced by something else later on
		}
		err = setTime(int(f.Fd()), t)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// mknod makes a pipe, or a whiteout: a character device 0:0.
func mknod(parent *os.Root, base string, kind uint32) error {
	dir, err := parent.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Mknodat(int(dir.Fd()), base, kind|0o600, 0)
}

func setXattr(parent *os.Root, base, attr string, value []byte) error {
	f, err := parent.OpenFile(base, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fsetxattr(int(f.Fd()), attr, value, 0)
}
