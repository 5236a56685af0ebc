package build

import (
	"encoding/json"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Commands are what is run for a service that sets none. An empty one is not known.
type Commands struct {
	Build, Start string
	Why          string // of Start, in a few words; "" when there is nothing to say
	// Own is Start where Build is not run, because another command is set; "" when it is the same.
	Own string
}

// With are the commands beside a build command that is set; "" is none.
func (c Commands) With(build string) Commands {
	if build != "" && c.Own != "" {
		c.Start, c.Why = c.Own, ""
	}
	return c
}

// Heads are the files at the top of a source whose text [Runtime.Defaults] looks at.
var Heads = []string{"requirements.txt", "pyproject.toml", "Pipfile", "manage.py", "main.py", "app.py", "package.json", "Cargo.toml"}

// Defaults are the commands for a source with these texts at its top. What the table's row says
// wins over what the source shows.
func (r Runtime) Defaults(top map[string]string) Commands {
	var c Commands
	if r.guess != nil {
		c = r.guess(top)
	}
	if r.BuildCommand != "" {
		c.Build = r.BuildCommand
	}
	if r.StartCommand != "" {
		c.Start, c.Why, c.Own = r.StartCommand, "", ""
	}
	return c
}

var (
	pythonName = regexp.MustCompile(`[A-Za-z0-9][A-Za-z0-9._-]*`)
	djangoName = regexp.MustCompile(`DJANGO_SETTINGS_MODULE["'],\s*["']([A-Za-z_][A-Za-z0-9_]*)\.settings["']`)
	madeBy     = regexp.MustCompile(`(?m)^([A-Za-z_][A-Za-z0-9_]*)(?:\s*:[^=\n]*)?\s*=\s*(?:fastapi\.|flask\.)?(FastAPI|Flask)\(`)
)

const runserver = "python manage.py runserver --noreload 0.0.0.0:$PORT"

// guessPython follows the getting-started guides: Django, FastAPI, Flask, then a plain script.
func guessPython(top map[string]string) Commands {
	c := Commands{Build: "pip install ."}
	if _, ok := top["requirements.txt"]; ok {
		c.Build = "pip install -r requirements.txt"
	} else if _, ok := top["Pipfile"]; ok {
		c.Build = "pip install pipenv && pipenv install --system"
	} else if _, ok := top["pyproject.toml"]; !ok {
		c.Build = ""
	}
	needs := func(name string) bool {
		for _, file := range []string{"requirements.txt", "pyproject.toml", "Pipfile"} {
			for _, word := range pythonName.FindAllString(strings.ToLower(top[file]), -1) {
				if word == name {
					return true
				}
			}
		}
		return false
	}
	if text, ok := top["manage.py"]; ok {
		if found := djangoName.FindStringSubmatch(text); found != nil {
			c.Start, c.Why = "gunicorn --bind 0.0.0.0:$PORT "+found[1]+".wsgi", "Django with gunicorn"
			if !needs("gunicorn") {
				// runserver looks into the database before it listens: the guide's is a file beside
				// manage.py, which an instance cannot make.
				c.Build = strings.TrimPrefix(c.Build+" && pip install gunicorn", " && ")
				c.Why += ", which the build installs: runserver is for development"
				c.Own = runserver
			}
			return c
		}
		c.Start, c.Why = runserver, "Django's manage.py"
		return c
	}
	for _, file := range []string{"main.py", "app.py"} {
		found := madeBy.FindStringSubmatch(top[file])
		if found == nil {
			continue
		}
		app := strings.TrimSuffix(file, ".py") + ":" + found[1]
		switch {
		case found[2] == "FastAPI":
			c.Start, c.Why = "uvicorn --host 0.0.0.0 --port $PORT "+app, "FastAPI in "+file
		case needs("gunicorn"):
			c.Start, c.Why = "gunicorn --bind 0.0.0.0:$PORT "+app, "Flask in "+file+" with gunicorn"
		default:
			c.Start, c.Why = "flask --app "+app+" run --host 0.0.0.0 --port $PORT", "Flask in "+file
		}
		return c
	}
	for _, file := range []string{"main.py", "app.py"} {
		if _, ok := top[file]; ok {
			c.Start, c.Why = "python "+file, file
			return c
		}
	}
	return c
}

var scriptPath = regexp.MustCompile(`^[A-Za-z0-9_./-]+$`)

// guessNode reads package.json: what its scripts say is what people run themselves.
func guessNode(top map[string]string) Commands {
	c := Commands{Build: "npm install"}
	var pack struct {
		Main    string            `json:"main"`
		Scripts map[string]string `json:"scripts"`
	}
	if json.Unmarshal([]byte(top["package.json"]), &pack) != nil {
		return c // npm says what is wrong with it, better than we could
	}
	if pack.Scripts["build"] != "" {
		c.Build += " && npm run build"
	}
	main := path.Clean(pack.Main)
	switch {
	case pack.Scripts["start"] != "":
		c.Start, c.Why = "npm start", "the start script of package.json"
	case pack.Main != "" && scriptPath.MatchString(main) && !strings.HasPrefix(main, "-"):
		c.Start, c.Why = "node "+main, "main of package.json"
	}
	return c
}

var (
	tomlTable = regexp.MustCompile(`^\s*\[+\s*([A-Za-z0-9_.-]+)\s*\]+`)
	tomlText  = regexp.MustCompile(`^\s*([A-Za-z0-9_-]+)\s*=\s*["']([A-Za-z0-9_-]+)["']`)
)

// guessRust finds the program that cargo makes: the default one, else the first, else the
// package's.
func guessRust(top map[string]string) Commands {
	table := ""
	found := map[string]string{}
	for line := range strings.Lines(top["Cargo.toml"]) {
		if t := tomlTable.FindStringSubmatch(line); t != nil {
			table = t[1]
		} else if v := tomlText.FindStringSubmatch(line); v != nil {
			if key := table + "." + v[1]; found[key] == "" {
				found[key] = v[2]
			}
		}
	}
	keys := []string{"package.default-run", "bin.name", "package.name"}
	i := slices.IndexFunc(keys, func(k string) bool { return found[k] != "" })
	if i < 0 {
		return Commands{}
	}
	return Commands{Start: "./target/release/" + found[keys[i]], Why: "the program of Cargo.toml"}
}
