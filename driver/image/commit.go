package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Result is what a build left and how it is to be run.
type Result struct {
	Upper   string   // the upper folder of [Store.MountWritable], unmounted
	Exclude []string // absolute paths inside the image that do not go into the layer
	Cmd     []string
	WorkDir string   // what the build left there is given to the app's user; "" keeps that of the base
	Env     []string // nil keeps that of the base
	// Run is a smaller image, by digest, for the result to stand on instead of the base: it can
	// where the build changed nothing outside of WorkDir. The base's last layer is the source,
	// and goes along.
	Run string
	// Modified is the time of all files, so that the same files give the same digest whenever
	// they were made; zero keeps their own.
	Modified time.Time
	MaxBytes int64 // of the whole; 0 is no limit
}

// excluded never goes into a layer: what a cell mounts over, and what builds leave behind of no
// use (the lists and caches of one `apt-get update` are over 150 MB).
var excluded = []string{
	"dev", "proc", "run", "sys", "tmp", "etc/hostname", "etc/hosts", "etc/resolv.conf", "var/cache/apt", "var/lib/apt/lists",
	"var/cache/ldconfig", "var/log/alternatives.log", "var/log/apt", "var/log/dpkg.log", // which say when
}

// Commit makes r a layer on base and pushes the whole as output. The layer is not compressed, and
// is read from disk twice instead of being copied: once for its digest, once for the registry. The
// same files give the same digest. size is that of all layers. progress is told the phases.
func (s *Store) Commit(ctx context.Context, base *Image, r Result, output string, progress func(phase leapcell.State, text string)) (digest string, size int64, err error) {
	if progress == nil {
		progress = func(leapcell.State, string) {}
	}
	to, err := name.NewTag(output, s.nameOptions(output)...)
	if err != nil {
		return "", 0, leapcell.Errorf(leapcell.CodeInvalid, "image %q: registry/repository:tag is needed", output)
	}
	if r.WorkDir == "" {
		r.WorkDir = base.WorkDir
	}
	progress(leapcell.Packaging, "collecting what the build wrote")
	layer, err := newLayer(ctx, r)
	if err != nil {
		return "", 0, s.plain(fmt.Errorf("package what the build wrote: %w", err))
	}
	progress(leapcell.Packaging, fmt.Sprintf("%d files, %.1f MB", layer.entries, float64(layer.size)/1e6))
	if r.Run != "" {
		if layer.outside != "" {
			r.Run = ""
			progress(leapcell.Packaging, "instances get the whole build system, since the build changed "+layer.outside)
		} else {
			progress(leapcell.Packaging, "instances stand on the small run system: the build changed nothing outside of "+r.WorkDir)
		}
	}
	from, err := s.link(registryOf(base.Ref))
	if err != nil {
		return "", 0, err
	}
	defer from.Close()
	img, err := s.compose(ctx, from, base, r, layer)
	if err != nil {
		return "", 0, s.explain(err, base.Ref)
	}
	hash, err := img.Digest()
	if err != nil {
		return "", 0, err
	}
	if size, err = sizeOf(img); err != nil {
		return "", 0, s.explain(err, base.Ref)
	}
	if r.MaxBytes > 0 && size > r.MaxBytes {
		return "", 0, leapcell.Errorf(leapcell.CodeTooLarge, "the image has %d MB with its base, over the limit of %d MB", size>>20, r.MaxBytes>>20)
	}
	progress(leapcell.Publishing, "to "+to.Name())
	there, err := s.link(to.RegistryStr())
	if err != nil {
		return "", 0, err
	}
	defer there.Close()
	if err := s.patiently(ctx, func() error { return remote.Write(to, img, there.options(ctx)...) }); err != nil {
		return "", 0, s.explain(err, output)
	}
	progress(leapcell.Publishing, fmt.Sprintf("%s, %.1f MB with its base", hash, float64(size)/1e6))
	return hash.String(), size, nil
}

// sizeOf is that of all layers as they are transferred.
func sizeOf(img v1.Image) (size int64, err error) {
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return 0, err
		}
		size += n
	}
	return size, nil
}

// compose is the base as its registry has it, or the run image with the source, with the layer
// and the configuration on top.
func (s *Store) compose(ctx context.Context, from *link, base *Image, r Result, layer *upperLayer) (v1.Image, error) {
	img, err := s.remote(ctx, from, base.Ref)
	if err != nil {
		return nil, err
	}
	if r.Run != "" {
		if img, err = s.slim(ctx, from, img, r.Run); err != nil {
			return nil, err
		}
	}
	img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{Layer: layer, MediaType: types.OCIUncompressedLayer, History: v1.History{CreatedBy: "leapcell build"}})
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Created = v1.Time{} // the same build gives the same image
	file.Config.WorkingDir = r.WorkDir
	if r.Cmd != nil {
		file.Config.Cmd, file.Config.Entrypoint = r.Cmd, nil
	}
	if r.Env != nil {
		file.Config.Env = r.Env
	}
	return mutate.ConfigFile(img, file)
}

