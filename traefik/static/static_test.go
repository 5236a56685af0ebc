package static

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/front"
)

const (
	service = "shop-default-a1b2c3d4"
	token   = "secret"
)

func sum(content string) string {
	h := sha256.Sum256([]byte(content))
	return hex.EncodeToString(h[:])
}

// platform is an origin with what was published there.
type platform struct {
	*httptest.Server
	t        testing.TB
	mu       sync.Mutex
	contents map[string]string
	fetched  map[string]int
	hold     chan struct{} // when set, contents come once it is closed
	down     atomic.Bool
}

func newPlatform(t testing.TB) *platform {
	p := &platform{t: t, contents: map[string]string{}, fetched: map[string]int{}}
	p.Server = httptest.NewServer(http.HandlerFunc(p.answer))
	t.Cleanup(p.Close)
	return p
}

func (p *platform) answer(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.Path, "/v1/static/"+service+"/")
	if !ok || r.Header.Get("Authorization") != "Bearer "+token {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	p.mu.Lock()
	content, there := p.contents[name]
	p.fetched[name]++
	hold := p.hold
	p.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if p.down.Load() {
		panic(http.ErrAbortHandler)
	}
	if !there {
		http.NotFound(w, r)
		return
	}
	_, _ = io.WriteString(w, content)
}

func (p *platform) put(content string) front.Content {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.contents[sum(content)] = content
	return front.Content{SHA256: sum(content), Size: int64(len(content))}
}

func (p *platform) count(content string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetched[sum(content)]
}

// publish puts a front end there and gives a route to it. Files below /assets/ have their hash
// in the name; those that end in .js are there compressed.
func (p *platform) publish(whole bool, fallback string, files map[string]string) *leapcell.Route {
	p.t.Helper()
	m := &front.Manifest{Whole: whole, Folder: "dist", Fallback: fallback}
	for path, content := range files {
		f := front.File{Path: path, Type: front.TypeOf(path), Immutable: strings.HasPrefix(path, "/assets/"), Content: p.put(content)}
		if strings.HasSuffix(path, ".js") {
			f.Encoded = []front.Encoded{{Encoding: "br", Content: p.put("br" + content[:2])}, {Encoding: "zstd", Content: p.put("zst" + content[:2])}, {Encoding: "gzip", Content: p.put("gzip" + content[:3])}}
		}
		m.Files = append(m.Files, f)
	}
	b, digest, err := m.Bytes()
	if err != nil {
		p.t.Fatal(err)
	}
	p.put(string(b))
	return &leapcell.Route{ServiceID: service, Deployment: "shop-1", Static: &leapcell.RouteStatic{Manifest: digest, Whole: whole}}
}

