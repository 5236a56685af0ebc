package supervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
)

// Exec runs a command in the task's instance, which is awake for as long as it runs. It ends with the
// instance, with ctx, and when the tasks are handed over to another supervisor.
func (s *Supervisor) Exec(ctx context.Context, id string, e cell.ExecConfig) (cell.Exit, error) {
	t, err := s.task(id)
	if err != nil {
		return cell.Exit{}, err
	}
	ctx, stop := s.present(ctx)
	defer stop()
	c, release, err := t.enter(stop)
	if err != nil {
		return cell.Exit{}, err
	}
	defer release()
	exit, err := c.Exec(ctx, e)
	if err != nil && s.pace.isMoved() {
		err = leapcell.Errorf(leapcell.CodeUnavailable, "the driver was upgraded: run the command again")
	}
	t.log.Info("command in the instance ended", "code", exit.Code, "terminal", e.TTY) // not its words: they may hold secrets
	return exit, err
}

// enter gives the task's cell, awake until release. end is called when the task is about to stop.
func (t *task) enter(end func()) (c Cell, release func(), err error) {
	t.mu.Lock()
	c = t.cell
	over := t.stopping || t.rec.Exit != nil
	t.mu.Unlock()
	switch {
	case over:
		return nil, nil, leapcell.Errorf(leapcell.CodeConflict, "the task %s is ending or has ended", t.req.ID)
	case c == nil:
		return nil, nil, leapcell.Errorf(leapcell.CodeConflict, "the task %s has no process yet", t.req.ID)
	}
	awake := func() {}
	if t.gate != nil {
		if awake, err = t.gate.Awake(); err != nil {
			return nil, nil, leapcell.Wrap(leapcell.CodeConflict, err, err.Error())
		}
	}
	leave := t.visits.add(end)
	return c, func() { leave(); awake() }, nil
}

// visits are the commands that run in an instance.
type visits struct {
	mu   sync.Mutex
	ends map[*func()]struct{}
}

func (v *visits) add(end func()) (leave func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ends == nil {
		v.ends = map[*func()]struct{}{}
	}
	key := &end
	v.ends[key] = struct{}{}
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.ends, key)
	}
}

// end asks all of them to end.
func (v *visits) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for end := range v.ends {
		(*end)()
	}
}

// Signal sends a signal to the app. A suspended one is awake for long enough to act on it.
func (s *Supervisor) Signal(id string, signal unix.Signal) error {
	t, err := s.task(id)
	if err != nil {
		return err
	}
	c, release, err := t.enter(func() {})
	if err != nil {
		return err
	}
	defer time.AfterFunc(leapcell.SuspendAfter, release)
	return c.Signal(signal)
}

// The conversation of a command: after the answer 101, frames in both directions. A frame is its
// kind, the length of what follows in four bytes, and that.
const (
	frameStdin  byte = iota + 1 // to the command
	frameEOF                    // to the command: stdin has ended
	frameResize                 // to the command: rows and columns in two bytes each
	frameStdout
	frameStderr
	frameEnd // of the command: an execEnd as JSON; the last one
)

const (
	frameLimit  = 64 << 10 // of what one frame carries
	execUpgrade = "leapcell-exec/1"
)

// execOrder begins the conversation.
type execOrder struct {
	Args []string `json:"args"`
	TTY  bool     `json:"tty,omitempty"`
}

// execEnd is how a command ended, or why it did not run.
type execEnd struct {
	Exit  cell.Exit `json:"exit"`
	Error *failure  `json:"error,omitempty"`
}

// frames writes frames; safe for concurrent use.
type frames struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frames) send(kind byte, b []byte) error {
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(b)))
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.w.Write(append(head, b...))
	return err
}

// output is one kind of frames as a writer.
type output struct {
	frames *frames
	kind   byte
}

func (o output) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		chunk := b[:min(len(b), frameLimit)]
		if err := o.frames.send(o.kind, chunk); err != nil {
			return n, err
		}
		n, b = n+len(chunk), b[len(chunk):]
	}
	return n, nil
}

// readFrame reads one frame. Its content is good until the next call with the same buf, which has
// room for frameLimit.
func readFrame(r io.Reader, buf []byte) (kind byte, b []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > frameLimit {
		return 0, nil, fmt.Errorf("a frame of %d bytes: at most %d are allowed", n, frameLimit)
	}
	_, err = io.ReadFull(r, buf[:n])
	return head[0], buf[:n], err
}

// serveExec is the supervisor's end of the conversation.
func (s *Supervisor) serveExec(w http.ResponseWriter, r *http.Request) {
	var order execOrder
	s.unlessMoved(func(r *http.Request) (any, error) {
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&order); err != nil {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "exec: %w", err)
		}
		_, err := s.task(r.FormValue("id"))
		return nil, err
	}).upgrade(w, r, func(conn io.ReadWriteCloser, in *bufio.Reader) {
		s.converse(r.FormValue("id"), order, conn, in)
	})
}

// upgrade asks h, and when it has no objection leaves HTTP.
func (h handler) upgrade(w http.ResponseWriter, r *http.Request, talk func(io.ReadWriteCloser, *bufio.Reader)) {
	if _, err := h(r); err != nil {
		handler(func(*http.Request) (any, error) { return nil, err }).ServeHTTP(w, r)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		handler(func(*http.Request) (any, error) { return nil, err }).ServeHTTP(w, r)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", execUpgrade); err == nil {
		talk(conn, buffered.Reader)
	}
}

