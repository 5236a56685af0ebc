package platform

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// markVariable is in the environment of every process that belongs to a platform; its value
// is the state folder. Down finds by it what no record names, for example after a kill -9 of
// the command that was starting it.
const markVariable = "LEAPCELL_PLATFORM"

// daemon is a background process of the platform: it has a session of its own, a log file,
// and a record by which later commands know it again.
type daemon struct {
	name   string
	path   string // the executable
	args   []string
	env    []string
	dir    string // the platform's state folder
	config []byte // of its configuration file, if it has one: a change means a restart
}

// stopGrace lies between SIGTERM and SIGKILL; an edge lets requests end for half a minute.
const stopGrace = 35 * time.Second

// record is what is stored about a running daemon. The start time makes sure that a process
// which merely got the same id later is never signalled.
type record struct {
	PID     int    `json:"pid"`
	Started uint64 `json:"started"` // clock ticks after boot, from /proc/{pid}/stat
	Boot    string `json:"boot"`    // the kernel's boot id
	Print   string `json:"print"`   // what it was started from: executable, arguments, configuration
}

func (d daemon) recordFile() string { return filepath.Join(d.dir, "run", d.name+".json") }
func (d daemon) logFile() string    { return filepath.Join(d.dir, "logs", d.name+".log") }

// ensure starts the daemon unless the very same already runs. One that was started from
// another executable or configuration is replaced. It reports whether it started one.
func (d daemon) ensure(ctx context.Context) (started bool, err error) {
	print, err := d.fingerprint()
	if err != nil {
		return false, err
	}
	r, alive := readRecord(d.recordFile())
	if alive && r.Print == print {
		return false, nil
	}
	if alive {
		if err := r.stop(ctx, stopGrace); err != nil {
			return false, fmt.Errorf("stopping the former %s: %w", d.name, err)
		}
	}
	return true, d.start(print)
}

func (d daemon) start(print string) error {
	log, err := openLog(d.logFile())
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", d.name, err)
	}
	defer log.Close()
	cmd := exec.Command(d.path, d.args...)
	cmd.Dir = d.dir
	cmd.Env = append(d.env[:len(d.env):len(d.env)], markVariable+"="+d.dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", d.name, err)
	}
	r := record{PID: cmd.Process.Pid, Boot: bootID(), Print: print}
	r.Started, _, err = procStat(r.PID)
	go cmd.Wait() // reaps it, should it end before we do
	if err != nil {
		return fmt.Errorf("%s ended at once; its log says:\n%s", d.name, tail(d.logFile(), 10))
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeFile(d.recordFile(), b, 0o644)
}

// fingerprint covers what a restart would change.
func (d daemon) fingerprint() (string, error) {
	info, err := os.Stat(d.path)
	if err != nil {
		return "", fmt.Errorf("%s is not there: run `make build`: %w", d.path, err)
	}
	h := sha256.New()
	fmt.Fprintln(h, d.path, info.Size(), info.ModTime().UnixNano(), d.args)
	h.Write(d.config)
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// readyLimit is for slow machines: a daemon that will not come up ends, which is seen at once.
const readyLimit = 5 * time.Minute

// await calls ready until it succeeds, and gives up at once when the daemon ends. There is
// no event for "answers on its port", hence the short backoff.
func (d daemon) await(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	wait := 10 * time.Millisecond
	for {
		one, done := context.WithTimeout(ctx, 5*time.Second)
		err := ready(one)
		done()
		if err == nil {
			return nil
		}
		if _, alive := readRecord(d.recordFile()); !alive {
			return fmt.Errorf("%s ended; its log (%s) says:\n%s", d.name, d.logFile(), tail(d.logFile(), 15))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not become ready within %s (%w); its log (%s) says:\n%s",
				d.name, limit, err, d.logFile(), tail(d.logFile(), 15))
		case <-time.After(wait):
			wait = min(wait*3/2, 250*time.Millisecond)
		}
	}
}

// readRecord gives the record and whether that very process still lives.
func readRecord(path string) (record, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return record{}, false
	}
	var r record
	if json.Unmarshal(b, &r) != nil || r.PID <= 1 {
		return record{}, false
	}
	return r, r.alive()
}

