package harness

import (
	"os"
	"testing"
	"time"
)

// emulationSlack is how much longer everything takes on an emulated processor, at most.
const emulationSlack = 20

// Allow is a time of a clause as it can be kept here: where the processor is emulated, as
// LEAPCELL_TEST_EMULATED says, a multiple of it. That shows that the thing happens, and other
// machines show that it happens in time.
func Allow(d time.Duration) time.Duration {
	if os.Getenv("LEAPCELL_TEST_EMULATED") != "" {
		return emulationSlack * d
	}
	return d
}

// Stretch is a time that a test chooses for something else to happen within it: where the processor
// is emulated it is longer, and never longer than most.
func Stretch(d, most time.Duration) time.Duration { return max(d, min(Allow(d), most)) }

// Quick skips a test that takes half a minute and more, where LEAPCELL_TEST_QUICK is set, as
// `make e2e` does. `make contract` and `make e2e QUICK=` run them all.
func Quick(t testing.TB) {
	t.Helper()
	if os.Getenv("LEAPCELL_TEST_QUICK") != "" {
		t.Skip("it takes long: make contract or make e2e QUICK= runs it")
	}
}
