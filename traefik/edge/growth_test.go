package edge

import (
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

// movingTable is a table of one host whose route and instance others change.
type movingTable struct{ now atomic.Pointer[fixedTable] }

func (m *movingTable) Ready() bool                             { return true }
func (m *movingTable) Route(host, path string) *leapcell.Route { return m.now.Load().Route(host, path) }
func (m *movingTable) Changed() <-chan struct{}                { return m.now.Load().changed }
func (m *movingTable) Instances(deployment string) []leapcell.Instance {
	if now := m.now.Load(); deployment == now.route.Deployment {
		return now.instances
	}
	return nil
}

func (m *movingTable) publish(service int, instance, address string) {
	before := m.now.Swap(&fixedTable{changed: make(chan struct{}), instances: []leapcell.Instance{{ID: instance, Address: address}},
		route: leapcell.Route{ServiceID: fmt.Sprint("service-", service), Deployment: fmt.Sprint("deployment-", service), Concurrency: leapcell.MaxConcurrency}})
	if before != nil {
		close(before.changed)
	}
}

// TestTheEdgeDoesNotGrow: 100,000 requests, 1,000 services that come and go and 1,000 instances
// of theirs leave nothing behind.
func TestTheEdgeDoesNotGrow(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	const answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
	var gates []string
	for range 2 {
		gate, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer gate.Close()
		go answerBytes(gate, answer)
		gates = append(gates, gate.Addr().String())
	}
	log, err := openAccessLog(filepath.Join(t.TempDir(), "access.log"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	table := &movingTable{}
	table.publish(0, "instance-0", gates[0])
	handler := wake.New(wake.Config{Table: table, Scaler: &fixedTable{}, Observer: observers{newFigures(10), log}})
	defer handler.Close()
	address, _ := startFront(t, Config{}, handler)

	moves := 0
	// round changes a route and an instance count times and sends requests all the while.
	round := func(count, requestsEach int) {
		for range count {
			moves++
			table.publish(moves/2, fmt.Sprint("instance-", moves), gates[moves%2])
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() { visit(t, address, requestsEach/4) })
			}
			all.Wait()
			if t.Failed() {
				t.FailNow()
			}
			handler.Load() // as the reports do every few seconds
		}
	}
	round(100, 40) // fills pools
	heap, goroutines := settled(t, 0)
	round(2000, 52)
	heapAfter, goroutinesAfter := settled(t, goroutines)
	t.Logf("heap %d KB, then %d KB; goroutines %d, then %d", heap>>10, heapAfter>>10, goroutines, goroutinesAfter)
	if heapAfter > heap+512<<10 {
		t.Errorf("the heap grew from %d to %d KB", heap>>10, heapAfter>>10)
	}
	if goroutinesAfter > goroutines {
		buf := make([]byte, 64<<10)
		t.Errorf("%d goroutines became %d:\n%s", goroutines, goroutinesAfter, buf[:runtime.Stack(buf, true)])
	}
}

// visit sends requests over one connection.
func visit(t *testing.T, address string, requests int) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	in := make([]byte, 4<<10)
	for range requests {
		if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: app.leapcell.localhost\r\n\r\n")); err != nil {
			t.Error(err)
			return
		}
		got := ""
		for !strings.HasSuffix(got, "hello") {
			n, err := conn.Read(in)
			if got += string(in[:n]); err != nil || !strings.HasPrefix(got, "HTTP/1.1 200 ") {
				t.Errorf("the answer is %q, %v", got, err)
				return
			}
		}
	}
}

// settled gives the heap in use and the goroutines, once connections that are closed have ended
// at both sides, of which there is no word. It waits for no more than want, if that is not 0.
func settled(t *testing.T, want int) (heap uint64, goroutines int) {
	deadline := time.Now().Add(30 * time.Second)
	for last, same := -1, 0; same < 10 && time.Now().Before(deadline); {
		goroutines = runtime.NumGoroutine()
		if goroutines == last && (want == 0 || goroutines <= want) {
			same++
		} else {
			last, same = goroutines, 0
		}
		time.Sleep(20 * time.Millisecond)
	}
	var m runtime.MemStats
	for range 3 { // pools need two to be empty
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, goroutines
}
