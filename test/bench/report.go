package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/test/harness"
)

// report is what a benchmark found, for people and for programs.
type report struct {
	Bench   string    `json:"bench"`
	At      time.Time `json:"at"`
	Took    string    `json:"took"`
	Machine machine   `json:"machine"`
	Samples int       `json:"samples"`
	Seed    uint64    `json:"seed,omitempty"` // of what happens at random
	Results []result  `json:"results"`
	Notes   []string  `json:"notes,omitempty"` // what happened on the way
	Failed  string    `json:"failed,omitempty"`
	chart   *chart
}

type result struct {
	Runtime string             `json:"runtime"`
	Figures map[string]summary `json:"figures,omitempty"` // milliseconds
	Ratio   float64            `json:"ratio,omitempty"`
	Added   float64            `json:"added,omitempty"` // difference of the medians
	Other   map[string]float64 `json:"other,omitempty"` // with the unit in its name
}

// machine says where the figures are from: without it they mean nothing.
type machine struct {
	CPU      string  `json:"cpu"`
	Cores    int     `json:"cores"`
	MemoryGB float64 `json:"memoryGB"`
	Kernel   string  `json:"kernel"`
	Cgroups  string  `json:"cgroups"`
	Launcher string  `json:"launcher"` // of instances
}

func thisMachine(launcher string) machine {
	m := machine{Cores: runtime.NumCPU(), CPU: "unknown processor", Cgroups: "version 1", Launcher: launcher}
	self := harness.Process{PID: os.Getpid()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryGB = float64(info.Totalram*uint64(info.Unit)>>20) / 1024
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if !strings.Contains(self.File("cgroup"), ":cpu") {
		m.Cgroups = "version 2"
	}
	return m
}

func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores, %.0f GB, kernel %s, cgroup %s, runtime %s", m.CPU, m.Cores, m.MemoryGB, m.Kernel, m.Cgroups, m.Launcher)
}

// about says what each benchmark compares.
var about = map[string]string{
	"cold":   "From zero instances, through the edge, to the last byte (cold), beside the same app in the same image started without a platform (bare); the rest are the phases of the cold start. Milliseconds.",
	"resume": "A request to a suspended instance beside one to a warm one. Milliseconds.",
	"warm":   "A request through edge and gate beside one through Traefik's own proxy to the same app, and one without a proxy, at 1,000 requests a second, open loop. Milliseconds.",
	"burst":  "So many services at zero instances that are visited at the same moment: until the last has answered (all), and each, with the phases of its start. Milliseconds. CPU time is that of each part, by start.",
	"routes": "Cold and warm requests at an edge that knows so many services. Milliseconds.",
	"idle":   "What suspended services cost beside their apps: memory (PSS) and CPU time of each part, as growth over none, per service.",
	"mixed": "Ten services that start in up to 10 s and answer in up to 5 s with up to 5 MB, 300 requests a second together, open loop, while one is deployed, rolled back, given " +
		"new variables, scaled to zero, and a node of two is drained. Milliseconds.",
	"build": "Deploys of the samples until they are live: of a new service (cold: nothing is cached for it, the base image is on the node), with one line of source changed, and with one dependency added. " +
		"hand is the build command alone, run by chroot in the same unpacked image on the same machine with the network and all cores, and cache folders that have seen the same builds. " +
		"command is what it takes in the platform's sandbox, and own the rest: deploy less command. The other phases: fetch (upload, source image), place (job, allocation, until the node begins), " +
		"box (until the command runs), package, publish (into the registry), end (until the control plane knows), start (until live and said by the CLI). Milliseconds.",
	"chaos": "Processes killed with SIGKILL at random under load: one of two edges, one of two control planes, the driver's plugin, the supervisor, instances. " +
		"Each failed request is traced to a kill that it was in flight on. Milliseconds.",
}

func (r report) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s, %s, took %s\n", r.Bench, r.At.UTC().Format("2006-01-02 15:04 MST"), r.Took)
	fmt.Fprintln(out, r.Machine)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for i, row := range r.rows() {
		if i == 0 || len(row) == len(figuresHead) {
			fmt.Fprintln(w, strings.Join(row, "\t")+"\t")
		}
	}
	w.Flush()
	for _, res := range r.Results {
		for _, name := range slices.Sorted(maps.Keys(res.Other)) {
			fmt.Fprintf(out, "%s: %s: %s\n", res.Runtime, name, figure(res.Other[name]))
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintln(out, note)
	}
}

// figure writes counts as they are, and the rest with four digits.
func figure(v float64) string {
	if v == math.Trunc(v) {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return fmt.Sprintf("%.4g", v)
}

var figuresHead = []string{"what", "of", "samples", "p50", "p90", "p99", "max"}

// rows are the table of figures.
func (r report) rows() [][]string {
	rows := [][]string{figuresHead}
	for _, res := range r.Results {
		for _, name := range order(res.Figures) {
			if f, ok := res.Figures[name]; ok {
				rows = append(rows, []string{res.Runtime, name, fmt.Sprint(f.N),
					fmt.Sprintf("%.2f", f.P50), fmt.Sprintf("%.2f", f.P90), fmt.Sprintf("%.2f", f.P99), fmt.Sprintf("%.2f", f.Max)})
			}
		}
		if res.Ratio > 0 {
			rows = append(rows, []string{res.Runtime, "ratio", "", fmt.Sprintf("%.2f", res.Ratio), "", "", ""})
		}
		if res.Added != 0 {
			rows = append(rows, []string{res.Runtime, "added", "", fmt.Sprintf("%.2f", res.Added), "", "", ""})
		}
	}
	return rows
}

// markdown is the page of the report.
func (r report) markdown() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n\n%s\n\n%s. %s. Took %s", r.Bench, about[r.Bench], r.At.UTC().Format("2006-01-02 15:04 MST"), r.Machine, r.Took)
	if r.Seed != 0 {
		fmt.Fprintf(&b, ", seed %d", r.Seed)
	}
	b.WriteString(".\n\n")
	if r.Failed != "" {
		fmt.Fprintf(&b, "**Failed:** %s\n\n", r.Failed)
	}
	if rows := r.rows(); len(rows) > 1 {
		table(&b, rows)
	}
	other := [][]string{{"what", "of", "figure"}}
	for _, res := range r.Results {
		for _, name := range slices.Sorted(maps.Keys(res.Other)) {
			other = append(other, []string{res.Runtime, name, figure(res.Other[name])})
		}
	}
	if len(other) > 1 {
		table(&b, other)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "- %s\n", note)
	}
	fmt.Fprintf(&b, "\n![%s](%s.svg)\n", r.Bench, r.Bench)
	return b.Bytes()
}

func table(b *bytes.Buffer, rows [][]string) {
	for i, row := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(b, "|%s\n", strings.Repeat("---|", len(row)))
		}
	}
	b.WriteByte('\n')
}

// write stores the table, the JSON and the plot in dir.
func (r report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	svg, err := r.chart.orQuantiles(r).svg()
	return errors.Join(err,
		os.WriteFile(filepath.Join(dir, r.Bench+".json"), append(b, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, r.Bench+".md"), r.markdown(), 0o644),
		os.WriteFile(filepath.Join(dir, r.Bench+".svg"), svg, 0o644))
}

// order is how figures are listed: what is compared first, then the phases in time.
func order(figures map[string]summary) []string {
	names := []string{}
	for _, name := range slices.Sorted(maps.Keys(figures)) {
		if !slices.Contains(phases, name) && !slices.Contains(buildPhases, name) {
			names = append(names, name)
		}
	}
	return slices.Concat(names, phases, buildPhases)
}
