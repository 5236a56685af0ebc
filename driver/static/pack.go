package static

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/front"
)

// limits bound what is packed.
type limits struct {
	files, entries int // entries are files and folders together, in one folder of the site
	file, all      int64
}

var contract = limits{files: front.MaxFiles, entries: 2 * front.MaxFiles, file: front.MaxFileBytes, all: front.MaxBytes}

// Packed is a front end ready to travel.
type Packed struct {
	Manifest *front.Manifest
	List     []byte // the manifest as it is stored
	Digest   string // of List
	Dir      string // of the contents, by their SHA-256
	Bytes    int64  // of the files as they were built
	// LeftOut says what was left out, a line for each kind.
	LeftOut []string
}

// one keeps the node's other work going: it packs one front end at a time.
var one sync.Mutex

// Pack packs what site says of the tree into the folder dir, which must be empty.
func Pack(ctx context.Context, tree fs.FS, site *front.Site, dir string) (*Packed, error) {
	return pack(ctx, tree, site, dir, contract)
}

func pack(ctx context.Context, tree fs.FS, site *front.Site, dir string, l limits) (*Packed, error) {
	one.Lock()
	defer one.Unlock()
	p := &packer{ctx: ctx, tree: tree, site: site, dir: dir, limits: l, taken: map[string]bool{}, known: map[string][]front.Encoded{}}
	for _, m := range site.Mounts {
		if err := p.mount(m); err != nil {
			return nil, err
		}
	}
	if len(p.files) == 0 {
		return nil, leapcell.Errorf(leapcell.CodeBuildFailed, "there are no files in %s after the build", site.Mounts[0].Folder)
	}
	out := &Packed{Dir: dir, Bytes: p.bytes, LeftOut: p.leftOut(), Manifest: &front.Manifest{
		Framework: site.Framework, Folder: site.Mounts[0].Folder, Whole: site.Whole, Fallback: site.Fallback, Files: p.files}}
	var err error
	out.List, out.Digest, err = out.Manifest.Bytes()
	return out, err
}

// packer is one packing.
type packer struct {
	ctx  context.Context
	tree fs.FS
	site *front.Site
	dir  string

	limits limits
	files  []front.File
	taken  map[string]bool // paths
	bytes  int64
	known  map[string][]front.Encoded // what was packed before, by SHA-256
	press  press

	links, odd, hidden, names skipped
}

// skipped counts what was left out for one reason.
type skipped struct {
	n     int
	first string
}

func (s *skipped) add(name string) {
	if s.n == 0 {
		s.first = name
	}
	s.n++
}

func (p *packer) leftOut() []string {
	var out []string
	for _, s := range []struct {
		skipped
		what string
	}{
		{p.links, "symbolic links"}, {p.odd, "entries that are no files"},
		{p.hidden, "hidden files and folders of tools"}, {p.names, "files whose names cannot be a path"},
	} {
		if s.n > 0 {
			out = append(out, fmt.Sprintf("%d %s, such as %q", s.n, s.what, s.first))
		}
	}
	return out
}

func (p *packer) mount(m front.Mount) error {
	err := front.Walk(p.tree, m.Folder, p.limits.entries, func(name string, d fs.DirEntry) error {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		switch {
		case private(d.Name()):
			p.hidden.add(name)
			return fs.SkipDir // of a file it means: no further with it
		case d.IsDir():
			return nil
		case d.Type()&fs.ModeSymlink != 0:
			p.links.add(name)
			return nil
		case !d.Type().IsRegular():
			p.odd.add(name)
			return nil
		}
		at := m.Prefix + name
		if !front.GoodPath(at) {
			p.names.add(name)
			return nil
		}
		if p.taken[at] {
			return nil
		}
		return p.file(m, name, at)
	})
	if errors.Is(err, front.ErrTooMany) {
		return p.tooMany(m.Folder)
	}
	return err
}

func (p *packer) tooMany(folder string) error {
	return leapcell.Errorf(leapcell.CodeTooLarge, "the front end in %s has more than %d files", folder, p.limits.files)
}

// private reports whether a name is none of the visitors' business: what tools keep beside the
// sources. ".well-known" is made for visitors. (RFC 8615)
func private(name string) bool {
	switch name {
	case ".well-known":
		return false
	case "node_modules", "leapcell.yaml", "leapcell.yml":
		return true
	}
	return strings.HasPrefix(name, ".")
}

func (p *packer) file(m front.Mount, name, at string) error {
	if len(p.files) == p.limits.files {
		return p.tooMany(m.Folder)
	}
	content, err := p.content(path.Join(m.Folder, name), at)
	if err != nil {
		return err
	}
	p.bytes += content.Size
	if p.bytes > p.limits.all {
		return leapcell.Errorf(leapcell.CodeTooLarge, "the front end in %s has more than %d MB", m.Folder, p.limits.all>>20)
	}
	p.taken[at] = true
	p.files = append(p.files, front.File{Path: at, Type: front.TypeOf(name), Immutable: p.site.Immutable(p.tree, m, name),
		Content: content, Encoded: p.known[content.SHA256]})
	return nil
}

// content stores what a file has, and what it has compressed.
func (p *packer) content(name, at string) (front.Content, error) {
	f, err := p.tree.Open(name)
	if err != nil {
		return front.Content{}, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return front.Content{}, fmt.Errorf("read %s: %w", name, err)
	}
	tooBig := leapcell.Errorf(leapcell.CodeTooLarge, "%s has more than %d MB: keep large files in an object store", at[1:], p.limits.file>>20)
	if info.Size() > p.limits.file {
		return front.Content{}, tooBig
	}
	in := io.LimitReader(f, p.limits.file+1) // whatever its size was said to be
	var c front.Content
	if info.Size() <= maxInMemory {
		c, err = p.small(in, front.Squeezes(front.TypeOf(name)))
	} else {
		c, err = p.large(in)
	}
	if err == nil && c.Size > p.limits.file {
		err = tooBig
	}
	return c, err
}

// large stores a content that is not kept in memory.
func (p *packer) large(in io.Reader) (front.Content, error) {
	out, err := os.CreateTemp(p.dir, ".new-*")
	if err != nil {
		return front.Content{}, err
	}
	defer os.Remove(out.Name())
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, sum), in)
	if err = errors.Join(err, out.Close()); err != nil {
		return front.Content{}, err
	}
	c := front.Content{SHA256: hex.EncodeToString(sum.Sum(nil)), Size: n}
	return c, os.Rename(out.Name(), filepath.Join(p.dir, c.SHA256))
}

// small stores a content, and what it becomes compressed, unless that was done before.
func (p *packer) small(in io.Reader, squeeze bool) (front.Content, error) {
	b, err := io.ReadAll(in)
	if err != nil {
		return front.Content{}, err
	}
	sum := sha256.Sum256(b)
	c := front.Content{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(b))}
	_, known := p.known[c.SHA256]
	if !known {
		p.known[c.SHA256] = nil
		if err := os.WriteFile(filepath.Join(p.dir, c.SHA256), b, 0o600); err != nil {
			return c, err
		}
	}
	if !squeeze || p.known[c.SHA256] != nil {
		return c, nil
	}
	p.known[c.SHA256], err = p.squeeze(b)
	return c, err
}
