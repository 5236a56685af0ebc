package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/leapcell/leapcell/test/vm/wire"
)

// programs of this machine that the platform and the tests call.
var programs = []string{
	"bash", "basename", "cat", "chmod", "cp", "cut", "date", "df", "dirname", "env", "false", "find", "getent", "git", "grep",
	"head", "hostname", "id", "ip", "ldd", "ln", "ls", "mkdir", "mkfifo", "mv", "nft", "nproc", "readlink", "rm", "runc",
	"sed", "sh", "sleep", "sort", "stat", "tail", "tar", "test", "touch", "tr", "true", "uname", "wc",
}

// optionalPrograms are taken along where this machine has them.
var optionalPrograms = []string{"crun", "gpgv", "mount", "umount", "ps", "ss", "nsenter", "unshare", "strace"}

// systemFiles of this machine that the platform asks for.
var systemFiles = []string{
	"/etc/os-release", "/etc/ssl/certs/ca-certificates.crt", "/usr/share/keyrings/debian-archive-keyring.gpg", "/etc/protocols", "/etc/services",
}

// ownPrograms are the platform's, in bin/ of the checkout; those of others may be on PATH.
var ownPrograms = []string{"leapcell", "leapcelld", "leapcell-edge", "nomad-driver-leapcell", "nomad", "vault"}

// makeDisk makes the disk of the virtual machine, and says what will be run.
func makeDisk(ctx context.Context, c config, work, guest string) ([]wire.Job, error) {
	t, err := newTree(filepath.Join(work, "root"))
	if err != nil {
		return nil, err
	}
	if err := t.system(guest); err != nil {
		return nil, fmt.Errorf("the virtual machine's system: %w", err)
	}
	if err := t.checkout(ctx, c.root); err != nil {
		return nil, fmt.Errorf("the checkout: %w", err)
	}
	jobs, err := t.tests(ctx, c)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(jobs, func(j wire.Job) bool { return j.Platform }) {
		if err := t.platform(c.root); err != nil {
			return nil, err
		}
	}
	if err := t.built(ctx, c.root, jobs); err != nil {
		return nil, err
	}
	if err := makeBase(work, t.inside(wire.BaseFile)); err != nil {
		return nil, fmt.Errorf("the system of base images: %w", err)
	}
	text, err := json.Marshal(wire.Plan{Jobs: jobs, Limit: c.limit})
	if err != nil {
		return nil, err
	}
	return jobs, errors.Join(t.write(wire.JobsFile, string(text), 0o644), makeImage(ctx, t.dir, filepath.Join(work, "disk.img")))
}

// system adds what is not of the checkout.
func (t *tree) system(guest string) error {
	for _, name := range programs {
		if err := t.program(name); err != nil {
			return err
		}
	}
	for _, name := range optionalPrograms {
		if _, err := exec.LookPath(name); err == nil {
			if err := t.program(name); err != nil {
				return err
			}
		}
	}
	for _, path := range systemFiles {
		if err := t.add(path, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for path, text := range map[string]string{
		"/etc/passwd":        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"/etc/group":         "root:x:0:\nnogroup:x:65534:\n",
		"/etc/hosts":         "127.0.0.1 localhost v2\n::1 localhost\n",
		"/etc/resolv.conf":   "nameserver 192.168.77.1\n", // nobody is there
		"/etc/nsswitch.conf": "hosts: files dns\n",
		"/etc/hostname":      "v2\n",
	} {
		if err := t.write(path, text, 0o644); err != nil {
			return err
		}
	}
	if err := t.add(guest, wire.GuestFile); err != nil {
		return err
	}
	for _, name := range []string{"go", "mmdebstrap"} {
		link := t.inside(wire.Dir + "/bin/" + name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink("../guest", link)); err != nil {
			return err
		}
	}
	return nil
}

// checkout adds the files of the repository, at the very place that they have here: tests
// know it from their compilation.
func (t *tree) checkout(ctx context.Context, root string) error {
	list := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		from := filepath.Join(root, name)
		if err := t.add(from, from); err != nil && !errors.Is(err, fs.ErrNotExist) { // deleted, not committed
			return err
		}
	}
	return nil
}

// platform adds the programs that a platform is made of.
func (t *tree) platform(root string) error {
	for _, name := range ownPrograms {
		from := filepath.Join(root, "bin", name)
		if _, err := os.Stat(from); err != nil {
			if from, err = exec.LookPath(name); err != nil {
				return fmt.Errorf("bin/%s is not there: run `make build tools`", name)
			}
		}
		if err := errors.Join(t.add(from, filepath.Join(root, "bin", name)), t.libraries(from)); err != nil {
			return err
		}
	}
	return nil
}

// built compiles the programs that tests of jobs would compile.
func (t *tree) built(ctx context.Context, root string, jobs []wire.Job) error {
	var dirs []string
	for _, j := range jobs {
		found, _ := filepath.Glob(filepath.Join(j.Dir, "testdata", "*", "main.go"))
		for _, f := range found {
			dirs = append(dirs, filepath.Dir(f))
		}
	}
	if slices.ContainsFunc(jobs, func(j wire.Job) bool { return j.Platform }) {
		dirs = append(dirs, filepath.Join(root, "cmd", "nomad-driver-leapcell"), filepath.Join(root, "test", "apps", "probe"), filepath.Join(root, "test", "apps", "grpc"))
	}
	built := wire.Built{}
	for i, dir := range dirs {
		built[dir] = fmt.Sprintf("%s/built/%d-%s", wire.Dir, i, filepath.Base(dir))
		if err := goStatic(ctx, dir, "build", "-ldflags", "-s -w", "-o", t.inside(built[dir]), "."); err != nil {
			return err
		}
	}
	text, err := json.Marshal(built)
	if err != nil {
		return err
	}
	return t.write(wire.BuiltFile, string(text), 0o644)
}

// makeImage turns a folder into a disk, which takes only the space that is used of it.
func makeImage(ctx context.Context, dir, name string) error {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		mke2fs = "/usr/sbin/mke2fs"
	}
	cmd := exec.CommandContext(ctx, mke2fs, "-q", "-t", "ext4", "-d", dir, "-E", "root_owner=0:0,lazy_itable_init=1", "-O", "^has_journal", "-m", "0", name, "8G")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the disk: %w\n%s", err, out)
	}
	return nil
}
