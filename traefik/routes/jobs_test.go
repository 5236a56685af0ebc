package routes

import (
	"encoding/json"
	"fmt"
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
)

func ptr[T any](v T) *T { return &v }

func nomadGroup(name string, meta map[string]string, labels ...string) *api.TaskGroup {
	network := &api.NetworkResource{}
	for _, l := range labels {
		network.DynamicPorts = append(network.DynamicPorts, api.Port{Label: l})
	}
	return &api.TaskGroup{Name: ptr(name), Meta: meta, Networks: []*api.NetworkResource{network}}
}

func nomadJob(id string, meta map[string]string, groups ...*api.TaskGroup) *api.Job {
	return &api.Job{ID: ptr(id), Type: ptr("service"), Meta: meta, TaskGroups: groups}
}

type meta = map[string]string

func TestRoutesOfAJob(t *testing.T) {
	for name, c := range map[string]struct {
		job  *api.Job
		want string // host > deployment, or a part of the error
	}{
		"ten lines":         {nomadJob("shop", meta{metaHost: "Shop.Example.com"}, nomadGroup("web", nil, "http")), "shop.example.com>default/shop/web/http"},
		"any label":         {nomadJob("shop", meta{metaHost: "a.test"}, nomadGroup("web", nil, "www")), "a.test>default/shop/web/www"},
		"http among others": {nomadJob("shop", meta{metaHost: "a.test"}, nomadGroup("web", nil, "admin", "http")), "a.test>default/shop/web/http"},
		"hosts and paths":   {nomadJob("shop", meta{metaHost: "a.test, b.test/x/,c.test/"}, nomadGroup("web", nil, "http")), "a.test,b.test/x,c.test>default/shop/web/http"},
		"group by name": {nomadJob("shop", meta{metaHost: "a.test", metaGroup: "api", metaPort: "rpc"},
			nomadGroup("web", nil, "http"), nomadGroup("api", nil, "rpc", "x")), "a.test>default/shop/api/rpc"},
		"each group its own": {nomadJob("shop", meta{metaIdle: "5m"},
			nomadGroup("web", meta{metaHost: "w.test"}, "http"), nomadGroup("db", nil), nomadGroup("api", meta{metaHost: "a.test"}, "http")),
			"w.test>default/shop/web/http a.test>default/shop/api/http"},
		"no group said": {nomadJob("shop", meta{metaHost: "a.test"}, nomadGroup("web", nil, "http"), nomadGroup("api", nil, "http")), "web, api: say in leapcell_group"},
		"no such group": {nomadJob("shop", meta{metaHost: "a.test", metaGroup: "x"}, nomadGroup("web", nil, "http")), "no such group"},
		"no port":       {nomadJob("shop", meta{metaHost: "a.test"}, nomadGroup("web", nil)), "group web: it has no port"},
		"which port":    {nomadJob("shop", meta{metaHost: "a.test"}, nomadGroup("web", nil, "a", "b")), "say in leapcell_port"},
		"no such port":  {nomadJob("shop", meta{metaHost: "a.test", metaPort: "x"}, nomadGroup("web", nil, "a")), "no such port"},
		"a URL":         {nomadJob("shop", meta{metaHost: "http://a.test"}, nomadGroup("web", nil, "a")), "without scheme and port"},
		"empty host":    {nomadJob("shop", meta{metaHost: " "}, nomadGroup("web", nil, "a")), "leapcell_host is empty"},
		"bad idle":      {nomadJob("shop", meta{metaHost: "a.test", metaIdle: "30"}, nomadGroup("web", nil, "a")), `leapcell_idle is "30"`},
		"bad probe":     {nomadJob("shop", meta{metaHost: "a.test", metaProbe: "health"}, nomadGroup("web", nil, "a")), `leapcell_probe is "health"`},
		"probe's line":  {nomadJob("shop", meta{metaHost: "a.test", metaProbe: "/ HTTP/1.1\r\nX: y"}, nomadGroup("web", nil, "a")), `leapcell_probe is`},
		"bad count":     {nomadJob("shop", meta{metaHost: "a.test", metaCount: "0"}, nomadGroup("web", nil, "a")), `leapcell_count is "0"`},
		"bad start":     {nomadJob("shop", meta{metaHost: "a.test", metaStartTimeout: "1h"}, nomadGroup("web", nil, "a")), `leapcell_start_timeout is "1h"`},
		"batch": {&api.Job{ID: ptr("x"), Type: ptr("batch"), Meta: meta{metaHost: "a.test"}, TaskGroups: []*api.TaskGroup{nomadGroup("web", nil, "a")}},
			"only a job of type service"},
	} {
		routes, err := jobRoutes("default", c.job)
		var got []string
		for _, r := range routes {
			got = append(got, strings.Join(r.Hosts, ",")+">"+r.Deployment)
		}
		if err != nil && !strings.Contains(err.Error(), c.want) || err == nil && strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, %v; want %s", name, got, err, c.want)
		}
	}
}

