package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

const (
	chaosRate = 100 // requests a second
	// verdict is how soon after a kill a request that was in flight on the killed process
	// must have failed, if it does: later, something else was wrong.
	verdict = 2 * time.Second
)

// kill is one process that was killed.
type kill struct {
	what    string
	edge    string           // if it was one
	service *harness.Service // if it was an instance of one
	// The signal was sent after from; the process was gone at to, as seen from outside.
	from, to time.Time
}

// explains says whether a failed request was in flight on the killed process. What an
// edge, an instance or the supervisor, which all connections to instances go through, has
// in hand when it is killed is lost. Nothing else is on the way of a request.
func (k kill) explains(v visit) bool {
	onTheWay := k.edge == v.edge && k.edge != "" || k.service == v.service && k.service != nil || k.what == "supervisor"
	return onTheWay && v.at.Before(k.to) && v.end.After(k.from) && v.end.Before(k.to.Add(verdict))
}

// chaos kills processes at random under load, and traces each failed request to a kill.
func chaos(s *session, c config) ([]result, error) {
	t, err := newTarget(s)
	if err != nil {
		return nil, err
	}
	busy := len(t.services) - 2 // the last two are visited seldom, and dormant in between
	l := load{edges: []string{t.edges[0].address, t.edges[1].address}, rate: chaosRate, last: c.last, seed: s.seed, next: func(r *rand.Rand) request {
		q := request{service: t.services[r.IntN(busy)], bytes: anySize(r, 500<<10), pause: time.Duration(r.Int64N(int64(time.Second)))}
		if r.IntN(chaosRate*4) == 0 {
			q.service = t.services[busy+r.IntN(2)]
		}
		if r.IntN(5) == 0 {
			q.upload, q.pause = true, 0
		}
		return q
	}}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	var killing sync.WaitGroup
	killing.Go(func() {
		if err := caught(func() error { t.rage(ctx, rand.New(rand.NewPCG(s.seed, 2)), c.last); return nil }); err != nil {
			s.Errorf("%v", err)
		}
	})
	visits := l.run(ctx)
	cancel()
	killing.Wait()
	return t.judge(visits)
}

// judge traces failures to kills.
func (t *target) judge(visits []visit) ([]result, error) {
	var events []event
	lost, killed := map[string]float64{}, map[string]float64{}
	for _, k := range t.kills {
		killed[k.what]++
		events = append(events, event{k.from, k.to, k.what})
	}
	var unexplained []visit
	for _, v := range failures(visits) {
		i := slices.IndexFunc(t.kills, func(k kill) bool { return k.explains(v) })
		if i < 0 {
			unexplained = append(unexplained, v)
			continue
		}
		lost[t.kills[i].what]++
		t.s.Logf("lost by the kill of %s at %s: %s", t.kills[i].what, t.kills[i].from.Format("15:04:05.000"), v)
	}
	t.s.chart = timeline("chaos", visits, events)
	figures := latencies(visits)
	maps.Copy(figures, t.takeovers)
	out := result{Runtime: "all", Figures: figures.summaries(), Other: map[string]float64{
		"requests": float64(len(visits)), "failed requests": float64(len(failures(visits))), "failed requests that no kill explains": float64(len(unexplained)),
	}}
	for what, n := range killed {
		out.Other["kills of "+what] = n
		out.Other["requests lost by kills of "+what] = lost[what]
	}
	if err := tell(t.s, unexplained, len(visits)); err != nil {
		return []result{out}, fmt.Errorf("not explained by a kill: %w", err)
	}
	return []result{out}, nil
}

// edgeAt is one of the edges.
type edgeAt struct {
	address string
	process func() harness.Process
	again   *harness.Twin
}

// target is a platform with two edges and two control planes. What is killed of these is
// started again by hand: `leapcell up` knows one of each.
type target struct {
	s        *session
	services []*harness.Service
	edges    [2]edgeAt
	controls [2]*harness.Twin
	kills    []kill

	takeovers sums
}

func newTarget(s *session) (*target, error) {
	t := &target{s: s, takeovers: sums{}}
	s.Cleanup(func() { s.p.Up(s) }) // the platform's own, after what takes their place has ended
	address := fmt.Sprintf("127.0.0.1:%d", harness.FreePorts(s, 1)[0])
	first, second := s.p.Twin(s, "leapcell-edge", nil), s.p.Twin(s, "leapcell-edge", map[string]string{
		"--listen": address, "--id": "edge-2", "--data-dir": filepath.Join(s.p.Config.StateDir, "edge-2"),
	})
	t.edges[1] = edgeAt{address, second.Process, second}
	t.edges[0] = edgeAt{s.p.Config.EdgeAddress(), func() harness.Process {
		return t.one("leapcell-edge", func(p harness.Process) bool { return p != second.Process() })
	}, first}
	for i := range t.controls {
		t.controls[i] = s.p.Twin(s, "leapcelld", map[string]string{"--standby": "true"})
	}
	second.Start(s)
	t.controls[0].Start(s)
	var err error
	t.services, err = s.probes(6, func(i int) harness.Spec {
		settings := leapcell.Settings{Concurrency: 300, MaxInstances: 1, StartTimeout: leapcell.Duration(20 * time.Second)}
		if i >= 4 {
			settings.DormantAfter = leapcell.Duration(2 * time.Second)
		}
		return harness.Spec{Settings: settings, Env: map[string]string{"LISTEN_DELAY": (time.Duration(i) * 200 * time.Millisecond).String()}}
	})
	if err != nil {
		return nil, err
	}
	return t, t.answers(t.edges[1])
}

