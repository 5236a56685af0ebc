// Package filter compiles the system call policy of an OCI spec into the program that the
// kernel runs at each call: for launchers that have no OCI runtime to do it. It knows as much
// of the spec as our policy uses, and refuses the rest.
package filter
