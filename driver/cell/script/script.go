package script

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Script is a list of system calls in the making. The zero value is empty.
type Script struct {
	steps []step
}

// step is one call with what it is for.
type step struct {
	what   string
	number uintptr
	args   []any
	min    int
	accept [2]unix.Errno
	last   bool
	fork   *cloneArgs
}

// Filter is an argument that is handed over as a struct sock_fprog: the filter's instructions,
// eight bytes each.
type Filter []byte

// Step changes the call that was added last.
type Step struct{ s *step }

// Do adds a call; what names it in errors. Arguments are integers of any kind, a string (handed
// over as a C string), []byte (handed over as they are), []string (as a C list of C strings)
// [Filter] or nil. A result below zero ends the process, unless it is accepted.
func (s *Script) Do(what string, number uintptr, args ...any) Step {
	if len(args) > 6 {
		panic("script: a system call has at most six arguments")
	}
	s.steps = append(s.steps, step{what: what, number: number, args: args})
	return Step{&s.steps[len(s.steps)-1]}
}

// Accept lets the script go on after one of at most two errors.
func (s Step) Accept(errs ...unix.Errno) Step {
	if len(errs) > 2 {
		panic("script: two errors can be accepted, not more")
	}
	copy(s.s.accept[:], errs)
	return s
}

// Min makes smaller results an error.
func (s Step) Min(result int) { s.s.min = result }

// Exec adds the calls that put the program in the process's place. A name without a slash is
// looked for in the folders of path, as a shell does.
func (s *Script) Exec(args, env []string, path string) {
	files := []string{args[0]}
	if !strings.Contains(args[0], "/") {
		files = files[:0]
		for dir := range strings.SplitSeq(path, ":") {
			if dir != "" { // the current folder, in a shell: not here
				files = append(files, strings.TrimSuffix(dir, "/")+"/"+args[0])
			}
		}
	}
	for i, file := range files {
		call := s.Do("exec "+args[0], unix.SYS_EXECVE, file, args, env)
		call.s.last = true
		if i < len(files)-1 {
			call.Accept(unix.ENOENT, unix.EACCES)
		}
	}
	if len(files) == 0 { // nowhere to look
		s.Do("exec "+args[0], unix.SYS_EXECVE, "", args, env).s.last = true
	}
}

// String writes the script as a debugger would print the calls: for golden files. The
// environment is left out.
func (s *Script) String() string {
	var b strings.Builder
	for _, st := range s.steps {
		args := make([]string, len(st.args))
		for i, a := range st.args {
			args[i] = printed(a)
		}
		if st.last {
			args[2] = "env"
		}
		fmt.Fprintf(&b, "%-28s %s(%s)", st.what, callName(st.number), strings.Join(args, ", "))
		for _, e := range st.accept {
			if e != 0 {
				fmt.Fprintf(&b, " or %s", unix.ErrnoName(e))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func printed(a any) string {
	switch a := a.(type) {
	case nil:
		return "0"
	case string:
		return strconv.Quote(a)
	case []byte:
		if len(a) > 64 {
			return fmt.Sprintf("%d bytes", len(a))
		}
		return fmt.Sprintf("% x", a)
	case Filter:
		return fmt.Sprintf("%d instructions", len(a)/8)
	case []string:
		return fmt.Sprintf("%q", a)
	default:
		return fmt.Sprintf("%#x", number(a))
	}
}

// number gives an integer argument as the kernel gets it.
func number(a any) uintptr {
	switch a := a.(type) {
	case int:
		return uintptr(a)
	case uintptr:
		return a
	case uint32:
		return uintptr(a)
	case uint64:
		return uintptr(a)
	}
	panic(fmt.Sprintf("script: %T is not an argument of a system call", a))
}

// Error is a call that failed, and what it was for.
type Error struct {
	What string
	Err  unix.Errno
}

func (e *Error) Error() string { return e.What + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }
