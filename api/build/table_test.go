package build

import (
	"archive/tar"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestVersions(t *testing.T) {
	b := newBuilder(t, nil)
	for name, want := range map[string][2]string{ // version and suite
		"python": {"3.13", "trixie"}, "python@3.13": {"3.13", "trixie"}, "python@3.11": {"3.11", "bookworm"},
		"go@1.19": {"1.19", "bookworm"},
	} {
		r, err := b.Runtime(name)
		if err != nil || r.Version.Version != want[0] || r.Suite != want[1] || !slices.Contains(r.Packages, map[string]string{"python": "python3", "go": "golang-go"}[r.Name]) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if r.Run != nil && r.Version.Version == "1.19" && r.Run.Suite != "bookworm" {
			t.Errorf("%s runs on %q", name, r.Run.Suite)
		}
	}
	_, err := b.Runtime("python@2.7")
	if leapcell.ErrorMessage(err) != `the runtime python has no version "2.7"; it has 3.13, 3.11` {
		t.Errorf("error is %v", err)
	}
	// On another release of Debian that one's version is the default.
	b = newBuilder(t, func(c *Config) { c.Suite = "bookworm" })
	if r, err := b.Runtime("node"); err != nil || r.String() != "node 18" || r.Suite != "bookworm" || len(r.Packages) == 0 || r.Versions[0].Version != "20" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := b.Runtime("node@20"); err != nil || r.Suite != "trixie" || len(r.Packages) == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	b = newBuilder(t, func(c *Config) { c.Suite = "forky" })
	if r, err := b.Runtime("node"); err != nil || r.String() != "node" || r.Suite != "forky" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestOwnRuntimes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "runtimes.yaml")
	read := func(content string) ([]Runtime, error) {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return ReadRuntimes(file)
	}
	table, err := read(`
- name: go
  image: registry.test/golang:1.26
  version: "1.26"
- name: zig
  packages: [zig]
  run: {bare: true, packages: [bash]}
  versions: [{version: "0.11", image: "registry.test/zig:0.11"}]
`)
	if err != nil {
		t.Fatal(err)
	}
	// What is known of Debian's Go does not hold for another image; what does not depend on it stays.
	if r := table[2]; r.String() != "go 1.26" || r.Run != nil || r.Versions != nil || r.StartCommand != "./app" {
		t.Errorf("go: %+v", r)
	}
	if r := table[4]; r.Run == nil || !r.Run.Bare || r.Versions[0].Image == "" {
		t.Errorf("zig: %+v", r)
	}
	for _, content := range []string{"- name: docker\n  image: x", "- name: a@b\n  image: x"} {
		if _, err := read(content); err == nil {
			t.Errorf("%q is taken", content)
		}
	}
}

// Systems of one recipe are one image, whatever they are called.
func TestSharedBase(t *testing.T) {
	table := Runtimes()
	golang, rust := table[2], table[3]
	if golang.Run.tag("trixie") != rust.Run.tag("trixie") || runName(golang) != runName(rust) {
		t.Error("Go and Rust do not share what they run on")
	}
	if golang.Run.tag("trixie") == golang.Run.tag("bookworm") {
		t.Error("the suite is not part of the recipe")
	}
}

