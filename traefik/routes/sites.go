package routes

import (
	"cmp"
	"slices"
	"strings"

	"github.com/leapcell/leapcell"
)

// sites are the routes by host: to find one costs the same among ten and ten thousand.
type sites map[string]*site

// site is what is served under one host.
type site struct {
	root  *leapcell.Route // nil: nothing but the paths
	paths []pathRoute     // the longest first
}

type pathRoute struct {
	prefix string // "/api": that and what is below it
	route  *leapcell.Route
}

func (s sites) route(host, path string) *leapcell.Route {
	found := s[host]
	if found == nil {
		return nil
	}
	for _, p := range found.paths {
		if rest, ok := strings.CutPrefix(path, p.prefix); ok && (rest == "" || rest[0] == '/') {
			return p.route
		}
	}
	return found.root
}

// claim gives a route its place at "host" or "host/path". If another has it already, claim
// gives that one.
func (s sites) claim(name string, route *leapcell.Route) (other *leapcell.Route) {
	host, prefix, _ := strings.Cut(name, "/")
	prefix = strings.TrimRight(prefix, "/")
	at := s[host]
	if at == nil {
		at = &site{}
		s[host] = at
	}
	if prefix == "" {
		if at.root == nil {
			at.root = route
		} else {
			other = at.root
		}
		return other
	}
	prefix = "/" + prefix
	for _, p := range at.paths {
		if p.prefix == prefix {
			return p.route
		}
	}
	at.paths = append(at.paths, pathRoute{prefix, route})
	slices.SortFunc(at.paths, func(a, b pathRoute) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	return nil
}
