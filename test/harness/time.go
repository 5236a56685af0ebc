package harness

import (
	"os"
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