func (p *platform) edge(dir string, max int64) *Server {
	p.t.Helper()
	s, err := New(Config{Dir: dir, MaxBytes: max, APIs: []string{"http://127.0.0.1:1", p.URL}, Token: token, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// ask gives the answer of an edge; status 0 is: for an instance.
func ask(s *Server, route, other *leapcell.Route, method, target string, head ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(head); i += 2 {
		r.Header.Add(head[i], head[i+1])
	}
	w := httptest.NewRecorder()
	got := s.Serve(w, r, route, other)
	w.Code = got.Status
	if got.Missing {
		w.Code = -1
	}
	if int64(w.Body.Len()) != got.Bytes {
		w.Code = -2
	}
	return w
}

const script = "console.log('a script that is long enough to be compressed')"

var files = map[string]string{
	"/index.html": "<p>home", "/about.html": "<p>about", "/docs/index.html": "<p>docs", "/404.html": "<p>nothing",
	"/app.js": script, "/assets/a-1234abcd.css": "a{}", "/empty.txt": "", "/with space.txt": "space",
}

func TestWhole(t *testing.T) {
	p := newPlatform(t)
	s := p.edge(t.TempDir(), 1<<20)
	page, site := p.publish(true, "/index.html", files), p.publish(true, "/404.html", files)
	plain := p.publish(true, "", files)
	for _, c := range []struct {
		route  *leapcell.Route
		method string
		target string
		head   []string
		status int
		body   string
		want   []string // headers, "" for none
	}{
		{page, "GET", "/", nil, 200, "<p>home", []string{"Content-Type", "text/html; charset=utf-8", "Cache-Control", "no-cache", "X-Content-Type-Options", "nosniff", "Content-Length", "7", "Vary", ""}},
		{page, "GET", "/index.html?x=1", nil, 200, "<p>home", nil},
		{page, "HEAD", "/", nil, 200, "", []string{"Content-Length", "7", "Content-Type", "text/html; charset=utf-8"}},
		{page, "GET", "/about", nil, 200, "<p>about", nil},
		{page, "GET", "/docs/", nil, 200, "<p>docs", nil},
		{page, "GET", "/docs?a=b", nil, 301, "Moved to /docs/\n", []string{"Location", "/docs/?a=b", "Cache-Control", "no-cache"}},
		{page, "GET", "/with%20space.txt", nil, 200, "space", nil},
		{page, "GET", "/empty.txt", nil, 200, "", []string{"Content-Length", "0"}},
		{page, "GET", "/assets/a-1234abcd.css", nil, 200, "a{}", []string{"Cache-Control", "public, max-age=31536000, immutable"}},
		{page, "GET", "/deep/link", nil, 200, "<p>home", []string{"Cache-Control", "no-cache"}},
		{page, "GET", "/user/jane.doe", []string{"Accept", "text/html,*/*"}, 200, "<p>home", nil},
		{page, "GET", "/assets/gone-1234abcd.js", []string{"Accept", "*/*"}, 404, "There is nothing at this address\n", []string{"Cache-Control", "no-cache"}},
		{page, "POST", "/", nil, 405, "This site takes GET and HEAD only\n", []string{"Allow", "GET, HEAD"}},
		{page, "DELETE", "/app.js", nil, 405, "This site takes GET and HEAD only\n", nil},
		{site, "GET", "/deep/link", nil, 404, "<p>nothing", []string{"Cache-Control", "no-cache", "ETag", ""}},
		{site, "GET", "/a.js", []string{"Range", "bytes=0-1"}, 404, "<p>nothing", nil},
		{site, "GET", "/404.html", nil, 200, "<p>nothing", nil},
		{plain, "GET", "/deep/link", nil, 404, "There is nothing at this address\n", nil},
		{plain, "GET", "//docs", nil, 404, "There is nothing at this address\n", []string{"Location", ""}},
		{plain, "GET", "/..%2f..%2fetc/passwd", nil, 404, "There is nothing at this address\n", nil},

		{page, "GET", "/app.js", nil, 200, script, []string{"Vary", "Accept-Encoding", "Content-Encoding", ""}},
		{page, "GET", "/app.js", []string{"Accept-Encoding", "gzip, deflate, br, zstd"}, 200, "brco", []string{"Vary", "Accept-Encoding", "Content-Encoding", "br", "Content-Type", "text/javascript; charset=utf-8"}},
		{page, "GET", "/app.js", []string{"Accept-Encoding", "gzip;q=1, br;q=0.5"}, 200, "gzipcon", []string{"Content-Encoding", "gzip"}},
		{page, "GET", "/app.js", []string{"Accept-Encoding", "br;q=0, *"}, 200, "zstco", []string{"Content-Encoding", "zstd"}},
		{page, "GET", "/app.js", []string{"Accept-Encoding", "identity;q=0"}, 406, "No encoding of this file is acceptable\n", nil},
		{page, "GET", "/empty.txt", []string{"Accept-Encoding", "br, identity;q=0"}, 406, "No encoding of this file is acceptable\n", nil},
		{page, "GET", "/app.js", []string{"Accept-Encoding", "deflate"}, 200, script, []string{"Content-Encoding", ""}},

		{page, "GET", "/app.js", []string{"Range", "bytes=0-6"}, 206, "console", []string{"Content-Range", "bytes 0-6/" + strconv.Itoa(len(script)), "Content-Length", "7", "Accept-Ranges", "bytes"}},
		{page, "GET", "/app.js", []string{"Range", "bytes=-2"}, 206, "')", nil},
		{page, "GET", "/app.js", []string{"Range", "bytes=0-1,3-4"}, 200, script, nil},
		{page, "GET", "/app.js", []string{"Range", "bytes=9999-"}, 416, "The file has no such part\n", []string{"Content-Range", "bytes */" + strconv.Itoa(len(script))}},
		{page, "GET", "/empty.txt", []string{"Range", "bytes=0-"}, 416, "The file has no such part\n", nil},
		{page, "GET", "/app.js", []string{"Range", "bytes=0-6", "If-Range", `"other"`}, 200, script, nil},
		{page, "GET", "/app.js", []string{"Range", "bytes=0-6", "If-Range", `"` + sum(script)[:32] + `"`}, 206, "console", nil},
		{page, "GET", "/app.js", []string{"Range", "bytes=0-1", "Accept-Encoding", "br"}, 206, "br", []string{"Content-Encoding", "br", "Content-Range", "bytes 0-1/4"}},
		{page, "HEAD", "/app.js", []string{"Range", "bytes=0-1"}, 200, "", []string{"Content-Length", strconv.Itoa(len(script))}},

		{page, "GET", "/app.js", []string{"If-None-Match", `"x", W/"` + sum(script)[:32] + `"`}, 304, "", []string{"ETag", `"` + sum(script)[:32] + `"`, "Vary", "Accept-Encoding", "Cache-Control", "no-cache", "Content-Length", ""}},
		{page, "GET", "/app.js", []string{"If-None-Match", `"` + sum(script)[:32] + `"`, "Accept-Encoding", "br"}, 200, "brco", []string{"ETag", `"` + sum("brco")[:32] + `"`}},
		{page, "GET", "/app.js", []string{"If-None-Match", "*"}, 304, "", nil},
		{page, "GET", "/app.js", []string{"If-Match", `"other"`}, 412, "The file has changed\n", nil},
		{page, "GET", "/app.js", []string{"If-Modified-Since", "Sun, 22 Nov 2026 09:00:00 GMT"}, 200, script, nil},
	} {
		w := ask(s, c.route, nil, c.method, c.target, c.head...)
		if w.Code != c.status || w.Body.String() != c.body {
			t.Errorf("%s %s %q: %d %q, want %d %q", c.method, c.target, c.head, w.Code, w.Body, c.status, c.body)
		}
		for i := 0; i < len(c.want); i += 2 {
			if got := w.Header().Get(c.want[i]); got != c.want[i+1] {
				t.Errorf("%s %s %q: %s is %q, want %q", c.method, c.target, c.head, c.want[i], got, c.want[i+1])
			}
		}
	}
}

// warm waits until the list of an app's files is here.
func warm(t *testing.T, s *Server, route *leapcell.Route) {
	t.Helper()
	if _, err := s.await(t.Context(), route.ServiceID, route.Static.Manifest); err != nil {
		t.Fatal(err)
	}
}

func TestBesideAnApp(t *testing.T) {
	p := newPlatform(t)
	s := p.edge(t.TempDir(), 1<<20)
	route := p.publish(false, "", map[string]string{"/style.css": "a{}", "/index.html": "<p>"})
	if w := ask(s, route, nil, "GET", "/style.css"); w.Code != 0 {
		t.Errorf("a request waited for the list: %d", w.Code)
	}
	warm(t, s, route)
	for _, c := range []struct {
		method, target string
		status         int
	}{
		{"GET", "/style.css", 200}, {"HEAD", "/style.css", 200}, {"GET", "/index.html", 200},
		{"GET", "/", 0}, {"GET", "/api", 0}, {"GET", "/index", 0}, {"POST", "/style.css", 0}, {"OPTIONS", "/style.css", 0},
	} {
		w := ask(s, route, nil, c.method, c.target)
		if w.Code != c.status || c.status == 0 && (len(w.Header()) > 0 || w.Body.Len() > 0) {
			t.Errorf("%s %s: %d %v", c.method, c.target, w.Code, w.Header())
		}
	}
	if w := ask(s, &leapcell.Route{ServiceID: service}, nil, "GET", "/style.css"); w.Code != 0 {
		t.Errorf("a route without: %d", w.Code)
	}
}

// While two deployments share the requests, pages of each find their files.
func TestSplit(t *testing.T) {
	p := newPlatform(t)
	s := p.edge(t.TempDir(), 1<<20)
	one := p.publish(true, "/index.html", map[string]string{"/index.html": "<p>one", "/assets/one-1234abcd.js": "one();"})
	two := p.publish(true, "/index.html", map[string]string{"/index.html": "<p>two", "/assets/two-1234abcd.js": "two();", "/two.txt": "two"})
	for target, want := range map[string]string{"/": "<p>one", "/assets/one-1234abcd.js": "one();", "/assets/two-1234abcd.js": "two();", "/two.txt": "There is nothing at this address\n"} {
		if w := ask(s, one, two, "GET", target); w.Body.String() != want {
			t.Errorf("%s: %d %q, want %q", target, w.Code, w.Body, want)
		}
	}
	warm(t, s, two)
	if w := ask(s, &leapcell.Route{ServiceID: service}, two, "GET", "/assets/two-1234abcd.js"); w.Body.String() != "two();" {
		t.Errorf("beside an app without: %d %q", w.Code, w.Body)
	}
}

// Each answer counts once, with the bytes of its body.
func TestCount(t *testing.T) {
	p := newPlatform(t)
	long := strings.Repeat("x", 3*bufferSize+5)
	route := p.publish(true, "/404.html", map[string]string{"/index.html": "<p>home", "/404.html": "<p>nothing", "/long.txt": long})
	app := p.publish(false, "", map[string]string{"/a.txt": "hello"})
	s := p.edge(t.TempDir(), 1<<20)
	var requests, bytes int64
	s.cfg.Count = func(id string, n, size int64) {
		if id != service {
			t.Errorf("%q is charged", id)
		}
		requests, bytes = requests+n, bytes+size
	}
	for i, c := range []struct {
		route          *leapcell.Route
		method, target string
		head           []string
		bytes          int64
	}{
		{route, "GET", "/", nil, 7}, {route, "HEAD", "/", nil, 0}, {route, "GET", "/none", nil, 10}, {route, "GET", "/long.txt", nil, int64(len(long))},
		{route, "GET", "/long.txt", []string{"Range", "bytes=5-"}, int64(len(long)) - 5}, {route, "GET", "/", []string{"If-None-Match", "*"}, 0},
		{route, "POST", "/", nil, 34}, {route, "GET", "/long.txt", []string{"Range", "bytes=999999-"}, 26},
	} {
		requests, bytes = 0, 0
		w := ask(s, c.route, nil, c.method, c.target, c.head...)
		if requests != 1 || bytes != c.bytes || int64(w.Body.Len()) != c.bytes {
			t.Errorf("%d: %s %s: %d requests, %d bytes, want %d; %d were sent", i, c.method, c.target, requests, bytes, c.bytes, w.Body.Len())
		}
	}
	requests, bytes = 0, 0
	if w := ask(s, app, nil, "GET", "/api"); w.Code != 0 || requests != 0 {
		t.Errorf("what is for an instance: %d requests", requests)
	}
	// The last piece is what the visitor does not take: all before it counts.
	file, err := s.open(t.Context(), service, front.Content{SHA256: sum(long), Size: int64(len(long))})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, taken := range []int{0, bufferSize, len(long) - 1} {
		requests, bytes = 0, 0
		n, err := s.send(&leaves{after: taken}, route, file, span{0, int64(len(long))})
		if err == nil || requests != 1 || bytes != n || n != int64(taken) {
			t.Errorf("a visitor who takes %d bytes: %d requests and %d bytes, %d sent, %v", taken, requests, bytes, n, err)
		}
	}
}

// leaves is a visitor who takes so many bytes.
type leaves struct{ after int }

func (l *leaves) Write(b []byte) (int, error) {
	n := min(len(b), l.after)
	l.after -= n
	if n < len(b) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

// A page from before a deploy finds its files in the former front ends, and nothing else there.
func TestFormer(t *testing.T) {
	p := newPlatform(t)
	now := p.publish(true, "/index.html", map[string]string{"/index.html": "<p>now", "/assets/b-1234abcd.js": "now b"})
	app := p.publish(false, "", map[string]string{"/assets/b-1234abcd.js": "now b"})
	none := &leapcell.Route{ServiceID: service}
	last := p.publish(true, "/index.html", map[string]string{"/index.html": "<p>last", "/assets/a-1234abcd.js": "last a", "/robots.txt": "last"})
	older := p.publish(true, "", map[string]string{"/assets/old-1234abcd.css": "older", "/assets/b-1234abcd.js": "older b"})
	for _, r := range []*leapcell.Route{now, app, none} {
		// One that is gone costs the others nothing.
		r.Former = []string{last.Static.Manifest, sum("gone"), "not a digest", older.Static.Manifest}
	}
	other := p.publish(false, "", map[string]string{"/b.txt": "hello"})
	s := p.edge(t.TempDir(), 1<<20)
	for _, c := range []struct {
		route, other *leapcell.Route
		target       string
		status       int
		body         string
	}{
		{now, nil, "/assets/a-1234abcd.js", 200, "last a"},
		{now, nil, "/assets/old-1234abcd.css", 200, "older"},
		{now, nil, "/assets/b-1234abcd.js", 200, "now b"},
		{now, nil, "/robots.txt", 404, "There is nothing at this address\n"},
		{now, nil, "/", 200, "<p>now"},
		{now, nil, "/assets/never-1234abcd.js", 404, "There is nothing at this address\n"},
		{app, nil, "/assets/old-1234abcd.css", 200, "older"},
		{app, nil, "/index.html", 0, ""},
		{app, nil, "/api", 0, ""},
		{none, nil, "/assets/a-1234abcd.js", 200, "last a"},
		{none, nil, "/", 0, ""},
		{other, now, "/assets/a-1234abcd.js", 200, "last a"}, // while the requests are shared
	} {
		w := ask(s, c.route, c.other, "GET", c.target)
		if w.Code == 0 && c.status != 0 && c.route == app { // the app's own list was on its way
			t.Errorf("%s is left to the instances, which have not got it", c.target)
		}
		if w.Code != c.status || w.Body.String() != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.target, w.Code, w.Body, c.status, c.body)
		}
	}
}

func TestOneFetchHoweverManyWait(t *testing.T) {
	p := newPlatform(t)
	s := p.edge(t.TempDir(), 1<<20)
	route := p.publish(true, "", map[string]string{"/a.txt": "hello"})
	p.hold = make(chan struct{})
	var all sync.WaitGroup
	var begun atomic.Int32
	for range 50 {
		all.Go(func() {
			begun.Add(1)
			if w := ask(s, route, nil, "GET", "/a.txt"); w.Code != 200 || w.Body.String() != "hello" {
				t.Errorf("%d %q", w.Code, w.Body)
			}
		})
	}
	for begun.Load() < 50 {
		runtime.Gosched()
	}
	close(p.hold)
	all.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, n := range p.fetched {
		if n != 1 {
			t.Errorf("%s was fetched %d times", name, n)
		}
	}
	if len(p.fetched) != 2 {
		t.Errorf("%d contents were fetched", len(p.fetched))
	}
}

// A visitor who leaves does not take the file from the others.
func TestVisitorLeaves(t *testing.T) {
	p := newPlatform(t)
	s := p.edge(t.TempDir(), 1<<20)
	route := p.publish(true, "", map[string]string{"/a.txt": "hello"})
	p.hold = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() {
		got := s.Serve(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/a.txt", nil), route, nil)
		done <- got.Missing
	}()
	cancel()
	if !<-done {
		t.Error("it was answered")
	}
	close(p.hold)
	if w := ask(s, route, nil, "GET", "/a.txt"); w.Body.String() != "hello" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestControlPlaneIsDown(t *testing.T) {
	p := newPlatform(t)
	dir := t.TempDir()
	s := p.edge(dir, 1<<20)
	route := p.publish(true, "/index.html", map[string]string{"/index.html": "<p>home", "/other.txt": "x"})
	app := p.publish(false, "", map[string]string{"/a.css": "a{}", "/b.css": "b{}"})
	warm(t, s, app)
	for _, target := range []string{"/", "/deep"} {
		ask(s, route, nil, "GET", target)
	}
	ask(s, app, nil, "GET", "/a.css")
	p.down.Store(true)
	for range 2 { // the second time after a restart of the edge
		if w := ask(s, route, nil, "GET", "/deep"); w.Code != 200 || w.Body.String() != "<p>home" {
			t.Errorf("what is here: %d %q", w.Code, w.Body)
		}
		if w := ask(s, route, nil, "GET", "/other.txt"); w.Code != -1 || len(w.Header()) > 0 {
			t.Errorf("what is not here: %d %v", w.Code, w.Header())
		}
		warm(t, s, app)
		if w := ask(s, app, nil, "GET", "/a.css"); w.Code != 200 {
			t.Errorf("what is here of an app: %d", w.Code)
		}
		if w := ask(s, app, nil, "GET", "/b.css"); w.Code != 0 || len(w.Header()) > 0 {
			t.Errorf("what is not here is the instance's: %d %v", w.Code, w.Header())
		}
		s = p.edge(dir, 1<<20)
	}
	p.down.Store(false)
	if w := ask(s, route, nil, "GET", "/other.txt"); w.Code != 200 {
		t.Errorf("once it is back: %d", w.Code)
	}
}

func TestCacheHasABound(t *testing.T) {
	p := newPlatform(t)
	dir := t.TempDir()
	many := map[string]string{}
	for i := range 20 {
		many["/"+strconv.Itoa(i)] = strings.Repeat(strconv.Itoa(i%10), 1000+i)
	}
	route := p.publish(true, "", many)
	s := p.edge(dir, 10_000)
	for range 2 {
		for i := range 20 {
			path := "/" + strconv.Itoa(i)
			if w := ask(s, route, nil, "GET", path); w.Body.String() != many[path] {
				t.Errorf("%s: %d", path, w.Code)
			}
			ask(s, route, nil, "GET", "/0") // always in use: it stays
		}
		if got := used(t, dir); got > 10_000 || got != s.cache.size {
			t.Errorf("%d bytes are in the folder, %d are known", got, s.cache.size)
		}
	}
	if n := p.count(many["/0"]); n != 1 {
		t.Errorf("what is in use was fetched %d times", n)
	}
	s = p.edge(dir, 3000)
	if got := used(t, dir); got > 3000 || got == 0 {
		t.Errorf("with less room: %d bytes", got)
	}
	big := p.publish(true, "", map[string]string{"/big": strings.Repeat("b", 9000)})
	if w := ask(s, big, nil, "GET", "/big"); w.Body.Len() != 9000 {
		t.Errorf("a file larger than the room: %d", w.Code)
	}
}

func used(t *testing.T, dir string) (sum int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !front.IsSum(e.Name()) {
			t.Fatalf("%s %v", e.Name(), err)
		}
		sum += info.Size()
	}
	return sum
}

// What lies in the folder is not believed after a restart, and what the origin sends never.
func TestContentsThatAreWrong(t *testing.T) {
	p := newPlatform(t)
	dir := t.TempDir()
	route := p.publish(true, "", map[string]string{"/a.txt": "hello"})
	s := p.edge(dir, 1<<20)
	ask(s, route, nil, "GET", "/a.txt")
	for name, content := range map[string]string{sum("hello"): "hel\x00\x00", ".new-123": "half"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = p.edge(dir, 1<<20)
	if w := ask(s, route, nil, "GET", "/a.txt"); w.Body.String() != "hello" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if _, err := os.Stat(filepath.Join(dir, ".new-123")); err == nil {
		t.Error("half a file is left")
	}
	if err := os.Remove(filepath.Join(dir, sum("hello"))); err != nil {
		t.Fatal(err)
	}
	if w := ask(s, route, nil, "GET", "/a.txt"); w.Body.String() != "hello" {
		t.Errorf("after somebody removed it: %d %q", w.Code, w.Body)
	}
	for _, wrong := range []string{"hellO", "hell", "hello!", ""} {
		p.contents[sum("hello")] = wrong
		s = p.edge(t.TempDir(), 1<<20)
		if w := ask(s, route, nil, "GET", "/a.txt"); w.Code != -1 || w.Body.Len() > 0 {
			t.Errorf("%q of the origin: %d %q", wrong, w.Code, w.Body)
		}
		if n := s.cache.order.Len(); n != 1 {
			t.Errorf("%d contents are kept", n)
		}
	}
}

// The origin may send the edge to another server, which must not see the token.
func TestOriginElsewhere(t *testing.T) {
	p := newPlatform(t)
	route := p.publish(true, "", map[string]string{"/a.txt": "hello"})
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.URL.RawQuery != "signature=1" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, p.contents[filepath.Base(r.URL.Path)])
	}))
	defer store.Close()
	p.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, store.URL+r.URL.Path+"?signature=1", http.StatusTemporaryRedirect)
	})
	s := p.edge(t.TempDir(), 1<<20)
	if w := ask(s, route, nil, "GET", "/a.txt"); w.Body.String() != "hello" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	store.Close()
	_, err := newOrigin([]string{p.URL}, token).fetch(t.Context(), service, sum("hello"))
	if err == nil || strings.Contains(err.Error(), "signature=1") {
		t.Errorf("the error shows the signed address: %v", err)
	}
}

