package e2e

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// ask visits a service with headers: names and values in turn.
func ask(t *testing.T, s *harness.Service, method, path string, head ...string) harness.Reply {
	t.Helper()
	p := harness.Get(t)
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(head); i += 2 {
		req.Header.Set(head[i], head[i+1])
	}
	client := *p.HTTP
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return harness.Reply{Status: resp.StatusCode, Header: resp.Header, Body: string(b), Err: err}
}

// A folder of plain files is served without an instance, from the upload to its end.
func TestPlainSite(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	script := strings.Repeat("console.log('one');\n", 100)
	s := p.Create(t, harness.Spec{
		Settings: leapcell.Settings{Runtime: leapcell.RuntimeStatic},
		Files: map[string]string{
			"index.html": "<h1>one</h1>", "docs/index.html": "<h1>docs</h1>", "404.html": "<h1>nothing here</h1>",
			"app.1a2b3c4d.js": script, ".env": "SECRET=1",
		},
	})
	first := s.Deploy(t)
	s.Reload(t)
	if !first.Whole() || s.Static == nil || s.Static.Files != 4 {
		t.Errorf("the deployment is %+v", first.Static)
	}
	if log := s.BuildLog(t, first.ID); !strings.Contains(log, "no instance is needed") || !strings.Contains(log, "set static in leapcell.yaml") || !strings.Contains(log, `such as ".env"`) {
		t.Errorf("the build log does not say it:\n%s", log)
	}
	for _, c := range []struct {
		method, path string
		head         []string
		status       int
		body         string
		name, value  string // a header
	}{
		{"GET", "/", nil, 200, "<h1>one</h1>", "Cache-Control", "no-cache"},
		{"HEAD", "/", nil, 200, "", "Content-Length", "12"},
		{"GET", "/docs/", nil, 200, "<h1>docs</h1>", "X-Content-Type-Options", "nosniff"},
		{"GET", "/docs", nil, 301, "", "Location", "/docs/"},
		{"GET", "/.env", nil, 404, "<h1>nothing here</h1>", "Cache-Control", "no-cache"},
		{"GET", "/leapcell.yaml", nil, 404, "<h1>nothing here</h1>", "", ""},
		{"POST", "/", nil, 405, "", "Allow", "GET, HEAD"},
		{"GET", "/app.1a2b3c4d.js", []string{"Accept-Encoding", "identity"}, 200, script, "Cache-Control", "public, max-age=31536000, immutable"},
		{"GET", "/app.1a2b3c4d.js", []string{"Accept-Encoding", "br"}, 200, "", "Content-Encoding", "br"},
		{"GET", "/app.1a2b3c4d.js", []string{"Accept-Encoding", "identity", "Range", "bytes=0-6"}, 206, "console", "Content-Range", "bytes 0-6/2000"},
	} {
		r := ask(t, s, c.method, c.path, c.head...)
		if r.Status != c.status || r.Err != nil || c.body != "" && r.Body != c.body || c.name != "" && r.Header.Get(c.name) != c.value {
			t.Errorf("%s %s %q: %d %.100q %v %v", c.method, c.path, c.head, r.Status, r.Body, r.Header, r.Err)
		}
	}
	page := ask(t, s, "GET", "/")
	if r := ask(t, s, "GET", "/", "If-None-Match", page.Header.Get("ETag")); r.Status != 304 || r.Body != "" {
		t.Errorf("with its own ETag: %d", r.Status)
	}

	s.Change(map[string]string{"index.html": "<h1>two</h1>"})
	second := s.Deploy(t)
	siteAnswers(t, s, "<h1>two</h1>")
	preview := *s
	preview.Host = leapcell.PreviewHost(s.Host, first.Number)
	siteAnswers(t, &preview, "<h1>one</h1>")
	p.Must(t, "rollback", s.Name)
	siteAnswers(t, s, "<h1>one</h1>")
	p.Must(t, "traffic", s.Name, second.ID, "50")
	seen := map[string]bool{}
	for range 200 {
		seen[ask(t, s, "GET", "/").Body] = true
	}
	if !seen["<h1>one</h1>"] || !seen["<h1>two</h1>"] || len(seen) != 2 {
		t.Errorf("with half of the requests each: %v", seen)
	}
	if instances := s.AllAllocs(t); len(instances) != 0 {
		t.Errorf("%d instances", len(instances))
	}
	if out := p.Must(t, "services"); !regexp.MustCompile(regexp.QuoteMeta(s.Name) + `\s+static\s`).MatchString(out) {
		t.Errorf("services does not say that it is static:\n%s", out)
	}
	p.Must(t, "delete", s.Name, "--yes")
	if r := ask(t, s, "GET", "/"); r.Status != 404 || !strings.Contains(r.Body, leapcell.TextNoRoute) {
		t.Errorf("deleted: %d %q", r.Status, r.Body)
	}
}

