package platform

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/ports"
)

// DefaultStateDir is the folder of a platform when nothing else is said.
const DefaultStateDir = ".leapcell"

// Namespace is the Nomad namespace of everything that users run.
const Namespace = "leapcell"

const configFile = "config.json"

// Config is all that can be set on a platform. What is stored of it in the state folder is
// what later commands find.
type Config struct {
	StateDir string `json:"stateDir"` // absolute
	// Name tells this platform's cgroups, links, network namespaces and firewall table from
	// those of another on the same machine: at most six characters.
	Name   string `json:"name"`
	Bind   string `json:"bind"`   // address of the edge and the API
	Domain string `json:"domain"` // services are {service}.{domain}
	Ports  Ports  `json:"ports"`

	Runtime          string   `json:"runtime"`               // what makes the sandboxes; "": the driver chooses
	NetworkInterface string   `json:"networkInterface"`      // whose address instances get
	AllowEgress      []string `json:"allowEgress,omitempty"` // private ranges that instances may reach
	LogLevel         string   `json:"logLevel"`
	// Set holds settings of single parts that have no field here, such as leapcelld.builds,
	// leapcell-edge.access-log or driver.suspend_after.
	Set map[string]string `json:"set,omitempty"`

	BinDir string `json:"binDir"` // our binaries
	// ToolsDir holds the modules that Nomad and Vault are built from when PATH has none.
	ToolsDir string `json:"toolsDir,omitempty"`

	// Out gets the progress lines.
	Out io.Writer `json:"-"`
	// Home and Environ are where this machine's package-manager settings are read from.
	Home    string   `json:"-"`
	Environ []string `json:"-"`
}

// Ports of one platform. All are on loopback except Edge and API, which follow Config.Bind.
type Ports struct {
	Edge         int `json:"edge"`
	API          int `json:"api"`
	Registry     int `json:"registry"`
	Nomad        int `json:"nomad"`
	NomadRPC     int `json:"nomadRPC"`
	NomadSerf    int `json:"nomadSerf"`
	Vault        int `json:"vault"`
	VaultCluster int `json:"vaultCluster"`
	// Instances get theirs from this range; two platforms should not share one.
	InstancesFrom int `json:"instancesFrom"`
	InstancesTo   int `json:"instancesTo"`
}

// DefaultPorts are those of the first platform on a machine.
func DefaultPorts() Ports {
	return Ports{
		Edge: 8080, API: 8400, Registry: 8401, Nomad: 4646, NomadRPC: 4647, NomadSerf: 4648,
		Vault: 8200, VaultCluster: 8201, InstancesFrom: 20000, InstancesTo: 25999,
	}
}

// FreePorts finds ports that nobody listens on now, for a platform beside others: its parts
// have the first of them, its instances the rest.
func FreePorts() (Ports, error) {
	const each = 300
	from, err := ports.Free(each, ports.ForPlatforms)
	if err != nil {
		return Ports{}, fmt.Errorf("finding free ports: %w", err)
	}
	return Ports{
		Edge: from, API: from + 1, Registry: from + 2, Nomad: from + 3, NomadRPC: from + 4, NomadSerf: from + 5,
		Vault: from + 6, VaultCluster: from + 7, InstancesFrom: from + 10, InstancesTo: from + each - 1,
	}, nil
}

// DefaultConfig is the configuration of a platform in stateDir. The binaries are looked for
// beside the running executable, the tool modules in the checkout around them.
func DefaultConfig(stateDir string) (Config, error) {
	abs, err := filepath.Abs(stateDir)
	if err != nil {
		return Config{}, fmt.Errorf("state folder %q: %w", stateDir, err)
	}
	abs = realPath(abs)
	bin := "."
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		bin = filepath.Dir(exe)
	}
	home, _ := os.UserHomeDir() // without one, its settings are simply not there
	return Config{
		StateDir: abs, Name: nameOf(abs), Bind: "127.0.0.1", Domain: "leapcell.localhost", Ports: DefaultPorts(),
		NetworkInterface: "lo", LogLevel: "info",
		BinDir: bin, ToolsDir: filepath.Join(filepath.Dir(bin), "tools"),
		Out: io.Discard, Home: home, Environ: os.Environ(),
	}, nil
}

// realPath resolves symbolic links, as the kernel does in its list of mounts, for as much of
// path as exists.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	parent := filepath.Dir(path)
	if parent == path {
		return path
	}
	return filepath.Join(realPath(parent), filepath.Base(path))
}

// nameOf is short because network links have fifteen characters in all.
func nameOf(stateDir string) string {
	sum := sha256.Sum256([]byte(stateDir))
	return hex.EncodeToString(sum[:3])
}

// LoadConfig reads the configuration that [Platform.Up] stored in stateDir. When there is
// none it gives the defaults and false.
func LoadConfig(stateDir string) (Config, bool, error) {
	cfg, err := DefaultConfig(stateDir)
	if err != nil {
		return Config{}, false, err
	}
	path := filepath.Join(cfg.StateDir, configFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return cfg, false, nil
	}
	if err != nil {
		return Config{}, false, fmt.Errorf("reading the platform's settings: %w", err)
	}
	bin, tools, dir := cfg.BinDir, cfg.ToolsDir, cfg.StateDir
	if err := json.Unmarshal(b, &cfg); err != nil {
		return Config{}, false, fmt.Errorf("%s is damaged: %w", path, err)
	}
	// The folder may have been moved, and the command that runs now is the one to use.
	cfg.BinDir, cfg.ToolsDir, cfg.StateDir = bin, tools, dir
	return cfg, true, nil
}

