package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/image"
	"github.com/leapcell/leapcell/driver/supervisor"
	"github.com/leapcell/leapcell/test/harness"
)

// buildPhases of a deploy, from the order to deploy until it is live. Only the command is the user's.
var buildPhases = []string{"fetch", "place", "box", "command", "package", "publish", "end", "start"}

// builder deploys a sample again and again, and builds it by hand.
type builder struct {
	*session
	name    string
	dir     string // the sample's copy
	samples map[string]sums
	hand    *byHand
	service string
	deploys int           // of the service
	lines   int           // that were changed
	took    time.Duration // the last round
}

// buildSteps are the deploys of a round, with what is changed before each.
var buildSteps = []struct {
	name   string
	change func(b *builder)
}{
	{"cold", (*builder).renew},
	{"one line", (*builder).changeLine},
	{"one dependency", (*builder).addDependency},
}

// build compares a deploy until it is live with the same build command run by hand: in the same image
// on the same machine, with cache folders of its own that have seen the same builds.
func build(s *session, c config) ([]result, error) {
	var builders []*builder
	for _, name := range c.runtimes {
		b := &builder{session: s, name: name, samples: map[string]sums{}, hand: newByHand(s)}
		// The base image is assembled where it is missing, and comes to the node, before anything is measured.
		s.p.Probe(s, harness.Spec{Settings: leapcell.Settings{Runtime: name}})
		builders = append(builders, b)
	}
	begin := time.Now()
	for round := range c.n {
		for _, b := range builders {
			if round > 0 && time.Since(begin)+b.took > c.last {
				continue // as it would take longer than it may
			}
			if err := caught(b.round); err != nil {
				return summed(builders), fmt.Errorf("%s: %w", b.name, err)
			}
		}
	}
	return summed(builders), nil
}

func summed(builders []*builder) (out []result) {
	for _, b := range builders {
		for _, step := range buildSteps {
			if f := b.samples[step.name].summaries(); len(f) > 0 {
				out = append(out, result{Runtime: b.name + ", " + step.name, Figures: f, Added: f["own"].P50, Ratio: f["deploy"].P50 / f["hand"].P50})
			}
		}
	}
	return out
}

func (b *builder) round() error {
	begin := time.Now()
	for _, step := range buildSteps {
		step.change(b)
		b.step(step.name)
	}
	b.took = time.Since(begin)
	return nil
}

// step deploys once, and builds the same by hand.
func (b *builder) step(name string) {
	if b.samples[name] == nil {
		b.samples[name] = sums{}
	}
	seen, task := b.deploy()
	if task == nil {
		b.Fatalf("nothing was seen of the build job of %s", b.service)
	}
	hand := b.hand.run(task)
	for phase, d := range seen {
		b.samples[name].add(phase, d)
	}
	b.samples[name].add("hand", hand)
	b.Logf("%s, %s: deploy %s, of which own %s; by hand %s", b.name, name, seen["deploy"], seen["own"], hand)
}

const beginMark, endMark = "bench-begins", "bench-ends"

// renew begins with a service that has built nothing yet.
func (b *builder) renew() {
	b.service = harness.Name(b)
	b.hand.forget()
	b.deploys = 0
	b.dir = b.TempDir()
	must(b.session, os.CopyFS(b.dir, os.DirFS(filepath.Join(b.p.Root, "examples", b.name))))
	b.edit("leapcell.yaml", func(text string) string {
		return regexp.MustCompile(`buildCommand: (.*)`).ReplaceAllStringFunc(text, func(line string) string {
			command := strings.TrimPrefix(line, "buildCommand: ")
			return "buildCommand: " + strconv.Quote(fmt.Sprintf("echo %s $(date +%%s%%N); %s; s=$?; echo %s $(date +%%s%%N); exit $s", beginMark, command, endMark))
		})
	})
}

func (b *builder) edit(name string, change func(string) string) {
	path := filepath.Join(b.dir, name)
	old, err := os.ReadFile(path)
	must(b.session, err)
	text := change(string(old))
	if text == string(old) {
		b.Fatalf("examples/%s/%s is not what this benchmark changes", b.name, name)
	}
	must(b.session, os.WriteFile(path, []byte(text), 0o644))
}

var sourceFiles = map[string]string{"python": "app.py", "node": "app.js", "go": "main.go", "rust": "src/main.rs"}