func TestSettingsOfAJob(t *testing.T) {
	routes, err := jobRoutes("default", nomadJob("shop", meta{metaHost: "a.test"}, nomadGroup("web", nil, "http")))
	if err != nil {
		t.Fatal(err)
	}
	r := routes[0]
	if r.Plain.Count != 1 || r.Plain.Probe != "" || time.Duration(r.DormantAfter) != 30*time.Minute ||
		time.Duration(r.StartTimeout) != time.Minute || r.Concurrency != leapcell.MaxConcurrency || r.Key() != "default/shop/web" {
		t.Errorf("defaults: %+v, %+v", r, r.Plain)
	}
	routes, err = jobRoutes("default", nomadJob("shop", meta{metaIdle: "never", metaCount: "9"}, nomadGroup("web", meta{metaHost: "a.test",
		metaCount: "3", metaProbe: "/ok?x=1", metaStartTimeout: "5s", metaConcurrency: "7", metaIgnore: "/health /robots.txt"}, "http")))
	if err != nil {
		t.Fatal(err)
	}
	r = routes[0]
	if r.Plain.Count != 3 || r.Plain.Probe != "/ok?x=1" || r.DormantAfter != 0 || time.Duration(r.StartTimeout) != 5*time.Second ||
		r.Concurrency != 7 || !r.Ignores("/robots.txt", "") {
		t.Errorf("settings: %+v, %+v", r, r.Plain)
	}
}

// Whatever a job's meta says, a route of it can be used without another look.
func FuzzJobMeta(f *testing.F) {
	f.Add("a.test, b.test/x", "http", "/health", "30m", "1")
	f.Add("http://a:1", "", "tcp", "never", "-1")
	f.Fuzz(func(t *testing.T, host, port, probe, idle, count string) {
		routes, err := jobRoutes("default", nomadJob("j", meta{metaHost: host, metaPort: port, metaProbe: probe, metaIdle: idle, metaCount: count},
			nomadGroup("g", nil, "http", "admin")))
		if err != nil {
			return
		}
		for _, r := range routes {
			if len(r.Hosts) == 0 || r.Plain.Count < 1 || strings.ContainsAny(r.Plain.Probe, " \r\n") || r.DormantAfter < 0 {
				t.Errorf("%+v, %+v", r, r.Plain)
			}
			for _, h := range r.Hosts {
				name, _, _ := strings.Cut(h, "/")
				if name == "" || name != strings.ToLower(name) || strings.ContainsAny(name, ": ") {
					t.Errorf("host %q", h)
				}
			}
		}
	})
}

// jobNomad is a fakeNomad with jobs and with variables that can be written.
type jobNomad struct {
	*fakeNomad
	jobs map[string]*api.Job
}

func newJobNomad(t *testing.T) *jobNomad {
	f := &jobNomad{fakeNomad: newFakeNomad(t), jobs: map[string]*api.Job{}}
	rest := f.Config.Handler
	mux := http.NewServeMux()
	mux.Handle("/", rest)
	mux.HandleFunc("GET /v1/jobs", f.listJobs)
	mux.HandleFunc("GET /v1/job/{id}", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if job := f.jobs[r.PathValue("id")]; job != nil {
			json.NewEncoder(w).Encode(job)
			return
		}
		w.WriteHeader(404)
	})
	mux.HandleFunc("PUT /v1/var/", f.writeVar)
	t.Cleanup(f.Server.Close)
	f.Server = httptest.NewServer(mux) // closed by the fake
	return f
}

