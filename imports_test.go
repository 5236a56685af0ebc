package leapcell_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/leapcell/leapcell"

// importRule says what packages below from (a folder of the module, "." is the root package
// alone) may not import, and why. Names without a dot in their first element are standard
// library packages, names that start with "./" are folders of the module.
type importRule struct {
	from string
	ban  []string // these and everything below them
	but  []string // what the ban names by its folder but does not mean
	only []string // if set: nothing but these and everything below them; "std" is the standard library
	why  string
}

// The arrows between the areas. A rule that stands in the way is changed here, with its
// reason, not worked around.
var importRules = []importRule{
	{from: ".", only: []string{"std"},
		why: "every part shares the nouns; a dependency here is a dependency of all of them"},
	{from: ".", ban: []string{"net/http", "os", "os/exec", "database/sql", "log", "log/slog"},
		why: "nouns do no I/O"},
	{from: "driver", ban: []string{"./api", "./jobs", "./traefik", "./terraform", "./cmd", "./internal/platform"},
		why: "a node knows Nomad, Vault and a registry; it must run without the control plane"},
	{from: "jobs", ban: []string{"./api", "./driver", "./traefik", "./terraform", "./cmd", "./internal/platform"},
		why: "jobs are made of nouns alone, so that golden files can show what Nomad gets"},
	{from: "jobs", ban: []string{"net/http", "os", "os/exec", "database/sql", "log", "log/slog"},
		why: "pure functions: the same nouns give the same job"},
	{from: "traefik", ban: []string{"./api", "./driver", "./jobs", "./terraform", "./cmd", "./internal/platform"},
		why: "the edge serves when the control plane is down; it learns everything from Nomad"},
	{from: "internal/front", only: []string{"std", "."},
		why: "what node, control plane and edge agree on brings none of them the others' libraries"},
	{from: "internal/signature", only: []string{"std", "."},
		why: "node and control plane agree on what is signed; how it is fetched is for each of them"},
	{from: "traefik/wake", only: []string{"std", "."},
		why: "the request path stays readable and testable on its own: Nomad and Traefik come in through interfaces"},
	{from: "terraform", ban: []string{"./driver", "./jobs", "./traefik", "./cmd", "./internal/platform"},
		why: "the provider is a client of the API"},
	{from: "terraform", ban: []string{"./api"}, but: []string{"./api/client"},
		why: "the provider goes through api/client"},
	{from: "cmd/leapcell", ban: []string{"./api", "./driver", "./jobs", "./traefik", "./terraform"}, but: []string{"./api/client"},
		why: "the CLI goes through api/client, so that whatever it can do, a user's program can"},
	{from: "api", ban: []string{"./driver", "./traefik", "./terraform", "./cmd", "./internal/platform"},
		why: "the control plane tells Nomad what to run; it never reaches into a node or an edge"},
	{from: "api/client", ban: []string{"./api/server", "./api/store", "./api/deploy", "./api/build", "./api/registry",
		"github.com/gin-gonic/gin", "github.com/hashicorp/nomad", "github.com/hashicorp/vault", "modernc.org/sqlite"},
		why: "a client is small enough for anybody's program"},
	{from: "internal", ban: []string{"./cmd"},
		why: "commands wire packages together, never the other way round"},
}

func TestImportsFollowTheTable(t *testing.T) {
	imports := moduleImports(t)
	if len(imports["."]) == 0 {
		t.Fatal("no import of the root package was found: the test looks in the wrong place")
	}
	for _, rule := range importRules {
		for dir, list := range imports {
			if !covers(rule.from, dir) {
				continue
			}
			for _, imp := range list {
				if bad(rule, imp) {
					t.Errorf("%s imports %s\n\twhich it must not: %s", dir, imp, rule.why)
				}
			}
		}
	}
}

func TestNothingImportsTheTests(t *testing.T) {
	for dir, list := range moduleImports(t) {
		for _, imp := range list {
			if within("./test", imp) && !within("test", dir) {
				t.Errorf("%s imports %s: the product must build without its tests", dir, imp)
			}
		}
	}
}

// The table itself is tested: a rule that catches nothing protects nothing.
func TestImportRulesCatch(t *testing.T) {
	for _, c := range []struct {
		dir, imp string
		want     bool
	}{
		{".", "fmt", false},
		{".", "gopkg.in/yaml.v3", true},
		{".", "net/http", true},
		{"driver/gate", "./jobs", true},
		{"driver/gate", ".", false},
		{"traefik/wake", "net/http", false},
		{"traefik/wake", "github.com/hashicorp/nomad/api", true},
		{"traefik/wake", "./traefik/routes", true},
		{"traefik/routes", "github.com/hashicorp/nomad/api", false},
		{"cmd/leapcell", "./api/client", false},
		{"cmd/leapcell", "./api/store", true},
		{"cmd/leapcelld", "./api/store", false},
		{"api/client", "github.com/gin-gonic/gin", true},
		{"jobs", "os", true},
	} {
		got := slices.ContainsFunc(importRules, func(r importRule) bool {
			return covers(r.from, c.dir) && bad(r, c.imp)
		})
		if got != c.want {
			t.Errorf("%s importing %s: caught is %v, want %v", c.dir, c.imp, got, c.want)
		}
	}
}

// bad reports whether rule forbids the import.
func bad(rule importRule, imp string) bool {
	below := func(base string) bool { return within(base, imp) }
	if slices.ContainsFunc(rule.but, below) {
		return false
	}
	if slices.ContainsFunc(rule.ban, below) {
		return true
	}
	if rule.only == nil {
		return false
	}
	return !slices.ContainsFunc(rule.only, func(o string) bool {
		return o == "std" && isStandard(imp) || o == imp
	})
}

// covers reports whether a rule for the folder from holds for dir.
func covers(from, dir string) bool { return from == dir || from != "." && within(from, dir) }

// within reports whether name is base or below it.
func within(base, name string) bool { return name == base || strings.HasPrefix(name, base+"/") }

func isStandard(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".")
}

// moduleImports gives for each folder of the module what its non-test files import, with
// the module's own packages written as "." and "./folder".
func moduleImports(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); p != "." && (n[0] == '.' || n == "testdata" || n == "tools" || n == "examples" || n == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir := path.Dir(filepath.ToSlash(p))
		for _, spec := range file.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if imp == module {
				imp = "."
			} else if rest, ok := strings.CutPrefix(imp, module+"/"); ok {
				imp = "./" + rest
			}
			if !slices.Contains(out[dir], imp) {
				out[dir] = append(out[dir], imp)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