func (b *builder) changeLine() {
	b.lines++
	b.edit(sourceFiles[b.name], func(text string) string {
		return strings.Replace(text, "Hello", fmt.Sprintf("Hello %d", b.lines), 1)
	})
}

// addDependency adds one that is small and that nothing else of the sample needs.
func (b *builder) addDependency() {
	switch b.name {
	case "python":
		b.edit("requirements.txt", func(text string) string { return text + "python-slugify==8.0.4\n" })
	case "node":
		b.edit("package.json", func(text string) string {
			return strings.Replace(text, `"express"`, `"dayjs": "1.11.13", "express"`, 1)
		})
	case "rust":
		b.edit("Cargo.toml", func(text string) string { return text + "hex = \"0.4.3\"\n" })
	case "go":
		b.edit("go.mod", func(text string) string { return text + "\nrequire github.com/google/uuid v1.6.0\n" })
		b.edit("go.sum", func(text string) string {
			return text + "github.com/google/uuid v1.6.0 h1:NIvaJDMOsjHA8n1jAhLSgzrAzy1Hgr+hNrb57e+94F0=\n" +
				"github.com/google/uuid v1.6.0/go.mod h1:TIyPZe4MgqvfeYDBFedMoGGpEw/LqOeaOT+nhxU+yHo=\n"
		})
		b.edit("main.go", func(text string) string {
			return strings.Replace(text, "import (\n", "import (\n\t_ \"github.com/google/uuid\"\n", 1)
		})
	}
}

// deploy gives how long it took, phase by phase, and the job that built it.
func (b *builder) deploy() (map[string]time.Duration, *nomad.Task) {
	b.deploys++
	watched := b.watch(leapcell.BuildJobID(b.service, b.deploys))
	begin := time.Now()
	b.p.Must(b, "deploy", b.dir, "--name", b.service)
	end := time.Now()
	seen := watched()
	service := b.p.Service(b, b.service)
	if b.deploys == 1 {
		b.p.Adopt(b, service)
	}
	log := b.p.Must(b, "deployment", "log", service.Live, "--timestamps")
	from, to := b.mark(log, beginMark), b.mark(log, endMark)
	at := []time.Time{begin, b.said(log, leapcell.Building), seen.first(leapcell.Building), from, to,
		seen.first(leapcell.Publishing), seen.last(leapcell.Publishing), b.said(log, leapcell.Starting), end}
	took := map[string]time.Duration{"deploy": end.Sub(begin), "own": end.Sub(begin) - to.Sub(from)}
	for i, phase := range buildPhases {
		if !at[i].IsZero() && !at[i+1].IsZero() {
			took[phase] = at[i+1].Sub(at[i])
		}
	}
	return took, seen.task
}

// watched is what Nomad says of a build job: it forgets the job with all that belongs to it as soon as
// the control plane has what it needs.
type watched struct {
	task   *nomad.Task
	events []*nomad.TaskEvent
}

// watch follows the job until the function that it gives is called.
func (b *builder) watch(job string) func() watched {
	ctx, cancel := context.WithCancel(b.ctx)
	out := make(chan watched, 1)
	go func() {
		var w watched
		defer func() { out <- w }()
		q := &nomad.QueryOptions{Filter: fmt.Sprintf("JobID == %q", job), WaitTime: time.Minute}
		for ctx.Err() == nil {
			list, meta, err := b.p.Nomad.Allocations().List(q.WithContext(ctx))
			if err != nil {
				return // what is missing is not in the table
			}
			if q.WaitIndex = meta.LastIndex; len(list) == 0 {
				continue
			}
			for _, task := range list[0].TaskStates {
				w.events = task.Events
			}
			if w.task == nil {
				if a, _, err := b.p.Nomad.Allocations().Info(list[0].ID, (&nomad.QueryOptions{}).WithContext(ctx)); err == nil {
					w.task = a.Job.TaskGroups[0].Tasks[0]
				}
			}
		}
	}()
	return func() watched { cancel(); return <-out }
}

func (w watched) first(phase leapcell.State) time.Time {
	for _, e := range w.events {
		if e.Details[leapcell.PhaseAnnotation] == string(phase) {
			return time.Unix(0, e.Time)
		}
	}
	return time.Time{}
}

