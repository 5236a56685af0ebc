// Bench measures a platform and prints what it found; it asserts nothing but that every
// answer is a 200.
//
//	go run ./test/bench -bench cold -n 50 -runtimes go,node,python,rust
//	go run ./test/bench -bench resume -n 100 -runtimes go
//	go run ./test/bench -bench warm
//	go run ./test/bench -bench burst -services 25
//	go run ./test/bench -bench routes -routes 10000 -n 20
//	go run ./test/bench -bench mixed -for 10m
//	go run ./test/bench -bench idle -idle 500
//
// It uses the platform that LEAPCELL_TEST_STATE names, else one of its own. What is compared
// is interleaved, because the speed of a machine drifts.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/leapcell/leapcell/test/harness"
)

type config struct {
	bench    string
	n        int
	runtimes []string
	json     string
	services int
	routes   int
	last     time.Duration
	idle     int
}

// report is what a benchmark found, for people and for programs.
type report struct {
	Bench   string    `json:"bench"`
	At      time.Time `json:"at"`
	CPUs    int       `json:"cpus"`
	Samples int       `json:"samples"`
	Results []result  `json:"results"`
}

type result struct {
	Runtime string             `json:"runtime"`
	Figures map[string]summary `json:"figures"` // milliseconds
	Ratio   float64            `json:"ratio,omitempty"`
	Added   float64            `json:"added,omitempty"` // difference of the medians
	Other   map[string]float64 `json:"other,omitempty"` // with the unit in its name
}

// benches are the benchmarks by name.
var benches = map[string]func(*session, config) ([]result, error){
	"cold": cold, "resume": resume, "warm": warm, "burst": burst, "routes": routes, "mixed": mixed, "idle": idle,
}

func main() {
	var c config
	var runtimes string
	flag.StringVar(&c.bench, "bench", "cold", strings.Join(slices.Sorted(maps.Keys(benches)), ", "))
	flag.IntVar(&c.n, "n", 50, "samples per runtime")
	flag.StringVar(&runtimes, "runtimes", "go,node,python,rust", "samples of the folder examples")
	flag.StringVar(&c.json, "json", "", "file to write the report to")
	flag.IntVar(&c.services, "services", 25, "burst: services, at most 100 are woken at once")
	flag.IntVar(&c.routes, "routes", 10000, "routes: how many in the end")
	flag.DurationVar(&c.last, "for", 10*time.Minute, "mixed: how long")
	flag.IntVar(&c.idle, "idle", 500, "idle: suspended services in the end")
	plain := flag.String("plain", "", "serve Traefik without an edge at LISTEN=TARGET; for this program's own use")
	flag.Parse()
	c.runtimes = strings.Split(runtimes, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *plain != "" {
		if err := servePlain(ctx, *plain); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(ctx, c, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c config, out io.Writer) (err error) {
	measure, ok := benches[c.bench]
	if !ok {
		return fmt.Errorf("there is no benchmark %q: %s", c.bench, strings.Join(slices.Sorted(maps.Keys(benches)), ", "))
	}
	// Suspended services use little of what they may: Nomad is told of room for all of them.
	p, release, err := harness.Acquire(ctx, "--set", "nomad-client.memory_total_compute=200000")
	if err != nil {
		return err
	}
	defer func() {
		if e := release(); err == nil {
			err = e
		}
	}()
	r := report{Bench: c.bench, At: time.Now(), CPUs: runtime.NumCPU(), Samples: c.n}
	if err := inSession(ctx, p, func(s *session) (err error) {
		r.Results, err = measure(s, c)
		return err
	}); err != nil {
		return err
	}
	r.print(out)
	if c.json == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(c.json, append(b, '\n'), 0o644)
}

func (r report) print(out io.Writer) {
	fmt.Fprintf(out, "%s, %d samples a runtime, interleaved, %d cores; milliseconds\n", r.Bench, r.Samples, r.CPUs)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "runtime\twhat\tp50\tp90\tp99\tmax\t")
	for _, res := range r.Results {
		for _, name := range order(res.Figures) {
			if f, ok := res.Figures[name]; ok {
				fmt.Fprintf(w, "%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t\n", res.Runtime, name, f.P50, f.P90, f.P99, f.Max)
			}
		}
		if res.Ratio > 0 {
			fmt.Fprintf(w, "%s\tratio\t%.2f\t\t\t\t\n", res.Runtime, res.Ratio)
		}
		if res.Added != 0 {
			fmt.Fprintf(w, "%s\tadded\t%.2f\t\t\t\t\n", res.Runtime, res.Added)
		}
	}
	w.Flush()
	for _, res := range r.Results {
		for _, name := range slices.Sorted(maps.Keys(res.Other)) {
			fmt.Fprintf(out, "%s: %s: %.4g\n", res.Runtime, name, res.Other[name])
		}
	}
}

// order is how figures are listed: what is compared first, then the phases in time.
func order(figures map[string]summary) []string {
	names := []string{}
	for _, name := range slices.Sorted(maps.Keys(figures)) {
		if !slices.Contains(phases, name) {
			names = append(names, name)
		}
	}
	return append(names, phases...)
}
