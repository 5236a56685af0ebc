package routes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/crowd"
)

// fakeNomad answers the five calls that this package makes.
type fakeNomad struct {
	*httptest.Server
	mu      sync.Mutex
	index   uint64
	changed chan struct{}
	vars    map[string]variableJSON
	allocs  map[string]*allocation
	events  []event
	down    bool
	mute    bool // the stream loses events
	reads   int
	scales  []string
	desired int
	answer  int         // status of the scale call
	refused chan string // paths asked for while down
}

type variableJSON struct {
	Namespace, Path string
	ModifyIndex     uint64
	Items           map[string]string `json:",omitempty"`
}

type event struct {
	index uint64
	alloc allocation
}

func newFakeNomad(t *testing.T) *fakeNomad {
	f := &fakeNomad{index: 10, changed: make(chan struct{}), vars: map[string]variableJSON{}, allocs: map[string]*allocation{}, answer: 200, refused: make(chan string, 100)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/vars", f.listVars)
	mux.HandleFunc("GET /v1/var/", f.readVar)
	mux.HandleFunc("GET /v1/allocations", f.listAllocs)
	mux.HandleFunc("GET /v1/event/stream", f.stream)
	mux.HandleFunc("GET /v1/job/{id}/scale", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"TaskGroups": map[string]any{leapcell.Group: map[string]any{"Desired": f.desired}}})
	})
	mux.HandleFunc("PUT /v1/job/{id}/scale", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.scales = append(f.scales, r.PathValue("id")+"@"+r.URL.Query().Get("namespace"))
		w.WriteHeader(f.answer)
		fmt.Fprint(w, "{}")
	})
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		down := f.down
		f.mu.Unlock()
		if down {
			select {
			case f.refused <- r.URL.Path:
			default:
			}
			http.Error(w, "no leader", 500)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { f.CloseClientConnections(); f.Close() })
	return f
}

// edit changes the state under the lock and wakes who waits for it.
func (f *fakeNomad) edit(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeNomad) setRoute(id string, r any) {
	b, _ := json.Marshal(r)
	f.edit(func() {
		f.vars[leapcell.RoutesPrefix+id] = variableJSON{Namespace: "leapcell", Path: leapcell.RoutesPrefix + id, ModifyIndex: f.index,
			Items: map[string]string{leapcell.VariableItem: string(b)}}
	})
}

func (f *fakeNomad) setAlloc(id, job, desired, client string) {
	f.edit(func() {
		a := &allocation{ID: id, JobID: job, DesiredStatus: desired, ClientStatus: client, ModifyIndex: f.index}
		raw := fmt.Sprintf(`{"AllocatedResources":{"Shared":{"Ports":[{"Label":"other","Value":1,"HostIP":"10.0.0.1"},{"Label":"http","Value":%d,"HostIP":"10.0.0.1"}]}}}`, 20000+len(id))
		if err := json.Unmarshal([]byte(raw), a); err != nil {
			panic(err)
		}
		f.allocs[id] = a
		if !f.mute {
			f.events = append(f.events, event{f.index, *a})
		}
	})
}