func (w watched) last(phase leapcell.State) (at time.Time) {
	for _, e := range w.events {
		if e.Details[leapcell.PhaseAnnotation] == string(phase) {
			at = time.Unix(0, e.Time)
		}
	}
	return at
}

// mark is the time that the build command wrote after a word.
func (b *builder) mark(log, word string) time.Time {
	m := regexp.MustCompile(word + ` (\d+)`).FindStringSubmatch(log)
	if m == nil {
		b.Fatalf("%s is not in the log:\n%s", word, log)
	}
	ns, err := strconv.ParseInt(m[1], 10, 64)
	must(b.session, err)
	return time.Unix(0, ns)
}

// said is when the control plane wrote that the deployment is in a state.
func (b *builder) said(log string, state leapcell.State) time.Time {
	m := regexp.MustCompile(`(?m)^(\S+) ==> ` + string(state) + `$`).FindStringSubmatch(log)
	if m == nil {
		b.Fatalf("%q is not in the log:\n%s", state, log)
	}
	at, err := time.Parse(time.RFC3339Nano, m[1])
	must(b.session, err)
	return at
}

// byHand runs build commands as somebody would without a platform: in the unpacked image, by chroot, as
// root, with the network, all cores and the package managers' settings of the machine.
type byHand struct {
	*session
	store    *image.Store
	settings supervisor.BuildConfig
	caches   string
}

func newByHand(s *session) *byHand {
	h := &byHand{session: s}
	var node supervisor.Config
	b, err := os.ReadFile(filepath.Join(s.p.Config.NodeDir(), "supervisor.json"))
	must(s, err)
	must(s, json.Unmarshal(b, &node))
	h.settings = node.Build
	h.store, err = image.New(image.Config{
		Dir:        filepath.Join(s.TempDir(), "images"),
		Registries: image.Registries(node.Credentials, slog.New(slog.DiscardHandler)),
	})
	must(s, err)
	s.Cleanup(func() { h.store.Close() })
	return h
}

// forget empties the caches.
func (h *byHand) forget() { h.caches = h.TempDir() }

// run builds what the task built, and gives how long the command took.
func (h *byHand) run(task *nomad.Task) time.Duration {
	config := task.Config
	img, err := h.store.Pull(h.ctx, fmt.Sprint(config["image"]))
	must(h.session, err)
	dir := h.TempDir()
	for _, d := range []string{"root", "upper", "work"} {
		must(h.session, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	root := filepath.Join(dir, "root")
	lower := slices.Clone(img.Layers)
	slices.Reverse(lower)
	// What is mounted goes with the namespace.
	var script strings.Builder
	fmt.Fprintf(&script, "set -e\nmount -t overlay overlay -o lowerdir=%s,upperdir=%s/upper,workdir=%s/work %s\n", strings.Join(lower, ":"), dir, dir, root)
	fmt.Fprintf(&script, "cd %s\nmkdir -p proc dev tmp\nmount -t proc proc proc\nmount --rbind /dev dev\ncp /etc/resolv.conf /etc/hosts etc/\n", root)
	for inside, file := range h.settings.Files {
		fmt.Fprintf(&script, "mkdir -p $(dirname %[1]s%[2]s)\ntouch %[1]s%[2]s\nmount --bind %[3]s %[1]s%[2]s\n", root, inside, file)
	}
	caches, _ := config["caches"].([]any)
	for i, inside := range caches {
		fmt.Fprintf(&script, "mkdir -p %[1]s%[2]s %[3]s/%[4]d\nmount --bind %[3]s/%[4]d %[1]s%[2]s\n", root, inside, h.caches, i)
	}
	fmt.Fprintf(&script, `exec chroot %s bash -c 'cd "$1" && exec bash -c "$0"' "$0" %s`, root, cmp.Or(img.WorkDir, "/"))
	cmd := exec.CommandContext(h.ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script.String(), fmt.Sprint(config["command"]))
	cmd.Env = append(slices.Clone(img.Env), "HOME=/root", "DEBIAN_FRONTEND=noninteractive")
	for name, value := range h.settings.Env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.Fatalf("by hand: %v\n%s", err, out)
	}
	b := &builder{session: h.session}
	return b.mark(string(out), endMark).Sub(b.mark(string(out), beginMark))
}
