package main

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

const (
	begin = "<!-- clauses: begin; written by go run ./test/clauses -->"
	end   = "<!-- clauses: end -->"
)

var clauseLine = regexp.MustCompile(`(?m)^\| *([A-Z]{2}[0-9]+) *\|`)

// clauses are those of the document's tables, in order. What stands between the markers does
// not count.
func clauses(doc string) []string {
	if before, rest, found := strings.Cut(doc, begin); found {
		_, after, _ := strings.Cut(rest, end)
		doc = before + after
	}
	var out []string
	for _, m := range clauseLine.FindAllStringSubmatch(doc, -1) {
		if !slices.Contains(out, m[1]) {
			out = append(out, m[1])
		}
	}
	return out
}

// withOld adds to runs what the document's table has, as columns of their own if there is no run
// of the name.
func withOld(runs []results, doc string) []results {
	_, rest, _ := strings.Cut(doc, begin)
	table, _, _ := strings.Cut(rest, end)
	var columns []*results // of the document, without the first two
	for line := range strings.Lines(table) {
		row := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if strings.TrimSpace(row[0]) == "run" {
			break // the sums
		}
		for i := 2; i < len(row); i++ {
			switch clause, cell := strings.TrimSpace(row[0]), strings.TrimSpace(row[i]); {
			case clause == "clause":
				columns = append(columns, &results{name: cell, old: map[string]string{}})
			case i-2 < len(columns):
				columns[i-2].old[clause] = cell
			}
		}
	}
	for _, c := range columns {
		if i := slices.IndexFunc(runs, func(r results) bool { return r.name == c.name }); i >= 0 {
			runs[i].old = c.old
		} else {
			runs = append(runs, *c)
		}
	}
	slices.SortFunc(runs, func(a, b results) int { return cmp.Compare(a.name, b.name) })
	return runs
}

// table is clause by clause what was tested and how it ended.
type table struct {
	clauses []string
	tests   map[string][]test
	runs    []results
}

func newTable(ids []string, known []test, runs []results) *table {
	t := &table{clauses: ids, tests: map[string][]test{}, runs: runs}
	for _, k := range known {
		t.tests[k.clause] = append(t.tests[k.clause], k)
		if !slices.Contains(t.clauses, k.clause) {
			t.clauses = append(t.clauses, k.clause)
		}
	}
	return t
}

// into puts the table between the markers of the document.
func (t *table) into(doc string) (string, error) {
	before, rest, found := strings.Cut(doc, begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return "", errors.New("the markers are missing: " + begin + " and " + end)
	}
	return before + begin + "\n" + t.markdown() + end + after, nil
}

func (t *table) markdown() string {
	var b strings.Builder
	b.WriteString("| clause | tests |")
	for _, r := range t.runs {
		b.WriteString(" " + r.name + " |")
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(t.runs)) + "\n")
	for _, id := range t.clauses {
		var names []string
		for _, k := range t.tests[id] {
			names = append(names, k.what)
		}
		if len(names) == 0 {
			names = []string{"**none**"}
		}
		fmt.Fprintf(&b, "| %s | %s |", id, strings.Join(names, ", "))
		for _, r := range t.runs {
			b.WriteString(" " + strings.TrimSpace(t.cell(id, r)) + " |")
		}
		b.WriteString("\n")
	}
	return b.String() + "\n" + t.sums()
}

// sums is a line for each run: how many of the clauses that have a test held.
func (t *table) sums() string {
	var b strings.Builder
	b.WriteString("| run | clauses that passed | failed | not run, or in part |\n|---|---|---|---|\n")
	for _, r := range t.runs {
		var good, bad, open int
		for _, id := range t.clauses {
			switch cell := t.cell(id, r); {
			case len(t.tests[id]) == 0:
			case strings.Contains(cell, "failed"):
				bad++
			case strings.Contains(cell, "not run"):
				open++
			default:
				good++
			}
		}
		fmt.Fprintf(&b, "| %s | %d of %d | %d | %d |\n", r.name, good, good+bad+open, bad, open)
	}
	return b.String()
}

// cell is the result of a clause in one run: "pass", or by mode "serverless pass, persistent
// **1 of 2 failed**".
func (t *table) cell(id string, r results) string {
	if len(t.tests[id]) == 0 {
		return ""
	}
	var parts []string
	for _, mode := range append([]string{""}, modes...) {
		var all []verdict
		for _, k := range t.tests[id] {
			all = append(all, r.of(k)[mode]...)
		}
		if len(all) > 0 {
			parts = append(parts, strings.TrimSpace(mode+" "+words(all)))
		}
	}
	missing := 0
	for _, k := range t.tests[id] {
		if len(r.of(k)) == 0 {
			missing++
		}
	}
	switch {
	case len(parts) == 0:
		return cmp.Or(r.old[id], "not run")
	case missing > 0:
		parts = append(parts, fmt.Sprintf("%d not run", missing))
	}
	return strings.Join(parts, ", ")
}

func words(all []verdict) string {
	count := func(v verdict) (n int) {
		for _, w := range all {
			if w == v {
				n++
			}
		}
		return n
	}
	switch bad, not := count(failed), count(skipped); {
	case bad > 0:
		return fmt.Sprintf("**%d of %d failed**", bad, len(all))
	case not == len(all):
		return "skipped"
	case not > 0:
		return fmt.Sprintf("pass, %d skipped", not)
	}
	return "pass"
}

// summary is for whoever ran it.
func (t *table) summary() string {
	without := 0
	for _, id := range t.clauses {
		if len(t.tests[id]) == 0 {
			without++
		}
	}
	s := fmt.Sprintf("%d clauses, %d without a test", len(t.clauses), without)
	return s + "\n\n" + t.sums()
}