// FindStateDir looks for a platform's folder named [DefaultStateDir] in dir and its parents.
func FindStateDir(dir string) (string, bool) {
	for {
		candidate := filepath.Join(dir, DefaultStateDir)
		if _, err := os.Stat(filepath.Join(candidate, configFile)); err == nil {
			return candidate, true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
}

// Validate says what is wrong with the settings and how to put it right.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.StateDir) {
		return leapcell.Errorf(leapcell.CodeInvalid, "the state folder %q must be an absolute path", c.StateDir)
	}
	if len(c.Name) == 0 || len(c.Name) > 6 {
		return leapcell.Errorf(leapcell.CodeInvalid, "the platform's name %q must have one to six characters", c.Name)
	}
	if c.Ports.InstancesFrom < 1024 || c.Ports.InstancesTo <= c.Ports.InstancesFrom {
		return leapcell.Errorf(leapcell.CodeInvalid, "the ports of instances, %d to %d, are not a range above 1024",
			c.Ports.InstancesFrom, c.Ports.InstancesTo)
	}
	for key := range c.Set {
		part, name, _ := strings.Cut(key, ".")
		if !slices.Contains([]string{controlName, edgeName, driverPart, clientPart}, part) || name == "" {
			return leapcell.Errorf(leapcell.CodeInvalid, "the setting %q belongs to no part: it must begin with leapcelld., leapcell-edge., driver. or nomad-client.", key)
		}
	}
	seen := map[int]string{}
	for _, p := range c.Ports.list() {
		if p.number < 1 || p.number > 65535 {
			return leapcell.Errorf(leapcell.CodeInvalid, "the %s port is %d: it must be from 1 to 65535", p.name, p.number)
		}
		if other, ok := seen[p.number]; ok {
			return leapcell.Errorf(leapcell.CodeInvalid, "%s and %s have the same port %d", other, p.name, p.number)
		}
		seen[p.number] = p.name
	}
	return nil
}

// set gives what [Config.Set] has for one part, in a fixed order.
func (c Config) set(part string) (names, values []string) {
	for _, key := range sortedKeys(c.Set) {
		if name, ok := strings.CutPrefix(key, part+"."); ok {
			names, values = append(names, name), append(values, c.Set[key])
		}
	}
	return names, values
}

type listenPort struct {
	name, flag, process string
	number              int
}

func (p Ports) list() []listenPort {
	return []listenPort{
		{"edge", "port", edgeName, p.Edge},
		{"API", "api-port", controlName, p.API},
		{"registry", "registry-port", controlName, p.Registry},
		{"Nomad", "nomad-port", "nomad", p.Nomad},
		{"Nomad RPC", "nomad-rpc-port", "nomad", p.NomadRPC},
		{"Nomad serf", "nomad-serf-port", "nomad", p.NomadSerf},
		{"Vault", "vault-port", "vault", p.Vault},
		{"Vault cluster", "vault-cluster-port", "vault", p.VaultCluster},
	}
}

func (c Config) save() error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("storing the platform's settings: %w", err)
	}
	return writeFile(c.path(configFile), append(b, '\n'), 0o644)
}

func (c Config) path(elem ...string) string {
	return filepath.Join(append([]string{c.StateDir}, elem...)...)
}

func address(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// reachable is bind as a client on this machine dials it.
func (c Config) reachable() string {
	if ip := net.ParseIP(c.Bind); ip != nil && ip.IsUnspecified() {
		return "127.0.0.1"
	}
	return c.Bind
}

// APIAddress is where the control plane's API answers.
func (c Config) APIAddress() string { return "http://" + address(c.reachable(), c.Ports.API) }

// EdgeAddress is where the edge listens, as host:port.
func (c Config) EdgeAddress() string { return address(c.reachable(), c.Ports.Edge) }

// NomadAddress is Nomad's API and UI.
func (c Config) NomadAddress() string { return "http://" + address("127.0.0.1", c.Ports.Nomad) }

// VaultAddress is Vault's API.
func (c Config) VaultAddress() string { return "http://" + address("127.0.0.1", c.Ports.Vault) }

// RegistryAddress is the control plane's private registry, as host:port.
func (c Config) RegistryAddress() string { return address("127.0.0.1", c.Ports.Registry) }

// PublicURL is the address that the URLs of services are made from.
func (c Config) PublicURL() string { return fmt.Sprintf("http://%s:%d", c.Domain, c.Ports.Edge) }

// AdminTokenFile holds the API token that was made at the control plane's first start.
func (c Config) AdminTokenFile() string { return c.path("control", "admin.token") }

// SecretsTokenFile holds the token that reads values of variables back, of Vault and of the API.
func (c Config) SecretsTokenFile() string { return c.path("control", "secrets.token") }

// NomadTokenFile holds Nomad's management token.
func (c Config) NomadTokenFile() string { return c.path("nomad", "management.token") }

// NomadToken is the file with the Nomad token of one part: control, edge or node.
func (c Config) NomadToken(part string) string { return c.path("nomad", part+".token") }

// LogFile is the log of one process: vault, nomad, leapcelld or leapcell-edge.
func (c Config) LogFile(process string) string { return c.path("logs", process+".log") }

// NodeDir is the driver's state folder.
func (c Config) NodeDir() string { return c.path("node") }

// writeFile replaces path in one step: a reader, or a crash, sees the old or the new file.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already once renamed
	if err := errors.Join(f.Chmod(mode), write(f, b), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}
