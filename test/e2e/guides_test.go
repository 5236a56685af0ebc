package e2e

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/githost"
	"github.com/leapcell/leapcell/test/harness"
)

// guide is an app as the guide that its framework begins with has it: its files are in testdata,
// or in examples/ where the name says so. Nothing in them is made for this platform.
type guide struct {
	name     string
	dir      string
	settings leapcell.Settings // what its user sets besides, nil for nothing
	log      []string          // what the build log says of it
	path     string
	want     string // in the answer
	check    func(t *testing.T, s *harness.Service)
}

var guides = []guide{
	{name: "flask", dir: "examples/python", path: "/", want: "Hello from Python and Flask", log: []string{"runtime: python 3.13, which is set"}},
	{name: "django", dir: "django", path: "/polls/", want: "Here is the index of polls.", log: []string{
		"runtime: python 3.13, because there is a requirements.txt", "build command: pip install -r requirements.txt && pip install gunicorn, as none is set",
		"start command: gunicorn --bind 0.0.0.0:$PORT mysite.wsgi, as none is set (Django with gunicorn, which the build installs: runserver is for development)"}},
	{name: "fastapi", dir: "fastapi", path: "/items/5?q=text", want: `{"item_id":5,"q":"text"}`, log: []string{
		"start command: uvicorn --host 0.0.0.0 --port $PORT main:app, as none is set (FastAPI in main.py)"}},
	// uvicorn's own address is 127.0.0.1.
	{name: "uvicorn", dir: "fastapi", settings: leapcell.Settings{StartCommand: "uvicorn main:app --port 8080"}, path: "/", want: `{"Hello":"World"}`},
	// … and its own port is not the contract's.
	{name: "uvicorn-port", dir: "fastapi", settings: leapcell.Settings{StartCommand: "uvicorn main:app", Port: 8000}, path: "/", want: `{"Hello":"World"}`},
	{name: "express", dir: "examples/node", path: "/", want: "Hello from Node.js and Express", log: []string{"runtime: node 20, which is set"}},
	{name: "vite", dir: "vite", path: "/", want: `id="app"`, check: vite, log: []string{
		"runtime: node 20, because there is a package.json", "build command: npm install && npm run build, as none is set", "Vite", "no instance is needed"}},
	{name: "nextjs", dir: "nextjs", settings: leapcell.Settings{MemoryMB: 512}, path: "/", want: "Hello, Next.js at ", check: nextJS, log: []string{
		"start command: npm start, as none is set (the start script of package.json)", "Next.js"}},
	{name: "nextjs-export", dir: "nextjs-export", path: "/about", want: "About the export", check: nextExport, log: []string{"Next.js export", "no instance is needed"}},
	{name: "gin", dir: "examples/go", path: "/", want: "Hello from Go and Gin", log: []string{"runtime: go 1.24, which is set"}},
	{name: "html-template", dir: "gowiki", path: "/view/Test", want: "<div>A &lt;page&gt; of the wiki.\n</div>", log: []string{
		"runtime: go 1.24, because there is a go.mod", "build command: go build -o app, as none is set", "start command: ./app, as none is set"}},
	{name: "dockerfile", dir: "docker-go", path: "/health", want: `{"Status":"OK"}`, log: []string{
		"runtime: docker, because there is a Dockerfile", "go mod download", "port: 8080, as the image says", "user: nobody, as the image says"}},
	{name: "axum", dir: "examples/rust", path: "/", want: "Hello", log: []string{"runtime: rust 1.85, which is set"}},
	{name: "actix", dir: "actix", path: "/hey", want: "Hey there", log: []string{
		"runtime: rust 1.85, because there is a Cargo.toml", "start command: ./target/release/hello-world, as none is set (the program of Cargo.toml)"}},
}

// Apps as the guides of their frameworks have them are live after a push, and answer from zero.
func TestGuides(t *testing.T) {
	harness.Quick(t)
	p := harness.Get(t)
	for _, g := range guides {
		t.Run(g.name, func(t *testing.T) {
			if g.name == "dockerfile" {
				p.ServeHub(t, map[string]string{"library/golang": "base/go", "library/debian": "base/run"})
			}
			c := g.connect(t, p)
			begin := time.Now()
			if status := c.send("push", c.key, c.pushed("main", c.repo.Head())); status != http.StatusAccepted {
				t.Fatalf("the push: %d", status)
			}
			d := c.deployment(c.repo.Head())
			took := time.Since(begin)
			log := c.BuildLog(t, d.ID)
			if d.State != leapcell.Live {
				t.Fatalf("it is %s: %+v\n%s", d.State, d.Error, log)
			}
			t.Logf("live %s after the push", took.Round(100*time.Millisecond))
			for _, want := range g.log {
				if !strings.Contains(log, want) {
					t.Errorf("the build log does not say %q:\n%s", want, log)
				}
			}
			c.Reload(t)
			if !d.Whole() {
				c.ToZero(t)
			}
			r := c.Get(t, g.path)
			if r.Status != http.StatusOK || r.Err != nil || !strings.Contains(r.Body, g.want) {
				t.Errorf("from zero %s answers %d %.500q, %v; want %q", g.path, r.Status, r.Body, r.Err, g.want)
			}
			if cold := r.Header.Get("Server-Timing"); !d.Whole() && cold == "" {
				t.Errorf("the answer was not from zero: %v", r.Header)
			}
			if g.check != nil {
				g.check(t, c.Service)
			}
		})
	}
}

