package cell

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process is one process of the host, held by a pidfd: the number may be given to another
// process later, the descriptor may not.
type process struct {
	pid int
	fd  *os.File
}

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait blocks until the process has ended and says how. It works for children, which
// it also reaps, and for the processes of others. No thread waits: the runtime's poller does.
func (p *process) wait() (Exit, error) {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return Exit{}, err
	}
	var exit Exit
	var failed error
	err = conn.Read(func(fd uintptr) (done bool) {
		exit, done, failed = p.ended(int(fd))
		return done
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return Exit{}, fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	return exit, nil
}

// ended looks whether the process has ended.
func (p *process) ended(fd int) (exit Exit, done bool, err error) {
	var info unix.Siginfo
	switch err := unix.Waitid(unix.P_PIDFD, fd, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err {
	case nil:
		if info.Signo == 0 {
			return Exit{}, false, nil
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(p.pid, &status, 0, nil); err == unix.ECHILD {
			return foreignExit(p.pid, fd), true, nil // reaped just now by another who waits
		} else if err != nil {
			return Exit{}, true, err
		}
		return exitOf(status), true, nil
	case unix.EAGAIN, unix.EINTR:
		return Exit{}, false, nil
	case unix.ECHILD: // started by an earlier process
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 0); n == 0 {
			return Exit{}, false, nil
		}
		return foreignExit(p.pid, fd), true, nil
	default:
		return Exit{}, true, err
	}
}

// pidfdInfo is the kernel's struct pidfd_info, first version.
type pidfdInfo struct {
	Mask, CgroupID uint64
	IDs            [11]uint32
	ExitCode       int32
}

const (
	pidfdGetInfo  = 0xc040ff0b // _IOWR(0xFF, 11, 64 bytes)
	pidfdInfoExit = 1 << 3
)

// foreignExit finds out how a process that is not our child has ended. Until its parent reaps
// it, /proc tells; afterwards the kernel does, since Linux 6.15. Else nobody knows: the code is -1.
func foreignExit(pid, fd int) Exit {
	if fields, err := statFields(pid); err == nil && len(fields) > 49 && fields[0] == "Z" {
		if status, err := strconv.Atoi(fields[49]); err == nil {
			return exitOf(unix.WaitStatus(status))
		}
	}
	// POLLHUP, which needs no asking for, says that it was reaped.
	fds := []unix.PollFd{{Fd: int32(fd)}}
	for range 3 {
		if _, err := unix.Poll(fds, 200); err != unix.EINTR {
			break
		}
	}
	info := pidfdInfo{Mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.Mask&pidfdInfoExit == 0 {
		return Exit{Code: -1}
	}
	return exitOf(unix.WaitStatus(info.ExitCode))
}

// statFields are those of /proc/<pid>/stat after the program's name, which may hold anything:
// the first is the state.
func statFields(pid int) ([]string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])), nil
}

func exitOf(status unix.WaitStatus) Exit {
	if status.Signaled() {
		return Exit{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}
	}
	return Exit{Code: status.ExitStatus()}
}

func (p *process) close() { p.fd.Close() }

// startTime is when the process began, exact to a hundredth of a second.
func startTime(pid int) (time.Time, error) {
	fields, err := statFields(pid)
	if err != nil {
		return time.Time{}, err
	}
	if len(fields) < 20 {
		return time.Time{}, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}, err
	}
	const tick = time.Second / 100 // USER_HZ, fixed on every architecture we run on
	return time.Now().Add(-time.Duration(now.Nano()) + time.Duration(ticks)*tick), nil
}

// leavesToDefault reports whether the process neither handles, ignores nor blocks sig.
func leavesToDefault(pid int, sig unix.Signal) bool {
	in, err := masksWith(pid, sig)
	return err == nil && len(in) == 0
}

// awaits reports whether sig was sent to the process and is not delivered yet.
func awaits(pid int, sig unix.Signal) bool {
	in, err := masksWith(pid, sig)
	return err == nil && (slices.Contains(in, "ShdPnd") || slices.Contains(in, "SigPnd"))
}

// masksWith are the names of the signal masks in /proc/<pid>/status that sig is in.
func masksWith(pid int, sig unix.Signal) (names []string, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "SigCgt", "SigIgn", "SigBlk", "ShdPnd", "SigPnd":
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return nil, fmt.Errorf("/proc/%d/status: %w", pid, err)
			}
			if mask&(1<<(uint(sig)-1)) != 0 {
				names = append(names, name)
			}
		}
	}
	return names, nil
}
