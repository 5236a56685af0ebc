package e2e

import (
	"context"
	"testing"
)

// noContext is a test whose context outlives it, for what is tidied up at the end.
type noContext struct{ testing.TB }

// Context is never cancelled.
func (noContext) Context() context.Context { return context.Background() }
