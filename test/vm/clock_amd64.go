package main

// counter reads the processor's counter of time.
func counter() uint64