func (f *jobNomad) listJobs(w http.ResponseWriter, r *http.Request) {
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
	out := []*api.JobListStub{}
	for _, id := range slices.Sorted(maps.Keys(f.jobs)) {
		job := f.jobs[id]
		out = append(out, &api.JobListStub{ID: id, Type: *job.Type, Meta: job.Meta, JobModifyIndex: *job.JobModifyIndex, Stop: job.Stop != nil && *job.Stop})
	}
	w.Header().Set("X-Nomad-Index", fmt.Sprint(f.index))
	json.NewEncoder(w).Encode(out)
}

// writeVar checks the index as Nomad does.
func (f *jobNomad) writeVar(w http.ResponseWriter, r *http.Request) {
	var v variableJSON
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		w.WriteHeader(400)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.vars[v.Path]
	if r.URL.Query().Get("cas") != fmt.Sprint(old.ModifyIndex) {
		w.WriteHeader(409)
		json.NewEncoder(w).Encode(old)
		return
	}
	f.index++
	v.ModifyIndex = f.index
	f.vars[v.Path] = v
	json.NewEncoder(w).Encode(v)
}

func (f *jobNomad) setJob(job *api.Job) {
	f.edit(func() {
		job.JobModifyIndex = ptr(f.index + 1)
		f.jobs[*job.ID] = job
	})
}

// setPlainAlloc is an allocation of the group web of a job.
func (f *jobNomad) setPlainAlloc(id, job, client, tasks string) {
	f.edit(func() {
		a := &allocation{}
		raw := fmt.Sprintf(`{"ID":%q,"JobID":%q,"TaskGroup":"web","Namespace":"default","DesiredStatus":"run","ClientStatus":%q,"ModifyIndex":%d,"TaskStates":%s,
			"AllocatedResources":{"Shared":{"Ports":[{"Label":"admin","Value":1,"HostIP":"10.0.0.1"},{"Label":"http","Value":2,"HostIP":"10.0.0.1"}]}}}`,
			id, job, client, f.index, tasks)
		if err := json.Unmarshal([]byte(raw), a); err != nil {
			panic(err)
		}
		f.allocs[id] = a
		f.events = append(f.events, event{f.index, *a})
	})
}

func startJobs(t *testing.T, f *jobNomad) (*Table, Config) {
	cfg := f.config(t)
	cfg.Jobs = []string{"default"}
	table := New()
	done := make(chan struct{})
	ctx := t.Context() // ends before the cleanups
	go func() { table.Run(ctx, cfg); close(done) }()
	t.Cleanup(func() { <-done })
	return table, cfg
}

func TestTableFollowsPlainJobs(t *testing.T) {
	f := newJobNomad(t)
	f.setRoute("a", route("a", "a.test"))
	f.setJob(nomadJob("other", nil, nomadGroup("web", nil, "http")))
	table, _ := startJobs(t, f)
	until(t, table, "ready", table.Ready)
	f.setJob(nomadJob("shop", meta{metaHost: "shop.test, a.test"}, nomadGroup("web", nil, "http", "admin")))
	until(t, table, "the job", func() bool { return table.Route("shop.test", "/") != nil })
	if table.Route("a.test", "/").Plain != nil {
		t.Error("a job took the host of a service")
	}
	const key = "default/shop/web/http"
	f.setPlainAlloc("x", "shop", "pending", "null")
	until(t, table, "the instance", func() bool { return addresses(table, key) == "x=10.0.0.1:2" })
	f.setPlainAlloc("x", "shop", "pending", `{"app":{"State":"pending","Restarts":1},"init":{"State":"dead"}}`)
	until(t, table, "the pause before a restart", func() bool { return addresses(table, key) == "" && table.Restarting(key) })
	f.setPlainAlloc("x", "shop", "running", `{"app":{"State":"running","Restarts":1}}`)
	until(t, table, "the restart", func() bool { return addresses(table, key) == "x=10.0.0.1:2" && !table.Restarting(key) })
	f.setJob(nomadJob("shop", meta{metaHost: "new.test", metaIdle: "soon"}, nomadGroup("web", nil, "http")))
	f.setJob(nomadJob("next", meta{metaHost: "next.test"}, nomadGroup("web", nil, "http")))
	until(t, table, "the next job", func() bool { return table.Route("next.test", "/") != nil })
	if table.Route("shop.test", "/") == nil {
		t.Error("a slip in the meta took the job's route away")
	}
	stopped := nomadJob("shop", meta{metaHost: "shop.test"}, nomadGroup("web", nil, "http"))
	stopped.Stop = ptr(true)
	f.setJob(stopped)
	until(t, table, "a stopped job to go", func() bool { return table.Route("shop.test", "/") == nil })
}

