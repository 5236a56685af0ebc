package wake

import (
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leapcell/leapcell"
)

func failsToStart(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set(leapcell.HeaderError, string(leapcell.CodeStartExited))
	w.WriteHeader(http.StatusBadGateway)
	io.WriteString(w, leapcell.TextStartFailed)
}

// A service that cannot start is not tried for each visitor: between two tries they are
// told at once when to come back, and the time between tries grows.
func TestFailingServiceIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("a:1", failsToStart)
		r.table.set("a:1")
		for _, pause := range []string{"1", "2", "4", "8", "16", "32", "60", "60"} {
			rec := r.get("/")
			want(t, "status of a try", rec.Code, 502)
			dials := r.net.dials
			rec = r.get("/")
			want(t, "status between tries", rec.Code, 503)
			want(t, "text", rec.Body.String(), leapcell.TextStartFailed+"\n")
			want(t, "Retry-After", rec.Header().Get("Retry-After"), pause)
			want(t, "connections between tries", r.net.dials, dials)
			wait, _ := time.ParseDuration(pause + "s")
			time.Sleep(wait)
		}
		r.net.listen("a:1", answer("hello"))
		want(t, "status when it is mended", r.get("/").Code, 200)
		want(t, "and after it", r.get("/").Code, 200)
		r.net.listen("b:1", failsToStart)
		r.table.set("b:1") // in its place
		r.get("/")
		want(t, "the pause begins anew", r.get("/").Header().Get("Retry-After"), "1")
		r.Close()
	})
}

// Whoever mends a service need not wait: a new deployment is tried at once, and so is a new
// instance.
func TestNewAttemptIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("a:1", failsToStart)
		r.net.listen("b:1", answer("hello"))
		r.table.set("a:1")
		want(t, "status of the try", r.get("/").Code, 502)
		want(t, "status between tries", r.get("/").Code, 503)
		r.table.set("b:1")
		want(t, "status of a new instance", r.get("/").Code, 200)
		r.Close()
	})
}

// An instance that fails does not take the others with it.
func TestOneBadInstanceAmongGoodOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testRoute())
		r.net.listen("a:1", answer("hello"))
		r.net.listen("b:1", failsToStart)
		r.table.set("a:1", "b:1")
		seen := map[int]int{}
		for range 10 {
			seen[r.get("/").Code]++
		}
		want(t, "told to come back", seen[503], 0)
		if seen[200] == 0 {
			t.Errorf("answers by status: %v", seen)
		}
		r.Close()
	})
}

func TestIgnoredRequestsWakeNothing(t *testing.T) {
	route := testRoute()
	route.Ignore = leapcell.Ignore{Paths: []string{"/healthz", "/bots/*"}, Agents: []string{"UptimeRobot"}}
	r := newRig(t, route)
	for path, agent := range map[string]string{"/healthz": "", "/bots/a": "", "/": "Mozilla/5.0 (compatible; uptimerobot/2.0)"} {
		req := newRequest("GET", path, "")
		req.Header.Set("User-Agent", agent)
		rec := r.do(req)
		want(t, path, rec.Code, 204)
	}
	want(t, "scale calls", r.scaler.count(), 0)
	want(t, "requests counted", r.Counters().Requests, 0)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, route)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r.do(newRequest("GET", "/healthz/deep", "").WithContext(ctx))
		want(t, "scale calls for another path", r.scaler.count(), 1)
		r.Close()
	})
}

func TestSplit(t *testing.T) {
	main, preview := testRoute(), testRoute()
	main.Split = &leapcell.Split{Deployment: "app-2", Host: "2--" + testHost, Percent: 25}
	preview.Deployment, preview.Preview, preview.Hosts = "app-2", true, []string{"2--" + testHost}
	r := newRig(t, main)
	r.net.listen("a:1", answer("one"))
	r.net.listen("b:1", answer("two"))
	r.table.change(func(f *fakeTable) {
		f.routes["2--"+testHost] = preview
		f.instances[testDeployment] = []leapcell.Instance{{ID: "a", Address: "a:1"}}
		f.instances["app-2"] = []leapcell.Instance{{ID: "b", Address: "b:1"}}
	})
	seen := map[string]int{}
	for range 1000 {
		seen[r.get("/").Body.String()]++
	}
	// 25 % of 1000, give or take six standard deviations.
	if seen["two"] < 168 || seen["two"] > 332 || seen["one"]+seen["two"] != 1000 {
		t.Errorf("answers: %v", seen)
	}
	for _, load := range r.Load() {
		if load.ServiceID != "app-id" || load.Preview != (load.Deployment == "app-2") {
			t.Errorf("reported as %+v", load)
		}
	}
	r.table.change(func(f *fakeTable) { delete(f.routes, "2--"+testHost) })
	want(t, "without the other deployment", r.get("/").Body.String(), "one")
}
