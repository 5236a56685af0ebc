package source

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/leapcell/leapcell"
)

// readUpload reads the tree of an upload. The entries read from a decompressed copy that
// the caller closes when they are no longer needed.
func (s *Store) readUpload(ctx context.Context, sum string) (*tree, *os.File, error) {
	in, err := os.Open(s.uploadPath(sum))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, leapcell.Wrap(leapcell.CodeNotFound, err, "the uploaded source is no longer there: deploy again")
	}
	if err != nil {
		return nil, nil, diskError(err, "the uploaded source could not be read")
	}
	defer in.Close()
	plain, err := s.decompress(ctx, in)
	if err != nil {
		return nil, nil, err
	}
	t, err := readTar(plain, s.cfg)
	if err != nil {
		plain.Close()
		return nil, nil, err
	}
	return t, plain, nil
}

// decompress copies in to an unnamed file, so that entries can be read in any order.
func (s *Store) decompress(ctx context.Context, in io.Reader) (*os.File, error) {
	out, err := os.CreateTemp(s.workDir(), "tar-")
	if err != nil {
		return nil, diskError(err, "the source could not be unpacked")
	}
	os.Remove(out.Name()) // the open file stays; a kill leaves nothing behind
	// Headers and padding are at most 1 KB a file on top of the content, and names a bit more.
	limit := s.cfg.MaxUnpacked + int64(s.cfg.MaxFiles)*4096
	if err := gunzip(ctx, in, out, limit); err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

func gunzip(ctx context.Context, in io.Reader, out io.Writer, limit int64) error {
	z, err := gzip.NewReader(contextReader{ctx, in})
	if err != nil {
		return leapcell.Wrap(leapcell.CodeInvalid, err, "the upload is not a tar.gz archive")
	}
	n, err := io.Copy(out, io.LimitReader(z, limit+1))
	var path *fs.PathError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &path): // of the file written to
		return diskError(err, "the source could not be unpacked")
	case err != nil:
		return leapcell.Wrap(leapcell.CodeInvalid, err, "the upload is cut short or damaged")
	case n > limit:
		return leapcell.Errorf(leapcell.CodeTooLarge, "the source is over the limit of %s when unpacked", megabytes(limit))
	}
	return nil
}

// readTar indexes the entries of a tar. in must not be closed before the entries are read.
func readTar(in io.ReaderAt, cfg Config) (*tree, error) {
	at := &position{r: in}
	archive := tar.NewReader(at)
	t := newTree(cfg)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return nil, leapcell.Wrap(leapcell.CodeInvalid, err, "the upload is not a tar.gz archive, or it is damaged")
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return nil, err
		}
		if name == "" {
			continue
		}
		e, err := t.fromTar(name, h, in, at.offset)
		if err != nil {
			return nil, err
		}
		if err := t.add(e); err != nil {
			return nil, err
		}
	}
}

// fromTar is the entry of h, whose content starts at offset.
func (t *tree) fromTar(name string, h *tar.Header, in io.ReaderAt, offset int64) (entry, error) {
	e := entry{name: name}
	switch h.Typeflag {
	case tar.TypeReg:
		if isSparse(h) {
			return entry{}, refused(name, "it is stored as a sparse file; make the archive without that")
		}
		e.kind, e.size = regular, h.Size
		if h.Mode&0o111 != 0 {
			e.kind = executable
		}
		e.open = func() (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(in, offset, h.Size)), nil
		}
	case tar.TypeDir:
		e.kind = folder
	case tar.TypeSymlink:
		e.kind, e.link = symlink, h.Linkname
	case tar.TypeLink:
		return t.hardLink(name, h.Linkname)
	default:
		return entry{}, refused(name, "it is a "+typeName(h.Typeflag)+"; only files, folders and links can be deployed")
	}
	return e, nil
}

// hardLink copies what was linked to: links within the tree are a matter of saving space.
func (t *tree) hardLink(name, to string) (entry, error) {
	target, err := cleanName(to)
	if err != nil {
		return entry{}, refused(name, "it is a hard link to "+to+", outside of the source")
	}
	e, ok := t.entries[target]
	if !ok || e.open == nil {
		return entry{}, refused(name, "it is a hard link to "+to+", which is no file in the source")
	}
	e.name = name
	return e, nil
}

func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func typeName(flag byte) string {
	switch flag {
	case tar.TypeChar, tar.TypeBlock:
		return "device"
	case tar.TypeFifo:
		return "named pipe"
	case tar.TypeGNUSparse:
		return "sparse file"
	}
	return "special file"
}

// position reads on and knows where it is.
type position struct {
	r      io.ReaderAt
	offset int64
}

func (p *position) Read(b []byte) (int, error) {
	n, err := p.r.ReadAt(b, p.offset)
	p.offset += int64(n)
	return n, err
}

// Seek lets the tar reader skip content.
func (p *position) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		p.offset = offset
	case io.SeekCurrent:
		p.offset += offset
	default:
		return 0, errors.ErrUnsupported
	}
	return p.offset, nil
}