func siteAnswers(t *testing.T, s *harness.Service, want string) {
	t.Helper()
	if r := ask(t, s, "GET", "/"); r.Status != 200 || r.Body != want {
		t.Errorf("%s answers %d %q, want %q", s.Host, r.Status, r.Body, want)
	}
}

// hashed visits the files that a page asks for, and gives the path of one.
func hashed(t *testing.T, s *harness.Service, page, pattern string, least int) (path string) {
	t.Helper()
	found := regexp.MustCompile(pattern).FindAllStringSubmatch(page, -1)
	if len(found) < least {
		t.Errorf("the page asks for %d files: %s", len(found), page)
	}
	for _, f := range found {
		r := ask(t, s, "GET", f[1], "Accept-Encoding", "zstd, br;q=0.5")
		if r.Status != 200 || r.Header.Get("Cache-Control") != "public, max-age=31536000, immutable" || r.Header.Get("Server-Timing") != "" {
			t.Errorf("%s: %d %v", f[1], r.Status, r.Header)
		}
		path = f[1]
	}
	return path
}

// What edges answer with files is counted: each request once, with the bytes of its body and without any
// time, also when the edge is killed before it has told.
func TestSiteIsMetered(t *testing.T) {
	harness.Quick(t)
	p := harness.Get(t)
	s := p.Create(t, harness.Spec{
		Settings: leapcell.Settings{Runtime: leapcell.RuntimeStatic},
		Files:    map[string]string{"index.html": "<h1>one</h1>", "big.bin": strings.Repeat("0123456789abcdef", 20_000), "404.html": "nothing here"},
	})
	s.Deploy(t)
	var requests, bytes int64
	some := func() {
		for range 20 {
			page := ask(t, s, "GET", "/")
			for _, r := range []harness.Reply{
				page, ask(t, s, "GET", "/big.bin"), ask(t, s, "HEAD", "/big.bin"), ask(t, s, "GET", "/nothing"),
				ask(t, s, "GET", "/", "If-None-Match", page.Header.Get("ETag")), ask(t, s, "GET", "/big.bin", "Range", "bytes=5-14"),
			} {
				if r.Err != nil || r.Status >= 500 {
					t.Errorf("%d %v", r.Status, r.Err)
				}
				requests, bytes = requests+1, bytes+int64(len(r.Body))
			}
		}
	}
	var u leapcell.ServiceUsage
	counted := func() {
		t.Helper()
		harness.Eventually(t, 30*time.Second, "all of it is in the usage", func() bool {
			must(t, p.API.Call(t.Context(), http.MethodGet, "/v1/services/"+s.ID+"/usage", nil, &u))
			return u.Total.Requests >= requests && u.Total.EgressBytes >= bytes
		})
	}
	some()
	counted()
	some()
	kill(t, "leapcell-edge", "")
	p.Up(t)
	some()
	counted()
	time.Sleep(6 * time.Second) // longer than between two reports: nothing is counted twice
	counted()
	if u.Total.Requests != requests || u.Total.EgressBytes != bytes || u.Total.ComputeMS != 0 || u.Total.RunningMS != 0 || u.Total.ColdStarts != 0 {
		t.Errorf("%d requests got %d bytes; counted is %+v", requests, bytes, u.Total)
	}
	t.Logf("%d requests, %d bytes", requests, bytes)
	var shown leapcell.ServiceUsage
	if p.JSON(t, &shown, "usage", s.Name); shown.Total != u.Total {
		t.Errorf("leapcell usage shows %+v, not %+v", shown.Total, u.Total)
	}
}
