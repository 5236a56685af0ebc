package source

import (
	"cmp"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/leapcell/leapcell"
)

// kind of an entry of a tree.
type kind int

const (
	regular kind = iota
	executable
	symlink
	folder
)

// entry is one file, link or folder of a tree, wherever the tree comes from.
type entry struct {
	name string // clean, slash-separated, relative to the top
	kind kind
	size int64
	link string // target of a symlink
	open func() (io.ReadCloser, error)
}

// tree collects the entries of a source and refuses what must not be in one.
type tree struct {
	maxFiles int
	maxBytes int64

	entries map[string]entry
	bytes   int64
}

func newTree(cfg Config) *tree {
	return &tree{maxFiles: cfg.MaxFiles, maxBytes: cfg.MaxUnpacked, entries: map[string]entry{}}
}

// cleanName makes the name of an archive's entry relative to the top of the tree. It is ""
// for the top itself and for what belongs to git.
func cleanName(raw string) (string, error) {
	if strings.ContainsRune(raw, 0) || path.IsAbs(raw) {
		return "", refused(raw, "its path is absolute")
	}
	if slices.Contains(strings.Split(raw, "/"), "..") {
		return "", refused(raw, "its path climbs with ..")
	}
	name := path.Clean(raw)
	if name == "." || slices.Contains(strings.Split(name, "/"), ".git") {
		return "", nil
	}
	return name, nil
}

func refused(name, why string) error {
	return leapcell.Errorf(leapcell.CodeUnprocessable, "%q in the source is refused: %s", name, why)
}

// add puts e into the tree; a later entry of a name replaces the former, as tar has it.
func (t *tree) add(e entry) error {
	if old, ok := t.entries[e.name]; ok {
		t.bytes -= old.size
	}
	t.entries[e.name] = e
	t.bytes += e.size
	if len(t.entries) > t.maxFiles {
		return leapcell.Errorf(leapcell.CodeTooLarge, "the source has more than %d files", t.maxFiles)
	}
	if t.bytes > t.maxBytes {
		return t.tooBig()
	}
	return nil
}

func (t *tree) tooBig() error {
	return leapcell.Errorf(leapcell.CodeTooLarge, "the source is over the limit of %s when unpacked", megabytes(t.maxBytes))
}

// below gives the entries under root, renamed to be relative to it, checked, and in the
// order of their names, so that the same tree always makes the same layer.
func (t *tree) below(root string) ([]entry, error) {
	root, err := cleanRoot(root)
	if err != nil {
		return nil, err
	}
	out := make([]entry, 0, len(t.entries))
	for name, e := range t.entries {
		rel, ok := name, true
		if root != "" {
			rel, ok = strings.CutPrefix(name, root+"/")
		}
		if ok {
			e.name = rel
			out = append(out, e)
		}
	}
	if err := t.checkRoot(root, len(out)); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	return out, check(out)
}

func cleanRoot(root string) (string, error) {
	name, err := cleanName(strings.Trim(root, "/"))
	if err != nil {
		return "", leapcell.Errorf(leapcell.CodeInvalid, "the root directory %q is not inside of the source", root)
	}
	return name, nil
}

func (t *tree) checkRoot(root string, found int) error {
	if found > 0 {
		return nil
	}
	if root == "" {
		return leapcell.Errorf(leapcell.CodeUnprocessable, "the source is empty: there is no file in it")
	}
	e, ok := t.entries[root]
	if ok && e.kind != folder {
		return leapcell.Errorf(leapcell.CodeUnprocessable, "the root directory %q of the source is a file", root)
	}
	return leapcell.Errorf(leapcell.CodeUnprocessable, "the root directory %q is not in the source", root)
}

// check refuses links that lead out of the tree, and entries below something that is not
// a folder: unpacked, those would be written through a link.
func check(entries []entry) error {
	kinds := make(map[string]kind, len(entries))
	for _, e := range entries {
		kinds[e.name] = e.kind
	}
	for _, e := range entries {
		for dir := path.Dir(e.name); dir != "."; dir = path.Dir(dir) {
			if k, ok := kinds[dir]; ok && k != folder {
				return refused(e.name, "what it lies in, "+dir+", is not a folder")
			}
		}
		if e.kind != symlink {
			continue
		}
		if path.IsAbs(e.link) {
			return refused(e.name, "it is a link to "+e.link+"; links must be relative and stay in the root directory")
		}
		to := path.Join(path.Dir(e.name), e.link)
		if e.link == "" || to == ".." || strings.HasPrefix(to, "../") {
			return refused(e.name, "it is a link to "+e.link+", outside of the root directory")
		}
	}
	return nil
}
