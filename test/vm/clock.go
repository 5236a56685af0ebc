package main

import "time"

// counterKHz measures how fast the processor's counter goes, which is the virtual machine's clock.
// Its kernel would measure that itself when it starts, but on a machine with much to do it is
// interrupted: its clock would run several times too fast, and every deadline come too early.
func counterKHz() uint64 {
	from, begin := readCounter()
	time.Sleep(200 * time.Millisecond)
	to, end := readCounter()
	return (to - from) * uint64(time.Millisecond) / uint64(end.Sub(begin))
}

// readCounter reads the counter at a known time: of several readings that between two looks at the clock
// which were closest together.
func readCounter() (count uint64, at time.Time) {
	least := time.Hour
	for range 100 {
		before := time.Now()
		c := counter()
		if gap := time.Since(before); gap < least {
			least, count, at = gap, c, before
		}
	}
	return count, at
}