func (s *Store) remote(ctx context.Context, from *link, reference string) (v1.Image, error) {
	ref, err := name.NewDigest(reference, s.nameOptions(reference)...)
	if err != nil {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "image %q: registry/repository@sha256:… is needed", reference)
	}
	return remote.Image(ref, append(from.options(ctx), remote.WithPlatform(platform))...)
}

// slim is the run image with the source of a build on it. It says so, as the build image does of its own base.
func (s *Store) slim(ctx context.Context, from *link, source v1.Image, run string) (v1.Image, error) {
	img, err := s.remote(ctx, from, run)
	if err != nil {
		return nil, err
	}
	layers, err := source.Layers()
	if err != nil {
		return nil, err
	}
	if len(layers) == 0 {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "the image that was built in has no layers")
	}
	last := layers[len(layers)-1]
	media, err := last.MediaType()
	if err != nil {
		return nil, err
	}
	img, err = mutate.Append(img, mutate.Addendum{Layer: last, MediaType: media, History: v1.History{CreatedBy: "leapcell source"}})
	if err != nil {
		return nil, err
	}
	digest, _ := digestOf(run)
	return mutate.Annotations(img, map[string]string{leapcell.BaseDigestAnnotation: digest}).(v1.Image), nil
}

// upperLayer is an upper folder as an uncompressed layer. It implements [v1.Layer].
type upperLayer struct {
	ctx     context.Context
	result  Result
	skip    []string // cleaned, without leading slash
	hash    v1.Hash
	size    int64
	entries int
	outside string // a path that instances would miss if they had WorkDir alone; "" for none
}

// newLayer reads the upper folder once for digest and size.
func newLayer(ctx context.Context, r Result) (*upperLayer, error) {
	l := &upperLayer{ctx: ctx, result: r, skip: slices.Clone(excluded)}
	for _, e := range r.Exclude {
		c, err := clean(strings.TrimLeft(e, "/"))
		if err != nil {
			return nil, err
		}
		if c != "." {
			l.skip = append(l.skip, c)
		}
	}
	hash := sha256.New()
	counted := &counter{w: hash}
	entries, err := l.write(counted)
	if err != nil {
		return nil, err
	}
	l.hash = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(hash.Sum(nil))}
	l.size, l.entries = counted.n, entries
	return l, nil
}

// beside is the path of an entry which is more than WorkDir and the folders on the way to it or to what
// is left out, else what outside is.
func (l *upperLayer) beside(rel string, dir bool) string {
	within := strings.TrimPrefix(path.Clean("/"+l.result.WorkDir), "/")
	onTheWay := func(to string) bool { return strings.HasPrefix(to, rel+"/") }
	switch {
	case within == "" || rel == within || strings.HasPrefix(rel, within+"/"):
	case !dir:
		return "/" + rel
	case !onTheWay(within) && !slices.ContainsFunc(l.skip, onTheWay):
		return "/" + rel + "/"
	}
	return l.outside
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (l *upperLayer) Digest() (v1.Hash, error)            { return l.hash, nil }
func (l *upperLayer) DiffID() (v1.Hash, error)            { return l.hash, nil }
func (l *upperLayer) Size() (int64, error)                { return l.size, nil }
func (l *upperLayer) MediaType() (types.MediaType, error) { return types.OCIUncompressedLayer, nil }
func (l *upperLayer) Uncompressed() (io.ReadCloser, error) {
	return l.Compressed()
}

// Compressed streams the layer. Closing early ends the reading.
func (l *upperLayer) Compressed() (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() {
		_, err := l.write(w)
		w.CloseWithError(err)
	}()
	return r, nil
}

// links remembers files with several names, by device and inode.
type links map[[2]uint64]string

// write writes the layer as a tar archive, names in lexical order.
func (l *upperLayer) write(w io.Writer) (entries int, err error) {
	out := tar.NewWriter(w)
	seen := links{}
	err = filepath.WalkDir(l.result.Upper, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := l.ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(l.result.Upper, file)
		if err != nil {
			return err
		}
		if rel == "." {
			return nil
		}
		if slices.Contains(l.skip, rel) || rel == home && isPrivate(d) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if l.outside == "" || strings.HasSuffix(l.outside, "/") { // a file says more than its folder
			l.outside = l.beside(rel, d.IsDir())
		}
		n, err := l.entry(out, file, rel, seen)
		entries += n
		return err
	})
	return entries, errors.Join(err, out.Close())
}

// home is that of root, who builds. Instances cannot look into it.
const home = "root"

