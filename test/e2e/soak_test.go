package e2e

import (
	"testing"

	"github.com/leapcell/leapcell/test/harness"
	"github.com/leapcell/leapcell/test/soak"
)

// A few cycles show a leak of one thing each; `make soak` runs a thousand.
func TestCyclesLeaveNothingBehind(t *testing.T) { soak.Run(t, harness.Get(t), 30) }
