package plugin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
)

// Exit codes of commands that did not run, as shells have them.
const (
	exitNotFound   = 127
	exitCannotExec = 126
)

// ExecTaskStreaming runs a command in the instance: "nomad alloc exec", with a terminal or without.
func (d *Driver) ExecTaskStreaming(ctx context.Context, id string, o *drivers.ExecOptions) (*drivers.ExitResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer o.Stdin.Close() // ends whoever still reads it
	return d.execute(ctx, id, cell.ExecConfig{
		Args: o.Command, TTY: o.Tty, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Resize: sizes(ctx, o.ResizeCh),
	})
}

// sizes translates until ctx is done.
func sizes(ctx context.Context, in <-chan drivers.TerminalSize) <-chan cell.TerminalSize {
	out := make(chan cell.TerminalSize)
	go func() {
		for {
			select {
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- cell.TerminalSize{Rows: uint16(s.Height), Columns: uint16(s.Width)}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// ExecTask runs a command and gives what it wrote: script checks and change scripts.
func (d *Driver) ExecTask(id string, command []string, timeout time.Duration) (*drivers.ExecTaskResult, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var stdout, stderr lastBytes
	result, err := d.execute(ctx, id, cell.ExecConfig{Args: command, Stdout: &stdout, Stderr: &stderr})
	if ctx.Err() != nil {
		return nil, fmt.Errorf("the command took longer than %s and was killed", timeout)
	}
	if err != nil {
		return nil, err
	}
	return &drivers.ExecTaskResult{Stdout: stdout.bytes(), Stderr: stderr.bytes(), ExitResult: result}, nil
}

func (d *Driver) execute(ctx context.Context, id string, e cell.ExecConfig) (*drivers.ExitResult, error) {
	client, err := d.supervisor()
	if err != nil {
		return nil, err
	}
	exit, err := client.Exec(ctx, id, e)
	if isDown(err) { // nothing can have begun
		if client, err = d.up(ctx); err == nil {
			exit, err = client.Exec(ctx, id, e)
		}
	}
	if code := didNotRun(err); code != 0 {
		_, _ = fmt.Fprintf(e.Stderr, "leapcell: %s\n", leapcell.ErrorMessage(err))
		return &drivers.ExitResult{ExitCode: code}, nil
	}
	if err != nil {
		return nil, notFound(err)
	}
	return &drivers.ExitResult{ExitCode: exit.Code, Signal: exit.Signal}, nil
}

// didNotRun is the exit code for a command that the image does not have or that cannot be run; 0 for
// other errors.
func didNotRun(err error) int {
	if notFound(err) == drivers.ErrTaskNotFound {
		return 0
	}
	switch leapcell.ErrorCode(err) {
	case leapcell.CodeNotFound:
		return exitNotFound
	case leapcell.CodeUnprocessable:
		return exitCannotExec
	}
	return 0
}

// lastLimit is how much of an output ExecTask keeps: its end.
const lastLimit = 64 << 10

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lastBytes) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(b)
	if over := l.buf.Len() - lastLimit; over > lastLimit { // not with each write
		l.buf.Next(over)
	}
	return len(b), nil
}

func (l *lastBytes) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if over := l.buf.Len() - lastLimit; over > 0 {
		l.buf.Next(over)
	}
	return bytes.Clone(l.buf.Bytes())
}

var (
	_ drivers.ExecTaskStreamingDriver = (*Driver)(nil)
	_ io.Writer                       = (*lastBytes)(nil)
)
