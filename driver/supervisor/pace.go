package supervisor

import (
	"context"
	"errors"
	"sync"

	"github.com/leapcell/leapcell"
)

// CodeMoved is the code of what a supervisor answers that has handed its tasks over: nothing
// of the question was done, the supervisor that has the socket now will do it.
const CodeMoved leapcell.Code = "moved"

var errMoved = &leapcell.Error{Code: CodeMoved, Message: "the tasks were handed over to another supervisor"}

// pace keeps the steps of tasks that must not be torn apart (a start until it is written down,
// an end, a build) and a handover from happening at once.
//
//	open ──shut──► no step begins, those under way end ──► handed over: no step begins ever
//	  ▲                         │
//	  └─────────── open ────────┘
type pace struct {
	mu     sync.Mutex
	steps  int
	builds int           // of the steps: those that may take minutes
	barred chan struct{} // closed when steps may begin again or never will; nil while open
	quiet  chan struct{} // closed when the last step ends while barred
	moved  chan struct{} // closed when the tasks are another's
}

func newPace() *pace { return &pace{moved: make(chan struct{})} }

// begin waits until a step may be made; the error says that it never may. Each needs its end.
func (p *pace) begin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.barred != nil {
		barred := p.barred
		p.mu.Unlock()
		<-barred
		p.mu.Lock()
	}
	if p.isMoved() {
		return errMoved
	}
	p.steps++
	return nil
}

func (p *pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.steps--
	if p.steps == 0 && p.quiet != nil {
		close(p.quiet)
		p.quiet = nil
	}
}

// build counts builds among the steps.
func (p *pace) build(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.builds += n
}

// shut lets no step begin and waits for those under way until ctx is done. After a nil error
// open must be called.
func (p *pace) shut(ctx context.Context) error {
	p.mu.Lock()
	switch {
	case p.isMoved() || p.barred != nil:
		p.mu.Unlock()
		return errors.New("another handover is under way")
	case p.builds > 0:
		p.mu.Unlock()
		return errors.New("a build is running")
	}
	p.barred = make(chan struct{})
	quiet := make(chan struct{})
	if p.steps == 0 {
		close(quiet)
	} else {
		p.quiet = quiet
	}
	p.mu.Unlock()
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		p.open()
		return errors.New("instances are being started")
	}
}

// open undoes shut.
func (p *pace) open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.barred)
	p.barred, p.quiet = nil, nil
}

// move ends all steps for ever; it follows shut.
func (p *pace) move() {
	close(p.moved)
	p.open()
}

func (p *pace) isMoved() bool {
	select {
	case <-p.moved:
		return true
	default:
		return false
	}
}
