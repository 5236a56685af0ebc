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

// Base is a system that images stand on: a ready image, or what is assembled from Debian
// packages.
type Base struct {
	Image    string   `yaml:"image" json:"image,omitempty"`
	Suite    string   `yaml:"suite" json:"suite,omitempty"` // of Debian; "" is the platform's
	Packages []string `yaml:"packages" json:"packages,omitempty"`
	// Bare leaves out what builds take for granted, a C compiler for one.
	Bare bool `yaml:"bare" json:"bare,omitempty"`
	// Setup is run by sh in the root of the assembled system.
	Setup []string `yaml:"setup" json:"setup,omitempty"`
}

func (b Base) packages() []string {
	if b.Bare {
		return b.Packages
	}
	return append(slices.Clone(common), b.Packages...)
}

func (b Base) isZero() bool { return b.Image == "" && len(b.Packages) == 0 }

// Version is one version of a runtime: where it stands on something else than the row says.
type Version struct {
	Version string `yaml:"version" json:"version,omitempty"`
	Base    `yaml:",inline"`
	Run     *Base `yaml:"run" json:"run,omitempty"`
}

// Runtime is a row of the table: what a service is built and run with.
type Runtime struct {
	Name string `yaml:"name" json:"name"`
	// The version that a service gets that asks for none, and what it is built on. With Run,
	// its instances stand on another, smaller system than its builds.
	Version `yaml:",inline"`
	// Versions are further ones: a service asks for them as name@version.
	Versions []Version `yaml:"versions" json:"versions,omitempty"`

	// BuildCommand and StartCommand are for services that set none; Markers are files at
	// the top of a source by which its runtime is told when none is set.
	BuildCommand string   `yaml:"buildCommand" json:"buildCommand,omitempty"`
	StartCommand string   `yaml:"startCommand" json:"startCommand,omitempty"`
	Markers      []string `yaml:"markers" json:"markers,omitempty"`
	// Caches are folders that stay between the builds of one service on one node.
	Caches []string `yaml:"caches" json:"caches,omitempty"`

	guess func(top map[string]string) Commands // the built-in defaults; nil: none but the above
}

// at gives the row with another of its versions as the one that counts.
func (r Runtime) at(version string) (Runtime, bool) {
	if version == r.Version.Version {
		return r, true
	}
	i := slices.IndexFunc(r.Versions, func(v Version) bool { return v.Version == version })
	if i < 0 {
		return r, false
	}
	v := r.Versions[i]
	if v.isZero() { // the same packages of another suite
		v.Packages, v.Setup = r.Packages, r.Setup
		if v.Run == nil {
			v.Run = r.Run
		}
	}
	if v.Run != nil && v.Run.Suite == "" {
		run := *v.Run
		run.Suite, v.Run = v.Suite, &run
	}
	r.Version = v
	return r, true
}

// preferring makes the version of suite the default one. What Debian calls by the same name has
// another version in each; of a suite that the table does not know it is not told.
func (r Runtime) preferring(suite string) Runtime {
	if r.Suite == "" || r.Suite == suite {
		return r
	}
	former := r.Version
	if i := slices.IndexFunc(r.Versions, func(v Version) bool { return v.Suite == suite }); i >= 0 {
		others := slices.Delete(slices.Clone(r.Versions), i, i+1)
		r, _ = r.at(r.Versions[i].Version)
		r.Versions = append(others, former)
		return r
	}
	r.Version.Version, r.Suite = "", suite
	return r
}

// String is the name as a service asks for it.
func (r Runtime) String() string {
	if r.Version.Version == "" {
		return r.Name
	}
	return r.Name + " " + r.Version.Version
}

// common is in every base image that is assembled and not bare: what users' build commands take for
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

// cargoSetup makes cargo take, where no Cargo.lock says which, the newest versions that this Rust can
// compile, and not the newest of all: Debian's Rust is older than what many crates ask for by now.
// Source: https://doc.rust-lang.org/cargo/reference/config.html#resolverincompatible-rust-versions
var cargoSetup = []string{
	`mkdir -p /.cargo && printf '[resolver]\nincompatible-rust-versions = "fallback"\n' > /.cargo/config.toml`,
}

// slim is what instances of compiled programs stand on: no compiler, no package of a language.
var slim = Base{Bare: true, Packages: []string{"bash", "ca-certificates", "netbase", "openssl", "tzdata"}}

// of names the versions that Debian has: the first is that of [DefaultSuite].
func of(trixie, bookworm string, packages []string, setup []string, run *Base) (Version, []Version) {
	return Version{Version: trixie, Base: Base{Suite: "trixie", Packages: packages, Setup: setup}, Run: run},
		[]Version{{Version: bookworm, Base: Base{Suite: "bookworm"}}}
}