// connect makes a service that has nothing set but what the guide's user must set, with a
// repository of the app that it is connected with.
func (g guide) connect(t *testing.T, p *harness.Platform) *connected {
	t.Helper()
	var s leapcell.Service
	in := map[string]any{"name": harness.Name(t), "settings": g.settings}
	if err := p.API.Call(t.Context(), http.MethodPost, "/v1/services", in, &s); err != nil {
		t.Fatal(err)
	}
	c := &connected{t: t, p: p, Service: p.Adopt(t, s), repo: githost.New(t).Repository("team/"+g.name, g.files(t, p))}
	var out struct{ HookPath, Secret string }
	p.JSON(t, &out, "git", "connect", s.Name, c.repo.URL, "--branch", "main", "--provider", "gitea")
	c.hook, c.key = p.Config.APIAddress()+out.HookPath, out.Secret
	return c
}

func (g guide) files(t *testing.T, p *harness.Platform) map[string]string {
	t.Helper()
	dir := filepath.Join("testdata", g.dir)
	if strings.HasPrefix(g.dir, "examples/") {
		dir = filepath.Join(p.Root, g.dir)
	}
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path) // it is below dir
		files[name] = string(b)
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files of %s, %v", len(files), dir, err)
	}
	return files
}

// The app of one page: https://vite.dev/guide/
func vite(t *testing.T, s *harness.Service) {
	page := ask(t, s, "GET", "/", "Accept", "text/html")
	if page.Header.Get("Cache-Control") != "no-cache" || page.Header.Get("ETag") == "" {
		t.Errorf("%v", page.Header)
	}
	if r := ask(t, s, "GET", "/", "If-None-Match", page.Header.Get("ETag")); r.Status != http.StatusNotModified {
		t.Errorf("with its own ETag: %d", r.Status)
	}
	if deep := ask(t, s, "GET", "/about/us", "Accept", "text/html"); deep.Status != 200 || deep.Body != page.Body {
		t.Errorf("a path of the app's own: %d %q", deep.Status, deep.Body)
	}
	hashed(t, s, page.Body, `href="(/assets/[^"]+\.css)"`, 1)
	script := hashed(t, s, page.Body, `src="(/assets/[^"]+\.js)"`, 1)
	if r := ask(t, s, "GET", script, "Accept-Encoding", "br"); r.Header.Get("Content-Encoding") != "br" || r.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("compressed: %d %v", r.Status, r.Header)
	}
	if r := ask(t, s, "GET", script, "Range", "bytes=0-9"); r.Status != http.StatusPartialContent || len(r.Body) != 10 {
		t.Errorf("a part: %d, %d bytes, %v", r.Status, len(r.Body), r.Header)
	}
	if r := ask(t, s, "GET", "/assets/gone-12345678.js", "Accept", "*/*"); r.Status != 404 {
		t.Errorf("a script that is not there: %d", r.Status)
	}
	if s.Static == nil || !s.Static.Whole || s.Static.Framework != "Vite" || len(s.AllAllocs(t)) != 0 {
		t.Errorf("%+v, %d instances", s.Static, len(s.AllAllocs(t)))
	}
}

// The app with its own server: https://nextjs.org/docs/app/getting-started
func nextJS(t *testing.T, s *harness.Service) {
	page := ask(t, s, "GET", "/", "Accept", "text/html")
	if !strings.Contains(page.Body, s.Live) {
		t.Errorf("%d %.300q does not name %s", page.Status, page.Body, s.Live)
	}
	hashed(t, s, page.Body, `src="(/_next/static/[^"]+\.js)"`, 1)
	if r := ask(t, s, "GET", "/square.svg"); r.Status != 200 || !strings.HasPrefix(r.Header.Get("Content-Type"), "image/svg+xml") || r.Header.Get("ETag") == "" {
		t.Errorf("a file of public: %d %v", r.Status, r.Header)
	}
	if r := ask(t, s, "GET", "/nothing"); r.Status != 404 || !strings.Contains(r.Header.Get("Content-Type"), "text/html") {
		t.Errorf("what is no file is the app's: %d %v", r.Status, r.Header)
	}
	if s.Static == nil || s.Static.Whole || s.Static.Framework != "Next.js" {
		t.Errorf("%+v", s.Static)
	}
}

// The same without a server: https://nextjs.org/docs/app/guides/static-exports
func nextExport(t *testing.T, s *harness.Service) {
	page := ask(t, s, "GET", "/")
	hashed(t, s, page.Body, `src="(/_next/static/[^"]+\.js)"`, 1)
	if r := ask(t, s, "GET", "/nothing"); r.Status != 404 || !strings.Contains(r.Header.Get("Content-Type"), "text/html") {
		t.Errorf("a page that is not there: %d %v", r.Status, r.Header)
	}
	if s.Static == nil || !s.Static.Whole || len(s.AllAllocs(t)) != 0 {
		t.Errorf("%+v, %d instances", s.Static, len(s.AllAllocs(t)))
	}
}