func TestDefaults(t *testing.T) {
	runtimes := map[string]Runtime{}
	for _, r := range Runtimes() {
		runtimes[r.Name] = r
	}
	for name, test := range map[string]struct {
		runtime, build, start string
		top                   map[string]string
	}{
		"Django": {"python", "pip install -r requirements.txt", "python manage.py runserver --noreload 0.0.0.0:$PORT",
			map[string]string{"requirements.txt": "Django==5.2\n", "manage.py": "import os"}},
		"Django of the tutorial": {"python", "pip install -r requirements.txt && pip install gunicorn", "gunicorn --bind 0.0.0.0:$PORT mysite.wsgi",
			map[string]string{"requirements.txt": "Django\n", "manage.py": "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')"}},
		"Django with gunicorn": {"python", "pip install -r requirements.txt", "gunicorn --bind 0.0.0.0:$PORT mysite.wsgi",
			map[string]string{"requirements.txt": "Django\ngunicorn==23\n", "manage.py": "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')"}},
		"FastAPI": {"python", "pip install -r requirements.txt", "uvicorn --host 0.0.0.0 --port $PORT main:app",
			map[string]string{"requirements.txt": "fastapi[standard]", "main.py": "from fastapi import FastAPI\n\napp = FastAPI(title='x')\n"}},
		"typed FastAPI": {"python", "pip install .", "uvicorn --host 0.0.0.0 --port $PORT app:api",
			map[string]string{"pyproject.toml": "", "app.py": "api: FastAPI = fastapi.FastAPI()\n"}},
		"Flask": {"python", "pip install -r requirements.txt", "flask --app app:app run --host 0.0.0.0 --port $PORT",
			map[string]string{"requirements.txt": "flask", "app.py": "app = Flask(__name__)"}},
		"Flask with gunicorn": {"python", "pip install -r requirements.txt", "gunicorn --bind 0.0.0.0:$PORT app:app",
			map[string]string{"requirements.txt": "Flask\nGunicorn>=20", "app.py": "app = Flask(__name__)"}},
		"gunicorn-like name": {"python", "pip install -r requirements.txt", "flask --app app:app run --host 0.0.0.0 --port $PORT",
			map[string]string{"requirements.txt": "flask\ngunicorn-color", "app.py": "app = Flask(__name__)"}},
		"script":     {"python", "", "python main.py", map[string]string{"main.py": "print()"}},
		"nothing":    {"python", "pip install pipenv && pipenv install --system", "", map[string]string{"Pipfile": ""}},
		"npm start":  {"node", "npm install && npm run build", "npm start", map[string]string{"package.json": `{"main": "x.js", "scripts": {"start": "next start", "build": "next build"}}`}},
		"node main":  {"node", "npm install", "node src/server.js", map[string]string{"package.json": `{"main": "./src/server.js"}`}},
		"evil main":  {"node", "npm install", "", map[string]string{"package.json": `{"main": "x.js; rm -rf /"}`}},
		"front end":  {"node", "npm install && npm run build", "", map[string]string{"package.json": `{"scripts": {"build": "vite build"}}`}},
		"no JSON":    {"node", "npm install", "", map[string]string{"package.json": `{`}},
		"Go":         {"go", "go build -o app", "./app", nil},
		"Rust":       {"rust", "cargo build --release", "./target/release/my-app", map[string]string{"Cargo.toml": "[package]\nname = \"my-app\"\n[dependencies]\nname = \"x\"\n"}},
		"Rust bin":   {"rust", "cargo build --release", "./target/release/web", map[string]string{"Cargo.toml": "[package]\nname = 'a'\n[[bin]]\nname = \"web\"\n[[bin]]\nname = \"other\"\n"}},
		"Rust run":   {"rust", "cargo build --release", "./target/release/other", map[string]string{"Cargo.toml": "[package]\nname = 'a'\ndefault-run = \"other\"\n[[bin]]\nname = \"web\"\n"}},
		"workspace":  {"rust", "cargo build --release", "", map[string]string{"Cargo.toml": "[workspace]\nmembers = [\"a\"]\n"}},
		"evil crate": {"rust", "cargo build --release", "", map[string]string{"Cargo.toml": "[package]\nname = \"a; reboot\"\n"}},
	} {
		c := runtimes[test.runtime].Defaults(test.top)
		if c.Build != test.build || c.Start != test.start {
			t.Errorf("%s: build %q, start %q", name, c.Build, c.Start)
		}
	}
	own := runtimes["python"]
	own.BuildCommand, own.StartCommand = "uv sync", "python -m app"
	if c := own.Defaults(map[string]string{"main.py": ""}); c.Build != "uv sync" || c.Start != "python -m app" || c.Why != "" {
		t.Errorf("the operator's commands do not win: %+v", c)
	}
}

