package leapcell_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
)

func TestErrorCodeAndMessage(t *testing.T) {
	cause := errors.New("dial 10.0.0.1: refused")
	hidden := leapcell.Wrap(leapcell.CodeUnavailable, cause, "Nomad cannot be reached")
	for name, c := range map[string]struct {
		err     error
		code    leapcell.Code
		message string
	}{
		"ours":           {hidden, leapcell.CodeUnavailable, "Nomad cannot be reached"},
		"ours, wrapped":  {fmt.Errorf("deploy: %w", hidden), leapcell.CodeUnavailable, "Nomad cannot be reached"},
		"somebody's":     {cause, leapcell.CodeInternal, "internal error"},
		"with arguments": {leapcell.Errorf(leapcell.CodeNotFound, "no service %q", "x"), leapcell.CodeNotFound, `no service "x"`},
	} {
		if got := leapcell.ErrorCode(c.err); got != c.code {
			t.Errorf("%s: code %s, want %s", name, got, c.code)
		}
		if got := leapcell.ErrorMessage(c.err); got != c.message {
			t.Errorf("%s: message %q, want %q", name, got, c.message)
		}
	}
	if leapcell.ErrorCode(nil) != "" {
		t.Error("no error has a code")
	}
	if !errors.Is(hidden, cause) || !strings.Contains(hidden.Error(), "refused") {
		t.Errorf("the cause is lost for the log: %v", hidden)
	}
}

// The comment of Errorf promises that a wrapped cause can still be found.
func TestErrorfKeepsItsCause(t *testing.T) {
	if err := leapcell.Errorf(leapcell.CodeInvalid, "reading: %w", io.ErrUnexpectedEOF); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v has lost its cause", err)
	}
}
