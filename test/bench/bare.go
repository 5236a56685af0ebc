package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/test/harness"
)

const suspendLimit = 5 * time.Second

// bare starts an app as plainly as can be: its image's files in a folder, chroot, the same
// command. What it takes from there to the answer is the app's own time.
type bare struct {
	root    string
	command string
	env     []string
	port    string
	netns   int // with a loopback of its own, so that the app finds its port free
}

// newBare copies the files of a running instance.
func newBare(s *session, service *harness.Service) *bare {
	members := harness.Members(service.Allocs(s)[0].ID)
	if len(members) == 0 {
		s.Fatalf("%s: no process of its instance is on this machine", service.Name)
	}
	p := members[0]
	b := &bare{root: filepath.Join(s.TempDir(), "root"), port: p.Env("PORT"), command: s.p.Deployment(s, service.Live).Settings.StartCommand}
	for kv := range strings.SplitSeq(strings.TrimRight(p.File("environ"), "\x00"), "\x00") {
		b.env = append(b.env, kv)
	}
	// -x leaves out /proc, /sys, /dev and /tmp, which are file systems of their own.
	must(s, command("cp", "-a", "-x", fmt.Sprintf("/proc/%d/root", p.PID)+"/.", b.root))
	for name, number := range map[string]int{"null": 1<<8 | 3, "zero": 1<<8 | 5, "random": 1<<8 | 8, "urandom": 1<<8 | 9} {
		path := filepath.Join(b.root, "dev", name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, number); !errors.Is(err, unix.EEXIST) {
			must(s, err)
			must(s, os.Chmod(path, 0o666))
		}
	}
	must(s, os.Chmod(filepath.Join(b.root, "tmp"), 0o1777))
	proc := filepath.Join(b.root, "proc")
	must(s, unix.Mount("proc", proc, "proc", 0, ""))
	s.Cleanup(func() {
		if err := unix.Unmount(proc, unix.MNT_DETACH); err != nil {
			s.Errorf("unmounting %s: %v", proc, err)
		}
	})
	b.netns = newNetns(s)
	return b
}

// newNetns makes a network namespace that nothing but the descriptor holds.
func newNetns(s *session) int {
	type made struct {
		fd  int
		err error
	}
	c := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the namespace in it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- made{err: err}
			return
		}
		err := command("ip", "link", "set", "lo", "up")
		fd, openErr := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		c <- made{fd, errors.Join(err, openErr)}
	}()
	m := <-c
	must(s, m.err)
	s.Cleanup(func() { _ = unix.Close(m.fd) }) // read by nobody any more
	return m.fd
}

func command(name string, args ...string) error {
	if b, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, b)
	}
	return nil
}

func must(s *session, err error) {
	if err != nil {
		s.Fatal(err)
	}
}

// spawn starts the app, waits for its first answer, and ends it.
func (b *bare) spawn(ctx context.Context) (time.Duration, error) {
	type done struct {
		took time.Duration
		err  error
	}
	c := make(chan done)
	go func() {
		runtime.LockOSThread() // its child and its sockets live in the namespace
		if err := unix.Setns(b.netns, unix.CLONE_NEWNET); err != nil {
			c <- done{err: err}
			return
		}
		took, err := b.onThisThread(ctx)
		c <- done{took, err}
	}()
	d := <-c
	return d.took, d.err
}

// serve starts the app for good, where this process can reach it, and gives its address.
func (b *bare) serve(s *session) (address string, stop func()) {
	address = freeAddress(s)
	_, port, _ := strings.Cut(address, ":")
	cmd := exec.Command("/bin/bash", "-c", b.command)
	cmd.Dir = "/app"
	for _, kv := range b.env {
		if !strings.HasPrefix(kv, "PORT=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "PORT="+port)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: b.root, Setpgid: true, Credential: &syscall.Credential{Uid: 1000, Gid: 1000},
	}
	must(s, cmd.Start())
	stop = func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it is ours, and still unreaped
		_ = cmd.Wait()                                      // "killed"
	}
	if err := answers(s, address); err != nil {
		stop()
		s.Fatalf("the app on its own: %v", err)
	}
	return address, stop
}

func (b *bare) onThisThread(ctx context.Context) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.Command("/bin/bash", "-c", b.command)
	cmd.Dir, cmd.Env = "/app", b.env
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: b.root, Setpgid: true, Credential: &syscall.Credential{Uid: 1000, Gid: 1000},
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it is ours, and still unreaped
		_ = cmd.Wait()                                      // "killed"
	}()
	for ctx.Err() == nil {
		if err := b.ask(); err == nil {
			return time.Since(begin), nil
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			return 0, err
		}
		time.Sleep(200 * time.Microsecond) // there is no event for "listens"
	}
	return 0, fmt.Errorf("no answer: %w", ctx.Err())
}

// ask reads a whole answer. An address in numbers is dialled on this very thread, and so in
// its namespace.
func (b *bare) ask() error {
	conn, err := net.Dial("tcp", "127.0.0.1:"+b.port)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.1 200") {
		return fmt.Errorf("it answered %.80q", answer)
	}
	return nil
}
