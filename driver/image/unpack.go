package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Limits bound what one layer may unpack to.
type Limits struct {
	Bytes   int64 // of its files together
	Entries int   // files and folders
	// Ratio is how many bytes may come out of each byte that was transferred, over all. The first
	// Slack bytes are free, because an image may hold an empty database file.
	Ratio, Slack int64

	image *atomic.Int64 // bytes left for all layers of the image; nil without such a limit
}

// DefaultLimits are those of the largest image that the platform takes.
var DefaultLimits = Limits{Bytes: 10 << 30, Entries: 2_000_000, Ratio: 200, Slack: 256 << 20}

const (
	maxName    = 4096     // bytes of a path, as the kernel has it
	maxPart    = 255      // bytes between two slashes
	maxFolders = 64 << 20 // bytes of the names of all folders, which are kept in memory
	maxXattr   = 64 << 10 // bytes of a value, as the kernel has it
)

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
// the digest of the uncompressed layer. name is what errors call the layer.
//
// Layers are not trusted. Refused with [leapcell.CodeUnprocessable] and the entry's name is what would
// reach out of dir, absolute names, devices outside of /dev (a cell has its own there), whiteouts of
// nothing or with something in them, hard links to anything but a file of the same layer, owners and names that
// the kernel has not, and whatever goes over the limits. Taken are named pipes, setuid bits (cells
// have no_new_privs and read-only images are mounted nosuid), names in any encoding, and entries that
// replace earlier ones. Left out are the devices in /dev and extended attributes but user.* and
// security.capability.
func Unpack(ctx context.Context, name string, r io.Reader, dir string, limits Limits) (digest string, err error) {
	in := &source{ctx: ctx, r: r}
	u := &unpacker{layer: name, in: in, limits: limits, dirs: map[string]time.Time{}, buffer: make([]byte, 128<<10)}
	plain, closePlain, err := decompress(bufio.NewReaderSize(in, 64<<10))
	if err != nil {
		return "", u.judge(fmt.Errorf("it is not compressed as it says: %w", err))
	}
	defer closePlain()
	if u.root, err = os.OpenRoot(dir); err != nil {
		return "", err
	}
	defer u.root.Close()
	defer u.forget()
	hash := sha256.New()
	// Padding may follow the archive's end: it counts for the digest and for the limits.
	all := io.TeeReader(&bounded{u: u, r: plain, left: limits.Bytes + int64(limits.Entries)*2048}, hash)
	if err := u.unpack(tar.NewReader(all)); err != nil {
		return "", u.judge(err)
	}
	if _, err := io.CopyBuffer(io.Discard, all, u.buffer); err != nil {
		return "", u.judge(err)
	}
	if err := u.finish(); err != nil {
		return "", u.judge(err)
	}
	return "sha256:" + hex.EncodeToString(hash.Sum(nil)), nil
}

// refusal is an error about what a layer holds.
type refusal string

func (r refusal) Error() string { return string(r) }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

// source is what is transferred. It remembers why it broke off: that is no fault of the layer.
type source struct {
	ctx context.Context
	r   io.Reader
	n   atomic.Int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.n.Add(int64(n))
	if err != io.EOF {
		s.err = err
	}
	return n, err
}

// bounded reads the uncompressed layer up to the limits.
type bounded struct {
	u    *unpacker
	r    io.Reader
	left int64
	n    int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, refuse("it is larger than %d MB", b.u.limits.Bytes>>20)
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	b.n += int64(n)
	if tooDense := b.u.ratio(b.n); tooDense != nil {
		return n, tooDense
	}
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
	layer   string
	in      *source
	root    *os.Root
	limits  Limits
	entries int
	bytes   int64
	dirs    map[string]time.Time // set at the end: writing into a folder changes its time
	names   int                  // bytes of the keys of dirs
	buffer  []byte

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
			return err
		}
		if err := u.count(1); err != nil {
			return err
		}
		if err := u.entry(h, r); err != nil {
			return fmt.Errorf("entry %s: %w", quote(h.Name), err)
		}
	}
}

func (u *unpacker) count(n int) error {
	if u.entries += n; u.entries > u.limits.Entries {
		return refuse("it has more than %d entries", u.limits.Entries)
	}
	return nil
}

// ratio checks what came out of what was transferred.
func (u *unpacker) ratio(out int64) error {
	if limit := u.limits.Ratio; limit > 0 && out > u.limits.Slack && out/limit > u.in.n.Load() {
		return refuse("it unpacks to more than %d times its size", limit)
	}
	return nil
}

// grow counts what goes into files, of which holes have no counterpart in the archive.
func (u *unpacker) grow(n int64) error {
	if u.bytes += n; u.bytes > u.limits.Bytes {
		return refuse("its files have more than %d MB", u.limits.Bytes>>20)
	}
	if u.limits.image != nil && u.limits.image.Add(-n) < 0 {
		return refuse("the files of the image's layers have more than %d MB", u.limits.Bytes>>20)
	}
	return u.ratio(u.bytes)
}

// quote makes any name fit for a line of a log.
func quote(name string) string {
	if len(name) > 200 {
		return strconv.Quote(name[:200]) + "…"
	}
	return strconv.Quote(name)
}

// judge tells errors of the layer from those of the way and of the disk.
func (u *unpacker) judge(err error) error {
	var errno unix.Errno
	switch {
	case u.in.err != nil && !errors.As(err, new(refusal)):
		return u.in.err
	case isFull(err), errors.As(err, &errno) && (errno == unix.EIO || errno == unix.EROFS || errno == unix.EMFILE || errno == unix.ENFILE || errno == unix.ENOMEM):
		return err
	}
	return leapcell.Errorf(leapcell.CodeUnprocessable, "layer %s of the image is refused: %w", u.layer, err)
}

