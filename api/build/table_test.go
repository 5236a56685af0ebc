package build

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

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
