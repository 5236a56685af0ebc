package soak

import (
	"os"
	"strconv"
	"testing"

	"github.com/leapcell/leapcell/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// TestSoak runs as many cycles as LEAPCELL_SOAK_CYCLES says, 1000 by default.
func TestSoak(t *testing.T) {
	cycles := 1000
	if s := os.Getenv("LEAPCELL_SOAK_CYCLES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("LEAPCELL_SOAK_CYCLES is %q: it must be a number", s)
		}
		cycles = n
	}
	Run(t, harness.Get(t), cycles)
}
