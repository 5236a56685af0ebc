package cell

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// onExecutors runs a test in a running cell of each runtime.
func onExecutors(t *testing.T, f func(t *testing.T, c *Cell)) {
	dir := t.TempDir()
	typist := filepath.Join(dir, "typist")
	cmd := exec.Command("go", "build", "-o", typist, "./testdata/typist")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the typist: %v\n%s", err, out)
	}
	onEach(t, func(t *testing.T, l Launcher) {
		c, out := testConfig(t, "sleep")
		b, err := os.ReadFile(typist)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(c.Rootfs, "bin/typist"), b, 0o755); err != nil {
			t.Fatal(err)
		}
		cell := start(t, l, c)
		line(t, out)
		f(t, cell)
	})
}

// command runs a command without a terminal.
func command(t *testing.T, c *Cell, stdin io.Reader, args ...string) (exit Exit, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	exit, err := c.Exec(ctx, ExecConfig{Args: args, Stdin: stdin, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return exit, out.String(), errs.String()
}

// The rules of an instance hold for what an operator runs in it.
func TestExecIsInsideTheCell(t *testing.T) {
	onExecutors(t, func(t *testing.T, c *Cell) {
		_, out, errs := command(t, c, nil, "probe", "look")
		var v view
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			t.Fatalf("%v: %s %s", err, out, errs)
		}
		if v.UID != leapcell.InstanceUID || v.GID != leapcell.InstanceGID || v.PID == 1 || v.Cwd != "/app" {
			t.Errorf("it is user %d:%d, process %d, in %s", v.UID, v.GID, v.PID, v.Cwd)
		}
		if v.NoNewPrivs != "1" || v.Seccomp != "2" || strings.Trim(v.CapEff+v.CapBnd, "0") != "" {
			t.Errorf("no_new_privs %s, seccomp %s, capabilities %s and %s", v.NoNewPrivs, v.Seccomp, v.CapEff, v.CapBnd)
		}
		if env := strings.Join(v.Env, " "); !strings.Contains(env, "SECRET=kept in memory only") || strings.Contains(env, "TERM=") {
			t.Errorf("its environment is not the app's: %s", env)
		}
		for kind, ns := range v.NS {
			if app, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(c.PID()), "ns", kind)); err != nil || app != ns {
				t.Errorf("%s namespace is %s, the app's %s (%v)", kind, ns, app, err)
			}
		}
	})
}

func TestExecCopies(t *testing.T) {
	onExecutors(t, func(t *testing.T, c *Cell) {
		text := strings.Repeat("0123456789abcde\n", 40_000) // more than pipes hold
		exit, out, errs := command(t, c, strings.NewReader(text), "typist", "copy")
		if exit.Code != 5 || out != text || errs != "copied 640000 <nil>\n" {
			t.Errorf("%+v, %d bytes, %q", exit, len(out), errs)
		}
		if exit, out, _ := command(t, c, nil, "typist", "leave"); exit.Code != 0 || out != "left\n" {
			t.Errorf("%+v %q: a process in the background held it up", exit, out)
		}
		if exit, _, errs := command(t, c, nil, "typist", "ask"); exit.Code != 1 || errs != "no terminal\n" {
			t.Errorf("%+v %q", exit, errs)
		}
	})
}

func TestExecWithTerminal(t *testing.T) {
	onExecutors(t, func(t *testing.T, c *Cell) {
		run := func(stdin string, sizes []TerminalSize, args ...string) string {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			resize := make(chan TerminalSize, len(sizes))
			for _, s := range sizes {
				resize <- s
			}
			in, typed := io.Pipe()
			defer in.Close()
			go io.WriteString(typed, stdin)
			var out bytes.Buffer
			exit, err := c.Exec(ctx, ExecConfig{Args: args, TTY: true, Stdin: in, Stdout: &out, Resize: resize})
			if err != nil || exit.Code != 0 {
				t.Fatalf("%+v, %v: %q", exit, err, out.String())
			}
			return out.String()
		}
		if out := run("hello\n", nil, "typist", "ask"); out != "hello\r\nyou said hello xterm\r\n" && out != "you said hello xterm\r\n" {
			t.Errorf("the terminal shows %q", out)
		}
		if out := run("", []TerminalSize{{10, 20}, {40, 100}}, "typist", "size"); !strings.HasSuffix(out, "40 100\r\n") {
			t.Errorf("the terminal shows %q", out)
		}
	})
}

func TestExecEndsWithItsContext(t *testing.T) {
	onExecutors(t, func(t *testing.T, c *Cell) {
		ctx, cancel := context.WithCancel(t.Context())
		r, w := io.Pipe()
		go func() { // the copy shows that it runs
			_, _ = r.Read(make([]byte, 1))
			cancel()
		}()
		in, typed := io.Pipe()
		defer in.Close()
		go io.WriteString(typed, "x")
		exit, err := c.Exec(ctx, ExecConfig{Args: []string{"typist", "copy"}, Stdin: in, Stdout: w, Stderr: io.Discard})
		if err != context.Canceled || exit.Signal != 9 {
			t.Errorf("%+v, %v", exit, err)
		}
		if pids, err := c.group.procs(); err != nil || len(pids) != 1 {
			t.Errorf("processes %v are left, %v", pids, err)
		}
	})
}

func TestExecErrors(t *testing.T) {
	onExecutors(t, func(t *testing.T, c *Cell) {
		for args, code := range map[string]leapcell.Code{
			"nothing-of-that-name": leapcell.CodeNotFound, "/bin/nothing": leapcell.CodeNotFound, "/etc/hosts": leapcell.CodeUnprocessable,
		} {
			for _, tty := range []bool{false, true} {
				_, err := c.Exec(t.Context(), ExecConfig{Args: []string{args}, TTY: tty, Stdout: io.Discard, Stderr: io.Discard})
				if leapcell.ErrorCode(err) != code || !strings.Contains(leapcell.ErrorMessage(err), args) {
					t.Errorf("%s: %v", args, err)
				}
			}
		}
		if _, err := c.Exec(t.Context(), ExecConfig{}); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
			t.Errorf("no command: %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(c.config.Dir, "exec-*")); len(left) > 0 {
			t.Errorf("files are left: %q", left)
		}
	})
}
