package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/disk"
)

// mountPoints is the folder of a layer that lies on top of every image: the folders and files
// that a cell mounts something over. A read-only image cannot be given them later, and with
// it there are always the two layers that overlay asks for.
const mountPoints = "mount-points"

func (s *Store) makeMountPoints() error {
	final := s.path("layers", mountPoints)
	if err := os.RemoveAll(s.path("tmp", mountPoints)); err != nil {
		return err
	}
	if _, err := os.Stat(final); err == nil {
		return nil
	}
	temp := s.path("tmp", mountPoints)
	for _, dir := range []struct {
		name string
		mode fs.FileMode
	}{{"", 0o755}, {"dev", 0o755}, {"etc", 0o755}, {"proc", 0o555}, {"sys", 0o555}, {"tmp", 0o777 | fs.ModeSticky}} {
		name := filepath.Join(temp, dir.name)
		if err := os.MkdirAll(name, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(name, dir.mode); err != nil { // past the umask
			return err
		}
	}
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		if err := os.WriteFile(filepath.Join(temp, "etc", name), nil, 0o644); err != nil {
			return err
		}
	}
	return os.Rename(temp, final)
}

// Mount mounts img read-only at dir, which is made when missing. The image stays on this node until
// [Store.Unmount] of dir, also over a restart of this process.
func (s *Store) Mount(img *Image, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s.plain(err)
	}
	return s.claimed(img, dir, func() error {
		// Setuid bits have no effect in cells anyway, which have no_new_privs.
		return s.overlay(img, dir, nil, "", unix.MS_RDONLY|unix.MS_NOSUID)
	})
}

// MountWritable mounts img at dir; what is written goes to folders made in scratch, which must be
// new: the mount skips all syncing, so what is there after a crash of the machine is not to be used.
func (s *Store) MountWritable(img *Image, dir, scratch string) error {
	upper, work := Upper(scratch), filepath.Join(scratch, "work")
	for _, d := range []string{dir, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return s.plain(err)
		}
	}
	return s.claimed(img, dir, func() error {
		// The upper folder must be a plain difference, since it becomes a layer.
		above := []string{upper, work}
		err := s.overlay(img, dir, above, ",index=off,metacopy=off,redirect_dir=off,volatile", 0)
		if errors.Is(err, unix.EINVAL) { // volatile came with Linux 5.10
			err = s.overlay(img, dir, above, ",index=off,metacopy=off,redirect_dir=off", 0)
		}
		return err
	})
}

// claimed mounts an image that cannot be collected from before the mount on.
func (s *Store) claimed(img *Image, dir string, mount func() error) error {
	if err := s.claim(img, dir); err != nil {
		return err
	}
	err := mount()
	if err != nil {
		s.release(dir)
	}
	return err
}

// claim notes that img is mounted at dir: here, and on disk as a symbolic link that leads to
// "<digest> <dir>", which is one system call and there as a whole or not at all.
func (s *Store) claim(img *Image, dir string) error {
	digest, _ := digestOf(img.Ref)
	s.mu.Lock()
	e, ok := s.known[digest]
	if !ok {
		s.mu.Unlock()
		return leapcell.Errorf(leapcell.CodeUnavailable, "the image %s was removed from this node before it was mounted: start again", img.Ref)
	}
	e.mounts++
	former, again := s.mounts[dir]
	s.mounts[dir] = digest
	if again { // unmounted by somebody else
		s.unuse(former)
	}
	s.mu.Unlock()
	err := os.Symlink(digest+" "+dir, s.claimFile(dir))
	if errors.Is(err, fs.ErrExist) {
		if err = os.Remove(s.claimFile(dir)); err == nil {
			err = os.Symlink(digest+" "+dir, s.claimFile(dir))
		}
	}
	if err != nil {
		s.release(dir)
		return s.plain(err)
	}
	return nil
}

func (s *Store) claimFile(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return s.path("mounts", hex.EncodeToString(sum[:16]))
}

// release undoes claim.
func (s *Store) release(dir string) {
	s.mu.Lock()
	digest, ok := s.mounts[dir]
	delete(s.mounts, dir)
	if ok {
		s.unuse(digest)
	}
	s.mu.Unlock()
	if !ok {
		return
	}
	if err := os.Remove(s.claimFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.Warn("the end of a mount could not be noted: its image stays until the next start", "folder", dir, "error", err)
	}
}

// unuse ends one use of an image. The caller holds mu.
func (s *Store) unuse(digest string) {
	if e, ok := s.known[digest]; ok {
		e.mounts--
		e.used = time.Now()
	}
}

// loadMounts takes over what a former process mounted and is mounted still.
func (s *Store) loadMounts() error {
	claims, err := os.ReadDir(s.path("mounts"))
	if err != nil || len(claims) == 0 {
		return err
	}
	mounted, err := mountPointsOf("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range claims {
		text, err := os.Readlink(s.path("mounts", c.Name()))
		digest, dir, ok := strings.Cut(text, " ")
		if err != nil || !ok || !mounted[dir] {
			if err := os.Remove(s.path("mounts", c.Name())); err != nil {
				return err
			}
			continue
		}
		s.mounts[dir] = digest
		if e, ok := s.known[digest]; ok {
			e.mounts++
			continue
		}
		s.strange = true
		s.cfg.Log.Warn("an image is mounted that the store does not know: layers without an image stay until the next start", "image", digest, "folder", dir)
	}
	return nil
}

// mountPointsOf reads the mount points of a mountinfo file.
func mountPointsOf(file string) (map[string]bool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	plain := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	out := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			out[plain.Replace(fields[4])] = true
		}
	}
	return out, nil
}

// Upper is the folder in scratch that holds what was written to a [Store.MountWritable].
func Upper(scratch string) string { return filepath.Join(scratch, "upper") }

// overlay mounts img; above are the upper and the work folder, if any. Folders are named by open
// descriptors: a cell sees the mount's options, which must not tell paths of the host [FS5], and
// mount(2) takes 4096 bytes of them, which is room for more than 200 short names.
func (s *Store) overlay(img *Image, dir string, above []string, options string, flags uintptr) error {
	layers := []string{s.path("layers", mountPoints)} // the highest first
	for i := len(img.Layers) - 1; i >= 0; i-- {
		layers = append(layers, img.Layers[i])
	}
	names, done, err := open(append(layers, above...))
	if err != nil {
		return s.plain(err)
	}
	defer done()
	options = "lowerdir=" + strings.Join(names[:len(layers)], ":") + options
	if len(above) == 2 {
		options += ",upperdir=" + names[len(layers)] + ",workdir=" + names[len(layers)+1]
	}
	if err := unix.Mount("overlay", dir, "overlay", flags|unix.MS_NODEV, options); err != nil {
		return s.plain(fmt.Errorf("mount %s on %s: %w", img.Ref, dir, err))
	}
	return nil
}

// open opens folders and gives names for them that hold until done.
func open(dirs []string) (names []string, done func(), err error) {
	var files []int
	done = func() {
		for _, fd := range files {
			unix.Close(fd)
		}
	}
	for _, d := range dirs {
		fd, err := unix.Open(d, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			done()
			return nil, nil, &fs.PathError{Op: "open", Path: d, Err: err}
		}
		files = append(files, fd)
		names = append(names, "/proc/self/fd/"+strconv.Itoa(fd))
	}
	return names, done, nil
}

// Unmount undoes [Store.Mount] and [Store.MountWritable]; a dir that is not mounted or not there is no error.
func (s *Store) Unmount(dir string) error {
	if err := disk.Unmount(dir); err != nil {
		return err
	}
	s.release(dir)
	return nil
}
