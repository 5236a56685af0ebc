package supply

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/singleflight"
)

const (
	// fileLimit bounds a file that lists packages, programLimit a program that is looked into, both in
	// bytes. What is larger is not read: there is no such list, and hardly such a program.
	fileLimit    = 32 << 20
	programLimit = 512 << 20
	// packageLimit bounds what a bill of materials has.
	packageLimit = 100_000
	// readerVersion is part of the names of what is kept: another reader reads layers anew.
	readerVersion = "1"
)

// layer is what was found in one layer of an image: packages by the file that tells of them, and what
// the layer hides of those below it.
type layer struct {
	Files  map[string]found `json:"files"`
	Gone   []string         `json:"gone,omitempty"`   // files and folders that it deletes
	Opaque []string         `json:"opaque,omitempty"` // folders below which nothing shines through
}

// found is what one file tells.
type found struct {
	Packages []Package `json:"packages,omitempty"`
	System   *system   `json:"system,omitempty"`
}

// system is that of an os-release file.
type system struct {
	ID      string `json:"id"`
	Version string `json:"version,omitempty"`
	Name    string `json:"name,omitempty"`
}

// layerCache keeps what was found in layers on disk: a base is read once, not with each build on it.
type layerCache struct {
	dir     string
	flights singleflight.Group
}

// contents is all that an image has.
type contents struct {
	packages []located
	system   system
}

// located is a package and the file that tells of it.
type located struct {
	Package
	path string
}

// packages reads what is in an image.
func (c *layerCache) packages(ctx context.Context, img v1.Image) (contents, error) {
	layers, err := img.Layers()
	if err != nil {
		return contents{}, err
	}
	files := map[string]found{}
	for _, l := range layers {
		one, err := c.layer(ctx, l)
		if err != nil {
			return contents{}, err
		}
		one.over(files)
	}
	return gather(files)
}

// over puts a layer on what is below it.
func (l *layer) over(files map[string]found) {
	for file := range files {
		if slices.ContainsFunc(l.Gone, func(gone string) bool { return file == gone || strings.HasPrefix(file, gone+"/") }) ||
			slices.ContainsFunc(l.Opaque, func(dir string) bool { return dir == "." || strings.HasPrefix(file, dir+"/") }) {
			delete(files, file)
		}
	}
	for file, f := range l.Files {
		if len(f.Packages) == 0 && f.System == nil {
			delete(files, file)
			continue
		}
		files[file] = f
	}
}

func gather(files map[string]found) (out contents, err error) {
	for _, file := range slices.Sorted(maps.Keys(files)) {
		for _, p := range files[file].Packages {
			if len(out.packages) == packageLimit {
				return out, fmt.Errorf("%w: %d", errTooMany, packageLimit)
			}
			out.packages = append(out.packages, located{p, file})
		}
	}
	for _, file := range []string{"usr/lib/os-release", "etc/os-release"} {
		if s := files[file].System; s != nil {
			out.system = *s
		}
	}
	return out, nil
}

// layer gives what is in a layer, from the disk if it was read before.
func (c *layerCache) layer(ctx context.Context, l v1.Layer) (*layer, error) {
	digest, err := l.Digest()
	if err != nil {
		return nil, err
	}
	name := filepath.Join(c.dir, digest.Hex+"-"+readerVersion+".json")
	got, err, shared := c.flights.Do(digest.Hex, func() (any, error) {
		if kept, err := readKept(name); err == nil {
			return kept, nil
		} // else it was never read, or a crash has left half of it
		r, err := l.Uncompressed()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		stop := context.AfterFunc(ctx, func() { _ = r.Close() })
		defer stop()
		one, err := readLayer(r, c.dir)
		if err != nil {
			return nil, errors.Join(context.Cause(ctx), fmt.Errorf("supply: layer %s: %w", digest, err))
		}
		return one, keep(name, one)
	})
	if shared && errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return c.layer(ctx, l) // another deployment was given up that had begun to read it
	}
	if err != nil {
		return nil, err
	}
	return got.(*layer), nil
}

func readKept(name string) (*layer, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var l layer
	return &l, json.Unmarshal(b, &l)
}

func keep(name string, l *layer) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	temp := name + "." + rand.Text()
	if err = os.WriteFile(temp, b, 0o600); err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("supply: %w", err)
	}
	return nil
}

// readLayer reads the tar archive of a layer; programs are put into a file in dir to look into them.
func readLayer(r io.Reader, dir string) (*layer, error) {
	l := &layer{Files: map[string]found{}}
	scratch, err := os.CreateTemp(dir, "program-*")
	if err != nil {
		return nil, err
	}
	defer scratch.Close()
	if err := os.Remove(scratch.Name()); err != nil { // nothing is left of it, however we end
		return nil, err
	}
	in := tar.NewReader(bufio.NewReaderSize(r, 1<<20))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		if name == ".." || strings.HasPrefix(name, "../") {
			continue // it leads out of the image: nodes refuse it
		}
		if hides(l, name) || h.Typeflag != tar.TypeReg {
			continue
		}
		if err := l.file(name, h, in, scratch); err != nil {
			return nil, err
		}
	}
}

// hides takes notice of an entry that deletes something of the layers below.
func hides(l *layer, name string) bool {
	dir, base := path.Split(name)
	gone, ok := strings.CutPrefix(base, ".wh.")
	switch {
	case !ok:
		return false
	case base == ".wh..wh..opq":
		l.Opaque = append(l.Opaque, path.Clean(dir))
	default:
		l.Gone = append(l.Gone, path.Join(dir, gone))
	}
	return true
}

// file looks into one file, if its name or mode says that it may tell of packages.
func (l *layer) file(name string, h *tar.Header, r io.Reader, scratch *os.File) error {
	if parse := listParser(name); parse != nil && h.Size <= fileLimit {
		text, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		l.Files[name] = parse(text)
		return nil
	}
	if h.Mode&0o111 == 0 || h.Size > programLimit {
		return nil
	}
	var magic [4]byte
	if n, err := io.ReadFull(r, magic[:]); err != nil || !bytes.Equal(magic[:n], []byte("\x7fELF")) {
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return err
		}
		return nil
	}
	if err := scratch.Truncate(0); err != nil {
		return err
	}
	if _, err := scratch.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(scratch, io.MultiReader(bytes.NewReader(magic[:]), r)); err != nil {
		return err
	}
	l.Files[name] = found{Packages: program(scratch)} // also of none: it may be in the place of one with
	return nil
}