// one is the only process of the platform with this executable that fits.
func (t *target) one(executable string, fits func(harness.Process) bool) harness.Process {
	found := slices.DeleteFunc(t.s.p.Parts(executable, ""), func(p harness.Process) bool { return !fits(p) || !p.Alive() })
	if len(found) != 1 {
		t.s.Fatalf("%d processes of %s are running, not one", len(found), executable)
	}
	return found[0]
}

// answers waits until an edge listens. What it answers does not matter.
func (t *target) answers(e edgeAt) error { return answers(t.s, e.address) }

// rage kills until the time is over: all kinds of processes in a random order, again and
// again. Before the next kill, what was killed is back: two edges dead at once is more than
// two edges can hide.
func (t *target) rage(ctx context.Context, random *rand.Rand, last time.Duration) {
	end := time.Now().Add(last - min(12*time.Second, last/3)) // the last ones are to be seen healing
	var order []func(*rand.Rand)
	for time.Now().Before(end) {
		if len(order) == 0 {
			order = []func(*rand.Rand){t.killEdge, t.killControl, t.killPlugin, t.killSupervisor, t.killInstance, t.killInstance}
			random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		select {
		case <-time.After(time.Second + time.Duration(random.Int64N(int64(4*time.Second)))):
		case <-ctx.Done():
			return
		}
		order[0](random)
		order = order[1:]
	}
}

// kill ends a process without a chance to tidy up.
func (t *target) kill(k kill, p harness.Process) {
	k.from = time.Now()
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
		t.s.Fatalf("killing %s, process %d: %v", k.what, p.PID, err)
	}
	// The first thread may be dead while others still hold the process's sockets.
	harness.Eventually(t.s, 10*time.Second, k.what+" is dead", func() bool {
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID)) // gone: there is none
		return !p.Alive() && len(threads) < 2
	})
	k.to = time.Now()
	t.kills = append(t.kills, k)
	t.s.Logf("%s killed %s, process %d", k.from.Format("15:04:05.000"), k.what, p.PID)
}

func (t *target) killEdge(random *rand.Rand) {
	e := t.edges[random.IntN(len(t.edges))]
	t.kill(kill{what: "edge", edge: e.address}, e.process())
	e.again.Start(t.s)
	must(t.s, t.answers(e))
}

// killControl kills the control plane that works; the other one takes over. What is back
// then stands by.
func (t *target) killControl(*rand.Rand) {
	leader := t.leader()
	t.kill(kill{what: "leapcelld"}, leader)
	t.healthy()
	for _, c := range t.controls {
		if !c.Process().Alive() {
			c.Start(t.s)
			return
		}
	}
}

// leader is the control plane that has the data folder: it listens.
func (t *target) leader() harness.Process {
	found := slices.DeleteFunc(t.s.p.Parts("leapcelld", ""), func(p harness.Process) bool { return !p.Alive() || !listens(p) })
	if len(found) != 1 {
		t.s.Fatalf("%d control planes listen, not one", len(found))
	}
	return found[0]
}

// listens reports whether a process has a socket other than its standard streams.
func listens(p harness.Process) bool {
	dir := fmt.Sprintf("/proc/%d/fd", p.PID)
	entries, _ := os.ReadDir(dir) // gone: it does not
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		return err == nil && strings.HasPrefix(link, "socket:")
	})
}

// healthy waits until a control plane answers.
func (t *target) healthy() {
	begin := time.Now()
	harness.Eventually(t.s, 30*time.Second, "the other control plane answers", func() bool {
		return t.s.p.API.Call(t.s.ctx, http.MethodGet, "/v1/health", nil, nil) == nil
	})
	t.takeovers.add("takeover of the control plane", time.Since(begin))
}

func (t *target) killPlugin(*rand.Rand) {
	t.kill(kill{what: "driver plugin"}, t.one("nomad-driver-leapcell", func(harness.Process) bool { return true }))
	harness.Eventually(t.s, time.Minute, "the driver plugin is back", func() bool { return len(t.s.p.Parts("nomad-driver-leapcell", "")) == 1 })
}

func (t *target) killSupervisor(*rand.Rand) {
	found := t.s.p.Parts("nomad-driver-leapcell", "supervisor")
	if len(found) == 0 {
		t.s.Fatalf("no supervisor is running")
	}
	// A former one goes on until its last connection ends: the newest is meant.
	newest := slices.MaxFunc(found, func(a, b harness.Process) int { return cmp.Compare(a.Started(), b.Started()) })
	t.kill(kill{what: "supervisor"}, newest)
	harness.Eventually(t.s, time.Minute, "a supervisor is back", func() bool {
		return slices.ContainsFunc(t.s.p.Parts("nomad-driver-leapcell", "supervisor"), func(p harness.Process) bool { return p != newest && p.Alive() })
	})
}

func (t *target) killInstance(random *rand.Rand) {
	service := t.services[random.IntN(len(t.services))]
	for range 20 { // one that is suspended dies only when it is thawed
		for _, p := range harness.Processes(func(p harness.Process) bool { return p.Env("LEAPCELL_SERVICE") == service.Name }) {
			if args := p.Args(); filepath.Base(args[0]) == "probe" && p.Alive() && !p.Cgroup().Frozen() {
				t.kill(kill{what: "instance", service: service}, p)
				return
			}
		}
		service = t.services[random.IntN(len(t.services))]
	}
	must(t.s, errors.New("no service has a running instance"))
}
