package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/leapcell/leapcell"
)

// assembler is the tool that makes a Debian system from packages.
const assembler = "mmdebstrap"

// leftOut are parts of packages that no build or service needs; some are big.
var leftOut = []string{
	"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*",
	"/usr/bin/*-lto-dump*", "/usr/share/go-*/test/*", "/usr/share/go-*/api/*",
	"/usr/lib/python3*/config-*/libpython*.a",
	"/usr/lib/*/lib[altu]*san.so*", "/usr/lib/*/libhwasan.so*", // of gcc -fsanitize
}

// baseSetup is run in every assembled system. The user is the one that instances run as:
// some programs insist on its having a name.
var baseSetup = []string{
	fmt.Sprintf("echo 'app:x:%d:%d:app:/tmp:/bin/bash' >> /etc/passwd", leapcell.InstanceUID, leapcell.InstanceGID),
	fmt.Sprintf("echo 'app:x:%d:' >> /etc/group", leapcell.InstanceGID),
	// What only the assembly needed, an operator's proxy among it, must not stay.
	"rm -f /etc/apt/apt.conf.d/99mmdebstrap /etc/dpkg/dpkg.cfg.d/99mmdebstrap /etc/hostname /etc/resolv.conf",
	"rm -rf /var/log/* /var/cache/* /var/lib/apt/lists/*",
	"mkdir -p /app /var/cache/apt/archives/partial /var/lib/apt/lists/partial",
}

// assemble makes a system and writes it to dst as a tar.
func (b *Builder) assemble(ctx context.Context, name string, base Base, dst string, say func(string)) error {
	path, err := exec.LookPath(assembler)
	if err != nil {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "the base image of "+name+" cannot be made: the program mmdebstrap is not installed on the control plane")
	}
	args, err := b.arguments(base)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(b.cfg.Dir, "scratch-")
	if err != nil {
		return diskError(err, name)
	}
	defer os.RemoveAll(scratch)
	// mmdebstrap drops its rights for apt's sandbox user, who must get in.
	if err := os.Chmod(scratch, 0o755); err != nil {
		return diskError(err, name)
	}

	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	// What it mounts nobody else sees: whoever looks at a mount just then, as an agent of Nomad
	// that measures disks, would make it fail ("target is busy"), and a killed one would leave
	// the host's own /dev behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Unshareflags: syscall.CLONE_NEWNS}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	output := &tail{keep: 40, say: say}
	cmd.Stderr = output
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("assemble %s: %w", name, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("assemble %s: %w", name, err)
	}
	copied := writeTar(stdout, dst)
	if copied != nil {
		_ = cmd.Cancel()
		_, _ = io.Copy(io.Discard, stdout)
	}
	failed := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case isDisk(copied):
		return diskError(copied, name)
	case failed != nil:
		return leapcell.Wrap(leapcell.CodeUnavailable, failed, "the base image of "+name+" could not be assembled:\n"+output.String())
	case copied != nil:
		return leapcell.Wrap(leapcell.CodeInternal, copied, "the base image of "+name+" could not be written")
	}
	return nil
}

