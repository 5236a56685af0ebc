package deploy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
)

// Log files hold one record a line: its kind, the time in milliseconds since 1970, a space, the
// text. The number of bytes taken from the build's output can be told from the file itself: after
// a kill -9 the stream goes on exactly there.
const (
	platformLine = 'P' // a line of ours
	buildLine    = 'B' // a line of the build
	buildPart    = 'b' // the beginning of one that has not ended yet
)

// linePrefix marks the platform's lines for who reads the log.
const linePrefix = "==> "

// maxBuildLog bounds what is kept of one build's output.
const maxBuildLog = 32 << 20

// logs are the logs of deployments, a file each.
type logs struct {
	dir string

	mu   sync.Mutex
	open map[string]*logFile
}

// logFile is a log that somebody writes.
type logFile struct {
	logs *logs
	id   string
	refs int // under logs.mu

	mu      sync.Mutex
	file    *os.File // nil when it could not be opened: the deployment goes on without
	size    int64    // bytes of whole records
	build   int64    // bytes of the build's output among them
	last    []string // the last lines of the build
	partial string   // of the line that has not ended yet
	full    bool
	closed  bool
	changed chan struct{} // closed at the next record, and at the end
}

func newLogs(dir string) (*logs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("logs: %w", err)
	}
	return &logs{dir: dir, open: map[string]*logFile{}}, nil
}

func (l *logs) path(id string) string { return filepath.Join(l.dir, id+".log") }

