// Package contract proves docs/runtime-contract.md: one test a clause, named after it. The
// probe app (test/apps/probe) runs in real instances and reports what it sees; the tests
// compare that with the clause, and where an instance cannot know, with what the machine
// says.
//
// Nothing here asserts a time unless the clause itself is a number. Tests that mostly wait run
// beside each other; those that measure, that wear the machine out or that kill a part of the
// platform run alone, before them.
package contract

import (
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// eachMode runs f for both modes of a service.
func eachMode(t *testing.T, f func(t *testing.T, mode leapcell.Mode)) {
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		t.Run(string(mode), func(t *testing.T) { f(t, mode) })
	}
}

// modes runs f for both modes of a service, each with a probe app of its own.
func modes(t *testing.T, f func(t *testing.T, mode leapcell.Mode, s *harness.Service)) {
	for _, mode := range []leapcell.Mode{leapcell.Serverless, leapcell.Persistent} {
		t.Run(string(mode), func(t *testing.T) {
			f(t, mode, harness.Get(t).Probe(t, harness.Spec{Settings: leapcell.Settings{Mode: mode}}))
		})
	}
}
