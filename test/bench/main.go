// Bench measures a platform, prints what it found, and writes it to docs/benchmarks as a
// table, JSON and a picture; it asserts nothing but that every answer is what was asked for.
//
//	go run ./test/bench                                  all of them, small
//	go run ./test/bench -bench full                      all of them
//	go run ./test/bench -bench cold -n 50 -runtimes go,node,python,rust
//	go run ./test/bench -bench cold -launchers runc,leapcell
//	go run ./test/bench -bench burst -services 100
//	go run ./test/bench -bench idle -idle 1000
//	go run ./test/bench -bench mixed -for 10m
//	go run ./test/bench -bench build -n 3 -runtimes python,go
//	go run ./test/bench -bench chaos -for 5m -seed 42
//
// It uses the platform that LEAPCELL_TEST_STATE names, else one of its own. What is compared
// is interleaved, because the speed of a machine drifts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/leapcell/leapcell/test/harness"
)

// config is how large a benchmark is.
type config struct {
	n         int
	runtimes  []string
	launchers []string
	services  int
	routes    int
	idle      int
	window    time.Duration
	mixed     int
	last      time.Duration
	shots     int           // of warm, one way
	shot      time.Duration // of these
	// warmRoutes are those that the edge knows in the second half of warm.
	warmRoutes int
}

// benches are the benchmarks by name.
var benches = map[string]func(*session, config) ([]result, error){
	"cold": cold, "resume": resume, "warm": warm, "burst": burst, "routes": routes, "mixed": mixed, "idle": idle, "chaos": chaos, "build": build,
}

// whole is what one benchmark does when it is asked for by its name.
func whole() config {
	return config{n: 50, runtimes: []string{"go", "node", "python", "rust"}, services: 25, routes: 10000, idle: 500, window: time.Minute, mixed: 10, last: 10 * time.Minute,
		shots: 4, shot: 3 * time.Second, warmRoutes: 5000}
}

// turn is one benchmark of a suite.
type turn struct {
	bench  string
	change func(*config)
}

// suites are several benchmarks on one platform: quick is to take three minutes, full thirty.
var suites = map[string][]turn{
	"quick": {
		{"cold", func(c *config) { c.n, c.runtimes = 3, []string{"probe"} }},
		{"resume", func(c *config) { c.n, c.runtimes = 10, []string{"probe"} }},
		{"warm", func(c *config) { c.shots, c.shot, c.warmRoutes = 1, time.Second, 1 }},
		{"burst", func(c *config) { c.n, c.services = 1, 5 }},
		{"routes", func(c *config) { c.n, c.routes = 2, 1000 }},
		{"idle", func(c *config) { c.idle, c.window = 1, 2*time.Second }},
		{"mixed", func(c *config) { c.mixed, c.last = 3, 12*time.Second }},
		{"chaos", func(c *config) { c.last = 20 * time.Second }},
	},
	"full": {
		{"cold", func(c *config) { c.n = 30 }},
		{"resume", func(c *config) { c.n, c.runtimes = 100, []string{"go"} }},
		{"warm", func(*config) {}},
		{"burst", func(c *config) { c.n = 20 }},
		{"routes", func(c *config) { c.n = 20 }},
		{"idle", func(c *config) { c.window = 30 * time.Second }},
		{"mixed", func(c *config) { c.last = 3 * time.Minute }},
		{"chaos", func(c *config) { c.last = 2 * time.Minute }},
	},
}

