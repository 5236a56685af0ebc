package platform

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Step is one numbered part of [Platform.Up].
type Step struct {
	Title string
	// Run does it, or finds that it was done before. What it notes appears below the title.
	Run func(ctx context.Context, note func(format string, args ...any)) error
	// Log names the process whose log tells more when Run fails; may be empty.
	Log string
}

// progress writes one line a step: its number and title when it begins, its time when it
// ends; notes in between go on lines of their own.
type progress struct {
	out io.Writer

	mu   sync.Mutex
	open bool // the title's line has not ended yet
}

func (p *progress) run(ctx context.Context, n, total int, s Step) error {
	began := time.Now()
	p.mu.Lock()
	fmt.Fprintf(p.out, "[%*d/%d] %s …", len(fmt.Sprint(total)), n, total, s.Title)
	p.open = true
	p.mu.Unlock()

	err := s.Run(ctx, p.note)

	p.mu.Lock()
	defer p.mu.Unlock()
	result := took(time.Since(began))
	if err != nil {
		result = "failed after " + result
	}
	if p.open {
		fmt.Fprintf(p.out, " %s\n", result)
	} else {
		fmt.Fprintf(p.out, "        %s\n", result)
	}
	p.open = false
	return err
}

func (p *progress) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open {
		fmt.Fprintln(p.out)
		p.open = false
	}
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	fmt.Fprintf(p.out, "        %s\n", strings.ReplaceAll(text, "\n", "\n        "))
}

// took is short: "0.4s", "3m20s".
func took(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}
