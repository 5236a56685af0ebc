// Package ports finds ports for programs that are told theirs, as Nomad, Vault and a platform
// beside another are.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// A Range is where ports are looked for. Both stay below 32768, from where on the kernel gives
// ports to outgoing connections (net.ipv4.ip_local_port_range): a port from there is lost to
// the first of these as soon as its program restarts.
type Range struct{ from, to int }

var (
	// ForPlatforms has room for fifty of them, beside a first one with its default ports.
	ForPlatforms = []Range{{11000, 19999}, {26000, 31999}}
	// ForPrograms is for what stands alone.
	ForPrograms = []Range{{9000, 10999}}
)

// given are the ports that this process found before: whoever got them may not listen yet.
var (
	mu    sync.Mutex
	given = map[int]bool{}
)

// Free finds n ports in a row, at a multiple of n in one of the ranges, that nobody listens on,
// and gives the first. It gives a port again only when there is no other. It fails when there
// is none.
func Free(n int, ranges []Range) (int, error) {
	mu.Lock()
	defer mu.Unlock()
	from, ok := find(n, ranges)
	if !ok {
		clear(given)
		from, ok = find(n, ranges)
	}
	if !ok {
		return 0, fmt.Errorf("no %d ports in a row are free in %v", n, ranges)
	}
	for port := from; port < from+n; port++ {
		given[port] = true
	}
	return from, nil
}

// Several finds n ports for programs that stand alone, wherever they are.
func Several(n int) ([]int, error) {
	found := make([]int, n)
	for i := range found {
		var err error
		if found[i], err = Free(1, ForPrograms); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func find(n int, ranges []Range) (int, bool) {
	var starts []int
	for _, r := range ranges {
		for from := r.from; from+n-1 <= r.to; from += n {
			starts = append(starts, from)
		}
	}
	for _, i := range rand.Perm(len(starts)) {
		if free(starts[i], n) {
			return starts[i], true
		}
	}
	return 0, false
}

// free listens on each of them for a moment.
func free(from, n int) bool {
	for port := from; port < from+n; port++ {
		if given[port] {
			return false
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return false
		}
		_ = l.Close() // nothing was said over it
	}
	return true
}