// Whatever files say, what becomes a command is made of a few harmless characters.
// Beside a build command of one's own, nothing is started that only ours would have installed.
func TestStartBesideAnotherBuild(t *testing.T) {
	c := Runtimes()[0].Defaults(map[string]string{"requirements.txt": "Django", "manage.py": "DJANGO_SETTINGS_MODULE', 'mysite.settings'"})
	if got := c.With("make").Start; got != runserver {
		t.Errorf("it starts %q", got)
	}
	if got := c.With("").Start; got != "gunicorn --bind 0.0.0.0:$PORT mysite.wsgi" {
		t.Errorf("beside ours it starts %q", got)
	}
}

func FuzzDefaults(f *testing.F) {
	f.Add("fastapi", "app = FastAPI()", `{"main": "a.js"}`, "[package]\nname = 'a'")
	f.Add("flask\ngunicorn", "DJANGO_SETTINGS_MODULE', 'a.settings'", `{"scripts": {"build": "x"}}`, "[[bin]]\nname='b'")
	f.Fuzz(func(t *testing.T, requirements, python, pack, cargo string) {
		top := map[string]string{"requirements.txt": requirements, "main.py": python, "package.json": pack, "Cargo.toml": cargo}
		for _, r := range Runtimes() {
			c := r.Defaults(top)
			for _, text := range []string{c.Start, c.Build} {
				for _, b := range []byte(text) {
					harmless := b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9'
					if !harmless && !slices.Contains([]byte(" ./-_:$&"), b) {
						t.Fatalf("%q has %q", text, b)
					}
				}
			}
		}
	})
}

// A system is made anew on demand and by age, under its name, and says when it was made.
func TestRefresh(t *testing.T) {
	system := filepath.Join(t.TempDir(), "system.tar")
	writeTestTar(t, system, tar.Header{Name: "./bin/sh", Typeflag: tar.TypeReg})
	runs := fakeAssembler(t, "cat "+system)
	b := newBuilder(t, func(c *Config) { c.MaxAge = 24 * time.Hour })
	python, err := b.Runtime("python")
	if err != nil {
		t.Fatal(err)
	}
	assembled := func() int {
		n, _ := os.ReadFile(runs)
		return strings.Count(string(n), "run")
	}
	said := func(string) {}
	if _, _, err := b.Base(t.Context(), python, said); err != nil {
		t.Fatal(err)
	}
	all, err := b.Statuses(t.Context())
	if err != nil || len(all) != 4 || len(all[0].Systems) != 1 || len(all[2].Systems) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	if s := all[0].Systems[0]; s.Image == "" || time.Since(s.MadeAt) > time.Hour || s.Making || s.Error != "" {
		t.Errorf("python: %+v", s)
	}
	if s := all[2].Systems[0]; s.Image != "" || !s.MadeAt.IsZero() {
		t.Errorf("go: %+v", s)
	}
	if _, _, err := b.Base(t.Context(), python, said); err != nil || assembled() != 1 {
		t.Errorf("a young one was assembled %d times, %v", assembled(), err)
	}
	if err := b.Update(t.Context(), python, said); err != nil || assembled() != 2 {
		t.Errorf("on demand: assembled %d times, %v", assembled(), err)
	}
	// Old by now: whoever asks gets it at once, the new one is made meanwhile, and once.
	b.cfg.MaxAge = time.Nanosecond
	for range 2 {
		if _, _, err := b.Base(t.Context(), python, said); err != nil {
			t.Fatal(err)
		}
		b.running.Wait()
	}
	if assembled() != 3 {
		t.Errorf("by age: assembled %d times", assembled())
	}
	// A try that fails is told, and the former one stays.
	fakeAssembler(t, "exit 1")
	if err := b.Update(t.Context(), python, said); err == nil {
		t.Error("no error")
	}
	if all, err = b.Statuses(t.Context()); err != nil || all[0].Systems[0].Error == "" || all[0].Systems[0].Image == "" {
		t.Errorf("%+v, %v", all[0].Systems, err)
	}
}
