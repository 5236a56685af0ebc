package script

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process says how the new process differs from this one from its first moment.
type Process struct {
	Namespaces uintptr     // CLONE_NEW* flags
	Cgroup     *os.File    // folder of a version 2 cgroup to be born in, or nil
	Stdio      [3]*os.File // its descriptors 0 to 2
	Files      []*os.File  // its descriptors from [FirstFile] on, which are not passed to the program
}

// Done is the descriptor by which the new process shows that it has become the program: it is
// there from the start and closes itself with the last call. Scripts must keep it.
const Done = 3

// FirstFile is the lowest descriptor that scripts can use.
const FirstFile = 4

// firstOwn is where descriptors are put on the way, above those that scripts see.
const firstOwn = 64

// Start makes a process that works off s; it has no descriptors but those of p and [Done].
// Start returns when the program runs or the process has ended; then the error is an [Error], and the
// caller has to reap the process, if pid is not 0. The end of ctx kills it.
func Start(ctx context.Context, s *Script, p Process) (pid int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	done, theirs, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make a pipe: %w", err)
	}
	defer done.Close()
	defer theirs.Close()
	own, release, err := descriptors(slices.Concat(p.Stdio[:], []*os.File{theirs}, p.Files))
	if err != nil {
		return 0, err
	}
	defer release()
	whole := prelude(own)
	whole.steps = append(whole.steps, s.steps...)
	m, err := whole.place()
	if err != nil {
		return 0, err
	}
	defer m.free()
	pid, err = m.clone(p)
	runtime.KeepAlive(p.Cgroup)
	if err != nil {
		return 0, err
	}
	release()
	theirs.Close()
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = unix.Kill(pid, unix.SIGKILL) // it is our child, and nobody reaps it before we return
	})
	_, err = io.Copy(io.Discard, done)
	if !stop() {
		<-killed
		return pid, ctx.Err()
	}
	if err != nil {
		return pid, fmt.Errorf("wait for the process: %w", err)
	}
	return pid, whole.failure(m)
}

// descriptors duplicates the files to numbers that do not meet those of a script.
func descriptors(files []*os.File) (own []int, release func(), err error) {
	release = func() {
		for _, fd := range own {
			_ = unix.Close(fd)
		}
		own = nil
	}
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, firstOwn)
		runtime.KeepAlive(f)
		if err != nil {
			release()
			return nil, nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
		}
		own = append(own, fd)
	}
	return own, release, nil
}

// prelude puts descriptors where they belong and closes all others.
func prelude(own []int) *Script {
	var s Script
	for to, fd := range own {
		flags := 0
		if to >= Done {
			flags = unix.O_CLOEXEC
		}
		s.Do("set a descriptor", unix.SYS_DUP3, fd, to, flags)
	}
	s.Do("close all other descriptors", unix.SYS_CLOSE_RANGE, len(own), uint32(1<<32-1), 0)
	return &s
}

// cloneArgs is the kernel's struct clone_args, as of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// clone makes the process.
func (m *memory) clone(p Process) (pid int, err error) {
	args := (*cloneArgs)(m.take(unsafe.Sizeof(cloneArgs{})))
	*args = cloneArgs{
		// Handlers are Go's: they must never run in a process that Go does not know.
		flags:      uint64(unix.CLONE_VM|p.Namespaces) | unix.CLONE_CLEAR_SIGHAND,
		exitSignal: uint64(unix.SIGCHLD),
		stack:      uint64(uintptr(unsafe.Pointer(&m.all[0]))),
		stackSize:  stackSize,
	}
	if p.Cgroup != nil {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(p.Cgroup.Fd())
	}
	// The new process begins with this thread's mask: nothing may interrupt it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return 0, fmt.Errorf("block signals: %w", err)
	}
	result := clone(unsafe.Pointer(args), unsafe.Sizeof(*args), unsafe.Pointer(&m.calls[0]))
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err != nil {
		return result, fmt.Errorf("unblock signals: %w", err)
	}
	if result < 0 {
		return 0, &Error{What: "make a process", Err: unix.Errno(-result)}
	}
	return result, nil
}

// clone calls clone3. The new process works off calls and does not return from here; in
// this one the result is its number or an error.
//
//go:noescape
func clone(args unsafe.Pointer, size uintptr, calls unsafe.Pointer) int
