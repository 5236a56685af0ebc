package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Log files as Nomad's log endpoint looks for them: "<task>.stdout.0" and so on in the
// allocation's alloc/logs, the highest number being the newest.
const (
	logFileSize = 10 << 20
	logFiles    = 2 // of each output: what the disk space of an allocation is reckoned with
)

// rotator writes to the newest file of a series and begins a new one when it is full.
type rotator struct {
	base string // path without the number
	log  *slog.Logger

	mu   sync.Mutex
	file *os.File
	size int64
	n    int
	lost int64 // bytes that found no room on the disk
	mask *mask // nil: nothing is hidden
}

// newRotator goes on with the newest file of base, which a restarted task has left.
func newRotator(base string, log *slog.Logger) (*rotator, error) {
	r := &rotator{base: base, log: log}
	if numbers := r.numbers(); len(numbers) > 0 {
		r.n = numbers[len(numbers)-1]
	}
	return r, r.open()
}

// numbers are those of the files that exist, in order.
func (r *rotator) numbers() []int {
	entries, _ := os.ReadDir(filepath.Dir(r.base))
	var out []int
	for _, e := range entries {
		tail, ok := strings.CutPrefix(e.Name(), filepath.Base(r.base)+".")
		if n, err := strconv.Atoi(tail); ok && err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

func (r *rotator) name(n int) string { return r.base + "." + strconv.Itoa(n) }

func (r *rotator) open() error {
	f, err := os.OpenFile(r.name(r.n), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.file, r.size = f, info.Size()
	return nil
}

// Write never fails: what finds no room is counted and reported once there is room again.
// A slow disk makes the writer wait, and through the pipe the app.
func (r *rotator) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return len(p), nil
	}
	shown := p
	if r.mask != nil {
		shown = r.mask.pass(p)
	}
	r.write(shown)
	return len(p), nil
}

// write writes what may be shown. The caller holds mu.
func (r *rotator) write(p []byte) {
	if r.lost > 0 {
		note := fmt.Sprintf("leapcell: %d bytes of log are missing here: no room on the disk\n", r.lost)
		if r.append([]byte(note)) == nil {
			r.lost = 0
		}
	}
	rest := p
	for len(rest) > 0 {
		chunk := rest
		if room := logFileSize - r.size; int64(len(chunk)) > room {
			// Break after the last line that fits; a line longer than a file is cut.
			if i := bytes.LastIndexByte(chunk[:max(room, 0)], '\n'); i >= 0 {
				chunk = chunk[:i+1]
			} else if r.size > 0 {
				r.rotate()
				continue
			} else {
				chunk = chunk[:room]
			}
		}
		if err := r.append(chunk); err != nil {
			if r.lost == 0 {
				r.log.Error("log could not be written", "file", r.name(r.n), "error", err)
			}
			r.lost += int64(len(rest))
			break
		}
		rest = rest[len(chunk):]
	}
}

// hide keeps values out of the log from now on.
func (r *rotator) hide(values map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mask = newMask(values)
}

// flush writes what was held back because it might have been the beginning of a value.
func (r *rotator) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mask != nil && r.file != nil {
		r.write(r.mask.rest())
	}
}

func (r *rotator) append(p []byte) error {
	n, err := r.file.Write(p)
	r.size += int64(n)
	return err
}

// rotate begins the next file and removes the oldest ones. When no file can be opened the
// old one grows on: too much log is better than none.
func (r *rotator) rotate() {
	old := r.file
	r.n++
	if err := r.open(); err != nil {
		r.log.Error("log could not be rotated", "file", r.name(r.n), "error", err)
		r.n--
		r.size = 0
		return
	}
	_ = old.Close()
	numbers := r.numbers()
	for len(numbers) > logFiles {
		_ = os.Remove(r.name(numbers[0]))
		numbers = numbers[1:]
	}
}

func (r *rotator) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		_ = r.file.Close()
		r.file = nil
	}
}

// pipe carries what an app writes to a log. It is a named pipe that the app holds open for
// reading as well: while no supervisor reads, the app blocks when it is full, and does not
// die of it.
type pipe struct {
	app  *os.File // what the app gets
	in   *os.File // what we read
	out  *rotator
	end  chan struct{} // closed when nothing is copied any more
	keep atomic.Bool   // what is in the pipe stays there

	copied int64     // since then; of the copying goroutine alone
	since  time.Time // when the last burst began
}

// openPipe makes the pipe if it is not there and begins to read.
func openPipe(name string, out *rotator) (*pipe, error) {
	if err := unix.Mkfifo(name, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("pipe %s: %w", name, err)
	}
	// Apps open /dev/stdout as their own user; the folder keeps everybody else out.
	if err := os.Chmod(name, 0o666); err != nil {
		return nil, err
	}
	// Apps expect a blocking descriptor. os.OpenFile would make it non-blocking for all who
	// share it.
	app, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pipe %s: %w", name, err)
	}
	in, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(app)
		return nil, fmt.Errorf("pipe %s: %w", name, err)
	}
	p := &pipe{app: os.NewFile(uintptr(app), name), in: os.NewFile(uintptr(in), name), out: out, end: make(chan struct{})}
	go p.pump()
	return p, nil
}

var logBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// pump copies until close. It holds a buffer only while there is something to copy: most
// instances are silent most of the time.
func (p *pipe) pump() {
	defer close(p.end)
	raw, err := p.in.SyscallConn()
	if err != nil {
		return
	}
	for {
		got := false
		err := raw.Read(func(fd uintptr) bool {
			got = p.copyOnce(int(fd))
			return got
		})
		if err != nil { // the deadline that close and pause set
			if p.keep.Load() {
				return
			}
			_ = raw.Control(func(fd uintptr) {
				for p.copyOnce(int(fd)) {
				}
			})
			return
		}
		if !got {
			return
		}
		p.slow()
	}
}

// An app that writes as fast as it can is made to wait by its full pipe: copying takes as much
// CPU as writing, and is not counted as the app's. [ID6]
const (
	logRate  = 16 << 20 // bytes a second of each output
	logBurst = 4 << 20
)

// slow waits when there was too much since the last burst began: a quarter of a second at most.
func (p *pipe) slow() {
	if p.copied < logBurst {
		return
	}
	time.Sleep(logPause(p.copied, time.Since(p.since)))
	p.copied, p.since = 0, time.Now()
}

// logPause is how much longer than took the copied bytes should have taken.
func logPause(copied int64, took time.Duration) time.Duration {
	due := time.Duration(copied) * time.Second / logRate
	return min(max(0, due-took), time.Second)
}

// copyOnce reports whether there was something.
func (p *pipe) copyOnce(fd int) bool {
	buf := logBuffers.Get().(*[]byte)
	defer logBuffers.Put(buf)
	n, err := unix.Read(fd, *buf)
	if err != nil || n <= 0 {
		return err == unix.EINTR
	}
	p.copied += int64(n)
	_, _ = p.out.Write((*buf)[:n])
	return true
}

// close copies what is left and ends the pipe. The app must be gone.
func (p *pipe) close() {
	_ = p.in.SetReadDeadline(time.Unix(1, 0))
	<-p.end
	_ = p.in.Close()
	_ = p.app.Close()
}

// pause stops copying: what the app writes stays in the pipe, for resume or for another
// supervisor that opens it.
func (p *pipe) pause() {
	p.keep.Store(true)
	_ = p.in.SetReadDeadline(time.Unix(1, 0))
	<-p.end
}

func (p *pipe) resume() {
	p.keep.Store(false)
	_ = p.in.SetReadDeadline(time.Time{})
	p.end = make(chan struct{})
	go p.pump()
}

// abandon lets go of a paused pipe.
func (p *pipe) abandon() {
	_ = p.in.Close()
	_ = p.app.Close()
}

// logs is both outputs of a task.
type logs struct {
	stdout, stderr         *rotator
	stdoutPipe, stderrPipe *pipe
	joined                 bool // both outputs go to stdout, through one pipe
}

// openLogs opens the files of the task and the pipes in dir. In a build both outputs go to
// stdout, because their order matters more than their difference.
func openLogs(r StartRequest, dir string, joined bool, log *slog.Logger) (*logs, error) {
	if err := os.MkdirAll(r.logDir(), 0o755); err != nil {
		return nil, err
	}
	l := &logs{joined: joined}
	var err error
	if l.stdout, err = newRotator(filepath.Join(r.logDir(), r.Name+".stdout"), log); err != nil {
		return nil, err
	}
	if l.stderr, err = newRotator(filepath.Join(r.logDir(), r.Name+".stderr"), log); err != nil {
		l.close()
		return nil, err
	}
	if l.stdoutPipe, err = openPipe(filepath.Join(dir, "stdout"), l.stdout); err != nil {
		l.close()
		return nil, err
	}
	if joined {
		l.stderrPipe = l.stdoutPipe
		return l, nil
	}
	if l.stderrPipe, err = openPipe(filepath.Join(dir, "stderr"), l.stderr); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// pipes are those of the task, each once.
func (l *logs) pipes() []*pipe {
	if l.joined {
		return []*pipe{l.stdoutPipe}
	}
	return []*pipe{l.stdoutPipe, l.stderrPipe}
}

func (l *logs) pause() {
	for _, p := range l.pipes() {
		p.pause()
	}
}

func (l *logs) resume() {
	for _, p := range l.pipes() {
		p.resume()
	}
}

// abandon gives paused logs to another supervisor: what is said from here on is lost.
func (l *logs) abandon() {
	for _, p := range l.pipes() {
		p.abandon()
	}
	l.stdoutPipe, l.stderrPipe = nil, nil
	l.stdout.close()
	l.stderr.close()
}

// say writes a message of the platform to the owner's log.
func (l *logs) say(format string, args ...any) {
	out := l.stderr
	if l.joined {
		out = l.stdout
	}
	_, _ = fmt.Fprintf(out, format+"\n", args...)
}

// drain copies what the app left behind, so that messages about its end come after it.
func (l *logs) drain() {
	if l.stdoutPipe != nil {
		l.stdoutPipe.close()
	}
	if l.stderrPipe != nil && !l.joined {
		l.stderrPipe.close()
	}
	l.stdoutPipe, l.stderrPipe = nil, nil
	for _, r := range []*rotator{l.stdout, l.stderr} {
		if r != nil {
			r.flush()
		}
	}
}

func (l *logs) close() {
	l.drain()
	for _, r := range []*rotator{l.stdout, l.stderr} {
		if r != nil {
			r.close()
		}
	}
}
