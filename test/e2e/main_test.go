// Package e2e does with a whole platform what its users, operators and misfortunes do: it
// deploys, visits, kills, seals, fills disks, and looks at what everybody is told.
package e2e

import (
	"testing"

	"github.com/leapcell/leapcell/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