// clean gives the name inside the layer, "." for its root.
func clean(name string) (string, error) {
	switch {
	case len(name) > maxName:
		return "", refuse("its name is longer than %d bytes", maxName)
	case strings.ContainsRune(name, 0):
		return "", refuse("its name has a zero byte")
	case strings.HasPrefix(name, "/"):
		return "", refuse("its name is absolute")
	}
	c := path.Clean(name)
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", refuse("its name leads out of the layer")
	}
	for part := range strings.SplitSeq(c, "/") {
		if len(part) > maxPart {
			return "", refuse("a part of its name is longer than %d bytes", maxPart)
		}
	}
	if dir := path.Dir(c); strings.HasPrefix(dir, whiteoutPrefix) || strings.Contains(dir, "/"+whiteoutPrefix) {
		return "", refuse("it lies in a whiteout")
	}
	return c, nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	const lastID = 1<<32 - 2 // the one after it means "leave it"
	if h.Uid < 0 || h.Gid < 0 || h.Uid > lastID || h.Gid > lastID {
		return refuse("its owner is %d:%d", h.Uid, h.Gid)
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		if strings.HasPrefix(name, "dev/") {
			return nil
		}
		return refuse("it is a device")
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return refuse("it is the layer's root, but no folder")
		}
		return u.attributes(u.root, ".", name, h)
	}
	if h.Typeflag == tar.TypeLink {
		return u.hardLink(h, name)
	}
	parent, err := u.folder(path.Dir(name))
	if err != nil {
		return err
	}
	return u.make(parent, name, h, content)
}

// make puts an entry into its folder.
func (u *unpacker) make(parent *os.Root, name string, h *tar.Header, content io.Reader) error {
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
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(parent, base, h, content)
	case tar.TypeSymlink:
		if err := parent.Symlink(h.Linkname, base); err != nil {
			return err
		}
		return parent.Lchown(base, h.Uid, h.Gid)
	case tar.TypeFifo:
		if err := mknod(parent, base, unix.S_IFIFO); err != nil {
			return err
		}
		return u.attributes(parent, base, name, h)
	}
	return refuse("it is of the unknown kind %q", h.Typeflag)
}

// hardLink gives a file, link or pipe of the layer one more name. Archives name the target from
// the layer's root, some with a slash before it.
func (u *unpacker) hardLink(h *tar.Header, name string) error {
	target, err := clean(strings.TrimLeft(h.Linkname, "/"))
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
	}
	if strings.HasPrefix(path.Base(name), whiteoutPrefix) {
		return refuse("it is a whiteout, but a hard link")
	}
	info, err := u.root.Lstat(target)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
	}
	if info.IsDir() || info.Mode()&fs.ModeDevice != 0 {
		return refuse("it is a hard link to %s, which is a folder or a whiteout", quote(h.Linkname))
	}
	if target == name {
		return refuse("it is a hard link to itself")
	}
	parent, err := u.folder(path.Dir(name))
	if err != nil {
		return err
	}
	if _, err := u.makeWay(parent, path.Base(name), false); err != nil {
		return err
	}
	return u.root.Link(target, name)
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
	dir, err := u.root.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := u.count(1 + strings.Count(name, "/")); err != nil {
			return nil, err
		}
		if err := u.root.MkdirAll(name, 0o755); err != nil {
			return nil, err
		}
		dir, err = u.root.OpenRoot(name)
	}
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
		return refuse("the whiteout names nothing")
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
	f, err := parent.OpenFile(base, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	// Without the file's own way of copying, which takes a new buffer for each.
	_, err = io.CopyBuffer(&growing{u, f}, content, u.buffer)
	if err == nil {
		err = dress(f, h)
	}
	return errors.Join(err, f.Close())
}

// growing is a file that is being written within the limits.
type growing struct {
	u *unpacker
	f *os.File
}

func (g *growing) Write(p []byte) (int, error) {
	if err := g.u.grow(int64(len(p))); err != nil {
		return 0, err
	}
	return g.f.Write(p)
}

// attributes are those of folders and pipes, which are opened by name.
func (u *unpacker) attributes(parent *os.Root, base, name string, h *tar.Header) error {
	f, err := parent.OpenFile(base, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if h.Typeflag == tar.TypeDir {
		if _, known := u.dirs[name]; !known {
			u.names += len(name)
		}
		if u.names > maxFolders {
			return refuse("the names of the layer's folders are together longer than %d MB", maxFolders>>20)
		}
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
	if err := setXattrs(fd, h.PAXRecords); err != nil {
		return err
	}
	return setTime(fd, h.ModTime)
}

// setXattrs sets what programs mean for programs; trusted.overlay.* above all is ours.
func setXattrs(fd int, records map[string]string) error {
	total := 0
	for key, value := range records {
		attr, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !keptXattr(attr) {
			continue
		}
		if len(value) > maxXattr {
			return refuse("its attribute %s has more than %d KB", quote(attr), maxXattr>>10)
		}
		total += len(attr) + len(value)
		err := unix.Fsetxattr(fd, attr, []byte(value), 0)
		switch {
		case err == nil || err == unix.ENOTSUP:
		case total > 1<<10 && (err == unix.ENOSPC || err == unix.E2BIG || err == unix.ERANGE):
			// The same error as that of a full disk, but no room will be found for it.
			return refuse("its attributes are larger than this node's file system takes")
		default:
			return fmt.Errorf("set %s: %w", quote(attr), err)
		}
	}
	return nil
}

func keptXattr(attr string) bool {
	return attr == "security.capability" || strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.overlay.")
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