func TestListsHaveABound(t *testing.T) {
	s := &Server{sites: map[string]*site{}}
	many := make(map[string]*front.File, maxListed/4)
	for i := range maxListed / 4 {
		many[strconv.Itoa(i)] = nil
	}
	for i := range 6 {
		one := &site{files: many}
		one.used.Store(s.tick.Add(1))
		s.remember(strconv.Itoa(i), one)
		s.sites["0"].used.Store(s.tick.Add(1)) // in use
	}
	if s.total > maxListed || s.sites["0"] == nil || s.sites["5"] == nil || s.sites["1"] != nil {
		t.Errorf("%d files are listed, of %d sites", s.total, len(s.sites))
	}
}

// fakeTable is a table that a test fills.
type fakeTable struct {
	mu      sync.Mutex
	index   uint64
	fronts  []*leapcell.Route
	changed chan struct{}
}

func (f *fakeTable) RoutesIndex() uint64       { f.mu.Lock(); defer f.mu.Unlock(); return f.index }
func (f *fakeTable) Changed() <-chan struct{}  { f.mu.Lock(); defer f.mu.Unlock(); return f.changed }
func (f *fakeTable) Fronts() []*leapcell.Route { f.mu.Lock(); defer f.mu.Unlock(); return f.fronts }
func (f *fakeTable) set(index uint64, fronts ...*leapcell.Route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index, f.fronts = index, fronts
	close(f.changed)
	f.changed = make(chan struct{})
}

