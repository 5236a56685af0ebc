package script

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const here = uint64(1<<64 - 100) // AT_FDCWD

// start works s off and gives what the process wrote, and how it ended.
func start(t *testing.T, ctx context.Context, s *Script, files ...*os.File) (out string, status unix.WaitStatus, err error) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	pid, err := Start(ctx, s, Process{Stdio: [3]*os.File{null, w, w}, Files: files})
	if pid == 0 {
		return "", 0, err
	}
	w.Close()
	b, readErr := io.ReadAll(r)
	if readErr != nil {
		t.Fatal(readErr)
	}
	for {
		if _, e := unix.Wait4(pid, &status, 0, nil); e != unix.EINTR {
			break
		}
	}
	return string(b), status, err
}

func TestProgram(t *testing.T) {
	t.Setenv("OURS", "must not be seen")
	var s Script
	s.Do("change the folder", unix.SYS_CHDIR, "/usr")
	s.Exec([]string{"sh", "-c", `pwd; echo "$A-$OURS"; for f in /proc/self/fd/*; do echo ${f##*/}; done; cat <&4; exit 3`}, []string{"A=b c", "PATH=/bin:/usr/bin"}, "/nowhere:/bin:/usr/bin")
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, status, err := start(t, t.Context(), &s, f)
	if err != nil {
		t.Fatal(err)
	}
	// 3 is the folder that the shell reads; the file given and the pipe are the script's alone.
	if !strings.HasPrefix(out, "/usr\nb c-\n0\n1\n2\n3\n") || strings.Contains(out, "\n4\n") {
		t.Errorf("the program says %q", out)
	}
	if !strings.Contains(out, "4: ") {
		t.Errorf("descriptor 4 is open in the program: %q", out)
	}
	if status.ExitStatus() == 0 {
		t.Errorf("the exit code is lost: %v", status)
	}
}

func TestExitCode(t *testing.T) {
	var s Script
	s.Exec([]string{"/bin/sh", "-c", "exit 7"}, nil, "")
	if _, status, err := start(t, t.Context(), &s); err != nil || status.ExitStatus() != 7 {
		t.Errorf("it ended with %d, %v, want 7", status.ExitStatus(), err)
	}
}

func TestFailures(t *testing.T) {
	text := t.TempDir() + "/text"
	if err := os.WriteFile(text, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(s *Script) { s.Exec([]string{"/bin/sh", "-c", "echo ran"}, nil, "") }
	tests := []struct {
		name   string
		script func(s *Script)
		want   string
	}{
		{"a call", func(s *Script) { s.Do("enter it", unix.SYS_CHDIR, "/nowhere"); run(s) }, "enter it: no such file or directory"},
		{"another error than the accepted one", func(s *Script) { s.Do("enter it", unix.SYS_CHDIR, text).Accept(unix.ENOENT); run(s) }, "enter it: not a directory"},
		{"a result that is too small", func(s *Script) { s.Do("open it", unix.SYS_OPENAT, here, "/", 0, 0).Min(100); run(s) }, "open it: input/output error"},
		{"the program", func(s *Script) { s.Exec([]string{"/nowhere"}, nil, "") }, "exec /nowhere: no such file or directory"},
		{"the program, nowhere", func(s *Script) { s.Exec([]string{"nothing"}, nil, "/bin:/usr") }, "exec nothing: no such file or directory"},
		{"no folder to look in", func(s *Script) { s.Exec([]string{"sh"}, nil, "") }, "exec sh: no such file or directory"},
		{"a program that may not run", func(s *Script) { s.Exec([]string{text}, nil, "") }, "permission denied"},
		{"one found that may not run", func(s *Script) { s.Exec([]string{"text"}, nil, strings.TrimSuffix(text, "/text")+":/bin") }, "exec text: permission denied"},
		{"the end without a program", func(s *Script) { s.Do("enter /", unix.SYS_CHDIR, "/") }, "exec"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s Script
			tt.script(&s)
			out, status, err := start(t, t.Context(), &s)
			var failed *Error
			if !errors.As(err, &failed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
			if out != "" || status.ExitStatus() != 127 {
				t.Errorf("it went on: %q, %v", out, status)
			}
		})
	}
}

func TestAccepted(t *testing.T) {
	var s Script
	s.Do("enter it", unix.SYS_CHDIR, "/nowhere").Accept(unix.ENOTDIR, unix.ENOENT)
	s.Exec([]string{"/bin/sh", "-c", "echo ran"}, nil, "")
	if out, _, err := start(t, t.Context(), &s); out != "ran\n" || err != nil {
		t.Errorf("it says %q, %v", out, err)
	}
}

func TestCancel(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	r.Fd() // from now on reading it blocks
	told, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	defer tell.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = told.Read(make([]byte, 1))
		cancel()
	}()
	var s Script
	s.Do("say so", unix.SYS_WRITE, FirstFile+1, []byte("x"), 1)
	s.Do("wait for ever", unix.SYS_READ, FirstFile, make([]byte, 1), 1)
	s.Exec([]string{"/bin/sh", "-c", "echo ran"}, nil, "")
	out, status, err := start(t, ctx, &s, r, tell)
	if !errors.Is(err, context.Canceled) || out != "" || status.Signal() != unix.SIGKILL {
		t.Errorf("it ends with %v, %q, %v", err, out, status)
	}
}

// Many at once, while the garbage collector and other forks are at work.
func TestConcurrent(t *testing.T) {
	results := make(chan error)
	for i := range 8 {
		go func() {
			for j := range 10 {
				var s Script
				want := fmt.Sprintf("%d-%d", i, j)
				s.Exec([]string{"/bin/sh", "-c", "echo $A"}, []string{"A=" + want}, "")
				_ = make([]byte, 1<<20)
				if out, _, err := start(t, t.Context(), &s); err != nil || out != want+"\n" {
					results <- fmt.Errorf("%s: %q, %w", want, out, err)
					return
				}
			}
			results <- nil
		}()
	}
	for range 8 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}
