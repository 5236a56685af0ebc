package deploy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1)
		begin := time.Now()
		first, err := s.take(t.Context(), "a", &ticket{id: "first", created: begin}, func(int) { t.Error("the first one waits") })
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		places := map[string][]int{}
		waiting := func(ctx context.Context, ticket *ticket) {
			release, err := s.take(ctx, "a", ticket, func(place int) {
				mu.Lock()
				defer mu.Unlock()
				places[ticket.id] = append(places[ticket.id], place)
			})
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			order = append(order, ticket.id)
			mu.Unlock()
			release()
		}
		gone, cancel := context.WithCancel(t.Context())
		// In another order than they were made, as after a restart.
		go waiting(t.Context(), &ticket{id: "third", created: begin.Add(3)})
		synctest.Wait()
		go waiting(t.Context(), &ticket{id: "second", created: begin.Add(2)})
		synctest.Wait()
		go waiting(gone, &ticket{id: "cancelled", created: begin.Add(1)})
		synctest.Wait()
		go waiting(t.Context(), &ticket{id: "building", created: begin.Add(9), begun: true})
		synctest.Wait()
		if p := s.place("a", "third"); p != 4 {
			t.Errorf("the third has place %d", p)
		}
		if p := s.place("b", "third") + s.place("a", "first"); p != 0 {
			t.Errorf("a place for one that does not wait: %d", p)
		}
		// Another workspace does not wait.
		other, err := s.take(t.Context(), "b", &ticket{id: "x"}, func(int) { t.Error("the other workspace waits") })
		if err != nil {
			t.Fatal(err)
		}
		other()
		cancel()
		synctest.Wait()
		if p := s.place("a", "third"); p != 3 {
			t.Errorf("after one has gone the third has place %d", p)
		}
		first()
		first() // once is enough
		synctest.Wait()
		if !slices.Equal(order, []string{"building", "second", "third"}) {
			t.Errorf("order %q", order)
		}
		if want := []int{1, 2, 3, 4, 3}; len(places["third"]) < len(want) || !slices.Equal(places["third"][:len(want)], want) {
			t.Errorf("the third was told %v, want %v", places["third"], want)
		}
		if len(s.all) != 0 {
			t.Errorf("left: %v", s.all)
		}
	})
}