// A route counts as known when its list is here, and when it cannot be had.
func TestReady(t *testing.T) {
	p := newPlatform(t)
	s := p.edge(t.TempDir(), 1<<20)
	table := &fakeTable{changed: make(chan struct{})}
	r := NewReady(s, table)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	defer running.Wait()
	defer cancel()
	until := func(index uint64) {
		for {
			changed := r.Changed()
			if r.RoutesIndex() == index {
				return
			}
			<-changed
		}
	}
	route := p.publish(true, "", map[string]string{"/a.txt": "hello"})
	p.mu.Lock()
	p.hold = make(chan struct{})
	p.mu.Unlock()
	table.set(5, route)
	if got := r.RoutesIndex(); got != 0 {
		t.Errorf("index %d before the list is here", got)
	}
	close(p.hold)
	until(5)
	s.mu.Lock()
	if s.sites[route.Static.Manifest] == nil {
		t.Error("the list is not here")
	}
	s.mu.Unlock()
	p.down.Store(true)
	other := p.publish(false, "", map[string]string{"/b.txt": "hello"})
	table.set(6, route, other)
	until(6)
}

func FuzzRange(f *testing.F) {
	for _, text := range []string{"bytes=0-1", "bytes=-5", "bytes=5-", "bytes=9-1", "bytes=0-0,2-3", "lines=1-2", "bytes=99999999999999999999-", "bytes= 1 - 2"} {
		f.Add(text, int64(10))
	}
	f.Fuzz(func(t *testing.T, text string, size int64) {
		if size < 0 {
			return
		}
		s, ok := parseRange(text, size)
		if ok && s.size > 0 && (s.start < 0 || s.start+s.size > size || s.start+s.size < s.start) || s.size < 0 {
			t.Fatalf("%q of %d: %+v", text, size, s)
		}
	})
}