func (f *fakeNomad) listVars(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	f.mu.Lock()
	for f.index <= after {
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	out := []variableJSON{}
	for _, path := range slices.Sorted(maps.Keys(f.vars)) {
		v := f.vars[path]
		v.Items = nil
		out = append(out, v)
	}
	w.Header().Set("X-Nomad-Index", fmt.Sprint(f.index))
	json.NewEncoder(w).Encode(out)
}

func (f *fakeNomad) readVar(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	v, ok := f.vars[strings.TrimPrefix(r.URL.Path, "/v1/var/")]
	if !ok {
		w.WriteHeader(404)
		return
	}
	json.NewEncoder(w).Encode(v)
}

func (f *fakeNomad) listAllocs(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("X-Nomad-Index", fmt.Sprint(f.index))
	json.NewEncoder(w).Encode(slices.Collect(maps.Values(f.allocs)))
}

// stream sends events of all times, as Nomad does when it is asked for an old index.
func (f *fakeNomad) stream(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, "{}")
	w.(http.Flusher).Flush()
	sent := 0
	for {
		f.mu.Lock()
		changed, down := f.changed, f.down
		for ; sent < len(f.events); sent++ {
			e := f.events[sent]
			b, _ := json.Marshal(map[string]any{"Index": e.index, "Events": []any{map[string]any{"Topic": "Allocation", "Payload": map[string]any{"Allocation": e.alloc}}}})
			fmt.Fprintf(w, "%s\n", b)
		}
		f.mu.Unlock()
		if down {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (f *fakeNomad) config(t *testing.T) Config {
	client, err := api.NewClient(&api.Config{Address: f.URL})
	if err != nil {
		t.Fatal(err)
	}
	return Config{Client: client, Namespace: "leapcell", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func start(t *testing.T, f *fakeNomad) *Table {
	table := New()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { table.Run(ctx, f.config(t)); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return table
}

func route(id, host string) leapcell.Route {
	return leapcell.Route{ServiceID: id, Hosts: []string{host}, Deployment: id + "-1", Namespace: "leapcell"}
}

// until waits by the table's own broadcast.
func until(t *testing.T, table *Table, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		changed := table.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func addresses(table *Table, deployment string) string {
	var out []string
	for _, in := range table.Instances(deployment) {
		out = append(out, in.ID+"="+in.Address)
	}
	return strings.Join(out, " ")
}

func TestRoutesFollowTheVariables(t *testing.T) {
	f := newFakeNomad(t)
	table := start(t, f)
	until(t, table, "ready", table.Ready)
	f.setRoute("a", route("a", "a.test"))
	until(t, table, "a", func() bool { return table.Route("a.test", "/") != nil })
	kept := table.Route("a.test", "/")
	f.setRoute("b", route("b", "b.test"))
	until(t, table, "b", func() bool { return table.Route("b.test", "/") != nil })
	if table.Route("a.test", "/") != kept {
		t.Error("an unchanged route was read again")
	}
	next := route("a", "a.test")
	next.Deployment = "a-2"
	f.setRoute("a", next)
	until(t, table, "a-2", func() bool { return table.Route("a.test", "/").Deployment == "a-2" })
	f.setRoute("a", "nonsense") // a bad one changes nothing
	f.setRoute("c", route("c", "b.test"))
	f.setRoute("d", route("d", "d.test"))
	until(t, table, "d", func() bool { return table.Route("d.test", "/") != nil })
	if got := table.Route("a.test", "/"); got == nil || got.Deployment != "a-2" {
		t.Errorf("after a bad variable: %+v", got)
	}
	if got := table.Route("b.test", "/").ServiceID; got != "b" {
		t.Errorf("the host that two claim went to %s", got)
	}
	f.edit(func() { delete(f.vars, leapcell.RoutesPrefix+"b") })
	until(t, table, "the host to fall to c", func() bool { return table.Route("b.test", "/").ServiceID == "c" })
}

func TestInstancesFollowTheEvents(t *testing.T) {
	f := newFakeNomad(t)
	f.setAlloc("old", "a-1", "stop", "complete")
	f.setAlloc("a", "a-1", "run", "running")
	table := start(t, f)
	until(t, table, "ready", table.Ready)
	if got := addresses(table, "a-1"); got != "a=10.0.0.1:20001" {
		t.Errorf("from the list: %s", got)
	}
	f.setAlloc("bb", "a-1", "run", "pending") // not running yet: the gate holds
	until(t, table, "bb", func() bool { return addresses(table, "a-1") == "a=10.0.0.1:20001 bb=10.0.0.1:20002" })
	before := table.Changed()
	f.setAlloc("bb", "a-1", "run", "running") // changes nothing for the edge
	f.setAlloc("a", "a-1", "stop", "running") // draining: gone at once
	until(t, table, "a to go", func() bool { return addresses(table, "a-1") == "bb=10.0.0.1:20002" })
	select {
	case <-before:
	default:
		t.Error("the change was not broadcast")
	}
	f.setAlloc("bb", "a-1", "run", "failed")
	until(t, table, "bb to go", func() bool { return addresses(table, "a-1") == "" })
	if !table.Restarting("a-1") {
		t.Error("Nomad is to replace bb, the table does not say so")
	}
	f.setAlloc("bb", "a-1", "stop", "failed")
	until(t, table, "nothing to return", func() bool { return !table.Restarting("a-1") })
}

func TestLastStateStaysWhileNomadIsAway(t *testing.T) {
	f := newFakeNomad(t)
	f.setRoute("a", route("a", "a.test"))
	f.setAlloc("a", "a-1", "run", "running")
	table := start(t, f)
	until(t, table, "ready", table.Ready)
	f.edit(func() { f.down = true })
	f.CloseClientConnections()
	for asked := map[string]bool{}; !asked["/v1/vars"] || !asked["/v1/event/stream"]; { // both have noticed
		asked[<-f.refused] = true
	}
	f.setAlloc("bb", "a-1", "run", "running")
	f.setAlloc("a", "a-1", "stop", "complete")
	if table.Route("a.test", "/") == nil || addresses(table, "a-1") != "a=10.0.0.1:20001" {
		t.Error("the state was lost")
	}
	// Nomad comes back with another state: a lower index, and without the events between.
	f.edit(func() { f.down, f.index, f.events = false, 3, nil })
	until(t, table, "the new state", func() bool { return addresses(table, "a-1") == "bb=10.0.0.1:20002" })
	f.setRoute("z", route("z", "z.test"))
	until(t, table, "routes after the reset", func() bool { return table.Route("z.test", "/") != nil })
	f.edit(func() { f.index = 100 })
	f.setAlloc("ccc", "a-1", "run", "running")
	until(t, table, "events after the reset", func() bool { return strings.Contains(addresses(table, "a-1"), "ccc") })
}

func TestWakeIsOneFlight(t *testing.T) {
	f := newFakeNomad(t)
	table := New()
	s := NewScaler(f.config(t), table)
	r := route("a", "a.test")
	f.mu.Lock() // the first call waits, the others join it
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := s.Wake(t.Context(), &r); err != nil {
				t.Error(err)
			}
		})
	}
	f.mu.Unlock()
	all.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.scales) == 0 || f.scales[0] != "a-1@leapcell" {
		t.Errorf("scale calls %v", f.scales)
	}
}

func TestWakeLeavesRestartsToNomad(t *testing.T) {
	f := newFakeNomad(t)
	table := New()
	table.publishAll(map[string][]leapcell.Instance{}, map[string]bool{"a-1": true})
	s := NewScaler(f.config(t), table)
	r := route("a", "a.test")
	for desired, want := range map[int]int{1: 0, 0: 1} {
		f.edit(func() { f.desired, f.scales = desired, nil })
		if err := s.Wake(t.Context(), &r); err != nil || len(f.scales) != want {
			t.Errorf("with a count of %d: %d calls, want %d (%v)", desired, len(f.scales), want, err)
		}
	}
}

func TestWakeErrors(t *testing.T) {
	f := newFakeNomad(t)
	s := NewScaler(f.config(t), New())
	r := route("a", "a.test")
	for status, want := range map[int]leapcell.Code{404: leapcell.CodeNotFound, 500: leapcell.CodeUnavailable, 400: leapcell.CodeUnavailable} {
		f.edit(func() { f.answer = status })
		if got := leapcell.ErrorCode(s.Wake(t.Context(), &r)); got != want {
			t.Errorf("status %d is %q, want %q", status, got, want)
		}
	}
}

// However many services wake at once, Nomad sees a bounded number of calls, and each is made.
func TestBurstOfWakesIsBounded(t *testing.T) {
	server := crowd.Start(t, leapcell.NomadCalls, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	client, err := api.NewClient(&api.Config{Address: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	s := NewScaler(Config{Client: client, Namespace: "leapcell"}, New())
	const services = 10 * leapcell.NomadCalls
	var wakes sync.WaitGroup
	for i := range services {
		wakes.Go(func() {
			if err := s.Wake(t.Context(), &leapcell.Route{Deployment: fmt.Sprint("d", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wakes.Wait()
	server.Check(t, services)
}
