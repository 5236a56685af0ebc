package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

const (
	// idleMemoryMB is the smallest size. Nomad must believe that there is room for all of
	// them, see upArgs; what they really use is measured.
	idleMemoryMB = leapcell.MinMemoryMB
	// idlePort is the first of the gates': more than the platform's own range has.
	idlePort = 12000
)

// idle measures what suspended services cost beside their apps: each level has as many copies
// of the probe app, which is a small server in Go, every one a job with a route of its own that
// one request woke.
func idle(s *session, c config) ([]result, error) {
	service := s.p.Probe(s, harness.Spec{})
	s.visit(service)
	service.Reload(s)
	service.ToZero(s)
	job, _, err := s.p.Nomad.Jobs().Info(service.Live, nil)
	must(s, err)
	names := []string{"supervisor", "plugin", "Nomad agent", "leapcelld", "edge"}
	time.Sleep(c.window / 4) // what the deployment began comes to rest
	levels := []state{look(s, service, names, c.window)}
	counts := []int{0}
	var out []result
	up := 0
	for _, n := range []int{1, 100, 500, 1000} {
		if n > c.idle {
			break
		}
		began := time.Now()
		if err := wakeCopies(s, service, job, up, n); err != nil {
			return nil, err
		}
		up = n
		harness.Eventually(s, 2*time.Minute, "all are suspended", func() bool { return suspended(service) == n })
		s.Logf("%d services are suspended after %s", n, time.Since(began).Round(time.Second))
		time.Sleep(c.window / 4) // what their starts began comes to rest
		now := look(s, service, names, c.window)
		levels, counts = append(levels, now), append(counts, n)
		out = append(out, result{Runtime: fmt.Sprintf("%d suspended", n), Other: now.beside(levels[0], n)})
	}
	printIdle(names, counts, levels)
	s.chart = idleChart(names, counts, levels)
	return out, nil
}

// idleChart shows what each part uses for one more suspended service.
func idleChart(names []string, counts []int, levels []state) *chart {
	c := &chart{title: "idle: memory for one suspended service", x: "KiB a service"}
	c.groups = append(c.groups, names...)
	for i, st := range levels[1:] {
		bars := set{name: fmt.Sprintf("of %d", counts[i+1])}
		for _, name := range names {
			bars.values = append(bars.values, max(0, float64(st.pss[name]-levels[0].pss[name])/1024/float64(counts[i+1])))
		}
		c.sets = append(c.sets, bars)
	}
	return c
}

// wakeCopies registers the copies from..to of a service's job and visits each once.
func wakeCopies(s *session, service *harness.Service, job *nomad.Job, from, to int) error {
	work, ctx := errgroup.WithContext(s.ctx)
	work.SetLimit(8)
	port := idlePort + from
	for i := from; i < to && ctx.Err() == nil; i++ {
		if port = free(port); port == 0 {
			return fmt.Errorf("no port is free for the gate of copy %d", i)
		}
		copied, route := copyOf(service, job, fmt.Sprintf("%s-idle-%d", service.Name, i), s.p.Config.Domain)
		group := copied.TaskGroups[0]
		group.Networks = []*nomad.NetworkResource{{ReservedPorts: []nomad.Port{{Label: leapcell.PortLabel, Value: port}}}}
		group.EphemeralDisk = &nomad.EphemeralDisk{SizeMB: new(25)} // more than its logs
		group.Tasks[0].Resources = &nomad.Resources{CPU: new(1), MemoryMB: new(idleMemoryMB)}
		port++
		if err := s.register(ctx, copied, route); err != nil {
			return err
		}
		work.Go(func() error { return s.known(ctx, route.Hosts[0]) })
	}
	return work.Wait()
}

// free is the first port from p on that nobody listens on; 0 when there is none.
func free(p int) int {
	for ; p < idlePort+3000; p++ {
		if l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p)); err == nil {
			l.Close()
			return p
		}
	}
	return 0
}

// apps are the processes of the copies.
func apps(service *harness.Service) []harness.Process {
	return harness.Processes(func(p harness.Process) bool { return p.Env("LEAPCELL_SERVICE") == service.Name })
}

func suspended(service *harness.Service) (n int) {
	for _, p := range apps(service) {
		if p.Cgroup().Frozen() {
			n++
		}
	}
	return n
}

// state is what the parts of the platform use at a moment, and over a window from there.
type state struct {
	pss    map[string]int64 // bytes
	cpu    map[string]time.Duration
	window time.Duration // of cpu
	apps   int64         // bytes of the apps, all together
	rest   int64         // bytes that the machine has available
}

// look measures memory, then CPU time.
func look(s *session, service *harness.Service, names []string, window time.Duration) state {
	pids := parts(s)
	st := state{pss: map[string]int64{}, cpu: map[string]time.Duration{}, window: window, rest: available(s)}
	for _, p := range apps(service) {
		st.apps += pss(s, p.PID)
	}
	before := map[string]time.Duration{}
	for _, name := range names {
		st.pss[name] = pss(s, pids[name])
		before[name] = cpuTime(s, pids[name])
	}
	time.Sleep(window)
	for _, name := range names {
		st.cpu[name] = cpuTime(s, pids[name]) - before[name]
	}
	return st
}

// parts are the processes of the platform, by their names.
func parts(s *session) map[string]int {
	pids := map[string]int{}
	for name, part := range map[string][2]string{
		"supervisor": {"nomad-driver-leapcell", "supervisor"}, "plugin": {"nomad-driver-leapcell", ""},
		"Nomad agent": {"nomad", "agent"}, "leapcelld": {"leapcelld", ""}, "edge": {"leapcell-edge", ""},
	} {
		found := s.p.Parts(part[0], part[1])
		if len(found) != 1 {
			s.Fatalf("%d processes of the %s are running, not one", len(found), name)
		}
		pids[name] = found[0].PID
	}
	return pids
}

// cpuTime is what the process used since it began.
func cpuTime(s *session, pid int) time.Duration {
	stat := harness.Process{PID: pid}.File("stat")
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 {
		s.Fatalf("process %d is gone", pid)
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // of a hundredth each
}

func available(s *session) int64 {
	b, err := os.ReadFile("/proc/meminfo")
	must(s, err)
	for line := range strings.Lines(string(b)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	return 0
}

// beside is the growth for n services, per service.
func (st state) beside(zero state, n int) map[string]float64 {
	out := map[string]float64{
		"apps, KiB a service":                  float64(st.apps) / 1024 / float64(n),
		"memory of the machine, KiB a service": float64(zero.rest-st.rest) / 1024 / float64(n),
	}
	for name, bytes := range st.pss {
		out[name+", KiB a service"] = float64(bytes-zero.pss[name]) / 1024 / float64(n)
		out[name+", µs of CPU a second and service"] = float64((st.cpu[name] - zero.cpu[name]).Microseconds()) / st.window.Seconds() / float64(n)
	}
	return out
}

// printIdle shows both, as measured.
func printIdle(names []string, counts []int, levels []state) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "suspended\t")
	for _, name := range names {
		fmt.Fprintf(w, "%s MiB\tCPU %%\t", name)
	}
	fmt.Fprintln(w, "apps MiB\tavailable MiB\t")
	for i, st := range levels {
		fmt.Fprintf(w, "%d\t", counts[i])
		for _, name := range names {
			fmt.Fprintf(w, "%.1f\t%.2f\t", float64(st.pss[name])/(1<<20), 100*st.cpu[name].Seconds()/st.window.Seconds())
		}
		fmt.Fprintf(w, "%.1f\t%d\t\n", float64(st.apps)/(1<<20), st.rest>>20)
	}
	w.Flush()
}
