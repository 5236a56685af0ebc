package contract

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

type tried struct{ Err, Text string }

func write(t *testing.T, s *harness.Service, path string) tried {
	t.Helper()
	var r tried
	s.Read(t, "/fs?data=x&write="+url.QueryEscape(path), &r)
	return r
}

func TestMust_FS1_RootIsReadOnly(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{})
	for _, path := range []string{"/new", "/app/new", "/app/probe", "/etc/hosts", "/etc/new", "/usr/bin/new", "/var/tmp/new", "/home/new", "/root/new", "/run/new", "/bin/sh"} {
		if r := write(t, s, path); !slices.Contains([]string{"EROFS", "EACCES"}, r.Err) {
			t.Errorf("writing %s: %q %s", path, r.Err, r.Text)
		}
	}
	var fs struct{ ReadOnly bool }
	s.Read(t, "/statfs?path=/", &fs)
	if !fs.ReadOnly {
		t.Error("/ is not mounted read-only: file permissions alone keep the app from writing")
	}
}

func TestMust_FS1_PersistentRootIsWritable(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: leapcell.Persistent, MinInstances: 2, MaxInstances: 2}})
	if r := write(t, s, "/app/new"); r.Err != "" {
		t.Fatalf("writing /app/new: %s %s", r.Err, r.Text)
	}
	var fs struct{ ReadOnly bool }
	s.Read(t, "/statfs?path=/", &fs)
	if fs.ReadOnly {
		t.Error("/ is mounted read-only")
	}
	// Per instance: of two, one has the file.
	has := map[string]bool{}
	harness.Eventually(t, aMinute, "both instances answer", func() bool {
		var r tried
		reply := s.Read(t, "/stat?path=/app/new", &r)
		has[reply.Instance()] = r.Err == ""
		return len(has) == 2
	})
	files := 0
	for _, is := range has {
		if is {
			files++
		}
	}
	if files != 1 {
		t.Errorf("%d of 2 instances have the file that one of them wrote", files)
	}
}

func TestMust_FS2_TmpIsPrivate(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, mode leapcell.Mode, s *harness.Service) {
		if r := write(t, s, "/tmp/mine"); r.Err != "" {
			t.Fatalf("writing /tmp/mine: %s %s", r.Err, r.Text)
		}
		other := harness.Get(t).Probe(t, harness.Spec{})
		var names struct{ Names []string }
		if other.Read(t, "/ls?path=/tmp", &names); slices.Contains(names.Names, "mine") {
			t.Error("another instance sees the file")
		}
		if mode == leapcell.Persistent {
			return // has no zero to come back from
		}
		s.ToZero(t)
		if s.Read(t, "/ls?path=/tmp", &names); len(names.Names) != 0 {
			t.Errorf("a new instance finds %q in /tmp", names.Names)
		}
	})
}

func TestMust_FS2_TmpSize(t *testing.T) {
	t.Parallel()
	for memory, want := range map[int]int{128: 128, 1024: 512} {
		s := harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{MemoryMB: memory}})
		var fs struct {
			Bytes int
			Tmpfs bool
		}
		s.Read(t, "/statfs?path=/tmp", &fs)
		if fs.Bytes != want<<20 || !fs.Tmpfs {
			t.Errorf("%d MB of memory: /tmp has %d bytes, want %d MB; in memory: %v", memory, fs.Bytes, want, fs.Tmpfs)
		}
	}
}

func TestMust_FS3_SharedMemory(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, mode leapcell.Mode, s *harness.Service) {
		r := write(t, s, "/dev/shm/new")
		if mode == leapcell.Serverless {
			if r.Err != "EACCES" {
				t.Errorf("writing /dev/shm/new: %q %s, want permission denied", r.Err, r.Text)
			}
			return
		}
		if r.Err != "" {
			t.Errorf("writing /dev/shm/new: %s %s", r.Err, r.Text)
		}
		var fs struct {
			Bytes int
			Tmpfs bool
		}
		s.Read(t, "/statfs?path=/dev/shm", &fs)
		if fs.Bytes != leapcell.PersistentShmMB<<20 || !fs.Tmpfs {
			t.Errorf("/dev/shm has %d bytes, in memory: %v", fs.Bytes, fs.Tmpfs)
		}
	})
}

