package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/leapcell/leapcell"
)

// basePrograms are what the probe app's commands call.
var basePrograms = []string{"bash", "sh", "cat", "chmod", "env", "id", "ls", "mkdir", "nproc", "sleep"}

// makeBase writes the system that stands for what mmdebstrap would assemble inside, which needs
// a network and minutes: the same folders and users, and no more programs than the probe app needs.
func makeBase(work, output string) error {
	t, err := newTree(filepath.Join(work, "base"))
	if err != nil {
		return err
	}
	for _, name := range basePrograms {
		if err := t.program(name); err != nil {
			return err
		}
	}
	user := fmt.Sprintf("app:x:%d:%d:app:/tmp:/bin/bash\n", leapcell.InstanceUID, leapcell.InstanceGID)
	for path, text := range map[string]string{
		"/etc/passwd":   "root:x:0:0:root:/root:/bin/bash\n" + user,
		"/etc/group":    fmt.Sprintf("root:x:0:\napp:x:%d:\n", leapcell.InstanceGID),
		"/etc/hosts":    "",
		"/etc/hostname": "",
	} {
		if err := t.write(path, text, 0o644); err != nil {
			return err
		}
	}
	f, err := os.Create(output)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	return errors.Join(pack(w, t.dir), w.Close(), f.Close())
}

// pack writes a folder with root as the owner of everything.
func pack(w *tar.Writer, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		h.Name, h.Uid, h.Gid, h.Uname, h.Gname = "./"+rel, 0, 0, "", ""
		if d.IsDir() {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
}
