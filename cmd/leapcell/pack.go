package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/platform"
)

// packed says what went into an archive.
type packed struct {
	Files int
	Bytes int64 // before compression
}

// pack writes the folder as tar.gz, without what .gitignore and .dockerignore leave out,
// without .git and without a platform's state folder.
func pack(dir string, w io.Writer) (packed, error) {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return packed{}, leapcell.Errorf(leapcell.CodeInvalid, "there is no folder %s", dir)
	}
	if err != nil {
		return packed{}, fmt.Errorf("reading %s: %w", dir, err)
	}
	if !info.IsDir() {
		return packed{}, leapcell.Errorf(leapcell.CodeInvalid, "%s is not a folder", dir)
	}
	gz, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return packed{}, err
	}
	p := &packer{root: dir, tar: tar.NewWriter(gz), ignore: newIgnore(dir)}
	if err := p.folder(""); err != nil {
		return packed{}, fmt.Errorf("packing %s: %w", dir, err)
	}
	if err := errors.Join(p.tar.Close(), gz.Close()); err != nil {
		return packed{}, fmt.Errorf("packing %s: %w", dir, err)
	}
	if p.sum.Files == 0 {
		return packed{}, leapcell.Errorf(leapcell.CodeInvalid, "there is nothing to deploy in %s: it is empty, or .gitignore and .dockerignore leave everything out", dir)
	}
	return p.sum, nil
}

type packer struct {
	root   string
	tar    *tar.Writer
	ignore *ignore
	sum    packed
}

// folder adds what is in one folder; rel is "" or its slash-separated path in the tree.
func (p *packer) folder(rel string) error {
	if err := p.ignore.enter(rel); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(p.root, filepath.FromSlash(rel)))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := e.Name()
		if rel != "" {
			path = rel + "/" + e.Name()
		}
		if e.Name() == ".git" || p.isState(path, e) {
			continue
		}
		ignored := p.ignore.match(path, e.IsDir())
		switch {
		case e.IsDir() && ignored && !p.ignore.mayInclude(path):
		case e.IsDir():
			err = p.folder(path)
		case !ignored:
			err = p.file(path, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isState tells a platform's folder from one that merely has the name.
func (p *packer) isState(path string, e fs.DirEntry) bool {
	if !e.IsDir() || e.Name() != platform.DefaultStateDir {
		return false
	}
	_, err := os.Stat(filepath.Join(p.root, path, "config.json"))
	return err == nil
}

func (p *packer) file(rel string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	path := filepath.Join(p.root, filepath.FromSlash(rel))
	target := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	case !info.Mode().IsRegular():
		return nil // sockets, pipes and devices are nobody's source
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname = rel, 0, 0, "", ""
	// When it was read last is not part of it: the same folder must give the same archive, so that
	// its upload goes on where it was interrupted.
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Format = tar.FormatPAX
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	p.sum.Files++
	if target != "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.CopyN(p.tar, f, info.Size())
	p.sum.Bytes += n
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s became shorter while it was read", rel)
	}
	return err
}

// serviceNameOf makes a service name of a folder's or repository's.
func serviceNameOf(path string) string {
	base := strings.TrimSuffix(filepath.Base(strings.TrimRight(path, "/")), ".git")
	var b strings.Builder
	for _, r := range strings.ToLower(base) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if n := b.String(); n != "" && !strings.HasSuffix(n, "-") {
			b.WriteByte('-')
		}
	}
	name := strings.TrimLeft(b.String(), "0123456789-")
	return strings.TrimRight(name[:min(len(name), 32)], "-")
}
