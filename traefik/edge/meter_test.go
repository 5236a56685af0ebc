package edge

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

// ledger is a control plane that counts readings as the store does.
type ledger struct {
	*httptest.Server
	mu     sync.Mutex
	latest map[string]leapcell.Meter
	away   bool // it answers 503
	deaf   bool // it counts, and its answer is lost
}

func newLedger(t *testing.T) *ledger {
	l := &ledger{latest: map[string]leapcell.Meter{}}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var got leapcell.MeterReport
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.URL.Path != "/v1/edges/e1/meters" || r.Header.Get("Authorization") != "Bearer t" {
			t.Errorf("%s: %v", r.URL, err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.away {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		for _, m := range got.Meters {
			if err := m.Validate(); err != nil {
				t.Error(err)
			}
			if m.Requests >= l.latest[m.ID].Requests {
				l.latest[m.ID] = m
			}
		}
		if l.deaf {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(l.Close)
	return l
}

func (l *ledger) set(away, deaf bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away, l.deaf = away, deaf
}

// of is what a service is charged for.
func (l *ledger) of(service string) (c leapcell.Counters, ended int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.latest {
		if m.ServiceID == service {
			c = c.Plus(m.Counters)
			if m.Ended {
				ended++
			}
		}
	}
	return c, ended
}

func (l *ledger) edge(dir string) *meters {
	return newMeters(Config{ID: "e1", APIToken: "t", APIAddrs: []string{"http://127.0.0.1:1", l.URL}, Log: slog.New(slog.DiscardHandler)}, dir)
}

func wantCharged(t *testing.T, l *ledger, service string, requests, bytes int64) {
	t.Helper()
	if got, _ := l.of(service); got != (leapcell.Counters{Requests: requests, EgressBytes: bytes}) {
		t.Errorf("%s is charged for %+v, want %d requests and %d bytes", service, got, requests, bytes)
	}
}

func files(t *testing.T, dir string) int {
	t.Helper()
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// Whatever is lost on the way, each request counts once.
func TestMetersAreDeliveredOnce(t *testing.T) {
	l, dir := newLedger(t), filepath.Join(t.TempDir(), "meters")
	m := l.edge(dir)
	m.Count("shop", 1, 100)
	m.Count("shop", 1, 50)
	m.Count("shop", 0, -20) // was not sent after all
	m.Count("blog", 1, 0)
	l.set(true, false)
	m.tell(t.Context())
	wantCharged(t, l, "shop", 0, 0)
	l.set(false, true)
	m.tell(t.Context())
	m.Count("shop", 1, 1)
	l.set(false, false)
	m.tell(t.Context())
	m.tell(t.Context())
	wantCharged(t, l, "shop", 3, 131)
	wantCharged(t, l, "blog", 1, 0)
	m.Count("shop", 1, 1)
	m.last(t.Context())
	wantCharged(t, l, "shop", 4, 132)
	if _, ended := l.of("shop"); ended != 1 || files(t, dir) != 0 {
		t.Errorf("%d counters have ended, %d files are left", ended, files(t, dir))
	}
}

// What a killed edge had counted is told by the next one, once, and not before it is dead.
func TestMetersOfAKilledEdge(t *testing.T) {
	l, dir := newLedger(t), filepath.Join(t.TempDir(), "meters")
	killed := l.edge(dir)
	for i := range 500 {
		killed.Count("shop", 1, int64(i))
	}
	killed.tell(t.Context())
	killed.Count("shop", 1, 7)
	killed.Count("blog", 1, 7)

	next := l.edge(dir)
	next.Count("shop", 1, 1)
	next.inherit(t.Context())
	wantCharged(t, l, "blog", 0, 0)
	killed.file.Close() // the kernel does, and with it the lock goes
	l.set(true, false)
	next.inherit(t.Context())
	l.set(false, true)
	next.inherit(t.Context())
	if files(t, dir) != 2 {
		t.Errorf("%d files before they were taken in, want 2", files(t, dir))
	}
	l.set(false, false)
	next.inherit(t.Context())
	next.tell(t.Context())
	wantCharged(t, l, "shop", 502, 500*499/2+7+1)
	wantCharged(t, l, "blog", 1, 7)
	if files(t, dir) != 1 {
		t.Errorf("%d files, want the one that counts", files(t, dir))
	}
}

// A stop while no control plane is there loses nothing either.
func TestMetersOfAnEdgeThatStoppedAlone(t *testing.T) {
	l, dir := newLedger(t), filepath.Join(t.TempDir(), "meters")
	m := l.edge(dir)
	m.Count("shop", 2, 10)
	l.set(true, false)
	m.last(t.Context())
	l.set(false, false)
	l.edge(dir).inherit(t.Context())
	wantCharged(t, l, "shop", 2, 10)
}

// Without a place for a file it counts all the same.
func TestMetersInMemory(t *testing.T) {
	l := newLedger(t)
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, dir := range []string{"", blocked} {
		m := l.edge(dir)
		name := fmt.Sprint("shop", i)
		m.Count(name, 1, 5)
		m.inherit(t.Context())
		m.tell(t.Context())
		m.last(t.Context())
		wantCharged(t, l, name, 1, 5)
	}
}

func TestMetersCountAtOnce(t *testing.T) {
	l, dir := newLedger(t), t.TempDir()
	m := l.edge(dir)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 500 {
				m.Count(fmt.Sprint("s", i%3), 1, 2)
			}
		})
	}
	for range 20 {
		m.tell(t.Context())
	}
	all.Wait()
	b, err := os.ReadFile(filepath.Join(dir, m.run))
	if err != nil {
		t.Fatal(err)
	}
	readings, err := readMeters(strings.NewReader(string(b)), time.Now())
	var sum int64
	for _, r := range readings {
		sum += r.Requests
	}
	if err != nil || len(readings) != 3 || sum != 4000 {
		t.Errorf("the file has %d services with %d requests, %v", len(readings), sum, err)
	}
}

// What is no reading in a file costs the others nothing.
func TestDamagedMeters(t *testing.T) {
	good := strings.Repeat("a", 32) + " shop 3 4"
	got, err := readMeters(io.MultiReader(strings.NewReader(good+"\n"+good[:20]+"\n\x00\x00\n"+good[:33]+"blog -1 2\n"+strings.Replace(good, "a", "b", 1))), time.Now())
	if err != nil || len(got) != 2 || got[0].Requests != 3 || got[1].EgressBytes != 4 {
		t.Errorf("%+v, %v", got, err)
	}
}
