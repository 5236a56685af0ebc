package meter

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Layout of a page: what it is, the counters' ID, the counters, then the task as JSON behind
// its length, so that a page explains itself.
const (
	size     = 4096
	magic    = "leapcell meter 1"
	idAt     = len(magic) // 32 hexadecimal digits
	wordsAt  = 64
	lengthAt = 192
	taskAt   = lengthAt + 4
)

// The words of a page.
const (
	requests = iota
	computeMS
	egressBytes
	coldStarts
	wallMS // running or build, whichever the task is charged for
	since  // when the wall time began, on the kernel's monotonic clock; 0: it does not run
	words
)

// endedSuffix marks the file of a task that has ended: no supervisor maps it for a task again.
const endedSuffix = ".ended"

// Task says whose counters a page has.
type Task struct {
	AllocID    string            `json:"allocID"`
	Name       string            `json:"name"`
	ServiceID  string            `json:"serviceID"`
	Deployment string            `json:"deployment"`
	Mode       leapcell.TaskMode `json:"mode"`
	MemoryMB   int               `json:"memoryMB"`
}

// Page is the counters of one task. All methods may be called at any time from any
// goroutine; those that count do not block. The mapping goes when nobody has the Page any
// more, so that a late request can never write into memory that is gone.
type Page struct {
	id    string
	task  Task
	path  string // of the file; "" when there is none. Changed by End only.
	words *[words]atomic.Int64
	clock func() int64 // nanoseconds, monotonic, the same for all processes
}

// Create makes a page at path, with all counters at zero. An error means that there is no
// such file: [Memory] gives a page that does without.
func Create(path string, task Task) (*Page, error) {
	id, b, err := blank(task)
	if err != nil {
		return nil, err
	}
	// Written as a whole and then renamed: there never is half a page. Writing also takes the
	// memory, so that a full tmpfs is found out here and not at a request.
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		_ = os.Remove(tmp) // it may be half there
		return nil, fmt.Errorf("meter: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, fmt.Errorf("meter: %w", err)
	}
	p := &Page{id: id, task: task, path: path, clock: monotonic}
	return p, p.mapFile()
}

// Memory makes a page without a file: it counts as well, but its figures go with the process.
func Memory(task Task) *Page {
	return &Page{id: newID(), task: task, words: new([words]atomic.Int64), clock: monotonic}
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Open maps the page at path. The error is an os.ErrNotExist when there is none.
func Open(path string) (*Page, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("meter: %w", err)
	}
	id, task, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("meter: %s: %w", path, err)
	}
	p := &Page{id: id, task: task, path: path, clock: monotonic}
	return p, p.mapFile()
}

// blank is the content of a new page.
func blank(task Task) (id string, b []byte, err error) {
	text, err := json.Marshal(task)
	if err != nil {
		return "", nil, err
	}
	if len(text) > size-taskAt {
		return "", nil, fmt.Errorf("meter: the task's names have %d bytes, %d fit into a page", len(text), size-taskAt)
	}
	b, id = make([]byte, size), newID()
	copy(b, magic)
	copy(b[idAt:], id)
	binary.LittleEndian.PutUint32(b[lengthAt:], uint32(len(text)))
	copy(b[taskAt:], text)
	return id, b, nil
}

// parse reads what does not change in a page.
func parse(b []byte) (id string, task Task, err error) {
	if len(b) != size || !bytes.HasPrefix(b, []byte(magic)) {
		return "", task, errors.New("this is no page of counters")
	}
	n := binary.LittleEndian.Uint32(b[lengthAt:])
	if n > size-taskAt {
		return "", task, errors.New("the page of counters is damaged")
	}
	if err := json.Unmarshal(b[taskAt:taskAt+n], &task); err != nil {
		return "", task, fmt.Errorf("the page of counters is damaged: %w", err)
	}
	return string(b[idAt : idAt+32]), task, nil
}

func (p *Page) mapFile() error {
	f, err := os.OpenFile(p.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("meter: %w", err)
	}
	defer f.Close() // the mapping stays
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("meter: mapping %s: %w", p.path, err)
	}
	p.words = wordsOf(mem)
	runtime.AddCleanup(p, func(mem []byte) { _ = unix.Munmap(mem) }, mem)
	return nil
}