func (l *logs) remove(id string) error {
	if err := os.Remove(l.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// begin opens the log of a deployment to write to it. It never fails: a log that cannot be
// written must not stop a deployment. Close it.
func (l *logs) begin(id string) *logFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.open[id]; ok {
		f.refs++
		return f
	}
	f := &logFile{logs: l, id: id, refs: 1, changed: make(chan struct{})}
	f.load()
	l.open[id] = f
	return f
}

// load opens the file and counts what is in it. A record that a kill left half written is
// cut off.
func (f *logFile) load() {
	file, err := os.OpenFile(f.logs.path(f.id), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	r := bufio.NewReader(file)
	for {
		record, err := r.ReadString('\n')
		if err != nil {
			break
		}
		f.size += int64(len(record))
		f.count(record)
	}
	if err := file.Truncate(f.size); err != nil {
		file.Close()
		return
	}
	if _, err := file.Seek(f.size, io.SeekStart); err != nil {
		file.Close()
		return
	}
	f.file = file
}

// stampDigits are those of the time in a record, for some centuries.
const stampDigits = 13

// stamp begins a record of that kind.
func stamp(kind byte, at time.Time) string {
	return fmt.Sprintf("%c%0*d ", kind, stampDigits, at.UnixMilli())
}

// parseRecord takes a record apart. One without a time is of a former release.
func parseRecord(record string) (kind byte, at time.Time, text string) {
	kind, text = record[0], strings.TrimSuffix(record[1:], "\n")
	if len(text) <= stampDigits || text[stampDigits] != ' ' {
		return kind, at, text
	}
	ms, err := strconv.ParseUint(text[:stampDigits], 10, 63)
	if err != nil {
		return kind, at, text
	}
	return kind, time.UnixMilli(int64(ms)), text[stampDigits+1:]
}

// count takes notice of a record of the build.
func (f *logFile) count(record string) {
	kind, _, text := parseRecord(record)
	switch kind {
	case buildLine:
		f.build += int64(len(text)) + 1
		f.last = append(f.last, f.partial+text)
		f.last = f.last[max(0, len(f.last)-tailLines):]
		f.partial = ""
	case buildPart:
		f.build += int64(len(text))
		f.partial += text
	}
}

// say writes a line of the platform.
func (f *logFile) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	var out strings.Builder
	head := stamp(platformLine, time.Now())
	for line := range strings.Lines(text) {
		out.WriteString(head)
		out.WriteString(strings.TrimRight(line, "\r\n"))
		out.WriteByte('\n')
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.append(out.String())
}

// Write takes output of the build. It never fails.
func (f *logFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.build >= maxBuildLog {
		if !f.full {
			f.full = true
			f.append(fmt.Sprintf("%sthe rest of the build's output is left out: it is over %d MB\n", stamp(platformLine, time.Now()), maxBuildLog>>20))
		}
		return len(p), nil
	}
	var out strings.Builder
	now := time.Now()
	for line := range bytes.Lines(p) {
		text, whole := bytes.CutSuffix(line, []byte("\n"))
		if whole {
			out.WriteString(stamp(buildLine, now))
		} else {
			out.WriteString(stamp(buildPart, now))
		}
		out.Write(text)
		out.WriteByte('\n')
	}
	f.append(out.String())
	return len(p), nil
}

// append adds whole records and wakes the readers. The caller holds mu.
func (f *logFile) append(records string) {
	if f.file == nil || f.closed {
		return
	}
	if _, err := f.file.WriteString(records); err != nil {
		// As on a full disk. Half a record must not be taken for a whole one later.
		_ = f.file.Truncate(f.size)
		_, _ = f.file.Seek(f.size, io.SeekStart)
		return
	}
	f.size += int64(len(records))
	for record := range strings.Lines(records) {
		f.count(record)
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// offset is how much of the build's output is in the log.
func (f *logFile) offset() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.build
}

// tail gives the last lines of the build.
func (f *logFile) tail() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := append([]string(nil), f.last...)
	if f.partial != "" {
		out = append(out, f.partial)
	}
	for i := range out {
		out[i] = strings.ToValidUTF8(out[i], "�")
	}
	return out[max(0, len(out)-tailLines):]
}

// close ends the log when nobody else writes it.
func (f *logFile) close() {
	f.logs.mu.Lock()
	defer f.logs.mu.Unlock()
	if f.refs--; f.refs > 0 {
		return
	}
	delete(f.logs.open, f.id)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.file != nil {
		_ = f.file.Close() // each record was written when it was made
	}
	close(f.changed)
}

// state gives how far the log goes, whether it ended, and what is closed when that changes.
func (f *logFile) state() (size int64, closed bool, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size, f.closed, f.changed
}

// read gives the log of a deployment as people read it. When it follows and somebody writes it, it
// ends when that ends, or with ctx.
func (l *logs) read(ctx context.Context, id string, o leapcell.LogOptions) (io.ReadCloser, error) {
	l.mu.Lock()
	writer := l.open[id]
	l.mu.Unlock()
	file, err := os.Open(l.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", id, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	out, in := io.Pipe()
	go func() {
		defer file.Close()
		in.CloseWithError(copyRecords(ctx, in, file, writer, o))
	}()
	return &logReader{out, cancel}, nil
}

type logReader struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (r *logReader) Close() error {
	r.cancel()
	return r.PipeReader.Close()
}

// copyRecords writes what is in the log, and follows writer.
func copyRecords(ctx context.Context, out io.Writer, file *os.File, writer *logFile, o leapcell.LogOptions) error {
	records := &recordWriter{out: &skipWriter{out, o.Offset}, times: o.Timestamps}
	var done int64
	for {
		var size int64
		closed := true
		var changed <-chan struct{}
		if writer != nil {
			size, closed, changed = writer.state()
		} else if info, err := file.Stat(); err != nil {
			return err
		} else {
			size = info.Size()
		}
		if err := records.copy(bufio.NewReader(io.NewSectionReader(file, done, size-done))); err != nil {
			return err
		}
		done = size
		if closed || !o.Follow {
			return records.end()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// skipWriter leaves out what its reader has already. The log only grows, and what is in it is
// always written in the same way: so many bytes are so many bytes.
type skipWriter struct {
	out  io.Writer
	skip int64
}

func (w *skipWriter) Write(p []byte) (int, error) {
	n := min(int64(len(p)), w.skip)
	w.skip -= n
	if n == int64(len(p)) {
		return len(p), nil
	}
	_, err := w.out.Write(p[n:])
	return len(p), err
}

// recordWriter writes records as lines.
type recordWriter struct {
	out   io.Writer
	times bool // each line begins with its time
	inner bool // within a line of the build
}

func (w *recordWriter) copy(in *bufio.Reader) error {
	buffered := bufio.NewWriter(w.out)
	for {
		record, err := in.ReadString('\n')
		if err != nil { // half a record: its writer was killed
			return buffered.Flush()
		}
		if _, err := buffered.WriteString(w.line(record)); err != nil {
			return err
		}
	}
}

// line is what a record adds to the log.
func (w *recordWriter) line(record string) string {
	kind, at, text := parseRecord(record)
	before := ""
	if kind == platformLine {
		text = linePrefix + text
		if w.inner {
			before, w.inner = "\n", false
		}
	}
	if w.times && !w.inner {
		before += at.UTC().Format("2006-01-02T15:04:05.000Z ")
	}
	if w.inner = kind == buildPart; w.inner {
		return before + text
	}
	return before + text + "\n"
}

func (w *recordWriter) end() error {
	if !w.inner {
		return nil
	}
	_, err := io.WriteString(w.out, "\n")
	return err
}