// arguments are those of mmdebstrap. The system comes out of its standard output.
func (b *Builder) arguments(base Base) ([]string, error) {
	packages := base.packages()
	args := []string{
		"--mode=root", "--variant=minbase", "--format=tar",
		"--include=" + strings.Join(packages, ","),
		`--aptopt=APT::Install-Recommends "false"`,
		`--aptopt=Acquire::Retries "3"`,
	}
	for _, pattern := range leftOut {
		args = append(args, "--dpkgopt=path-exclude="+pattern)
	}
	options, mirrors, err := aptSettings(b.cfg.AptConfigDir)
	if err != nil {
		return nil, err
	}
	args = append(args, options...)
	for _, command := range slices.Concat(base.Setup, baseSetup) {
		args = append(args, `--customize-hook=chroot "$1" sh -ec `+quote(command))
	}
	suite := base.Suite
	if suite == "" {
		suite = b.cfg.Suite
	}
	args = append(args, suite, "-")
	return append(args, mirrors...), nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// aptSettings turns the operator's folder into options and mirrors of mmdebstrap.
func aptSettings(dir string) (options, mirrors []string, err error) {
	if dir == "" {
		return nil, nil, nil
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, nil, fmt.Errorf("apt settings: %w", err)
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, nil, leapcell.Wrap(leapcell.CodeUnavailable, err, "the operator's apt settings cannot be read")
	}
	glob := func(patterns ...string) (found []string) {
		for _, pattern := range patterns {
			files, _ := filepath.Glob(filepath.Join(dir, pattern)) // fails on bad patterns only
			found = append(found, files...)
		}
		return found
	}
	for _, file := range glob("apt.conf", "apt.conf.d/*") {
		options = append(options, "--aptopt="+file)
	}
	for _, file := range glob("ca-certificates.crt") {
		options = append(options, `--aptopt=Acquire::https::CAInfo "`+file+`"`)
	}
	for _, keys := range glob("trusted.gpg.d") {
		options = append(options, "--keyring="+keys)
	}
	for _, file := range glob("mirror") {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, leapcell.Wrap(leapcell.CodeUnavailable, err, "the operator's apt settings cannot be read")
		}
		mirrors = append(mirrors, strings.Fields(string(b))...)
	}
	return options, append(mirrors, glob("sources.list", "sources.list.d/*.list", "sources.list.d/*.sources")...), nil
}

// writeTar copies a tar to dst without devices, which the sandbox brings itself.
func writeTar(in io.Reader, dst string) (err error) {
	f, err := os.Create(dst)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffered := bufio.NewWriterSize(f, 1<<20)
	out := tar.NewWriter(buffered)
	from := tar.NewReader(bufio.NewReaderSize(in, 1<<20))
	for {
		h, err := from.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(h.Name, "./")
		h.Linkname = hardLinkName(h)
		if h.Name == "" || strings.HasPrefix(h.Name, "dev/") || h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			continue
		}
		h.Format = tar.FormatUnknown // names may be longer now than the old format allows
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, from); err != nil {
			return err
		}
	}
	return errors.Join(out.Close(), buffered.Flush())
}

// hardLinkName is the link target as the new names have it; symlinks are as they are.
func hardLinkName(h *tar.Header) string {
	if h.Typeflag == tar.TypeLink {
		return strings.TrimPrefix(h.Linkname, "./")
	}
	return h.Linkname
}

// setAside moves what a former process left in dir to a folder that can be removed at
// leisure, and gives its name.
func setAside(dir string) (string, error) {
	old := dir + ".old"
	if err := os.MkdirAll(old, 0o700); err != nil {
		return "", err
	}
	err := os.Rename(dir, filepath.Join(old, strconv.FormatInt(time.Now().UnixNano(), 36)))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return old, err
}

func isDisk(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func diskError(err error, name string) error {
	if isDisk(err) {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "the base image of "+name+" could not be made: the platform's disk is full")
	}
	return leapcell.Wrap(leapcell.CodeInternal, err, "the base image of "+name+" could not be made")
}

// tail keeps the last lines of what is written, and says those that tell where it stands.
type tail struct {
	keep int
	say  func(string)

	mu      sync.Mutex
	partial []byte
	lines   []string
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.partial = append(t.partial, p...)
	for {
		line, rest, ok := bytes.Cut(t.partial, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		t.partial = rest
		t.add(string(line))
	}
}

func (t *tail) add(line string) {
	// Progress bars overwrite their line.
	if i := strings.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	line = strings.TrimSpace(line)
	if line == "" {
		return
	}
	if step, ok := strings.CutPrefix(line, "I: "); ok && strings.HasSuffix(step, "...") && !strings.Contains(step, "/") {
		t.say("  " + step)
	}
	t.lines = append(t.lines, line)
	t.lines = t.lines[max(0, len(t.lines)-t.keep):]
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}
