package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/test/vm/wire"
)

// path is where the programs of the virtual machine are; the stand-ins come first.
const path = "PATH=/vm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// boot is the life of the first process.
func boot() {
	if err := system(); err != nil {
		say("the virtual machine did not come up:", err)
	} else if err := supervise(); err != nil {
		say("the virtual machine's agent:", err)
	}
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	say("power off:", err)
	select {} // the end of the first process would be a panic of the kernel
}

// say writes to the console.
func say(words ...any) {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		return // nobody hears us
	}
	defer f.Close()
	fmt.Fprintln(f, words...)
}

// system turns the initramfs into a system like the one that its users have.
func system() error {
	for _, m := range []mount{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := loadModules(wire.ModuleDir); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if strings.Contains(string(line), wire.ProbeArgument) {
		say(wire.ProbeText)
		return errors.New("there was nothing to do")
	}
	if err := enterDisk("/dev/vda"); err != nil {
		return err
	}
	for _, m := range []mount{
		// The options are those of systemd.
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate,memory_recursiveprot"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=000"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=20%"},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=60%"},
	} {
		if below, _ := os.ReadDir(m.target); m.target == "/tmp" && len(below) > 0 {
			continue // the checkout is there
		}
		if err := m.do(); err != nil {
			return err
		}
	}
	// As systemd has it; a mount that is not shared hides mistakes.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Sethostname([]byte("v2"))
}

type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}

// loadModules loads those that the file "order" in dir names.
func loadModules(dir string) error {
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load the kernel module %s: %w", name, err)
		}
	}
	return nil
}

// enterDisk makes the file system of the disk the root.
func enterDisk(device string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(device); err == nil {
			break
		} else if time.Now().After(deadline) {
			return err
		}
	}
	if err := (mount{device, "/disk", "ext4", unix.MS_NOATIME, ""}).do(); err != nil {
		return err
	}
	for _, dir := range []string{"proc", "sys", "dev"} {
		to := filepath.Join("/disk", dir)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("/"+dir, to, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move /%s: %w", dir, err)
		}
	}
	if err := unix.Chdir("/disk"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make the disk the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// supervise starts the agent and reaps whatever ends until the agent has.
func supervise() error {
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer console.Close()
	fd := console.Fd()
	pid, err := syscall.ForkExec(wire.GuestFile, []string{wire.GuestFile, "agent"}, &syscall.ProcAttr{
		Env: []string{path, "HOME=/root", "TERM=dumb"}, Files: []uintptr{fd, fd, fd}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		switch ended, err := unix.Wait4(-1, &status, 0, nil); {
		case err == unix.EINTR:
		case err != nil:
			return err
		case ended == pid && status.ExitStatus() != 0:
			return fmt.Errorf("exit status %d", status.ExitStatus())
		case ended == pid:
			return nil
		}
	}
}
