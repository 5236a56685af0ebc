package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/leapcell/leapcell"
)

// Runtime is what a service is built and run with.
type Runtime struct {
	Name string `yaml:"name" json:"name"`
	// Image is a ready image to use; without one, Packages are assembled.
	Image    string   `yaml:"image" json:"image,omitempty"`
	Packages []string `yaml:"packages" json:"packages,omitempty"`
	// Setup is run by sh in the root of the assembled system.
	Setup []string `yaml:"setup" json:"setup,omitempty"`

	// BuildCommand and StartCommand are for services that set none; Markers are files at
	// the top of a source by which its runtime is told when none is set.
	BuildCommand string   `yaml:"buildCommand" json:"-"`
	StartCommand string   `yaml:"startCommand" json:"-"`
	Markers      []string `yaml:"markers" json:"-"`
	// Caches are folders that stay between the builds of one service on one node.
	Caches []string `yaml:"caches" json:"-"`
}

// common is in every base image that is assembled: what users' build commands take for
// granted, and a C compiler, which Python, Node and Rust packages ask for without notice.
var common = []string{
	"bash", "ca-certificates", "curl", "git", "netbase", "tzdata",
	"gcc", "libc6-dev", "make", "pkg-config",
}

// pipSetup makes pip the one that upgrades itself and everything else: Debian's own refuses
// system-wide installs, and cannot replace the packages it came with.
var pipSetup = []string{
	"rm -f /usr/lib/python3*/EXTERNALLY-MANAGED",
	"ln -sf python3 /usr/bin/python",
	`python3 "$(echo /usr/share/python-wheels/pip-*.whl)/pip" --no-cache-dir install --root-user-action=ignore --no-index --find-links=/usr/share/python-wheels pip`,
}

// Runtimes gives the built-in table.
func Runtimes() []Runtime {
	return []Runtime{
		{
			Name:         "python",
			Packages:     []string{"g++", "python3", "python3-dev", "python3-venv"},
			Setup:        pipSetup,
			Markers:      []string{"requirements.txt", "pyproject.toml"},
			BuildCommand: "if [ -f requirements.txt ]; then pip install -r requirements.txt; elif [ -f pyproject.toml ]; then pip install .; fi",
			Caches:       []string{"/root/.cache/pip"},
		},
		{
			Name:         "node",
			Packages:     []string{"g++", "nodejs", "npm"},
			Markers:      []string{"package.json"},
			BuildCommand: "npm install",
			StartCommand: "npm start",
			Caches:       []string{"/root/.npm"},
		},
		{
			Name:         "go",
			Packages:     []string{"golang-go"},
			Markers:      []string{"go.mod"},
			BuildCommand: "go build -o app",
			StartCommand: "./app",
			Caches:       []string{"/root/.cache/go-build", "/root/go/pkg/mod"},
		},
		{
			Name:         "rust",
			Packages:     []string{"cargo", "libssl-dev", "rustc"},
			Markers:      []string{"Cargo.toml"},
			BuildCommand: "cargo build --release",
			Caches:       []string{"/root/.cargo/registry", "/root/.cargo/git"},
		},
	}
}

// ReadRuntimes gives the built-in table changed by the operator's file: a list of runtimes
// in YAML, whose fields replace those of the built-in one of the same name, or which are
// new. An empty path is no file.
func ReadRuntimes(path string) ([]Runtime, error) {
	table := Runtimes()
	if path == "" {
		return table, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("runtimes: %w", err)
	}
	var nodes []yaml.Node
	if err := yaml.Unmarshal(b, &nodes); err != nil {
		return nil, fmt.Errorf("runtimes: %s must be a list: %w", path, err)
	}
	for i := range nodes {
		if table, err = override(table, &nodes[i]); err != nil {
			return nil, fmt.Errorf("runtimes: %s line %d: %w", path, nodes[i].Line, err)
		}
	}
	return table, nil
}

func override(table []Runtime, node *yaml.Node) ([]Runtime, error) {
	var given Runtime
	if err := decodeStrict(node, &given); err != nil {
		return nil, err
	}
	if given.Name == "" {
		return nil, errors.New("a runtime needs a name")
	}
	i := slices.IndexFunc(table, func(r Runtime) bool { return r.Name == given.Name })
	if i < 0 {
		if given.Image == "" && len(given.Packages) == 0 {
			return nil, fmt.Errorf("the new runtime %q needs an image or packages", given.Name)
		}
		return append(table, given), nil
	}
	return table, node.Decode(&table[i])
}

// decodeStrict refuses unknown keys, which yaml.Node itself cannot.
func decodeStrict(node *yaml.Node, to any) error {
	b, err := yaml.Marshal(node)
	if err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(to); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// recipeVersion grows when what this package does to a base image changes.
const recipeVersion = 1

// tag names the base image in the registry: another recipe is another image.
func (r Runtime) tag(suite string) string {
	recipe := struct {
		Version int
		Suite   string
		Common  []string
		Setup   []string
		Runtime Runtime
	}{recipeVersion, suite, common, baseSetup, r}
	b, err := json.Marshal(recipe)
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}

// Runtime gives the runtime of that name; the error of an unknown one lists the known.
func (b *Builder) Runtime(name string) (Runtime, error) {
	for _, r := range b.cfg.Runtimes {
		if r.Name == name {
			return r, nil
		}
	}
	return Runtime{}, leapcell.Errorf(leapcell.CodeInvalid, "the runtime %q is not known; the known ones are %s", name, b.known())
}

// Detect gives the runtime of a source by the names at its top.
func (b *Builder) Detect(names map[string]bool) (Runtime, error) {
	for _, r := range b.cfg.Runtimes {
		if slices.ContainsFunc(r.Markers, func(m string) bool { return names[m] }) {
			return r, nil
		}
	}
	return Runtime{}, leapcell.Errorf(leapcell.CodeInvalid, "no runtime is set, and the source does not show one: set runtime in leapcell.yaml to one of %s", b.known())
}

func (b *Builder) known() string {
	names := make([]string, len(b.cfg.Runtimes))
	for i, r := range b.cfg.Runtimes {
		names[i] = r.Name
	}
	return strings.Join(names, ", ")
}
