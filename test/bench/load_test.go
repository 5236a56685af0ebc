package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gonum.org/v1/plot/plotter"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// app answers like the probe app, or as a test wants.
func app(t *testing.T, answer http.HandlerFunc) (address string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answer != nil {
			answer(w, r)
			return
		}
		if r.Method == http.MethodPost {
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%s %d %v\n", r.Proto, n, err)
			return
		}
		n, _ := strconv.Atoi(r.FormValue("bytes"))
		fmt.Fprint(w, strings.Repeat("x", n))
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func someLoad(edges ...string) *load {
	service := &harness.Service{Service: leapcell.Service{Name: "s", Host: "s.example"}}
	return &load{edges: edges, rate: 100, last: 200 * time.Millisecond, seed: 7, next: func(r *rand.Rand) request {
		return request{service: service, bytes: anySize(r, 10_000), upload: r.IntN(2) == 0}
	}}
}

func TestLoadCountsWhatFailed(t *testing.T) {
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string // of each problem; empty: there is none
	}{
		"as asked": {nil, ""},
		"refused":  {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusServiceUnavailable) }, "busy"},
		"too short": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, "HTTP/1.1 1 <nil>\n")
		}, ""},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			visits := someLoad(app(t, test.answer)).run(t.Context())
			failed := failures(visits)
			if len(visits) != 20 || name == "as asked" && len(failed) > 0 || name != "as asked" && len(failed) != 20 {
				t.Fatalf("%d of %d failed: %v", len(failed), len(visits), failed)
			}
			for _, v := range failed {
				if !strings.Contains(v.problem, test.want) {
					t.Errorf("%v", v)
				}
			}
		})
	}
}

// A kept connection that breaks makes Go's transport send a GET again: that must show.
func TestLoadSeesWhatWasSentTwice(t *testing.T) {
	var asked atomic.Int32
	address := app(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 2 {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, "xxxxx")
	})
	l := someLoad(address)
	l.rate, l.next = 10, func(*rand.Rand) request {
		return request{service: &harness.Service{Service: leapcell.Service{Host: "s.example"}}, bytes: 5}
	}
	visits := l.run(t.Context())
	if failed := failures(visits); len(failed) != 1 {
		t.Errorf("%d of %d failed, the app was asked %d times", len(failed), len(visits), asked.Load())
	}
}

func TestVisitorTakesTheEdgeThatListens(t *testing.T) {
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	alive := app(t, nil)
	visits := someLoad(strings.TrimPrefix(dead.URL, "http://"), alive).run(t.Context())
	if failed := failures(visits); len(visits) != 20 || len(failed) > 0 {
		t.Errorf("%d of %d failed: %v", len(failed), len(visits), failed)
	}
	for _, v := range visits {
		if v.edge != alive {
			t.Errorf("answered by %s", v.edge)
		}
	}
}

func TestKillExplainsOnlyWhatItHadInHand(t *testing.T) {
	at := time.Now()
	one, other := &harness.Service{}, &harness.Service{}
	v := func(edge string, s *harness.Service, begin, end time.Duration) visit {
		return visit{request: request{service: s}, edge: edge, at: at.Add(begin), end: at.Add(end)}
	}
	edge := kill{what: "edge", edge: "a", from: at, to: at.Add(10 * time.Millisecond)}
	instance := kill{what: "instance", service: one, from: at, to: at.Add(10 * time.Millisecond)}
	supervisor := kill{what: "supervisor", from: at, to: at.Add(10 * time.Millisecond)}
	plugin := kill{what: "driver plugin", from: at, to: at.Add(10 * time.Millisecond)}
	for name, test := range map[string]struct {
		k    kill
		v    visit
		want bool
	}{
		"in flight on the edge":         {edge, v("a", one, -time.Second, time.Millisecond), true},
		"on the other edge":             {edge, v("b", one, -time.Second, time.Millisecond), false},
		"before":                        {edge, v("a", one, -2*time.Second, -time.Second), false},
		"after":                         {edge, v("a", one, time.Second, 1100*time.Millisecond), false},
		"in flight, but failed later":   {edge, v("a", one, -time.Second, 10*time.Second), false},
		"in flight on the instance":     {instance, v("b", one, -time.Second, time.Millisecond), true},
		"on another service's instance": {instance, v("b", other, -time.Second, time.Millisecond), false},
		"through the supervisor":        {supervisor, v("b", other, -time.Second, time.Millisecond), true},
		"the plugin is not on the way":  {plugin, v("b", other, -time.Second, time.Millisecond), false},
	} {
		if got := test.k.explains(test.v); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestReportIsWritten(t *testing.T) {
	dir := t.TempDir()
	results := []result{{Runtime: "go <a>", Figures: map[string]summary{"cold": {5, 1, 2, 3, 4}, "queue": {5, 0, 0, 0, 0}}, Ratio: 2, Other: map[string]float64{"x, KiB": 7}}}
	visits := []visit{{at: time.Now(), end: time.Now().Add(3 * time.Second)}, {at: time.Now(), end: time.Now().Add(2 * time.Second), problem: "lost"}}
	for name, c := range map[string]*chart{
		"quantiles": nil,
		"timeline":  timeline("t", visits, []event{{at: time.Now(), what: "a kill & more"}}),
		"empty":     timeline("t", nil, nil),
		"lines":     {sets: []set{{name: "l", points: plotter.XYs{{X: 0, Y: 1}, {X: 1, Y: 2}}}}},
	} {
		r := report{Bench: name, At: time.Now(), Results: results, Notes: []string{"a note"}, chart: c}
		if err := r.write(dir); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		svg, err := c.orQuantiles(r).svg()
		if err != nil || xml.Unmarshal(svg, new(struct{})) != nil {
			t.Errorf("%s: no picture: %v", name, err)
		}
	}
}

func TestSuitesNameBenchmarks(t *testing.T) {
	for name, turns := range suites {
		for _, turn := range turns {
			if benches[turn.bench] == nil || about[turn.bench] == "" {
				t.Errorf("%s: there is no benchmark %q, or nothing about it", name, turn.bench)
			}
		}
	}
	if err := run(context.Background(), "none", whole(), 1, "", "", io.Discard); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("an unknown benchmark: %v", err)
	}
}
