package front

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
)

// ErrTooMany is that a tree has more entries than may be looked at.
var ErrTooMany = errors.New("too many files")

// Walk calls see for everything below dir, in the order of names, with the name
// within dir. A folder whose see gives [fs.SkipDir] is not entered. Unlike fs.WalkDir it never
// reads more than limit entries: a build may leave any number of them in one folder.
func Walk(tree fs.FS, dir string, limit int, see func(name string, d fs.DirEntry) error) error {
	left := limit
	return walk(tree, dir, "", &left, see)
}

func walk(tree fs.FS, top, within string, left *int, see func(string, fs.DirEntry) error) error {
	entries, err := list(tree, path.Join(top, within), *left)
	if err != nil {
		return err
	}
	*left -= len(entries)
	for _, e := range entries {
		name := path.Join(within, e.Name())
		err := see(name, e)
		if e.IsDir() && err == nil {
			err = walk(tree, top, name, left, see)
		}
		if err != nil && !errors.Is(err, fs.SkipDir) {
			return err
		}
	}
	return nil
}

// list gives the entries of a folder in the order of their names, unless there are more than
// limit.
func list(tree fs.FS, dir string, limit int) ([]fs.DirEntry, error) {
	f, err := tree.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d, ok := f.(fs.ReadDirFile)
	if !ok {
		return nil, &fs.PathError{Op: "readdir", Path: dir, Err: errors.New("not a folder")}
	}
	var out []fs.DirEntry
	for {
		some, err := d.ReadDir(256)
		out = append(out, some...)
		if len(out) > limit {
			return nil, ErrTooMany
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return out, nil
}
