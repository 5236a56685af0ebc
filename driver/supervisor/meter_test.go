package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/meter"
)

// fakeMeterAPI counts as the control plane does: the most that it was told of each.
type fakeMeterAPI struct {
	mu      sync.Mutex
	away    error // nothing arrives
	lost    error // it arrives, but the answer does not
	reports int
	latest  map[string]leapcell.Meter
}

func (f *fakeMeterAPI) Report(_ context.Context, readings []leapcell.Meter) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reports++
	if f.away != nil {
		return f.away
	}
	if f.latest == nil {
		f.latest = map[string]leapcell.Meter{}
	}
	for _, r := range readings {
		if err := r.Validate(); err != nil {
			return err
		}
		f.latest[r.ID] = r
	}
	return f.lost
}

func (f *fakeMeterAPI) set(away, lost error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away, f.lost = away, lost
}

// total is what a service would be charged for.
func (f *fakeMeterAPI) total() (c leapcell.Counters, ended int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.latest {
		c.Requests += r.Requests
		c.ComputeMS += r.ComputeMS
		c.EgressBytes += r.EgressBytes
		c.ColdStarts += r.ColdStarts
		c.RunningMS += r.RunningMS
		c.BuildMS += r.BuildMS
		if r.Ended {
			ended++
		}
	}
	return c, ended
}

// meteredNode is a node whose figures go to a fake.
func meteredNode(t *testing.T, program func(*fakeCell)) (*node, *fakeMeterAPI) {
	n := newNode(t, program)
	api := &fakeMeterAPI{}
	n.options.MeterAPI, n.options.MeterDir = api, filepath.Join(n.dir, "meters")
	n.restart()
	return n, api
}

// deliver runs one round of delivery.
func (n *node) deliver() { n.meters.deliver(n.t.Context()) }

// figures are the files that hold figures on the node.
func (n *node) figures() (pages, spooled []string) {
	pages, _ = filepath.Glob(filepath.Join(n.options.RunDir, "meters", "*"))
	spooled, _ = filepath.Glob(filepath.Join(n.options.MeterDir, "*"))
	return pages, spooled
}

func (n *node) stop(req StartRequest) {
	n.t.Helper()
	if err := n.Stop(req.ID, 20*time.Second, unix.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	n.wait(req)
}

// kill is what kill -9 does to a supervisor, as far as one process can play two: its gate is
// gone and it says nothing any more. The next one takes over.
func (n *node) kill(req StartRequest) {
	n.t.Helper()
	old, err := n.task(req.ID)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Supervisor.meters.api = nil
	old.gate.Close(context.Background())
	n.t.Cleanup(func() { <-old.done })
	n.restart()
	if err := n.Recover(); err != nil {
		n.t.Fatal(err)
	}
	n.meters.collect()
}

func (n *node) ready(req StartRequest) {
	n.t.Helper()
	until(n.t, "record", func() bool {
		b, _ := os.ReadFile(n.records.file(req.cellID()))
		return strings.Contains(string(b), `"app":"127`)
	})
}

func wantFigures(t *testing.T, api *fakeMeterAPI, requests int, ended int) leapcell.Counters {
	t.Helper()
	c, e := api.total()
	if c.Requests != int64(requests) || c.EgressBytes != int64(5*requests) || c.ColdStarts != 1 || e != ended {
		t.Errorf("counted %+v with %d ended, want %d requests, one start and %d ended", c, e, requests, ended)
	}
	return c
}

func TestMeterOfAnInstance(t *testing.T) {
	n, api := meteredNode(t, serves(hello))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	for range 3 {
		get(t, req.Address)
	}
	n.ready(req)
	n.deliver()
	c := wantFigures(t, api, 3, 0)
	if c.ComputeMS < 1 || c.RunningMS != 0 || c.BuildMS != 0 {
		t.Errorf("counted %+v", c)
	}
	for _, r := range api.latest {
		if r.AllocID != req.AllocID || r.Task != "shop" || r.ServiceID != req.Config.ServiceID || r.Deployment != "shop-1" || r.Mode != leapcell.TaskServerless || r.MemoryMB != 256 {
			t.Errorf("reading %+v", r)
		}
	}
	before := api.reports
	n.deliver()
	if api.reports != before {
		t.Error("nothing changed, and it was reported again")
	}
	get(t, req.Address)
	n.stop(req)
	n.deliver()
	wantFigures(t, api, 4, 1)
	if pages, spooled := n.figures(); len(pages)+len(spooled) > 0 {
		t.Errorf("delivered figures are still there: %q, %q", pages, spooled)
	}
	if s, err := n.Inspect(req.ID); err != nil || s.Gate.Requests != 4 {
		t.Errorf("status %+v, %v", s.Gate, err)
	}
}

func TestMeterOverAKillBetweenRequests(t *testing.T) {
	n, api := meteredNode(t, serves(hello))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.ready(req)
	get(t, req.Address) // answered, and reported by nobody
	n.kill(req)
	if s, _ := n.Inspect(req.ID); s.Gate.Requests != 2 {
		t.Errorf("the new supervisor knows of %d requests, want 2", s.Gate.Requests)
	}
	get(t, req.Address)
	n.deliver()
	wantFigures(t, api, 3, 0)
	n.stop(req)
	n.deliver()
	wantFigures(t, api, 3, 1)
}

// Of requests in flight, those that got no answer are not counted, and those before are.
func TestMeterOverAKillDuringARequest(t *testing.T) {
	begun := make(chan struct{})
	n, api := meteredNode(t, serves(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hangs" {
			close(begun)
			<-r.Context().Done()
			return
		}
		hello(w, r)
	}))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.ready(req)
	path := filepath.Join(n.options.RunDir, "meters", req.cellID())
	go func() {
		if res, err := http.Get("http://" + req.Address + "/hangs"); err == nil {
			res.Body.Close()
		}
	}()
	<-begun
	atKill, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The process is gone in this instant: all that is left is what the page has now.
	page, err := meter.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if c := page.Counters(); c.Requests != 1 || c.EgressBytes != 5 {
		t.Errorf("the request in flight is counted already: %+v", c)
	}
	if err := os.WriteFile(path+".kill", atKill, 0o600); err != nil {
		t.Fatal(err)
	}
	left, err := meter.Open(path + ".kill")
	if err != nil {
		t.Fatal(err)
	}
	if c := left.Counters(); c.Requests != 1 || left.ID() != page.ID() {
		t.Errorf("what a kill leaves is %+v", c)
	}
	if err := os.Remove(path + ".kill"); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(req.ID, time.Second, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.deliver()
	// Here the supervisor lived, so that the one that was given up is counted too.
	if c, _ := api.total(); c.Requests != 2 {
		t.Errorf("counted %+v", c)
	}
}