func TestPlainJobIsWokenToItsCountOnly(t *testing.T) {
	f := newJobNomad(t)
	s := NewScaler(f.config(t), New())
	r := &leapcell.Route{Deployment: "default/shop/app/http", Namespace: "default",
		Plain: &leapcell.PlainJob{Job: "shop", Group: leapcell.Group, Port: "http", Count: 2}}
	for desired, want := range map[int]int{3: 0, 0: 1} { // three that are to be placed are not made two
		f.edit(func() { f.desired, f.scales = desired, nil })
		if err := s.Wake(t.Context(), r); err != nil || len(f.scales) != want {
			t.Errorf("with a count of %d: calls %v, want %d (%v)", desired, f.scales, want, err)
		}
	}
	if got := f.scales; len(got) == 1 && got[0] != "shop@default" {
		t.Errorf("scaled %v", got)
	}
}

func TestEdgesAgreeOnSleep(t *testing.T) {
	f := newJobNomad(t)
	table := New()
	cfg := f.config(t)
	one, two := NewKeeper(cfg, table, "one"), NewKeeper(cfg, table, "two")
	r := &leapcell.Route{Deployment: "default/shop/app/http", Namespace: "default", DormantAfter: leapcell.Duration(time.Minute),
		Plain: &leapcell.PlainJob{Job: "shop", Group: leapcell.Group, Port: "http", Count: 1}}
	claimed := time.Now().Add(time.Hour)
	var all sync.WaitGroup
	for _, k := range []*Keeper{one, two} { // at once: neither overwrites the other
		all.Go(func() {
			if err := k.Claim(t.Context(), r, claimed); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, k := range []*Keeper{one, two} {
		if until, err := k.Sleep(t.Context(), r); err != nil || !until.Equal(claimed) || len(f.scales) != 0 {
			t.Errorf("edge %s: until %s, %v, scaled %v", k.edge, until, err, f.scales)
		}
	}
	if err := two.Claim(t.Context(), r, time.Now().Add(-time.Second)); err != nil { // expired
		t.Fatal(err)
	}
	if until, err := two.Sleep(t.Context(), r); err != nil || until.IsZero() {
		t.Errorf("what another claims was not heeded: %s, %v", until, err)
	}
	if until, err := one.Sleep(t.Context(), r); err != nil || !until.IsZero() || len(f.scales) != 1 {
		t.Errorf("until %s, %v, scaled %v", until, err, f.scales)
	}
}

func TestPathOfClaims(t *testing.T) {
	if got := awakePath(&leapcell.PlainJob{Job: "shop", Group: "web"}); got != "leapcell/awake/shop/web" {
		t.Error(got)
	}
	seen := map[string]bool{}
	for _, job := range []string{"a b", "a.b", "a/b", strings.Repeat("x", 200)} {
		got := awakePath(&leapcell.PlainJob{Job: job, Group: "web"})
		if len(got) > 128 || strings.ContainsAny(got, " .") || seen[got] {
			t.Errorf("%q: %s", job, got)
		}
		seen[got] = true
	}
}
