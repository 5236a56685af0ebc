package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strings"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/leapcell/leapcell"
)

const (
	maxPath       = 4096 // bytes of a name, and of what a symlink leads to
	maxModules    = 50   // repositories of one source, with their submodules
	maxModuleDeep = 5    // submodules of submodules
	maxGitModules = 256 << 10
)

// place is where a repository's tree lies in the source.
type place struct {
	url    *url.URL
	prefix string // "" or "vendor/lib/"
	deep   int
}

// read lists the tracked files of a commit, with those of its submodules and large files.
func (c *checkout) read(ctx context.Context, repo *git.Repository, commit *object.Commit, at place) error {
	top, err := commit.Tree()
	if err != nil {
		return unreadable(err)
	}
	l := listing{c: c, repo: repo, at: at}
	if err := l.walk(ctx, top); err != nil {
		return err
	}
	if l.largeFiles {
		if err := c.resolveLFS(ctx, at, l.small); err != nil {
			return err
		}
	}
	return c.readModules(ctx, top, at, l.modules)
}

func unreadable(err error) error {
	return leapcell.Wrap(leapcell.CodeUnprocessable, err, "the commit's tree could not be read: "+oneLine(err.Error(), 200))
}

// listing is what is found in one repository.
type listing struct {
	c          *checkout
	repo       *git.Repository
	at         place
	seen       int
	largeFiles bool     // some .gitattributes speaks of them
	small      []string // names of files that may stand for large ones
	modules    map[string]plumbing.Hash
}

func (l *listing) walk(ctx context.Context, top *object.Tree) error {
	walker := object.NewTreeWalker(top, true, nil)
	defer walker.Close()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		raw, item, err := walker.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return unreadable(err)
		}
		// Folders count too: a few objects can make a tree without end.
		if l.seen++; l.seen > 4*l.c.store.cfg.MaxFiles {
			return leapcell.Errorf(leapcell.CodeTooLarge, "the source has more than %d files and folders", 4*l.c.store.cfg.MaxFiles)
		}
		if len(raw) > maxPath {
			return refused(raw[:60]+"…", "its path is too long")
		}
		if err := l.take(raw, item); err != nil {
			return err
		}
	}
}

// take puts one entry of the repository's tree into the source's.
func (l *listing) take(raw string, item object.TreeEntry) error {
	name, err := cleanName(l.at.prefix + raw)
	if err != nil {
		return err
	}
	switch {
	case name == "" || item.Mode == filemode.Dir:
		return nil
	case item.Mode == filemode.Submodule:
		if l.modules == nil {
			l.modules = map[string]plumbing.Hash{}
		}
		l.modules[raw] = item.Hash
		return nil
	}
	size, err := l.repo.Storer.EncodedObjectSize(item.Hash)
	if err != nil {
		return leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("%q could not be read from the repository", name))
	}
	if size > l.c.store.cfg.MaxFile {
		return leapcell.Errorf(leapcell.CodeTooLarge, "%q in the source is refused: it is over the limit of %s for one file", name, megabytes(l.c.store.cfg.MaxFile))
	}
	e, err := l.entry(name, item, size)
	if err != nil {
		return err
	}
	if path.Base(raw) == ".gitattributes" && !l.largeFiles {
		if l.largeFiles, err = mentionsLFS(e); err != nil {
			return err
		}
	}
	if size <= maxPointer && e.kind != symlink {
		l.small = append(l.small, name)
	}
	return l.c.t.add(e)
}

func (l *listing) entry(name string, item object.TreeEntry, size int64) (entry, error) {
	open := func() (io.ReadCloser, error) {
		blob, err := l.repo.BlobObject(item.Hash)
		if err != nil {
			return nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("%q could not be read from the repository", name))
		}
		return blob.Reader()
	}
	e := entry{name: name, kind: regular, size: size, open: open}
	switch item.Mode {
	case filemode.Executable:
		e.kind = executable
	case filemode.Symlink:
		if size > maxPath {
			return entry{}, refused(name, "it is a link to a path that is too long")
		}
		target, err := readSmall(e)
		if err != nil {
			return entry{}, err
		}
		e.kind, e.link, e.size, e.open = symlink, string(target), 0, nil
	}
	return e, nil
}

