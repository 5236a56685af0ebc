package script

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process says how the new process differs from this one from its first moment.
type Process struct {
	Namespaces   uintptr  // CLONE_NEW* flags
	PIDNamespace *os.File // to be born in: of a process (a pidfd) or the namespace itself; or nil
	// MountNamespace is where to be born, or nil; with CLONE_NEWNS the process has a copy of it.
	MountNamespace *os.File
	Cgroup         *os.File    // folder of a version 2 cgroup to be born in, or nil
	Stdio          [3]*os.File // its descriptors 0 to 2
	Files          []*os.File  // its descriptors from [FirstFile] on, which are not passed to the program
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
//
// Two processes are made: the first puts the descriptors in order and makes the second one,
// as vfork(2) does, a child of ours too. Only thus does the kernel know that the memory
// is not its own: else a cell that is out of memory could have it killed, and us with it.
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
	files := slices.Concat(p.Stdio[:], []*os.File{theirs}, p.Files)
	own, release, err := descriptors(slices.DeleteFunc(append(files, p.PIDNamespace, p.MountNamespace, p.Cgroup), func(f *os.File) bool { return f == nil }))
	if err != nil {
		return 0, err
	}
	defer release()
	whole := prelude(p, own, len(files))
	whole.steps = append(whole.steps, s.steps...)
	m, err := whole.place()
	if err != nil {
		return 0, err
	}
	defer m.free()
	first, err := m.clone()
	if err != nil {
		return 0, err
	}
	release()
	theirs.Close()
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = unix.Kill(first, unix.SIGKILL) // it is our child, and nobody reaps it before we are done
	})
	await(first)
	if !stop() {
		<-killed
	}
	reap(first)
	pid = int(atomic.LoadUint32(m.child))
	if err := ctx.Err(); err != nil && pid != 0 {
		_ = unix.Kill(pid, unix.SIGKILL) // the same
		_, _ = io.Copy(io.Discard, done)
		return pid, err
	}
	if _, err := io.Copy(io.Discard, done); err != nil {
		return pid, fmt.Errorf("wait for the process: %w", err)
	}
	return pid, errors.Join(ctx.Err(), whole.failure(m))
}

// await waits for the end of the first process: the second one is the program by then, or has ended.
func await(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return
		}
	}
}

func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// descriptors duplicates the files to numbers that do not meet those of a script.
func descriptors(files []*os.File) (own []int, release func(), err error) {
	release = func() {
		for _, fd := range own {
			_ = unix.Close(fd)
		}
		own = nil
	}
	for i, f := range files {
		if i < Done {
			f.Fd() // a program expects its input and outputs to block: this sees to it
		}
		conn, err := f.SyscallConn()
		var fd int
		if err == nil {
			failed := conn.Control(func(original uintptr) { fd, err = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, firstOwn) })
			err = errors.Join(err, failed)
		}
		if err != nil {
			release()
			return nil, nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
		}
		own = append(own, fd)
	}
	return own, release, nil
}

// prelude is what the first process does: it puts descriptors where they belong, closes all
// others, and makes the second process, which has the first files of them.
func prelude(p Process, own []int, files int) *Script {
	var s Script
	for to, fd := range own {
		flags := 0
		if to >= Done {
			flags = unix.O_CLOEXEC
		}
		s.Do("set a descriptor", unix.SYS_DUP3, fd, to, flags)
	}
	s.Do("close all other descriptors", unix.SYS_CLOSE_RANGE, len(own), uint32(1<<32-1), 0)
	next := files
	if p.PIDNamespace != nil {
		s.Do("enter the pid namespace", unix.SYS_SETNS, next, unix.CLONE_NEWPID)
		next++
	}
	if p.MountNamespace != nil {
		s.Do("enter the mount namespace", unix.SYS_SETNS, next, unix.CLONE_NEWNS)
		next++
	}
	// The second process is our child because the first one is: it gets its signal, too.
	args := &cloneArgs{flags: uint64(unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID | p.Namespaces)}
	if p.Cgroup != nil {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(next)
	}
	s.Do("make a process", unix.SYS_CLONE3)
	s.steps[len(s.steps)-1].fork = args
	s.Do("close all other descriptors", unix.SYS_CLOSE_RANGE, files, uint32(1<<32-1), 0)
	return &s
}

// cloneArgs is the kernel's struct clone_args, as of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// clone makes the first process.
func (m *memory) clone() (pid int, err error) {
	args := (*cloneArgs)(m.take(unsafe.Sizeof(cloneArgs{})))
	*args = cloneArgs{
		// Handlers are Go's: they must never run in a process that Go does not know.
		flags:      unix.CLONE_VM | unix.CLONE_CLEAR_SIGHAND,
		exitSignal: uint64(unix.SIGCHLD),
		stack:      uint64(uintptr(unsafe.Pointer(&m.all[0]))),
		stackSize:  stackSize,
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