// isPrivate reports whether only its owner may enter a folder.
func isPrivate(d fs.DirEntry) bool {
	info, err := d.Info()
	return err == nil && d.IsDir() && info.Mode().Perm()&0o077 == 0
}

// entry writes one file of the upper folder; it gives the number of entries that it became.
func (l *upperLayer) entry(out *tar.Writer, file, rel string, seen links) (int, error) {
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		return 0, fmt.Errorf("read %s: %w", rel, err)
	}
	h := &tar.Header{Name: rel, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Sec, 0)}
	if !l.result.Modified.IsZero() {
		h.ModTime = l.result.Modified
	}
	l.giveToApp(h)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return l.folder(out, h, file)
	case unix.S_IFCHR:
		if st.Rdev != 0 {
			return 0, nil
		}
		dir, base := path.Split(rel)
		return 1, out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base, Mode: 0o600, ModTime: time.Unix(0, 0)})
	case unix.S_IFLNK:
		target, err := os.Readlink(file)
		if err != nil {
			return 0, err
		}
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, target, 0o777
		return 1, out.WriteHeader(h)
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		return 1, out.WriteHeader(h)
	case unix.S_IFREG:
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := seen[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return 1, out.WriteHeader(h)
		}
		if st.Nlink > 1 {
			seen[id] = rel
		}
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		return 1, l.content(out, h, file)
	}
	return 0, nil // sockets mean nothing without their process
}

// giveToApp makes the app's user the owner of what is in the working directory: builds run as root,
// often with files that only their owner may read.
func (l *upperLayer) giveToApp(h *tar.Header) {
	dir := strings.TrimPrefix(path.Clean("/"+l.result.WorkDir), "/")
	if dir != "" && (h.Name == dir || strings.HasPrefix(h.Name, dir+"/")) {
		h.Uid, h.Gid = leapcell.InstanceUID, leapcell.InstanceGID
	}
}

func (l *upperLayer) folder(out *tar.Writer, h *tar.Header, file string) (int, error) {
	h.Typeflag = tar.TypeDir
	h.Name += "/"
	if err := addXattrs(h, file); err != nil {
		return 0, err
	}
	if err := out.WriteHeader(h); err != nil {
		return 0, err
	}
	value := make([]byte, 8)
	n, err := unix.Lgetxattr(file, opaqueXattr, value)
	if err == unix.ENODATA || err == unix.ENOTSUP || err == nil && string(value[:n]) != "y" {
		return 1, nil
	}
	if err != nil {
		return 1, fmt.Errorf("read %s of %s: %w", opaqueXattr, h.Name, err)
	}
	return 2, out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: h.Name + whiteoutOpaque, Mode: 0o600, ModTime: time.Unix(0, 0)})
}

func (l *upperLayer) content(out *tar.Writer, h *tar.Header, file string) error {
	if err := addXattrs(h, file); err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	var in io.Reader = f
	if strings.HasSuffix(file, ".pyc") && !l.result.Modified.IsZero() {
		if in, err = l.compiled(f, file); err != nil {
			return err
		}
	}
	_, err = io.Copy(out, in)
	return err
}

// pycHeader is what stands before the code in a .pyc file: a magic number, flags, and, if the
// flags are 0, the time and the size of its source, by which Python sees whether it is current.
// (https://peps.python.org/pep-0552/)
const pycHeader = 16

// compiled gives the content of a compiled Python file with the time that its source has in the
// layer: else Python would compile it again at each start.
func (l *upperLayer) compiled(f *os.File, file string) (io.Reader, error) {
	head := make([]byte, pycHeader)
	n, err := io.ReadFull(f, head)
	whole := io.MultiReader(bytes.NewReader(head[:n]), f)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return whole, nil
	}
	if err != nil {
		return nil, err
	}
	dir, base := filepath.Split(file)
	stem, _, cached := strings.Cut(base, ".cpython-")
	if !cached {
		return whole, nil
	}
	source := filepath.Join(filepath.Dir(filepath.Clean(dir)), stem+".py")
	var st unix.Stat_t
	if binary.LittleEndian.Uint32(head[4:]) == 0 && unix.Lstat(source, &st) == nil && uint32(st.Mtim.Sec) == binary.LittleEndian.Uint32(head[8:]) {
		binary.LittleEndian.PutUint32(head[8:], uint32(l.result.Modified.Unix()))
	}
	return whole, nil
}

// addXattrs keeps the attributes that [Unpack] takes. The archive writer sorts them.
func addXattrs(h *tar.Header, file string) error {
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(file, list)
	if err == unix.ENOTSUP {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the attributes of %s: %w", h.Name, err)
	}
	for attr := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if !keptXattr(attr) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(file, attr, value)
		if err != nil {
			return fmt.Errorf("read %s of %s: %w", attr, h.Name, err)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+attr] = string(value[:n])
	}
	return nil
}
