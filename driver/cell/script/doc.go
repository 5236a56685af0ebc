// Package script starts a process that works off a list of system calls, the last of which
// puts the program to run in its place.
//
// It is for sandboxes, where most of what has to be done can only be done by the new process
// itself. The usual way is to execute a second program that does it, and to tell that program
// what to do: this costs milliseconds for loading the program and starting its runtime. Here
// the list is written beforehand, and a few instructions of assembly work it off in a process
// that shares our memory until the last call, as a child of vfork(2) does. Nothing of Go runs
// in it: no stack, no scheduler, no signal handler. One call that fails ends the process
// before the program exists.
//
// A process waits for nobody while it does so, therefore the memory it shares with us shows
// how far it came, and a pipe that is closed by the last call shows when.
package script