func wordsOf(mem []byte) *[words]atomic.Int64 {
	return (*[words]atomic.Int64)(unsafe.Pointer(&mem[wordsAt])) // 8-byte aligned: pages are
}

// monotonic is the kernel's clock that no operator and no time server sets.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // never fails
	return ts.Nano()
}

func (p *Page) add(word int, n int64) {
	p.words[word].Add(n)
	runtime.KeepAlive(p)
}

// Request counts one request.
func (p *Page) Request() { p.add(requests, 1) }

// Compute adds milliseconds in which at least one request was in flight. [BI1]
func (p *Page) Compute(ms int64) { p.add(computeMS, ms) }

// Egress adds bytes that were sent to visitors; negative ones take back what was not sent
// after all.
func (p *Page) Egress(bytes int64) { p.add(egressBytes, bytes) }

// ColdStart says that the task's instance has come to listen. Saying it again changes
// nothing: a task starts once.
func (p *Page) ColdStart() {
	p.words[coldStarts].Store(1)
	runtime.KeepAlive(p)
}

// charged reports whether the task is charged for its wall time. [BI2]
func (p *Page) charged() bool { return p.task.Mode != leapcell.TaskServerless }

// Start begins the wall time, unless it runs already: then another process began it.
func (p *Page) Start() {
	if p.charged() {
		p.words[since].CompareAndSwap(0, p.clock())
	}
	runtime.KeepAlive(p)
}

// Tick brings the wall time up to date. It is the time since Start and not the sum of ticks:
// ticking twice, from two processes or after a pause does no harm.
func (p *Page) Tick() {
	defer runtime.KeepAlive(p)
	begin := p.words[since].Load()
	if begin == 0 {
		return
	}
	ms := (p.clock() - begin + int64(time.Millisecond) - 1) / int64(time.Millisecond)
	for have := p.words[wallMS].Load(); ms > have; have = p.words[wallMS].Load() {
		if p.words[wallMS].CompareAndSwap(have, ms) {
			return
		}
	}
}

// End stops the wall time, and marks the page so that the task's next start gets one of its
// own. Counters may still grow by requests that are being answered. It is called once.
func (p *Page) End() error {
	p.words[since].Store(0)
	runtime.KeepAlive(p)
	if p.path == "" {
		return nil
	}
	path := p.path + "." + p.id[:8] + endedSuffix
	if err := os.Rename(p.path, path); err != nil {
		return fmt.Errorf("meter: %w", err)
	}
	p.path = path
	return nil
}

// ID names the counters; no others ever have the same.
func (p *Page) ID() string { return p.id }

// Task is whose counters they are.
func (p *Page) Task() Task { return p.task }

// Counters is what was counted so far.
func (p *Page) Counters() leapcell.Counters {
	defer runtime.KeepAlive(p)
	c := leapcell.Counters{
		Requests: p.words[requests].Load(), ComputeMS: p.words[computeMS].Load(),
		EgressBytes: p.words[egressBytes].Load(), ColdStarts: p.words[coldStarts].Load(),
	}
	wall := p.words[wallMS].Load()
	switch p.task.Mode {
	case leapcell.TaskPersistent:
		c.RunningMS = wall
	case leapcell.TaskBuild:
		c.BuildMS = wall
	}
	return c
}

// Read is a reading of the counters at that time.
func (p *Page) Read(at time.Time) leapcell.Meter {
	t := p.task
	return leapcell.Meter{
		ID: p.id, AllocID: t.AllocID, Task: t.Name, ServiceID: t.ServiceID, Deployment: t.Deployment,
		Mode: t.Mode, MemoryMB: t.MemoryMB, At: at, Counters: p.Counters(),
	}
}

// Remove removes the file. Who has the Page may go on counting, for nobody.
func (p *Page) Remove() error {
	if p.path == "" {
		return nil
	}
	if err := os.Remove(p.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("meter: %w", err)
	}
	return nil
}