func main() {
	c := whole()
	var bench, runtimes, launchers, out, launcher string
	seed := rand.Uint64N(1 << 32)
	names := append(slices.Sorted(maps.Keys(benches)), slices.Sorted(maps.Keys(suites))...)
	flag.StringVar(&bench, "bench", "quick", strings.Join(names, ", "))
	flag.IntVar(&c.n, "n", c.n, "samples per runtime")
	flag.StringVar(&runtimes, "runtimes", strings.Join(c.runtimes, ","), "cold, resume: samples of the folder examples, or probe")
	flag.StringVar(&launchers, "launchers", "", "cold: OCI runtimes to compare, each on a node of its own (default that of the platform)")
	flag.StringVar(&launcher, "runtime", "", "OCI runtime of the platform (default the driver's)")
	flag.StringVar(&out, "out", "", "folder for the reports (default docs/benchmarks; quick: docs/benchmarks/quick)")
	flag.IntVar(&c.services, "services", c.services, "burst: services, at most 100 are woken at once")
	flag.IntVar(&c.routes, "routes", c.routes, "routes: how many in the end")
	flag.DurationVar(&c.last, "for", c.last, "mixed, chaos: how long; build: after which no further round is begun")
	flag.IntVar(&c.idle, "idle", c.idle, "idle: suspended services in the end")
	flag.DurationVar(&c.window, "window", c.window, "idle: how long CPU time is watched")
	flag.Uint64Var(&seed, "seed", seed, "mixed, chaos: what happens at random (default one that is printed)")
	plain := flag.String("plain", "", "serve Traefik without an edge at LISTEN=TARGET; for this program's own use")
	flag.Parse()
	c.runtimes, c.launchers = list(runtimes), list(launchers)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *plain != "" {
		err = servePlain(ctx, *plain)
	} else {
		err = run(ctx, bench, c, seed, launcher, out, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' })
}

func run(ctx context.Context, bench string, c config, seed uint64, launcher, out string, stdout io.Writer) (err error) {
	turns, suite := suites[bench]
	if !suite {
		if benches[bench] == nil {
			return fmt.Errorf("there is no benchmark %q", bench)
		}
		turns = []turn{{bench, func(*config) {}}}
	}
	p, release, err := harness.Acquire(ctx, upArgs(c, launcher)...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if out == "" {
		out = filepath.Join(p.Root, "docs", "benchmarks")
		if bench == "quick" {
			out = filepath.Join(out, "quick")
		}
	}
	_, launcher, err = onlyNode(ctx, p)
	if err != nil {
		return err
	}
	begin := time.Now()
	for _, t := range turns {
		size := c
		if suite {
			size = whole()
			t.change(&size)
		}
		err = errors.Join(err, one(ctx, p, launcher, t.bench, size, seed, out, stdout))
		if ctx.Err() != nil {
			break
		}
	}
	fmt.Fprintf(stdout, "\n%s took %s; reports are in %s\n", bench, time.Since(begin).Round(time.Second), out)
	return err
}

// upArgs are the settings of a platform to measure. Suspended services use little of what
// they may: Nomad is told of room for all of them.
func upArgs(c config, launcher string) []string {
	args := []string{"--set", "nomad-client.memory_total_mb=400000", "--set", "nomad-client.cpu_total_compute=1000000", "--set", "leapcelld.standby=true"}
	if launcher != "" {
		args = append(args, "--runtime", launcher)
	} else if len(c.launchers) > 0 {
		args = append(args, "--runtime", c.launchers[0])
	}
	return args
}

// one runs one benchmark and reports.
func one(ctx context.Context, p *harness.Platform, launcher, bench string, c config, seed uint64, out string, stdout io.Writer) error {
	fmt.Fprintf(os.Stderr, "bench: %s (seed %d)\n", bench, seed)
	r := report{Bench: bench, At: time.Now(), Machine: thisMachine(launcher), Samples: c.n}
	if bench == "mixed" || bench == "chaos" {
		r.Seed = seed
	}
	s, err := inSession(ctx, p, seed, func(s *session) (err error) {
		r.Results, err = benches[bench](s, c)
		r.Took = time.Since(r.At).Round(time.Second).String()
		return err
	})
	r.Notes, r.chart = s.notes, s.chart
	if err != nil {
		r.Failed = err.Error()
		err = fmt.Errorf("%s: %w", bench, err)
	}
	if len(r.Results) == 0 {
		return err // nothing was found that could be reported
	}
	r.print(stdout)
	return errors.Join(err, r.write(out))
}