func TestMust_FS4_KernelFilesAreMasked(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		mounts := mountsOf(t, s)
		for _, path := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/sys"} {
			if _, err := os.Stat(path); err != nil {
				continue // this kernel has none
			}
			if m, ok := mounts[path]; !ok || !m.readOnly {
				t.Errorf("%s is not read-only: %+v", path, m)
			}
		}
		for path, m := range mounts {
			if strings.HasPrefix(path, "/sys") && !m.readOnly {
				t.Errorf("%s is writable: %s", path, m.line)
			}
		}
		for _, path := range []string{"/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/sys/fs/cgroup/cgroup.procs"} {
			if r := write(t, s, path); r.Err == "" {
				t.Errorf("%s was written", path)
			}
		}
		for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/latency_stats"} {
			var r struct{ Err, Text string }
			if s.Read(t, "/read?path="+path, &r); r.Err == "" && r.Text != "" {
				t.Errorf("%s has content: %.60q", path, r.Text)
			}
		}
		for _, path := range []string{"/sys/firmware", "/proc/acpi", "/proc/scsi"} {
			var r struct{ Names []string }
			if s.Read(t, "/ls?path="+path, &r); len(r.Names) > 0 {
				t.Errorf("%s has entries: %q", path, r.Names)
			}
		}
		var dev struct{ Names []string }
		s.Read(t, "/ls?path=/dev", &dev)
		allowed := strings.Fields("null zero full random urandom tty console ptmx pts shm mqueue fd stdin stdout stderr core")
		for _, name := range dev.Names {
			if !slices.Contains(allowed, name) {
				t.Errorf("/dev/%s is not of the default set", name)
			}
		}
		if !slices.Contains(dev.Names, "null") || !slices.Contains(dev.Names, "urandom") {
			t.Errorf("/dev lacks the default set: %q", dev.Names)
		}
	})
}

func TestMust_FS5_NothingOfTheHostIsVisible(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		expected := []string{"/", "/tmp", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"}
		for path, m := range mountsOf(t, s) {
			system := strings.HasPrefix(path, "/proc") || strings.HasPrefix(path, "/sys") || strings.HasPrefix(path, "/dev")
			if !system && !slices.Contains(expected, path) {
				t.Errorf("there is a mount at %s: %s", path, m.line)
			}
		}
		var ps []struct {
			PID     int
			Command string
		}
		s.Read(t, "/ps", &ps)
		for _, p := range ps {
			if !strings.Contains(p.Command, "probe") && !strings.Contains(p.Command, "bash") {
				t.Errorf("process %d is visible: %s", p.PID, p.Command)
			}
		}
		if len(ps) == 0 || len(ps) > 3 {
			t.Errorf("%d processes are visible", len(ps))
		}
		state := harness.Get(t).Config.StateDir
		for _, path := range []string{state, filepath.Dir(state), harness.Get(t).Root, "/secrets", "/alloc", "/local"} {
			if path == "/" || path == "/tmp" {
				continue
			}
			var r tried
			if s.Read(t, "/stat?path="+url.QueryEscape(path), &r); r.Err != "ENOENT" {
				t.Errorf("%s of this machine is visible inside: %q", path, r.Err)
			}
		}
		// A file that only this machine has, looked for everywhere inside.
		marker, err := os.CreateTemp("", "leapcell-host-marker-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(marker.Name())
		defer marker.Close()
		var found struct{ Found []string }
		if s.Read(t, "/find?path=/&name="+filepath.Base(marker.Name()), &found); len(found.Found) > 0 {
			t.Errorf("a file of this machine is visible inside: %q", found.Found)
		}
	})
}

// Where the layers of an image lie on the machine is of no use to an app, but it is a path
// of the host, and a name that tells one operator's set-up from another's.
func TestMust_FS5_MountTableNamesNoHostPath(t *testing.T) {
	t.Parallel()
	modes(t, func(t *testing.T, _ leapcell.Mode, s *harness.Service) {
		for path, m := range mountsOf(t, s) {
			if strings.Contains(m.line, harness.Get(t).Config.StateDir) {
				t.Errorf("the mount at %s tells a path of the host: %s", path, m.line)
			}
		}
	})
}

type mount struct {
	readOnly bool
	line     string
}

func mountsOf(t *testing.T, s *harness.Service) map[string]mount {
	t.Helper()
	var r struct{ Err, Text string }
	s.Read(t, "/mounts", &r)
	out := map[string]mount{}
	for line := range strings.Lines(r.Text) {
		if f := strings.Fields(line); len(f) > 6 {
			out[f[4]] = mount{slices.Contains(strings.Split(f[5], ","), "ro"), strings.TrimSpace(line)}
		}
	}
	if len(out) == 0 {
		t.Fatalf("no mounts: %+v", r)
	}
	return out
}
