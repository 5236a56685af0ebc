package deploy

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

func newTestLogs(t *testing.T) *logs {
	t.Helper()
	l, err := newLogs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func all(t *testing.T, l *logs, id string) string {
	t.Helper()
	r, err := l.read(t.Context(), id, leapcell.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLogKnowsItsPlaceInTheBuild(t *testing.T) {
	l := newTestLogs(t)
	output := "first\n==> not ours\nhalf, and the other half\n\nlast without end"
	// Whatever the pieces, and wherever the process is killed between them.
	for size := 1; size < len(output); size++ {
		if err := l.remove("a"); err != nil {
			t.Fatal(err)
		}
		for {
			f := l.begin("a")
			at := int(f.offset())
			if at == len(output) {
				f.close()
				break
			}
			_, _ = io.WriteString(f, output[at:min(at+size, len(output))])
			f.close()
		}
		if got := all(t, l, "a"); got != output+"\n" {
			t.Fatalf("in pieces of %d:\n%q", size, got)
		}
	}
}

func TestTornRecordIsCutOff(t *testing.T) {
	l := newTestLogs(t)
	f := l.begin("a")
	_, _ = io.WriteString(f, "whole\n")
	f.close()
	file, err := os.OpenFile(l.path("a"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.WriteString("Btor")
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	if got := all(t, l, "a"); got != "whole\n" {
		t.Errorf("read: %q", got)
	}
	f = l.begin("a")
	if f.offset() != int64(len("whole\n")) {
		t.Errorf("offset %d", f.offset())
	}
	_, _ = io.WriteString(f, "torn\n")
	f.close()
	if got := all(t, l, "a"); got != "whole\ntorn\n" {
		t.Errorf("read: %q", got)
	}
}

func TestPlatformLinesStandAlone(t *testing.T) {
	l := newTestLogs(t)
	f := l.begin("a")
	defer f.close()
	_, _ = io.WriteString(f, "50 %")
	f.say("packaging\nin two lines")
	if got, want := all(t, l, "a"), "50 %\n==> packaging\n==> in two lines\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTail(t *testing.T) {
	l := newTestLogs(t)
	f := l.begin("a")
	f.say("ours")
	for range 30 {
		_, _ = io.WriteString(f, "line\n")
	}
	_, _ = io.WriteString(f, "err\xffor")
	f.close()
	f = l.begin("a") // it is known after a restart too
	defer f.close()
	got := f.tail()
	if len(got) != tailLines || got[len(got)-1] != "err�or" || slices.Contains(got, "ours") {
		t.Errorf("tail: %q", got)
	}
}

func TestFollow(t *testing.T) {
	l := newTestLogs(t)
	f := l.begin("a")
	f.say("one")
	r, err := l.read(t.Context(), "a", leapcell.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	read := func(want string) {
		t.Helper()
		b := make([]byte, len(want))
		if _, err := io.ReadFull(r, b); err != nil || string(b) != want {
			t.Fatalf("got %q, %v; want %q", b, err, want)
		}
	}
	read("==> one\n")
	f.say("two")
	read("==> two\n")
	again := l.begin("a") // a second writer: the log ends with the last
	f.close()
	again.say("three")
	read("==> three\n")
	again.close()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}

	f = l.begin("b")
	defer f.close()
	ctx, cancel := context.WithCancel(t.Context())
	r, err = l.read(ctx, "b", leapcell.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestServiceLogs(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	w.start = func(w *world, a *api.AllocationListStub) {
		w.logs[a.ID+"/stdout"] = "1 " + a.ID + "\n2 " + a.ID + "\n3 " + a.ID + "\n"
		w.logs[a.ID+"/stderr"] = ""
	}
	svc := w.svc["shop-x"]
	if _, err := d.ServiceLogs(t.Context(), svc, false, 10); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("without a deployment: %v", err)
	}
	dep := w.finish(d, w.submit(d).ID)
	svc = w.svc["shop-x"]
	r, err := d.ServiceLogs(t.Context(), svc, false, 2)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if a := allocsOf(w, dep.ID)[0]; err != nil || string(b) != "2 "+a+"\n3 "+a+"\n" {
		t.Errorf("one instance: %q, %v", b, err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err = d.ServiceLogs(ctx, svc, true, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var seen strings.Builder
	until := func(want string) {
		t.Helper()
		buf := make([]byte, 100)
		for !strings.Contains(seen.String(), want) {
			n, err := r.Read(buf)
			if err != nil {
				t.Fatalf("%v; so far %q", err, seen.String())
			}
			seen.Write(buf[:n])
		}
	}
	until("3 " + allocsOf(w, dep.ID)[0] + "\n")
	if err := d.cfg.Nomad.Scale(ctx, dep.ID, 2); err != nil {
		t.Fatal(err)
	}
	second := allocsOf(w, dep.ID)[1]
	until("[" + second[:8] + "] 1 " + second + "\n")
	until("[" + second[:8] + "] 3 " + second + "\n")
	// A new deployment is followed as well.
	next := w.finish(d, w.submit(d).ID)
	until("1 " + allocsOf(w, next.ID)[0] + "\n")
	if strings.Count(seen.String(), "1 "+second) != 1 {
		t.Errorf("a line came twice: %q", seen.String())
	}
	cancel()
	if _, err := io.Copy(io.Discard, r); err == nil {
		t.Error("it goes on after the end of its context")
	}
}

// Who follows a log holds connections to Nomad, which everything else needs as well.
func TestFollowersAreBounded(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), nil)
	w.start = func(w *world, a *api.AllocationListStub) {
		w.logs[a.ID+"/stdout"], w.logs[a.ID+"/stderr"] = "here\n", ""
	}
	w.finish(d, w.submit(d).ID)
	svc := w.svc["shop-x"]
	follow := func() (io.ReadCloser, error) { return d.ServiceLogs(t.Context(), svc, true, 1) }
	var all []io.ReadCloser
	defer func() {
		for _, r := range all {
			r.Close()
		}
	}()
	for range maxFollowed / 2 {
		r, err := follow()
		if err != nil {
			t.Fatalf("follower %d: %v", len(all)+1, err)
		}
		all = append(all, r)
		if _, err := io.ReadFull(r, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	// A connection is taken when what there was has been read.
	refused := func(want bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			r, err := follow()
			if err == nil {
				r.Close()
			}
			if (leapcell.ErrorCode(err) == leapcell.CodeRateLimited) == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("one more follower: %v, want it refused: %v", err, want)
			}
		}
	}
	refused(true)
	if r, err := d.ServiceLogs(t.Context(), svc, false, 1); err != nil {
		t.Errorf("without following: %v", err)
	} else {
		r.Close()
	}
	all[0].Close()
	refused(false)
}

// Each line has the time at which it began, and whoever comes back with the number of bytes that it
// has gets the rest and nothing twice, wherever it was cut.
func TestLogTimesAndOffsets(t *testing.T) {
	l, err := newLogs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := l.begin("a")
	f.say("building")
	for _, part := range []string{"one\ntw", "o", "\nthr"} {
		if _, err := f.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	f.say("failed: x")
	f.close()
	read := func(o leapcell.LogOptions) string {
		t.Helper()
		r, err := l.read(t.Context(), "a", o)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	plain := "==> building\none\ntwo\nthr\n==> failed: x\n"
	if got := read(leapcell.LogOptions{}); got != plain {
		t.Errorf("%q, want %q", got, plain)
	}
	timed := read(leapcell.LogOptions{Timestamps: true})
	var text strings.Builder
	for line := range strings.Lines(timed) {
		at, rest, _ := strings.Cut(line, " ")
		if when, err := time.Parse("2006-01-02T15:04:05.000Z", at); err != nil || time.Since(when) > time.Hour {
			t.Errorf("line %q: %v", line, err)
		}
		text.WriteString(rest)
	}
	if text.String() != plain {
		t.Errorf("%q, want %q", timed, plain)
	}
	for _, o := range []leapcell.LogOptions{{}, {Timestamps: true}} {
		whole := read(o)
		for i := range len(whole) + 2 {
			o.Offset = int64(i)
			if got := read(o); got != whole[min(i, len(whole)):] {
				t.Fatalf("from %d: %q", i, got)
			}
		}
	}
	// What a former release wrote has no times.
	if kind, at, text := parseRecord("Bold line\n"); kind != buildLine || !at.IsZero() || text != "old line" {
		t.Errorf("%c %v %q", kind, at, text)
	}
}