// Runtimes gives the built-in table, in the order in which sources are looked at.
func Runtimes() []Runtime {
	python := Runtime{
		Name: "python", Markers: []string{"requirements.txt", "pyproject.toml", "Pipfile"},
		Caches: []string{"/root/.cache/pip"}, guess: guessPython,
	}
	python.Version, python.Versions = of("3.13", "3.11", []string{"g++", "python3", "python3-dev", "python3-venv"}, pipSetup, nil)
	node := Runtime{
		Name: "node", Markers: []string{"package.json"}, Caches: []string{"/root/.npm"}, guess: guessNode,
	}
	node.Version, node.Versions = of("20", "18", []string{"g++", "nodejs", "npm"}, nil, nil)
	golang := Runtime{
		Name: "go", Markers: []string{"go.mod"}, BuildCommand: "go build -o app", StartCommand: "./app",
		Caches: []string{"/root/.cache/go-build", "/root/go/pkg/mod"},
	}
	golang.Version, golang.Versions = of("1.24", "1.19", []string{"golang-go"}, nil, &slim)
	rust := Runtime{
		Name: "rust", Markers: []string{"Cargo.toml"}, BuildCommand: "cargo build --release",
		Caches: []string{"/root/.cargo/registry", "/root/.cargo/git"}, guess: guessRust,
	}
	rust.Version, rust.Versions = of("1.85", "1.63", []string{"cargo", "libssl-dev", "rustc"}, cargoSetup, &slim)
	return []Runtime{python, node, golang, rust}
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
	if slices.Contains(reserved, given.Name) || strings.Contains(given.Name, "@") {
		return nil, fmt.Errorf("a runtime cannot have the name %q", given.Name)
	}
	i := slices.IndexFunc(table, func(r Runtime) bool { return r.Name == given.Name })
	if i < 0 {
		if given.isZero() {
			return nil, fmt.Errorf("the new runtime %q needs an image or packages", given.Name)
		}
		return append(table, given), nil
	}
	row := &table[i]
	if !given.isZero() { // on another base, what is known of Debian's does not hold
		row.Version.Version, row.Run, row.Versions = "", nil, nil
		row.Suite = ""
	}
	return table, node.Decode(row)
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
const recipeVersion = 2

// tag names the base image in the registry: another recipe is another image, and runtimes that
// stand on the same share it.
func (b Base) tag(suite string) string {
	if b.Suite == "" {
		b.Suite = suite
	}
	if b.Image == "" {
		b.Packages, b.Setup = b.packages(), slices.Concat(b.Setup, baseSetup)
	}
	recipe := struct {
		Version int
		Base    Base
	}{recipeVersion, b}
	text, err := json.Marshal(recipe)
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:6])
}

// reserved are runtimes that are not rows of the table.
var reserved = []string{leapcell.RuntimeDocker, leapcell.RuntimeImage, leapcell.RuntimeStatic}

// Runtime gives the runtime of that name, or name@version; the error of an unknown one lists
// the known.
func (b *Builder) Runtime(name string) (Runtime, error) {
	if name == leapcell.RuntimeStatic { // an empty system: nothing is run
		return Runtime{Name: name, Version: Version{Base: Base{Bare: true}}}, nil
	}
	name, version, chosen := strings.Cut(name, "@")
	for _, r := range b.cfg.Runtimes {
		if r.Name != name {
			continue
		}
		if !chosen {
			return r, nil
		}
		if found, ok := r.at(version); ok {
			return found, nil
		}
		return Runtime{}, leapcell.Errorf(leapcell.CodeInvalid, "the runtime %s has no version %q; it has %s", name, version, r.versions())
	}
	return Runtime{}, leapcell.Errorf(leapcell.CodeInvalid, "the runtime %q is not known; the known ones are %s", name, b.known())
}

func (r Runtime) versions() string {
	all := []string{r.Version.Version}
	for _, v := range r.Versions {
		all = append(all, v.Version)
	}
	return strings.Join(all, ", ")
}

// Runtimes gives the table as it is in effect.
func (b *Builder) Runtimes() []Runtime { return slices.Clone(b.cfg.Runtimes) }

// Found is the runtime that a source shows, and the file that shows it.
type Found struct{ Runtime, File string }

// Detect tells the runtime of a source by the names at its top: a Dockerfile says all there is
// to say, and a page alone needs nothing to run it.
func (b *Builder) Detect(names map[string]bool) (Found, error) {
	if names["Dockerfile"] {
		return Found{leapcell.RuntimeDocker, "Dockerfile"}, nil
	}
	for _, r := range b.cfg.Runtimes {
		for _, m := range r.Markers {
			if names[m] {
				return Found{r.Name, m}, nil
			}
		}
	}
	if names["index.html"] {
		return Found{leapcell.RuntimeStatic, "index.html"}, nil
	}
	return Found{}, leapcell.Errorf(leapcell.CodeInvalid, "no runtime is set, and the source does not show one: set runtime in leapcell.yaml to one of %s", b.known())
}

func (b *Builder) known() string {
	names := make([]string, len(b.cfg.Runtimes))
	for i, r := range b.cfg.Runtimes {
		names[i] = r.Name
	}
	return strings.Join(append(names, leapcell.RuntimeDocker, leapcell.RuntimeStatic), ", ")
}