func FuzzAcceptEncoding(f *testing.F) {
	for _, text := range []string{"gzip, br;q=0.5", "*;q=0", "identity;q=0, *", ";;q=,", "br;q=NaN", "br;q=1e400", "gzip;x=1;q=0.2"} {
		f.Add(text)
	}
	file := &front.File{Content: front.Content{SHA256: "a", Size: 9}, Encoded: []front.Encoded{{Encoding: "br", Content: front.Content{Size: 5}}, {Encoding: "gzip", Content: front.Content{Size: 7}}}}
	f.Fuzz(func(t *testing.T, text string) {
		content, encoding, ok := choose(file, []string{text})
		if q := weight([]string{text}, encoding); encoding != "" && (q <= 0 || q > 1000) {
			t.Fatalf("%q: %s has weight %d", text, encoding, q)
		}
		if !ok && !strings.Contains(text, "0") || content.Size == 0 {
			t.Fatalf("%q: nothing is acceptable", text)
		}
	})
}

func BenchmarkServe(b *testing.B) {
	p := newPlatform(b)
	s := p.edge(b.TempDir(), 1<<20)
	route := p.publish(true, "", map[string]string{"/a.js": string(bytes.Repeat([]byte("a"), 4<<10))})
	b.ReportAllocs()
	for b.Loop() {
		if w := ask(s, route, nil, "GET", "/a.js"); w.Code != 200 {
			b.Fatal(w.Code)
		}
	}
}