func (r record) alive() bool {
	if r.Boot != bootID() {
		return false
	}
	started, state, err := procStat(r.PID)
	if err != nil || started != r.Started {
		return false
	}
	if state == 'Z' || state == 'X' {
		r.awaitThreads(5 * time.Second)
		return false
	}
	return true
}

// awaitThreads waits for the last thread of a process whose first has ended: until then it has
// its files, and with them its ports.
func (r record) awaitThreads(limit time.Duration) {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return // it is gone
	}
	defer unix.Close(fd)
	_, _ = pidfdWait(context.Background(), fd, limit) // whoever needs a port of it will say so
}

// stop ends the process: SIGTERM, then SIGKILL after grace. It waits on a pidfd, so neither
// a recycled id nor a poll interval matters.
func (r record) stop(ctx context.Context, grace time.Duration) error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", r.PID, err)
	}
	defer unix.Close(fd)
	if !r.alive() { // checked after opening: from here on fd is that process or none
		return nil
	}
	for _, attempt := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, 10 * time.Second}} {
		if err := unix.PidfdSendSignal(fd, attempt.signal, nil, 0); errors.Is(err, unix.ESRCH) {
			return nil
		} else if err != nil {
			return fmt.Errorf("signalling process %d: %w", r.PID, err)
		}
		if ended, err := pidfdWait(ctx, fd, attempt.wait); ended || err != nil {
			return err
		}
	}
	return fmt.Errorf("process %d does not end, not even by SIGKILL", r.PID)
}

// pidfdWait reports whether the process ended in time. It looks at ctx each 100 ms.
func pidfdWait(ctx context.Context, fd int, limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		left := min(time.Until(deadline), 100*time.Millisecond)
		if left <= 0 {
			return false, nil
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("waiting for a process: %w", err)
		}
		if n > 0 {
			return true, nil
		}
	}
}

// procStat reads a process's start time, in ticks after boot, and its state letter.
func procStat(pid int) (started uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The name in brackets may itself hold spaces and brackets.
	_, rest, ok := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: unknown format", pid)
	}
	started, err = strconv.ParseUint(fields[19], 10, 64)
	return started, fields[0][0], err
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// marked finds the living processes that belong to the platform in stateDir: by the mark in
// their environment or, as a supervisor starts with an empty one, by being a program of ours
// with an argument in that folder. We ourselves are excepted.
func marked(stateDir string) []record {
	want := []byte(markVariable + "=" + stateDir)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []record
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !hasLine(env, want) && !worksIn(pid, stateDir) {
			continue
		}
		r := record{PID: pid, Boot: bootID()}
		var state byte
		if r.Started, state, err = procStat(pid); err == nil && state != 'Z' && state != 'X' {
			found = append(found, r)
		}
	}
	return found
}

var programs = []string{"vault", "nomad", controlName, edgeName, "nomad-driver-leapcell"}

func worksIn(pid int, stateDir string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	args := strings.Split(string(b), "\x00")
	if err != nil || !slices.Contains(programs, filepath.Base(args[0])) {
		return false
	}
	return slices.ContainsFunc(args[1:], func(arg string) bool {
		_, value, _ := strings.Cut(arg, "=")
		return arg == stateDir || strings.HasPrefix(arg, stateDir+"/") || strings.HasPrefix(value, stateDir+"/")
	})
}

// hasLine looks for one entry in a block of zero-terminated ones.
func hasLine(block, want []byte) bool {
	for entry := range bytes.SplitSeq(block, []byte{0}) {
		if bytes.Equal(entry, want) {
			return true
		}
	}
	return false
}

func commandLine(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
}

const maxLogBytes = 50 << 20

// openLog appends; a log that grew large is kept once under another name.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.Size() > maxLogBytes {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
}

// tail gives the last lines of a log for an error message, indented.
func tail(path string, lines int) string {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "  (nothing)"
	}
	if err != nil {
		return "  (" + err.Error() + ")"
	}
	defer f.Close()
	const most = 16 << 10
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd) // else from the beginning
	}
	b, _ := io.ReadAll(f)
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(all) == 1 && all[0] == "" {
		return "  (nothing)"
	}
	return "  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}