func (s *Supervisor) converse(id string, order execOrder, conn io.ReadWriteCloser, in *bufio.Reader) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stdin, typed := io.Pipe()
	defer stdin.Close()
	sizes := make(chan cell.TerminalSize, 1)
	go func() {
		defer cancel() // who asked is gone
		listen(in, typed, sizes)
	}()
	out := &frames{w: conn}
	exit, err := s.Exec(ctx, id, cell.ExecConfig{
		Args: order.Args, TTY: order.TTY, Stdin: stdin, Stdout: output{out, frameStdout}, Stderr: output{out, frameStderr}, Resize: sizes,
	})
	end := execEnd{Exit: exit}
	if err != nil {
		end.Error = &failure{Code: leapcell.ErrorCode(err), Message: describe(err)}
	}
	if b, err := json.Marshal(end); err == nil {
		_ = out.send(frameEnd, b) // nobody there: nobody to tell
	}
}

// stdinQueue is how many frames a command may leave unread before it is no longer noticed that
// who sent them is gone.
const stdinQueue = 32

// listen reads what is for the command, until the connection ends.
func listen(in io.Reader, typed *io.PipeWriter, sizes chan cell.TerminalSize) {
	queue := make(chan []byte, stdinQueue)
	closed := false
	end := func() {
		if !closed {
			close(queue)
		}
		closed = true
	}
	defer end()
	go func() {
		defer typed.Close()
		for b := range queue {
			_, _ = typed.Write(b) // a command that has ended reads no more
		}
	}()
	buf := make([]byte, frameLimit)
	for {
		kind, b, err := readFrame(in, buf)
		if err != nil {
			return
		}
		switch kind {
		case frameStdin:
			if closed {
				return
			}
			queue <- bytes.Clone(b)
		case frameEOF:
			end()
		case frameResize:
			if len(b) != 4 {
				return
			}
			select {
			case <-sizes: // only the latest counts
			default:
			}
			sizes <- cell.TerminalSize{Rows: binary.BigEndian.Uint16(b), Columns: binary.BigEndian.Uint16(b[2:])}
		default:
			return
		}
	}
}

// Exec is [Supervisor.Exec]. Stdin is read until its end, or until the first read after the command has
// ended returns.
func (c *Client) Exec(ctx context.Context, id string, e cell.ExecConfig) (cell.Exit, error) {
	order, err := json.Marshal(execOrder{Args: e.Args, TTY: e.TTY})
	if err != nil {
		return cell.Exit{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://supervisor/v1/task/exec?"+taskID(id).Encode(), bytes.NewReader(order))
	if err != nil {
		return cell.Exit{}, err
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", execUpgrade)
	res, err := c.http.Do(r)
	if err != nil {
		return cell.Exit{}, fmt.Errorf("supervisor: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusSwitchingProtocols {
		return cell.Exit{}, failureOf(res)
	}
	conn, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		return cell.Exit{}, errors.New("supervisor: exec: the connection is read-only")
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	exit, err := follow(ctx, conn, e)
	if parent := context.Cause(ctx); parent != nil {
		err = parent
	}
	return exit, err
}

// failureOf is the error in an answer.
func failureOf(res *http.Response) error {
	var f failure
	if err := json.NewDecoder(res.Body).Decode(&f); err != nil {
		return fmt.Errorf("supervisor: %s", res.Status)
	}
	e := &leapcell.Error{Code: f.Code, Message: f.Message}
	if f.Code == leapcell.CodeNotFound {
		e.Err = ErrNotFound
	}
	return e
}

// follow is the client's end of the conversation.
func follow(ctx context.Context, conn io.ReadWriter, e cell.ExecConfig) (cell.Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	to := &frames{w: conn}
	go func() {
		if e.Stdin != nil {
			_, _ = io.Copy(output{to, frameStdin}, e.Stdin)
		}
		_ = to.send(frameEOF, nil)
	}()
	go func() {
		for {
			select {
			case size, ok := <-e.Resize:
				if !ok {
					return
				}
				_ = to.send(frameResize, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, size.Rows), size.Columns))
			case <-ctx.Done():
				return
			}
		}
	}()
	buf := make([]byte, frameLimit)
	for {
		kind, b, err := readFrame(conn, buf)
		if err != nil {
			return cell.Exit{}, fmt.Errorf("the supervisor went away while the command ran: %w", err)
		}
		switch kind {
		case frameStdout:
			_, err = e.Stdout.Write(b)
		case frameStderr:
			_, err = e.Stderr.Write(b)
		case frameEnd:
			var end execEnd
			if err := json.Unmarshal(b, &end); err != nil {
				return cell.Exit{}, fmt.Errorf("supervisor: exec: %w", err)
			}
			if end.Error != nil {
				return end.Exit, &leapcell.Error{Code: end.Error.Code, Message: end.Error.Message}
			}
			return end.Exit, nil
		default:
			return cell.Exit{}, fmt.Errorf("supervisor: exec: a frame of kind %d", kind)
		}
		if err != nil {
			return cell.Exit{}, err
		}
	}
}
