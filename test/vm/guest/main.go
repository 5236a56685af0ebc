// Guest is the program inside the virtual machine of test/vm. By the name or the argument it
// is started with, it is
//
//   - the first process, which mounts what a system needs and reaps (no argument),
//   - the agent, which runs the jobs and tells how they went ("agent"),
//   - a stand-in for the Go command, which hands out programs compiled outside ("go"),
//   - a stand-in for mmdebstrap, which hands out a system made outside ("mmdebstrap").
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/leapcell/leapcell/test/vm/wire"
)

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); {
	case name == "go":
		err = handOut(os.Args[1:])
	case name == "mmdebstrap":
		err = base(os.Stdout)
	case len(os.Args) > 1 && os.Args[1] == "agent":
		err = agent()
	case os.Getpid() == 1:
		boot() // never returns
	default:
		err = fmt.Errorf("this is the first process of a virtual machine, see test/vm")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
		os.Exit(1)
	}
}

// base gives the system that was made outside.
func base(w io.Writer) error {
	f, err := os.Open(wire.BaseFile)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
