package routes

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell"
)

const (
	// listWait is how long Nomad holds a list query when nothing changes. It also bounds
	// how long a Nomad that was set up anew, with lower indexes, goes unnoticed.
	listWait = time.Minute
	// readers bounds the variables read at once, at start and after a long absence.
	readers = 16
)

// variables follows the route variables.
type variables struct {
	nomad *nomad
	table *Table
	known map[string]variable // by path
}

type variable struct {
	modified uint64
	route    *leapcell.Route // nil when it could not be understood
}

// run returns only with an error; what is known stays, and the next run goes on from it. It
// begins with a list that does not wait: should Nomad's state be another one with a lower
// index by now, waiting for the former index would take minutes.
func (v *variables) run(ctx context.Context) error {
	index := uint64(0)
	for {
		list, meta, err := v.nomad.client.Variables().PrefixList(leapcell.RoutesPrefix,
			v.nomad.query(ctx, &api.QueryOptions{WaitIndex: index, WaitTime: listWait}))
		if err != nil {
			return fmt.Errorf("list the routes: %w", err)
		}
		v.nomad.answered("routes")
		changed, err := v.take(ctx, list)
		if err != nil {
			return err
		}
		if changed || index == 0 {
			v.table.publishRoutes(v.sites(), meta.LastIndex)
		}
		if meta.LastIndex < index {
			index = 0
			continue
		}
		index = max(meta.LastIndex, 1) // 0 would not wait
	}
}

// take reads what is new in the list and forgets what is no longer in it.
func (v *variables) take(ctx context.Context, list []*api.VariableMetadata) (changed bool, err error) {
	next := make(map[string]variable, len(list))
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(readers)
	for _, meta := range list {
		if old, ok := v.known[meta.Path]; ok && old.modified == meta.ModifyIndex {
			mu.Lock()
			next[meta.Path] = old
			mu.Unlock()
			continue
		}
		changed = true
		group.Go(func() error {
			found, gone, err := v.read(ctx, meta.Path)
			if err != nil || gone {
				return err
			}
			mu.Lock()
			next[meta.Path] = found
			mu.Unlock()
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return false, err
	}
	changed = changed || len(next) != len(v.known)
	v.known = next
	return changed, nil
}

func (v *variables) read(ctx context.Context, path string) (found variable, gone bool, err error) {
	got, _, err := v.nomad.client.Variables().Peek(path, v.nomad.query(ctx, nil))
	if err != nil {
		return variable{}, false, fmt.Errorf("read the route %s: %w", path, err)
	}
	if got == nil {
		return variable{}, true, nil // deleted since the list was made
	}
	route, err := leapcell.ParseRoute([]byte(got.Items[leapcell.VariableItem]))
	if err != nil {
		// One bad variable must not take the others down: its service keeps the route it had.
		v.nomad.log.Error("a route variable cannot be used; the former route stays", "path", path, "error", err)
		return variable{modified: got.ModifyIndex, route: v.known[path].route}, false, nil
	}
	return variable{modified: got.ModifyIndex, route: &route}, false, nil
}

// sites is the table of routes. When two variables claim a place, the one that comes first
// in the order of paths has it, at every edge alike.
func (v *variables) sites() sites {
	out := make(sites, len(v.known))
	for _, path := range slices.Sorted(maps.Keys(v.known)) {
		route := v.known[path].route
		if route == nil {
			continue
		}
		for _, host := range route.Hosts {
			if other := out.claim(host, route); other != nil {
				v.nomad.log.Warn("two services claim one host; the first keeps it", "host", host,
					"service", other.ServiceID, "ignored", route.ServiceID)
			}
		}
	}
	return out
}
