package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// tree is a root file system that grows in a folder. Programs come from this machine with the
// libraries that they are linked to.
type tree struct {
	dir string
	// links are the merged folders of this machine: /bin -> usr/bin.
	links map[string]string
}

func newTree(dir string) (*tree, error) {
	t := &tree{dir: dir, links: map[string]string{}}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "home", "app", "etc", "var/tmp", "var/log", "var/lib", "usr/bin", "usr/sbin", "usr/lib"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(dir, d), 0o777|fs.ModeSticky); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		target, err := os.Readlink("/" + name)
		if err != nil {
			continue // a folder of its own on this machine
		}
		target = strings.TrimPrefix(target, "/")
		t.links[name] = target
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, target), 0o755), os.Symlink(target, filepath.Join(dir, name))); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// inside is where path of this machine lies in the tree: its folder without links.
func (t *tree) inside(path string) string {
	first, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if target, ok := t.links[first]; ok && rest != "" {
		first = target
	}
	return filepath.Join(t.dir, first, rest)
}

// write makes a file.
func (t *tree) write(path, text string, mode fs.FileMode) error {
	to := t.inside(path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	// Never into what is there: it may be another name of a file of this machine.
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(to, []byte(text), mode); err != nil {
		return err
	}
	return os.Chmod(to, mode)
}

// add puts the file from at path: the same file under another name where that is possible.
func (t *tree) add(from, path string) error {
	to := t.inside(path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	if err := os.Link(real, to); err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return copyFile(real, to)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// program adds a program of this machine, by its name, with its libraries.
func (t *tree) program(name string) error {
	from, err := exec.LookPath(name)
	if err != nil { // what only root calls is not on everybody's PATH
		if from, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			return fmt.Errorf("the tests need %s, which this machine lacks: install it", name)
		}
	}
	if err := t.add(from, from); err != nil {
		return err
	}
	return t.libraries(from)
}

var library = regexp.MustCompile(`/\S+\.so\S*`)

// libraries adds what a program is linked to; none for one that needs none.
func (t *tree) libraries(program string) error {
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil // a script, or linked statically
	}
	for _, path := range library.FindAllString(string(out), -1) {
		if err := t.add(path, path); err != nil {
			return err
		}
	}
	return nil
}