// The task ended and its supervisor was killed before it could tell anybody.
func TestMeterOfATaskThatEndedWithItsSupervisor(t *testing.T) {
	n, api := meteredNode(t, serves(hello))
	api.set(errors.New("away"), nil)
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.ready(req)
	n.stop(req)
	if pages, _ := n.figures(); len(pages) != 1 || !strings.HasSuffix(pages[0], ".ended") {
		t.Fatalf("pages %q", pages)
	}
	api.set(nil, nil)
	n.restart()
	if err := n.Recover(); err != nil {
		t.Fatal(err)
	}
	n.meters.collect()
	n.deliver()
	wantFigures(t, api, 1, 1)
	if pages, spooled := n.figures(); len(pages)+len(spooled) > 0 {
		t.Errorf("left: %q, %q", pages, spooled)
	}
}

func TestMeterWhileTheControlPlaneIsAway(t *testing.T) {
	n, api := meteredNode(t, serves(hello))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.ready(req)
	api.set(errors.New("away"), nil)
	n.deliver()
	n.deliver()
	if pages, spooled := n.figures(); len(pages) != 1 || len(spooled) != 1 {
		t.Fatalf("pages %q, spool %q", pages, spooled)
	}
	n.stop(req)
	n.deliver()
	if pages, spooled := n.figures(); len(pages) != 0 || len(spooled) != 1 {
		t.Fatalf("pages %q, spool %q: the page of an ended task takes memory", pages, spooled)
	}
	// The machine goes down: the run folder is empty after it, the disk is not.
	if err := os.RemoveAll(n.options.RunDir); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if err := n.Recover(); err != nil {
		t.Fatal(err)
	}
	n.meters.collect()
	api.set(nil, errors.New("the answer was lost"))
	n.deliver()
	wantFigures(t, api, 1, 1)
	api.set(nil, nil)
	n.deliver()
	wantFigures(t, api, 1, 1) // twice told, once counted
	if pages, spooled := n.figures(); len(pages)+len(spooled) > 0 {
		t.Errorf("left: %q, %q", pages, spooled)
	}
}

func TestMeterOfPersistentInstancesAndBuilds(t *testing.T) {
	n, api := meteredNode(t, serves(hello))
	req := n.request(leapcell.TaskPersistent)
	n.start(req)
	get(t, req.Address)
	n.ready(req)
	until(t, "wall time", func() bool { n.deliver(); c, _ := api.total(); return c.RunningMS > 0 })
	n.kill(req)
	at, _ := api.total()
	until(t, "more of it after a kill", func() bool { n.deliver(); c, _ := api.total(); return c.RunningMS > at.RunningMS })
	n.stop(req)
	n.deliver()
	if c := wantFigures(t, api, 1, 1); c.ComputeMS != 0 {
		t.Errorf("a persistent instance has %d ms of compute time", c.ComputeMS)
	}

	n.cells.program = func(c *fakeCell) { c.end(cell.Exit{}) }
	build := n.request(leapcell.TaskBuild)
	n.start(build)
	n.wait(build)
	n.deliver()
	if c, _ := api.total(); c.BuildMS < 1 {
		t.Errorf("counted %+v, want build time", c)
	}
}

