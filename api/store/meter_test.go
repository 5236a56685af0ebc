package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

var meterNow = time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)

// reading is of the counters with that number.
func reading(id int, at time.Time, c leapcell.Counters) leapcell.Meter {
	return leapcell.Meter{
		ID: fmt.Sprintf("%032x", id), AllocID: "alloc", Task: "shop", ServiceID: "shop-default-abcdefgh", Deployment: "shop-1",
		Mode: leapcell.TaskServerless, MemoryMB: 512, At: at, Counters: c,
	}
}

func addMeters(t *testing.T, s *Store, readings ...leapcell.Meter) {
	t.Helper()
	if err := s.AddMeters(t.Context(), "node-1", readings); err != nil {
		t.Fatal(err)
	}
}

func usage(t *testing.T, s *Store, from, to time.Time) leapcell.ServiceUsage {
	t.Helper()
	u, err := s.Usage(t.Context(), "shop-default-abcdefgh", from, to)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// all is the usage of all times.
func allUsage(t *testing.T, s *Store) leapcell.Usage {
	t.Helper()
	return usage(t, s, time.Unix(1, 0), meterNow.AddDate(50, 0, 0)).Total
}

func testMeters(t *testing.T, s *Store) {
	s.now = func() time.Time { return meterNow }
	first := leapcell.Counters{Requests: 10, ComputeMS: 2000, EgressBytes: 500, ColdStarts: 1}
	later := leapcell.Counters{Requests: 15, ComputeMS: 3000, EgressBytes: 700, ColdStarts: 1}
	addMeters(t, s, reading(1, meterNow, first))
	addMeters(t, s, reading(1, meterNow, first)) // twice
	addMeters(t, s, reading(1, meterNow, later))
	addMeters(t, s, reading(1, meterNow, first)) // late
	addMeters(t, s, reading(1, meterNow, later), reading(1, meterNow, later))
	got := allUsage(t, s)
	if got.Requests != 15 || got.ComputeMS != 3000 || got.EgressBytes != 700 || got.ColdStarts != 1 || got.GBSeconds != 1.5 {
		t.Errorf("usage %+v", got)
	}
	if got := s.Counted()["shop-default-abcdefgh"]; got != later {
		t.Errorf("since the start %+v was counted, want %+v", got, later)
	}
	other := reading(2, meterNow, leapcell.Counters{RunningMS: 10_000, Requests: 1})
	other.Mode, other.MemoryMB = leapcell.TaskPersistent, 1024
	build := reading(3, meterNow, leapcell.Counters{BuildMS: 2500})
	build.Mode = leapcell.TaskBuild
	addMeters(t, s, other, build)
	got = allUsage(t, s)
	if got.Requests != 16 || got.RunningMS != 10_000 || got.BuildSeconds != 2.5 || got.GBSeconds != 11.5 || got.ComputeMS != 3000 {
		t.Errorf("usage %+v", got)
	}
	if u, err := s.Usage(t.Context(), "another", time.Unix(1, 0), meterNow.AddDate(1, 0, 0)); err != nil || len(u.Hours) != 0 || u.Hours == nil || u.Total != (leapcell.Usage{}) {
		t.Errorf("another service used %+v, %v", u, err)
	}
}

// Whatever is repeated, left out or comes in another order: the sum is what the counters say.
func testMetersInAnyOrder(t *testing.T, s *Store) {
	s.now = func() time.Time { return meterNow }
	var sent []leapcell.Meter
	var want leapcell.Counters
	for id := range 5 {
		var c leapcell.Counters
		for range 20 {
			c.Requests += rand.Int64N(10)
			c.ComputeMS += rand.Int64N(1000)
			c.EgressBytes += rand.Int64N(1 << 20)
			sent = append(sent, reading(id, meterNow, c))
		}
		want.Requests, want.ComputeMS, want.EgressBytes = want.Requests+c.Requests, want.ComputeMS+c.ComputeMS, want.EgressBytes+c.EgressBytes
		sent = append(sent, reading(id, meterNow, c)) // the last one arrives in any case
	}
	sent = append(sent, sent[:50]...)
	rand.Shuffle(len(sent), func(i, j int) { sent[i], sent[j] = sent[j], sent[i] })
	var all sync.WaitGroup
	for _, part := range [][]leapcell.Meter{sent[:40], sent[40:90], sent[90:]} {
		all.Go(func() {
			for len(part) > 0 {
				n := min(1+rand.IntN(7), len(part))
				if err := s.AddMeters(t.Context(), "node-1", part[:n]); err != nil {
					t.Error(err)
				}
				part = part[n:]
			}
		})
	}
	all.Wait()
	if got := allUsage(t, s); got.Requests != want.Requests || got.ComputeMS != want.ComputeMS || got.EgressBytes != want.EgressBytes {
		t.Errorf("usage %+v, want %+v", got, want)
	}
}

func testMeterHours(t *testing.T, s *Store) {
	s.now = func() time.Time { return meterNow }
	at := func(hours, requests int) leapcell.Meter {
		return reading(1, meterNow.Add(time.Duration(hours)*time.Hour), leapcell.Counters{Requests: int64(requests)})
	}
	addMeters(t, s, at(-3, 10))    // 07:30
	addMeters(t, s, at(-1, 15))    // 09:30
	addMeters(t, s, at(-2, 16))    // the node's clock went back: not before the reading before
	addMeters(t, s, at(+5000, 18)) // and far ahead: not after ours
	addMeters(t, s, at(-1, 19))
	addMeters(t, s, reading(2, meterNow.AddDate(-10, 0, 0), leapcell.Counters{Requests: 1}))
	u := usage(t, s, time.Unix(1, 0), meterNow)
	var got []string
	for _, h := range u.Hours {
		got = append(got, fmt.Sprintf("%s %d", h.Hour.Format("01-02 15:04"), h.Requests))
	}
	if want := "10-22 10:00 1, 11-22 07:00 10, 11-22 09:00 6, 11-22 10:00 3"; strings.Join(got, ", ") != want {
		t.Errorf("hours are %q, want %q", got, want)
	}
	if u.Total.Requests != 20 || !u.Total.Hour.IsZero() {
		t.Errorf("total %+v: no clock changes it", u.Total)
	}
	u = usage(t, s, meterNow.Add(-61*time.Minute), meterNow.Add(-31*time.Minute)) // 09:29 to 09:59
	if len(u.Hours) != 1 || u.Hours[0].Requests != 6 {
		t.Errorf("half an hour: %+v", u.Hours)
	}
}

func testMetersAllOrNone(t *testing.T, s *Store) {
	s.now = func() time.Time { return meterNow }
	good := reading(1, meterNow, leapcell.Counters{Requests: 1})
	bad := reading(2, meterNow, leapcell.Counters{Requests: -1})
	wantCode(t, s.AddMeters(t.Context(), "node-1", []leapcell.Meter{good, bad}), leapcell.CodeInvalid)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.AddMeters(ctx, "node-1", []leapcell.Meter{good}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if got := allUsage(t, s); got.Requests != 0 {
		t.Errorf("counted %+v", got)
	}
}

// Usage outlives its service, and readings that come after it was deleted are counted.
func testMetersOfADeletedService(t *testing.T, s *Store) {
	s.now = func() time.Time { return meterNow }
	svc := newService(t, s, "shop")
	addMeters(t, s, reading(1, meterNow, leapcell.Counters{Requests: 1}))
	if err := s.DeleteService(t.Context(), svc.ID); err != nil {
		t.Fatal(err)
	}
	addMeters(t, s, reading(1, meterNow, leapcell.Counters{Requests: 3}))
	if got := allUsage(t, s); got.Requests != 3 {
		t.Errorf("usage %+v", got)
	}
}

// What is kept about ended tasks is bounded; about others it is not forgotten.
func testOldMetersAreForgotten(t *testing.T, s *Store) {
	now := meterNow
	s.now = func() time.Time { return now }
	running, ended := reading(1, now, leapcell.Counters{Requests: 1}), reading(2, now, leapcell.Counters{Requests: 1})
	addMeters(t, s, running, ended)
	ended.Ended = true // nothing new but that
	addMeters(t, s, ended)
	now = now.Add(meterKept + time.Hour)
	running.At, running.Requests = now, 2
	addMeters(t, s, running)
	var left string
	if err := s.db.QueryRow(`SELECT group_concat(id) FROM meters`).Scan(&left); err != nil || left != running.ID {
		t.Errorf("left are %q, %v", left, err)
	}
	if got := allUsage(t, s); got.Requests != 3 {
		t.Errorf("usage %+v", got)
	}
}

// TestMetersOverKill9 kills the process that counts, again and again, before and after its
// commits, and repeats to the next one what was not acknowledged: the reply may be lost as
// well as the report.
func TestMetersOverKill9(t *testing.T) {
	if dsn := os.Getenv("STORE_COUNT"); dsn != "" {
		countUntilKilled(t, dsn) // before anything of its own: a killed process leaves what it has
	}
	db := filepath.Join(t.TempDir(), "leapcell.db")
	const want = 60
	for kills := 0; ; kills++ {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMetersOverKill9$")
		cmd.Env = append(os.Environ(), "STORE_COUNT="+db)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
			t.Fatalf("%v\n%s", err, out)
		}
		s, err := Open(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		got := allUsage(t, s).Requests
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got > want {
			t.Fatalf("%d requests counted, there were %d", got, want)
		}
		if got == want {
			t.Logf("%d kills", kills)
			return
		}
		if kills > 100 {
			t.Fatalf("%d requests counted after %d kills", got, kills)
		}
	}
}

// countUntilKilled is a node that has 60 requests to tell about, one more with each reading,
// and does not know what the former process was told. It dies at a random reading, before the
// call, after it, or somewhere in it.
func countUntilKilled(t *testing.T, dsn string) {
	s, err := Open(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	s.now = func() time.Time { return meterNow }
	kill := func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	begin := allUsage(t, s).Requests
	for i := max(begin-2, 1); i <= 60; i++ {
		if i > begin && i < 60 {
			switch rand.IntN(12) {
			case 0:
				kill()
			case 1:
				time.AfterFunc(time.Duration(rand.Int64N(int64(2*time.Millisecond))), kill)
			}
		}
		if err := s.AddMeters(context.Background(), "node-1", []leapcell.Meter{reading(1, meterNow, leapcell.Counters{Requests: i})}); err != nil {
			t.Fatal(err)
		}
	}
	os.Exit(0)
}
