package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/leapcell/leapcell/test/vm/wire"
)

// report reads what comes out of the machine and prints one line a job; the whole output only
// of a job that failed.
type report struct {
	verbose  bool
	log      io.Writer // gets everything
	results  io.Writer // gets what the jobs say, marked for test2json; may be nil
	expected int       // jobs

	line   []byte       // the last one, which has not ended
	job    bytes.Buffer // the output of the job that runs
	ended  int
	failed []string
	done   bool
	cause  error
}

// Write is given the channel's bytes.
func (r *report) Write(b []byte) (int, error) {
	if _, err := r.log.Write(b); err != nil {
		return 0, err
	}
	r.line = append(r.line, b...)
	for {
		i := bytes.IndexByte(r.line, '\n')
		if i < 0 {
			return len(b), nil
		}
		r.take(r.line[:i+1])
		r.line = r.line[i+1:]
	}
}

func (r *report) take(line []byte) {
	var e wire.Event
	if line[0] != wire.Mark {
		if r.results != nil {
			if _, err := r.results.Write(line); err != nil {
				r.cause = err
			}
		}
		line = bytes.ReplaceAll(line, []byte{testMark}, nil)
		r.job.Write(line)
		if r.verbose {
			os.Stdout.Write(line)
		}
		return
	}
	if err := json.Unmarshal(line[1:], &e); err != nil {
		r.cause = fmt.Errorf("the virtual machine says %q: %w", line, err)
		return
	}
	switch e.Kind {
	case wire.Up:
		fmt.Println("vm:", e.Text)
	case wire.Begin:
		r.job.Reset()
	case wire.End:
		r.end(e)
	case wire.Done:
		r.done = true
	case wire.Fail:
		r.cause = errors.New(e.Text)
	}
}

// testMark is before each line of a test's output that is of the framework.
const testMark = 0x16

var result = regexp.MustCompile(`(?m)^(?:\s*)--- (PASS|FAIL|SKIP): (\S+)`)

func (r *report) end(e wire.Event) {
	r.ended++
	count := map[string]int{}
	var skipped []string
	for _, m := range result.FindAllStringSubmatch(r.job.String(), -1) {
		count[m[1]]++
		if m[1] == "SKIP" {
			skipped = append(skipped, m[2])
		}
	}
	word := "ok  "
	if e.Code != 0 {
		word = "FAIL"
		r.failed = append(r.failed, e.Job)
		if !r.verbose {
			os.Stdout.Write(r.job.Bytes())
		}
	}
	fmt.Printf("%s  %-20s %7s  %d passed", word, e.Job, e.Took.Round(100*time.Millisecond), count["PASS"])
	if n := count["FAIL"]; n > 0 {
		fmt.Printf(", %d failed", n)
	}
	if len(skipped) > 0 {
		fmt.Printf(", skipped: %s", strings.Join(skipped, " "))
	}
	fmt.Println()
}

// verdict is nil only when every job was heard to end well.
func (r *report) verdict() error {
	switch {
	case r.cause != nil:
		return r.cause
	case len(r.failed) > 0:
		return fmt.Errorf("failed: %s", strings.Join(r.failed, ", "))
	case !r.done || r.ended != r.expected:
		return fmt.Errorf("%d of %d jobs ended before the virtual machine did", r.ended, r.expected)
	}
	return nil
}
