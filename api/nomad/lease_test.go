package nomad

import (
	"context"
	"errors"
	"testing"
	"time"
)

// leads runs a candidate; the channel gets a value each time it begins to lead.
func leads(t *testing.T, c *Client, holder string, ttl time.Duration) (began <-chan string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ch := make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- c.Lead(ctx, Lease{Path: "leapcell/locks/test", Holder: holder, TTL: ttl}, func(ctx context.Context) error {
			ch <- holder
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	return ch, func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", holder, err)
		}
	}
}

func TestOneLeads(t *testing.T) {
	c := startNomad(t)
	a, stopA := leads(t, c, "a", time.Second)
	<-a
	b, stopB := leads(t, c, "b", time.Second)
	select {
	case <-b:
		t.Fatal("b leads beside a")
	case <-time.After(3 * time.Second): // three times the lease: a renewed it
	}
	stopA()
	<-b // when the lease is over
	stopB()

	// Known again by its name, it does not wait for its own lease to end: this one would
	// take longer than the test may.
	again, stop := leads(t, c, "b", time.Hour)
	<-again
	stop()
}

func TestLeaderThatWasOvertakenStops(t *testing.T) {
	c := startNomad(t)
	a, stop := leads(t, c, "a", time.Second)
	defer stop()
	<-a
	if _, err := c.PutVariable(t.Context(), "leapcell/locks/test", []byte("b")); err != nil {
		t.Fatal(err)
	}
	<-a // it lost it, waited until b's lease was over, and took it again
}
