package main

import (
	"runtime"
	"testing"
)

// Two measurements agree, whatever else the machine does.
func TestCounterKHz(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the virtual machine is made for amd64")
	}
	a, b := counterKHz(), counterKHz()
	if a < 100_000 || a*1000 > b*1001 || b*1000 > a*1001 {
		t.Errorf("the counter goes by %d and by %d kHz", a, b)
	}
}
