package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// test is one test of a clause.
type test struct{ clause, what string }

func (t test) name() string { return "TestMust_" + t.clause + "_" + t.what }

var testName = regexp.MustCompile(`^TestMust_([A-Z]{2}[0-9]+)_(\w+)$`)

func parseName(name string) (test, bool) {
	m := testName.FindStringSubmatch(name)
	if m == nil {
		return test{}, false
	}
	return test{m[1], m[2]}, true
}

// declared are the tests that the sources in dir have, in the order of files and lines.
func declared(dir string) ([]test, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	var out []test
	for _, name := range files { // they come sorted
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				if t, ok := parseName(f.Name.Name); ok {
					out = append(out, t)
				}
			}
		}
	}
	return out, nil
}

// verdict is how a test ended.
type verdict string

const (
	passed  verdict = "pass"
	failed  verdict = "fail"
	skipped verdict = "skip"
)

// results are the verdicts of one run by the full name of the test.
type results struct {
	name     string
	verdicts map[string]verdict
	old      map[string]string // by clause: what the document said of it before
}

func readResults(name, file string) (results, error) {
	r := results{name: name, verdicts: map[string]verdict{}}
	f, err := os.Open(file)
	if err != nil {
		return r, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var event struct{ Action, Test string }
		if json.Unmarshal(lines.Bytes(), &event) != nil || event.Test == "" {
			continue // what other commands wrote in between
		}
		switch v := verdict(event.Action); v {
		case passed, failed, skipped:
			r.verdicts[event.Test] = v
		case "run", "cont":
			// One that never ends was cut off with the whole run.
			if _, ended := r.verdicts[event.Test]; !ended {
				r.verdicts[event.Test] = failed
			}
		case "pause":
			delete(r.verdicts, event.Test) // its turn may never come
		}
	}
	if err := lines.Err(); err != nil {
		return r, fmt.Errorf("%s: %w", file, err)
	}
	if len(r.verdicts) == 0 {
		return r, fmt.Errorf("%s: no result of a test; it must be the output of go test -json", file)
	}
	return r, nil
}

var modes = []string{"serverless", "persistent"}

// of counts the verdicts of a test by mode; "" is a test that makes no difference between
// them.
func (r results) of(t test) map[string][]verdict {
	out := map[string][]verdict{}
	for name, v := range r.verdicts {
		path := strings.Split(name, "/")
		if path[0] == t.name() && len(path) > 1 && slices.Contains(modes, path[len(path)-1]) {
			out[path[len(path)-1]] = append(out[path[len(path)-1]], v)
		}
	}
	whole, ran := r.verdicts[t.name()]
	switch {
	case !ran:
	case len(out) == 0, whole == failed && !slices.Contains(slices.Concat(slices.Collect(maps.Values(out))...), failed):
		out[""] = append(out[""], whole)
	}
	return out
}