// Without room for a page the instance starts all the same, and somebody is told.
func TestMeterWithoutRoom(t *testing.T) {
	n, api := meteredNode(t, serves(hello))
	if err := os.MkdirAll(n.options.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.options.RunDir, "meters"), nil, 0o600); err != nil { // no folder can be made here
		t.Fatal(err)
	}
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	if status, _ := get(t, req.Address); status != 200 {
		t.Errorf("status %d", status)
	}
	n.ready(req)
	if !contains(n.messages(), "metered in memory only") {
		t.Errorf("events %q", n.messages())
	}
	n.deliver()
	wantFigures(t, api, 1, 0)
	n.stop(req)
	n.deliver()
	wantFigures(t, api, 1, 1)
}

// A full disk for the spool loses nothing either: the page stays.
func TestMeterWithoutSpool(t *testing.T) {
	n, api := meteredNode(t, serves(hello))
	if err := os.WriteFile(n.options.MeterDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	api.set(errors.New("away"), nil)
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.ready(req)
	n.stop(req)
	n.deliver()
	if pages, _ := n.figures(); len(pages) != 1 {
		t.Fatalf("pages %q", pages)
	}
	api.set(nil, nil)
	n.deliver()
	wantFigures(t, api, 1, 1)
	if pages, _ := n.figures(); len(pages) > 0 {
		t.Errorf("left: %q", pages)
	}
}

// A driver without control plane keeps nothing of tasks that have ended.
func TestMeterWithoutAPI(t *testing.T) {
	n := newNode(t, serves(hello))
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.stop(req)
	n.deliver()
	if pages, _ := n.figures(); len(pages) > 0 || len(n.meters.known) > 0 {
		t.Errorf("left: %q, %v", pages, n.meters.known)
	}
}

// The task's end is reported at once, and the end of the loop is the end of its goroutine.
func TestMetersRun(t *testing.T) {
	n, api := meteredNode(t, serves(hello))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { n.meters.run(ctx); close(ended) }()
	req := n.request(leapcell.TaskServerless)
	n.start(req)
	get(t, req.Address)
	n.ready(req)
	n.stop(req)
	until(t, "the last report", func() bool { _, e := api.total(); return e == 1 })
	wantFigures(t, api, 1, 1)
	cancel()
	<-ended
}

func TestSpoolPages(t *testing.T) {
	cfg := Config{StateDir: t.TempDir(), Name: "mtest", APIAddr: "http://127.0.0.1:1"}
	dir := filepath.Join(cfg.RunDir(), "meters")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(cfg.RunDir()) })
	for i, name := range []string{"used", "unused"} {
		p, err := meter.Create(filepath.Join(dir, name), meter.Task{ServiceID: "s", Mode: leapcell.TaskServerless})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			p.Request()
		}
	}
	if err := spoolPages(cfg); err != nil {
		t.Fatal(err)
	}
	if all, err := readSpool(cfg.path("meters")); err != nil || len(all) != 1 || all[0].Requests != 1 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestMeterClient(t *testing.T) {
	var got leapcell.MeterReport
	var path, token string
	status := http.StatusNoContent
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, token = r.URL.Path, r.Header.Get("Authorization")
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		w.WriteHeader(status)
		if status != http.StatusNoContent {
			io.WriteString(w, `{"detail":"the token is not known"}`)
		}
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "token")
	c, err := newMeterClient(Config{APIAddr: server.URL + "/", APIToken: file})
	if err != nil {
		t.Fatal(err)
	}
	reading := leapcell.Meter{ID: strings.Repeat("0", 32), ServiceID: "s", Counters: leapcell.Counters{Requests: 7}}
	if err := c.Report(t.Context(), []leapcell.Meter{reading}); err == nil || !strings.Contains(err.Error(), "api_token_file") {
		t.Errorf("without a token: %v", err)
	}
	if err := os.WriteFile(file, []byte("node-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Report(t.Context(), []leapcell.Meter{reading}); err != nil {
		t.Fatal(err)
	}
	if host, _ := os.Hostname(); path != "/v1/nodes/"+host+"/meters" || token != "Bearer node-token" || got.Node != host || len(got.Meters) != 1 || got.Meters[0].Requests != 7 {
		t.Errorf("%s %q %+v", path, token, got)
	}
	status = http.StatusUnauthorized
	if err := c.Report(t.Context(), []leapcell.Meter{reading}); err == nil || !strings.Contains(err.Error(), "the token is not known") || strings.Contains(err.Error(), "node-token") {
		t.Errorf("refused: %v", err)
	}
	if _, err := newMeterClient(Config{APIAddr: "127.0.0.1:8400"}); err == nil || !strings.Contains(err.Error(), "api_addr") {
		t.Errorf("an address without scheme: %v", err)
	}
}
