package wake

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestHost(t *testing.T) {
	for in, out := range map[string]string{
		"App.Leapcell.Localhost:8080": "app.leapcell.localhost",
		"app.leapcell.localhost.":     "app.leapcell.localhost",
		"app.leapcell.localhost.:80":  "app.leapcell.localhost",
		"[::1]:8080":                  "::1",
		"[::1":                        "",
		"":                            "",
	} {
		want(t, "Host("+in+")", Host(in), out)
	}
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"a:1", "[::1]:8", "A.B.", ":", "[", "]:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := Host(in)
		if len(out) > 4*len(in) || Host("["+out+"]") != strings.ToLower(strings.TrimSuffix(before(out, "]"), ".")) {
			t.Errorf("Host(%q) is %q", in, out)
		}
		if !strings.HasPrefix(in, "[") && strings.Contains(out, ":") {
			t.Errorf("Host(%q) is %q: the port is still there", in, out)
		}
	})
}

func before(s, sep string) string { out, _, _ := strings.Cut(s, sep); return out }

func FuzzParseTiming(f *testing.F) {
	for _, s := range []string{"sandbox=12.3,app=4.5", "app=", "=", ",,", "app=NaN", "sandbox=1e400", "app=-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got := parseTiming(in)
		if got.app < 0 || got.sandbox < 0 || got.app > time.Hour || got.sandbox > time.Hour {
			t.Errorf("parseTiming(%q) is %v", in, got)
		}
	})
}

func TestParseTiming(t *testing.T) {
	want(t, "both", parseTiming("sandbox=12.5, app=4"), gateTiming{12500 * time.Microsecond, 4 * time.Millisecond})
	want(t, "nonsense", parseTiming("sandbox=x,app,=,q=1,app=NaN"), gateTiming{})
}

// A request that came late waited for a part of the start only.
func TestColdPhasesOfALateRequest(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	gate := gateTiming{sandbox: 20 * time.Millisecond, app: 10 * time.Millisecond}
	for _, c := range []struct {
		name           string
		arrived, given int
		first          int
		want           string
	}{
		{"first", 0, 8, 40, "queue;dur=0.0, schedule;dur=8.0, sandbox;dur=20.0, app;dur=10.0, proxy;dur=2.0"},
		{"while scheduling", 5, 8, 40, "queue;dur=0.0, schedule;dur=3.0, sandbox;dur=20.0, app;dur=10.0, proxy;dur=2.0"},
		{"while starting", 25, 25, 40, "queue;dur=0.0, schedule;dur=0.0, sandbox;dur=5.0, app;dur=10.0, proxy;dur=0.0"},
		{"behind others", 0, 50, 51, "queue;dur=42.0, schedule;dur=8.0, sandbox;dur=0.0, app;dur=1.0, proxy;dur=0.0"},
	} {
		got := coldPhases(&call{arrived: at(c.arrived)}, &slot{asked: at(0), dialled: at(8), given: at(c.given)}, gate, at(c.first))
		if c.name == "while starting" { // such a one gets its slot without waiting
			got = coldPhases(&call{arrived: at(c.arrived)}, &slot{asked: at(0), dialled: at(8)}, gate, at(c.first))
		}
		want(t, c.name, got.String(), c.want)
	}
}

func TestLimits(t *testing.T) {
	r := newRig(t, testRoute())
	long := newRequest("GET", "/", "")
	long.RequestURI = "/" + strings.Repeat("a", leapcell.MaxRequestLineBytes)
	want(t, "long line", r.do(long).Code, 414)
	one := newRequest("GET", "/", "")
	one.Header.Set("A", strings.Repeat("a", leapcell.MaxHeaderBytes))
	want(t, "long header", r.do(one).Code, 431)
	all := newRequest("GET", "/", "")
	for _, n := range []string{"A", "B", "C", "D", "E"} {
		all.Header.Set(n, strings.Repeat("a", leapcell.MaxHeaderBytes-100))
	}
	want(t, "long headers", r.do(all).Code, 431)
	want(t, "requests counted", r.Counters().Requests, 0)
	fits := newRequest("GET", "/", "")
	fits.RequestURI = "/" + strings.Repeat("a", leapcell.MaxRequestLineBytes-len("GET / HTTP/1.1"))
	fits.Header.Set("A", strings.Repeat("a", leapcell.MaxHeaderBytes-100))
	if no := checkLimits(fits); no != nil {
		t.Errorf("at the limit: %d", no.status)
	}
}

func TestHeaders(t *testing.T) {
	r := newRig(t, testRoute())
	var got *http.Request
	r.net.listen("a:1", func(w http.ResponseWriter, req *http.Request) {
		got = req
		h := w.Header()
		h.Set(leapcell.HeaderInstance, "secret")
		h.Set("Connection", "X-Hop")
		h.Set("X-Hop", "1")
		h.Set("X-App", "1")
		h.Set("Server-Timing", "db;dur=1")
		io.WriteString(w, "x")
	})
	r.table.set("a:1")
	req := newRequest("GET", "/a%2Fb//c|?q=1;2", "")
	req.RequestURI = "/a%2Fb//c|?q=1;2"
	req.RemoteAddr = "192.0.2.7:1234"
	for k, v := range map[string]string{
		"X-Leapcell-Probe": "1", "x-leapcell-gone": "1", "Connection": "X-Secret, keep-alive", "X-Secret": "1", "Te": "trailers",
		"Keep-Alive": "1", "Traceparent": "00-1-2-01", "X-Request-Id": "mine-1", "X-Forwarded-For": "198.51.100.1", "Cookie": "a=b",
	} {
		req.Header[k] = []string{v}
	}
	rec := r.do(req)
	for name, v := range map[string]string{
		"X-Leapcell-Probe": "", "X-Leapcell-Gone": "", "X-Secret": "", "Keep-Alive": "", "Connection": "", "Te": "trailers",
		"Traceparent": "00-1-2-01", "X-Request-Id": "mine-1", "X-Forwarded-For": "198.51.100.1, 192.0.2.7",
		"X-Forwarded-Proto": "http", "X-Forwarded-Host": testHost, "Cookie": "a=b",
	} {
		want(t, "at the app, "+name, got.Header.Get(name), v)
	}
	want(t, "host", got.Host, testHost)
	want(t, "target", got.RequestURI, "/a%2Fb//c|?q=1;2")
	for name, v := range map[string]string{leapcell.HeaderInstance: "", "X-Hop": "", "Connection": "", "X-App": "1", "X-Request-Id": "mine-1"} {
		want(t, "at the visitor, "+name, rec.Header().Get(name), v)
	}
	want(t, "timings", strings.Join(rec.Header()["Server-Timing"], "|")[:8], "db;dur=1")
}

func TestRequestID(t *testing.T) {
	for id, ok := range map[string]bool{"a-1": true, "": false, strings.Repeat("a", 129): false, "a b": false, "a\nb": false, "é": false} {
		want(t, "sane "+id, saneRequestID(id), ok)
	}
	a, b := newRequestID(), newRequestID()
	if len(a) != 32 || a == b {
		t.Errorf("ids %q %q", a, b)
	}
}
