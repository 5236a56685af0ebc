// Clauses writes the table of what is proven into docs/runtime-contract.md:
//
//	go test -json ./test/contract >run.json
//	go run ./test/clauses run.json
//	go run ./test/clauses hybrid=run.json v2=other.json
//
// Each clause of the document's own tables gets a line, also one that no test proves. Its
// tests are those that are named after it, TestMust_{clause}_{what}; results come from runs of
// `go test -json`, each with a column of its own. A subtest named after a mode counts for it.
// What no run has anything about stays as the document has it: a run may be of some clauses, and
// of one kind of machine.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "clauses:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("clauses", flag.ContinueOnError)
	doc := flags.String("doc", "docs/runtime-contract.md", "the document with the clauses; the table goes between its markers")
	tests := flags.String("tests", "test/contract", "the folder of the tests")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("usage: clauses [name=]file… with the output of go test -json")
	}
	text, err := os.ReadFile(*doc)
	if err != nil {
		return err
	}
	known, err := declared(*tests)
	if err != nil {
		return err
	}
	var runs []results
	for _, arg := range flags.Args() {
		name, file, named := strings.Cut(arg, "=")
		if !named {
			name, file = "result", arg
		}
		r, err := readResults(name, file)
		if err != nil {
			return err
		}
		runs = append(runs, r)
	}
	t := newTable(clauses(string(text)), known, withOld(runs, string(text)))
	out, err := t.into(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", *doc, err)
	}
	fmt.Fprintln(stdout, t.summary())
	return os.WriteFile(filepath.Clean(*doc), []byte(out), 0o644)
}