// readSmall is the content of a file that is known to be small.
func readSmall(e entry) ([]byte, error) {
	in, err := e.open()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, e.size))
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("%q could not be read from the repository", e.name))
	}
	return b, nil
}

// readModules fetches the submodules that are needed, each at its commit.
func (c *checkout) readModules(ctx context.Context, top *object.Tree, at place, modules map[string]plumbing.Hash) error {
	if len(modules) == 0 {
		return nil
	}
	known, err := gitModules(top)
	if err != nil {
		return err
	}
	for raw, commit := range modules {
		prefix := at.prefix + raw + "/"
		if !c.needs(prefix) {
			continue
		}
		if at.deep >= maxModuleDeep || c.modules >= maxModules {
			return leapcell.Errorf(leapcell.CodeTooLarge, "the source has more than %d submodules, or more than %d within each other", maxModules, maxModuleDeep)
		}
		from, ok := known[raw]
		if !ok {
			return leapcell.Errorf(leapcell.CodeUnprocessable, "the submodule %q has no address in .gitmodules", at.prefix+raw)
		}
		u, err := c.moduleURL(at.url, from)
		if err != nil {
			return leapcell.Errorf(leapcell.ErrorCode(err), "the submodule %q: %s", at.prefix+raw, leapcell.ErrorMessage(err))
		}
		src := leapcell.Source{GitURL: u.String(), Commit: commit.String()}
		c.progress("submodule " + oneLine(at.prefix+raw, maxSubject) + " at " + commit.String()[:12])
		repo, found, err := c.clone(ctx, src)
		if err != nil {
			return leapcell.Wrap(leapcell.ErrorCode(err), err, fmt.Sprintf("the submodule %q: %s", at.prefix+raw, leapcell.ErrorMessage(err)))
		}
		if err := c.read(ctx, repo, found, place{url: u, prefix: prefix, deep: at.deep + 1}); err != nil {
			return err
		}
	}
	return nil
}

// needs reports whether something below prefix is deployed.
func (c *checkout) needs(prefix string) bool {
	return c.root == "" || strings.HasPrefix(prefix, c.root+"/") || strings.HasPrefix(c.root+"/", prefix)
}

// gitModules gives the address of each submodule by its path.
func gitModules(top *object.Tree) (map[string]string, error) {
	file, err := top.File(".gitmodules")
	if errors.Is(err, object.ErrFileNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(err)
	}
	if file.Size > maxGitModules {
		return nil, leapcell.Errorf(leapcell.CodeTooLarge, ".gitmodules is over %d KB", maxGitModules>>10)
	}
	text, err := file.Contents()
	if err != nil {
		return nil, unreadable(err)
	}
	return parseModules([]byte(text))
}

func parseModules(b []byte) (map[string]string, error) {
	m := config.NewModules()
	if err := m.Unmarshal(b); err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, ".gitmodules cannot be read: "+oneLine(err.Error(), 200))
	}
	out := make(map[string]string, len(m.Submodules))
	for _, sub := range m.Submodules {
		out[path.Clean(sub.Path)] = sub.URL
	}
	return out, nil
}

// moduleURL is where a submodule is that the repository at parent says to be at raw. What a
// stranger wrote must not lead to this machine's files, nor from https to a plain connection.
func (c *checkout) moduleURL(parent *url.URL, raw string) (*url.URL, error) {
	if strings.HasPrefix(raw, "./") || strings.HasPrefix(raw, "../") {
		u := *parent
		u.Path = path.Join(parent.Path, raw)
		raw = u.String()
	}
	raw = CleanURL(raw)
	if err := c.store.checkURL(raw); err != nil {
		return nil, err
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "file" && parent.Scheme != "file" || u.Scheme == "http" && parent.Scheme != "http" {
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "a repository at %s:// cannot have one at %s://", parent.Scheme, u.Scheme)
	}
	return u, nil
}
