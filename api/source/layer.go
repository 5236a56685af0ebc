package source

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"github.com/leapcell/leapcell"
)

// AppDir is where the tree lies in the source layer and in the instance.
const AppDir = "/app"

// modTime is that of everything in a layer. It is not the Unix epoch since zip files, so
// Python wheels too, cannot say anything before 1980.
var modTime = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// Tree is a fetched source.
type Tree struct {
	Layer    string            // path of the layer: an uncompressed tar
	Commit   string            // of a git source
	Author   string            // of the commit
	Subject  string            // the first line of its message
	Settings leapcell.Settings // from its leapcell.yaml; zero without one
	Names    map[string]bool   // what lies at its top, to tell the runtime from
	Heads    map[string]string // texts of the files there that [Config.Heads] names
	Files    int
	Bytes    int64
}

// Fetch reads src and writes its layer to dst, which exists only after success. The error
// is a [leapcell.Error] for the owner of the source; progress gets lines for him too.
func (s *Store) Fetch(ctx context.Context, src leapcell.Source, dst string, progress func(string)) (Tree, error) {
	if src.GitURL != "" {
		return s.fetchGit(ctx, src, dst, progress)
	}
	t, plain, err := s.readUpload(ctx, src.Upload)
	if err != nil {
		return Tree{}, err
	}
	defer plain.Close()
	return s.finish(ctx, t, src.RootDir, dst)
}

// finish makes the layer of the part of t below root.
func (s *Store) finish(ctx context.Context, t *tree, root, dst string) (Tree, error) {
	entries, err := t.below(root)
	if err != nil {
		return Tree{}, err
	}
	out := Tree{Layer: dst, Names: map[string]bool{}}
	for _, e := range entries {
		out.Names[firstPart(e.name)] = true
		if e.kind != folder {
			out.Files++
			out.Bytes += e.size
		}
	}
	if out.Settings, err = settingsOf(entries); err != nil {
		return Tree{}, err
	}
	if out.Heads, err = s.heads(entries); err != nil {
		return Tree{}, err
	}
	if err := s.writeFile(ctx, entries, dst); err != nil {
		return Tree{}, err
	}
	return out, nil
}

// maxHead is above what honest files of these names have; of larger ones the beginning is read.
const maxHead = 64 << 10

// heads reads the texts by which commands are chosen that nobody set.
func (s *Store) heads(entries []entry) (map[string]string, error) {
	out := map[string]string{}
	for _, e := range entries {
		if e.open == nil || !slices.Contains(s.cfg.Heads, e.name) {
			continue
		}
		in, err := e.open()
		if err != nil {
			return nil, diskError(err, e.name+" could not be read")
		}
		text, err := io.ReadAll(io.LimitReader(in, maxHead))
		if err = errors.Join(err, in.Close()); err != nil {
			return nil, diskError(err, e.name+" could not be read")
		}
		out[e.name] = string(text)
	}
	return out, nil
}

func firstPart(name string) string {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		name = dir
	}
	return name
}

func (s *Store) writeFile(ctx context.Context, entries []entry, dst string) error {
	f, err := os.CreateTemp(s.workDir(), "layer-")
	if err != nil {
		return diskError(err, "the source layer could not be written")
	}
	defer os.Remove(f.Name())
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 256<<10)
	if err := writeLayer(ctx, entries, buffered); err != nil {
		return diskError(err, "the source layer could not be written")
	}
	if err := errors.Join(buffered.Flush(), f.Close()); err != nil {
		return diskError(err, "the source layer could not be written")
	}
	if err := os.Rename(f.Name(), dst); err != nil {
		return diskError(err, "the source layer could not be written")
	}
	return nil
}

// writeLayer writes entries, which are sorted, below [AppDir]. Folders that the source does
// not name itself are written before what lies in them.
func writeLayer(ctx context.Context, entries []entry, w io.Writer) error {
	out := tar.NewWriter(w)
	made := map[string]bool{}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Join(AppDir[1:], e.name)
		if err := writeFolders(out, made, path.Dir(name)); err != nil {
			return err
		}
		if e.kind == folder {
			if err := writeFolders(out, made, name); err != nil {
				return err
			}
			continue
		}
		if err := writeEntry(out, name, e); err != nil {
			return err
		}
	}
	return out.Close()
}

func writeFolders(out *tar.Writer, made map[string]bool, dir string) error {
	if dir == "." || made[dir] {
		return nil
	}
	if err := writeFolders(out, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	return out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: modTime})
}

func writeEntry(out *tar.Writer, name string, e entry) error {
	h := &tar.Header{Name: name, Mode: 0o644, Size: e.size, Typeflag: tar.TypeReg, ModTime: modTime}
	switch e.kind {
	case symlink:
		h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, e.link, 0o777, 0
		return out.WriteHeader(h)
	case executable:
		h.Mode = 0o755
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	in, err := e.open()
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(out, in)
	return err
}
