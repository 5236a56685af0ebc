package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/leapcell/leapcell/test/vm/wire"
)

// handOut does what `go build -o file folder` would do, for the programs compiled outside.
func handOut(args []string) error {
	if len(args) == 0 || args[0] != "build" {
		return fmt.Errorf("there is no Go in this virtual machine, only programs that test/vm compiled outside: %q", args)
	}
	output, folder := "", "."
	for i := 1; i < len(args); i++ {
		switch {
		case args[i] == "-o" && i+1 < len(args):
			i++
			output = args[i]
		case args[i][0] != '-':
			folder = args[i]
		}
	}
	dir, err := filepath.Abs(folder)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(wire.BuiltFile)
	if err != nil {
		return err
	}
	var built wire.Built
	if err := json.Unmarshal(b, &built); err != nil {
		return fmt.Errorf("%s: %w", wire.BuiltFile, err)
	}
	from, ok := built[dir]
	if !ok || output == "" {
		return fmt.Errorf("%s was not compiled outside: add it to the programs of test/vm (go %q)", dir, args)
	}
	if err := os.MkdirAll(filepath.Dir(output), 0o755); err != nil {
		return err
	}
	return copyFile(from, output)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
