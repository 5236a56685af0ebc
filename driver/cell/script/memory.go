package script

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is one system call as the assembly reads it: the offsets are written there.
type call struct {
	number uintptr
	args   [6]uintptr
	result int // of the call; pending until it was made
	min    int // the smallest good result
	accept [2]int
	fork   uintptr // not 0: whoever gets a result above zero ends
}

const (
	pending   = -1 << 62
	noErrno   = 1 // no error is positive
	stackSize = 4096
)

// memory is a script laid out for the kernel, outside of the Go heap: the process reads it
// while the garbage collector knows nothing of it.
type memory struct {
	all   []byte
	used  uintptr
	calls []call
	child *uint32 // the number of the process that a fork made, 0 before
}

// place lays out a script. free gives the memory back.
func (s *Script) place() (*memory, error) {
	n := uintptr(len(s.steps) + 1)
	size := stackSize + n*unsafe.Sizeof(call{}) + 512
	for _, st := range s.steps {
		for _, a := range st.args {
			size += room(a)
		}
	}
	page := uintptr(unix.Getpagesize())
	all, err := unix.Mmap(-1, 0, int((size+page-1)&^(page-1)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("memory for the process's set-up: %w", err)
	}
	m := &memory{all: all, used: stackSize}
	m.calls = unsafe.Slice((*call)(m.take(n*unsafe.Sizeof(call{}))), n)
	for i, st := range s.steps {
		if st.fork != nil {
			m.placeFork(&s.steps[i])
		}
		c := &m.calls[i]
		*c = call{number: st.number, result: pending, min: st.min, accept: [2]int{noErrno, noErrno}}
		for j, a := range s.steps[i].args {
			c.args[j] = m.argument(a)
		}
		if st.fork != nil {
			c.fork = 1
		}
		for j, e := range st.accept {
			if e != 0 {
				c.accept[j] = -int(e)
			}
		}
	}
	// Whoever comes here had no program to execute.
	m.calls[n-1] = call{number: unix.SYS_EXIT_GROUP, args: [6]uintptr{127}, result: pending, accept: [2]int{noErrno, noErrno}}
	return m, nil
}

// placeFork lays out the arguments of a fork.
func (m *memory) placeFork(st *step) {
	args := (*cloneArgs)(m.take(unsafe.Sizeof(cloneArgs{})))
	*args = *st.fork
	m.child = (*uint32)(m.take(4))
	args.parentTID = uint64(uintptr(unsafe.Pointer(m.child)))
	st.args = []any{uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args)}
}

// room is how many bytes an argument takes, generously.
func room(a any) uintptr {
	switch a := a.(type) {
	case string:
		return uintptr(len(a)) + 16
	case []byte:
		return uintptr(len(a)) + 16
	case Filter:
		return uintptr(len(a)) + 48
	case []string:
		n := uintptr(len(a)+1)*unsafe.Sizeof(uintptr(0)) + 16
		for _, s := range a {
			n += uintptr(len(s)) + 16
		}
		return n
	}
	return 0
}

// take gives the next n bytes, aligned for anything.
func (m *memory) take(n uintptr) unsafe.Pointer {
	m.used = (m.used + 15) &^ 15
	p := unsafe.Pointer(&m.all[m.used])
	m.used += n
	return p
}

// argument copies what the kernel needs to be pointed at.
func (m *memory) argument(a any) uintptr {
	switch a := a.(type) {
	case nil:
		return 0
	case string:
		return m.bytes(a, 1)
	case []byte:
		return m.bytes(string(a), 0)
	case Filter:
		program := (*unix.SockFprog)(m.take(unsafe.Sizeof(unix.SockFprog{})))
		code := m.bytes(string(a), 0)
		program.Len = uint16(len(a) / 8)
		*(*uintptr)(unsafe.Pointer(&program.Filter)) = code
		return uintptr(unsafe.Pointer(program))
	case []string:
		list := unsafe.Slice((*uintptr)(m.take(uintptr(len(a)+1)*unsafe.Sizeof(uintptr(0)))), len(a)+1)
		for i, s := range a {
			list[i] = m.bytes(s, 1)
		}
		return uintptr(unsafe.Pointer(&list[0]))
	default:
		return number(a)
	}
}

// bytes copies s, with zeros after it: the memory is new.
func (m *memory) bytes(s string, zeros uintptr) uintptr {
	p := m.take(uintptr(len(s)) + zeros)
	copy(unsafe.Slice((*byte)(p), len(s)), s)
	return uintptr(p)
}

// free forgets the script, which holds an environment in clear.
func (m *memory) free() {
	clear(m.all)
	_ = unix.Munmap(m.all) // it is ours and whole
	m.all, m.calls = nil, nil
}

// failure is the call that ended the process, nil when it is the program.
func (s *Script) failure(m *memory) error {
	denied := false
	for i, st := range s.steps {
		result := m.calls[i].result
		switch {
		case result == pending:
			if st.last {
				return nil // it did not come back from there
			}
			return &Error{What: st.what, Err: unix.EINTR} // it was killed on the way
		case result >= st.min:
		case st.accept[0] != 0 && result == -int(st.accept[0]), st.accept[1] != 0 && result == -int(st.accept[1]):
			denied = denied || st.last && result == -int(unix.EACCES)
		default:
			errno := unix.EIO // a result that is too small but no error
			if result < 0 {
				errno = unix.Errno(-result)
			}
			if denied && errno == unix.ENOENT {
				errno = unix.EACCES // a program was found and may not be executed
			}
			return &Error{What: st.what, Err: errno}
		}
	}
	return &Error{What: "exec", Err: unix.ENOENT}
}
