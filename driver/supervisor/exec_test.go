package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/gate"
	"github.com/leapcell/leapcell/driver/image"
)

// copies is a command that says what it was asked for, then copies its input, then ends with 3.
func copies(ctx context.Context, c *fakeCell, e cell.ExecConfig) (cell.Exit, error) {
	fmt.Fprintf(e.Stderr, "%q terminal=%v frozen=%v", e.Args, e.TTY, c.Frozen())
	if e.TTY {
		size := <-e.Resize
		fmt.Fprintf(e.Stderr, " %dx%d", size.Rows, size.Columns)
	}
	_, err := io.Copy(e.Stdout, e.Stdin)
	return cell.Exit{Code: 3}, err
}

// waits is a command that ends with its context.
func waits(ctx context.Context, _ *fakeCell, e cell.ExecConfig) (cell.Exit, error) {
	_, _ = io.WriteString(e.Stdout, "waiting")
	<-ctx.Done()
	return cell.Exit{Signal: 9}, ctx.Err()
}

// listenNode gives a client of the node.
func listenNode(t *testing.T, n *node) *Client {
	socket := filepath.Join(n.dir, "s.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: n.Handler(func() {})}
	go server.Serve(l)
	c := NewClient(socket)
	t.Cleanup(func() { c.Close(); server.Close() })
	return c
}

// asleep starts a task and waits until it is suspended.
func (n *node) asleep(t *testing.T) StartRequest {
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	until(t, "suspension", func() bool { s, err := n.Inspect(req.ID); return err == nil && s.Gate.Suspended })
	return req
}

func TestExecAcrossTheSocket(t *testing.T) {
	n := newNode(t, serves(hello))
	n.cells.exec = copies
	c := listenNode(t, n)
	req := n.asleep(t)
	text := strings.Repeat("more than one frame ", 10_000)
	var out, errs bytes.Buffer
	exit, err := c.Exec(t.Context(), req.ID, cell.ExecConfig{Args: []string{"a b", "c"}, Stdin: strings.NewReader(text), Stdout: &out, Stderr: &errs})
	if err != nil || exit.Code != 3 || out.String() != text || errs.String() != `["a b" "c"] terminal=false frozen=false` {
		t.Errorf("%+v, %v: %d bytes, %s", exit, err, out.Len(), errs.String())
	}
	resize := make(chan cell.TerminalSize, 1)
	resize <- cell.TerminalSize{Rows: 40, Columns: 100}
	errs.Reset()
	exit, err = c.Exec(t.Context(), req.ID, cell.ExecConfig{Args: []string{"x"}, TTY: true, Stdout: &out, Stderr: &errs, Resize: resize})
	if err != nil || exit.Code != 3 || errs.String() != `["x"] terminal=true frozen=false 40x100` {
		t.Errorf("%+v, %v: %s", exit, err, errs.String())
	}
	until(t, "suspension after the command", func() bool { return n.cells.last().Frozen() })
}

func TestExecErrorsReachWhoAsked(t *testing.T) {
	n := newNode(t, serves(hello))
	c := listenNode(t, n)
	quiet := cell.ExecConfig{Args: []string{"x"}, Stdout: io.Discard, Stderr: io.Discard}
	if _, err := c.Exec(t.Context(), "no/such", quiet); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown task: %v", err)
	}
	n.cells.exec = func(context.Context, *fakeCell, cell.ExecConfig) (cell.Exit, error) {
		return cell.Exit{}, leapcell.Errorf(leapcell.CodeNotFound, "the image has no program %q", "x")
	}
	req := n.asleep(t)
	_, err := c.Exec(t.Context(), req.ID, quiet)
	if leapcell.ErrorCode(err) != leapcell.CodeNotFound || errors.Is(err, ErrNotFound) || leapcell.ErrorMessage(err) != `the image has no program "x"` {
		t.Errorf("%v", err)
	}
	if err := n.Stop(req.ID, time.Second, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), req.ID, quiet); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("a task that has ended: %v", err)
	}
}

func TestExecEnds(t *testing.T) {
	n := newNode(t, serves(hello))
	n.cells.exec = waits
	c := listenNode(t, n)
	req := n.asleep(t)
	run := func(ctx context.Context) (started chan struct{}, result chan error) {
		started, result = make(chan struct{}), make(chan error, 1)
		r, w := io.Pipe()
		go func() {
			_, _ = io.ReadFull(r, make([]byte, len("waiting")))
			close(started)
		}()
		go func() {
			_, err := c.Exec(ctx, req.ID, cell.ExecConfig{Args: []string{"x"}, Stdout: w, Stderr: io.Discard})
			result <- err
		}()
		return started, result
	}
	t.Run("when who asked is gone", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		started, result := run(ctx)
		<-started
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		until(t, "suspension", func() bool { return n.cells.last().Frozen() })
	})
	t.Run("when the task is stopped", func(t *testing.T) {
		started, result := run(t.Context())
		<-started
		if err := n.Stop(req.ID, 20*time.Second, unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := <-result; err == nil {
			t.Error("it did not end, or well")
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	_ = (&frames{w: &b}).send(frameResize, []byte{0, 40, 0, 100})
	f.Add(b.Bytes())
	f.Add([]byte{1, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		r, buf := bytes.NewReader(in), make([]byte, frameLimit)
		for {
			before := r.Len()
			kind, content, err := readFrame(r, buf)
			if err != nil {
				return
			}
			if before-r.Len() != 5+len(content) || kind != in[len(in)-before] {
				t.Fatalf("frame %d of %d bytes took %d", kind, len(content), before-r.Len())
			}
		}
	})
}

func TestSignalLetsASleepingAppAct(t *testing.T) {
	n := newNode(t, serves(hello))
	req := n.asleep(t)
	if err := n.Signal(req.ID, unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until(t, "the app's answer", func() bool { return strings.Contains(n.logged(req, "stdout"), "got SIGHUP") })
	until(t, "suspension", func() bool { return n.cells.last().Frozen() })
}

func TestNapsAreToldSeldom(t *testing.T) {
	var n naps
	begin := time.Now()
	var lines []string
	for now := time.Duration(0); now < 24*time.Hour; now += 5 * time.Second {
		for _, suspended := range []bool{true, false} {
			if text := n.note(suspended, begin.Add(now), 20*time.Millisecond); text != "" {
				lines = append(lines, now.String()+" "+text)
			}
		}
	}
	want := []string{
		"0s suspended: no request for 20ms", "0s resumed by a request",
		"1m0s suspended 12 times and resumed 11 times in 1m0s", "3m0s suspended 24 times and resumed 24 times in 2m0s",
	}
	if len(lines) < 5 || strings.Join(lines[:4], "\n") != strings.Join(want, "\n") {
		t.Errorf("%s", strings.Join(lines, "\n"))
	}
	if len(lines) > 31 {
		t.Errorf("%d lines in a day", len(lines))
	}
}

func TestTexts(t *testing.T) {
	tagged := &image.Image{Ref: "r/shop@sha256:1", Pulled: 34_500_000}
	lived := gate.Stats{Sandbox: 20 * time.Millisecond, Start: 5 * time.Millisecond}
	for got, want := range map[string]string{
		pulledText("r/shop:1", tagged, 1234567*time.Microsecond):                         "image pulled in 1.235s, 34.5 MB: r/shop@sha256:1",
		pulledText("r/shop@sha256:1", &image.Image{Ref: "r/shop@sha256:1"}, time.Second): "image pulled in 1s",
		startedText(lived): "started in 25.0 ms and ready: sandbox 20.0 ms, app 5.0 ms",
		outOfMemoryText(256, cell.Stats{MaxMemory: 256 << 20}):                             "out of memory: limit 256 MB, used 256.0 MB",
		endedText(Exit{Code: 7, Message: "exited with code 7"}, lived, 3*time.Second):      "crashed: exited with code 7, 3s after its start",
		endedText(Exit{Code: 7, Message: "exited with code 7"}, gate.Stats{}, time.Second): "exited with code 7",
		endedText(Exit{Message: "stopped"}, lived, time.Second):                            "stopped",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
