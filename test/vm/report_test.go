package main

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/leapcell/leapcell/test/vm/wire"
)

// hear gives r what a machine says: events and output in the order given.
func hear(t *testing.T, r *report, said ...any) {
	t.Helper()
	for _, s := range said {
		text, ok := s.(string)
		if !ok {
			b, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			text = string(wire.Mark) + string(b) + "\n"
		}
		for _, b := range []byte(text) { // cut anywhere
			if _, err := r.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A machine that falls silent must never pass for one whose tests passed.
func TestVerdict(t *testing.T) {
	begin, end := wire.Event{Kind: wire.Begin, Job: "cell"}, wire.Event{Kind: wire.End, Job: "cell"}
	done, broken := wire.Event{Kind: wire.Done}, end
	broken.Code = 1
	tests := map[string]struct {
		said []any
		want string
	}{
		"all well":         {[]any{wire.Event{Kind: wire.Up}, begin, "--- PASS: TestX (0.1s)\n", end, done}, ""},
		"a job failed":     {[]any{begin, "--- FAIL: TestX (0.1s)\n", broken, done}, "failed: cell"},
		"silence":          {nil, "0 of 1 jobs ended"},
		"off in the midst": {[]any{begin, "--- PASS: TestX (0.1s)\n"}, "0 of 1 jobs ended"},
		"off before done":  {[]any{begin, end}, "1 of 1 jobs ended"},
		"fewer jobs":       {[]any{done}, "0 of 1 jobs ended"},
		"did not come up":  {[]any{wire.Event{Kind: wire.Fail, Text: "no control groups"}}, "no control groups"},
		"garbled":          {[]any{begin, string(wire.Mark) + "{\n", end, done}, "the virtual machine says"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := &report{log: io.Discard, expected: 1}
			hear(t, r, tt.said...)
			err := r.verdict()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("the verdict is %v, want %q", err, tt.want)
			}
		})
	}
}
