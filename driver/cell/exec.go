package cell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// ExecConfig is a program to run in a cell beside its app.
type ExecConfig struct {
	Args []string
	TTY  bool // with a terminal of its own; everything it writes then goes to Stdout
	// Stdin is read until its end, or until the first read after the program has ended returns.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan TerminalSize // with TTY
}

// TerminalSize is that of a terminal in characters.
type TerminalSize struct{ Rows, Columns uint16 }

// Exec runs a program as the app's user, with its environment, in its namespaces, limits and
// working directory, and returns when the program has ended and what it wrote is written. When ctx
// ends, the program is killed. The cell must not be frozen meanwhile.
//
// Errors: [leapcell.CodeNotFound] when there is no such program, CodeUnprocessable when it cannot be run.
func (c *Cell) Exec(ctx context.Context, e ExecConfig) (Exit, error) {
	beside, err := c.beside()
	if err != nil {
		return Exit{}, leapcell.Wrap(leapcell.CodeUnavailable, err, "this node cannot run commands in instances: "+leapcell.ErrorMessage(err))
	}
	if len(e.Args) == 0 {
		return Exit{}, leapcell.Errorf(leapcell.CodeInvalid, "there is no command to run")
	}
	spec, err := c.execSpec(e)
	if err != nil {
		return Exit{}, err
	}
	s := &session{config: e, ended: make(chan struct{})}
	stdio, err := s.open()
	if err == nil {
		var terminal *os.File
		s.process, terminal, err = beside.exec(ctx, c, spec, stdio)
		if terminal != nil {
			s.stdin, s.stdout = terminal, terminal
		}
	}
	for _, f := range stdio {
		if f != nil {
			_ = f.Close()
		}
	}
	if err != nil {
		s.close()
		return Exit{}, execError(e.Args[0], err)
	}
	return s.run(ctx)
}

// execSpec is the app's process with another program. The environment is read from the app: it
// is kept nowhere else.
func (c *Cell) execSpec(e ExecConfig) (*specs.Process, error) {
	proc := fmt.Sprintf("/proc/%d/", c.process.pid)
	environ, err := os.ReadFile(proc + "environ")
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeConflict, err, "the app has ended")
	}
	var open unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &open); err != nil {
		return nil, fmt.Errorf("read the limit of open files: %w", err)
	}
	p := Spec(c.config, Host{OpenFiles: open.Max}).Process
	p.Args, p.Terminal = e.Args, e.TTY
	p.Env = slices.DeleteFunc(strings.Split(string(environ), "\x00"), func(s string) bool { return s == "" || strings.HasPrefix(s, "TERM=") })
	if e.TTY {
		p.Env = append(p.Env, "TERM=xterm")
	}
	p.Cwd = "/"
	if dir, err := os.Readlink(proc + "cwd"); err == nil && filepath.IsAbs(dir) && !strings.HasSuffix(dir, " (deleted)") {
		p.Cwd = dir
	}
	return p, nil
}

// session is one program that runs in a cell, and what is copied to and from it.
type session struct {
	config                ExecConfig
	process               *process
	stdin, stdout, stderr *os.File // our sides; with a terminal the first two are the same
	ended                 chan struct{}
}

// open makes pipes and gives the program's sides of them; none for a terminal.
func (s *session) open() (stdio [3]*os.File, err error) {
	if s.config.TTY {
		return stdio, nil
	}
	for i, ours := range []**os.File{&s.stdin, &s.stdout, &s.stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return stdio, err
		}
		stdio[i], *ours = w, r
		if i == 0 {
			stdio[i], *ours = r, w
		}
	}
	return stdio, nil
}

func (s *session) close() {
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if f != nil {
			_ = f.Close() // a terminal twice: the second does nothing
		}
	}
}

// run copies until the program has ended.
func (s *session) run(ctx context.Context) (Exit, error) {
	defer s.process.close()
	defer s.close()
	go s.feed()
	go s.resize()
	var outputs sync.WaitGroup
	outputs.Go(func() { s.drain(s.stdout, s.config.Stdout) })
	if s.stderr != nil {
		outputs.Go(func() { s.drain(s.stderr, s.config.Stderr) })
	}
	stop := context.AfterFunc(ctx, func() {
		// A program without job control is one process group; a shell's jobs lose their terminal.
		_ = unix.Kill(-s.process.pid, unix.SIGKILL)
		_ = s.process.kill()
	})
	exit, err := s.process.wait()
	stop()
	close(s.ended)
	s.hurry()
	outputs.Wait()
	if ctx.Err() != nil {
		return exit, ctx.Err()
	}
	return exit, err
}

// feed passes on what is typed. A terminal has no end: it gets the character that says so.
func (s *session) feed() {
	if s.config.Stdin != nil {
		_, _ = io.Copy(s.stdin, s.config.Stdin)
	}
	if s.config.TTY {
		_, _ = s.stdin.Write([]byte{4})
		return
	}
	_ = s.stdin.Close()
}

func (s *session) resize() {
	for {
		select {
		case size, ok := <-s.config.Resize:
			if !ok || !s.config.TTY {
				return
			}
			if raw, err := s.stdin.SyscallConn(); err == nil {
				_ = raw.Control(func(fd uintptr) {
					_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
				})
			}
		case <-s.ended:
			return
		}
	}
}

// lastWords is how long an output may be silent after the program's end before nobody waits for
// it any more: a process that it left in the background may hold it open for ever.
const lastWords = 300 * time.Millisecond

// hurry lets reads that nothing comes from end.
func (s *session) hurry() {
	for _, f := range []*os.File{s.stdout, s.stderr} {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(lastWords))
		}
	}
}

// drain copies an output until its end. A reader that went away does not stop the program:
// whoever notices ends the context.
func (s *session) drain(from *os.File, to io.Writer) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, failed := to.Write(buf[:n]); failed != nil {
				to = io.Discard
			}
			select {
			case <-s.ended: // a slow reader must not cost what comes after
				_ = from.SetReadDeadline(time.Now().Add(lastWords))
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

// kill ends the process, whatever has its number by now.
func (p *process) kill() error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	return failed
}

// execError puts into words why a program did not start.
func execError(program string, err error) error {
	text := strings.ToLower(err.Error())
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case strings.Contains(text, "not found") || strings.Contains(text, "no such file"):
		return leapcell.Wrap(leapcell.CodeNotFound, err, fmt.Sprintf("the image has no program %q", program))
	case strings.Contains(text, "permission denied"):
		return leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("the program %q cannot be executed by the instance's user", program))
	default:
		return leapcell.Wrap(leapcell.CodeUnprocessable, err, "the command could not be run")
	}
}
