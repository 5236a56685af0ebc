package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Platform is one platform on this machine.
type Platform struct {
	cfg Config

	nomadBin, vaultBin string
	build              BuildSettings
	base               bool // without a control plane
}

// New makes a handle on the platform that cfg describes; it touches nothing yet.
func New(cfg Config) (*Platform, error) {
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	if cfg.Environ == nil {
		cfg.Environ = os.Environ()
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Platform{cfg: cfg}, nil
}

// Config is what the platform was made with.
func (p *Platform) Config() Config { return p.cfg }

// Up brings everything up and then takes the steps in more. Each step finds out what is
// there already, so Up may be repeated at any time; after a failure it goes on where it was.
func (p *Platform) Up(ctx context.Context, more ...Step) error {
	return p.steps(ctx, append([]Step{
		{Title: "System: root on Linux", Run: p.checkSystem},
		{Title: "System: packages", Run: p.installPackages},
		{Title: "Nomad: program", Run: p.findNomad},
		{Title: "Vault: program", Run: p.findVault},
		{Title: "Builds: package-manager settings of this machine", Run: p.readHost},
		{Title: "Vault: starting, unsealing", Run: p.startVault, Log: "vault"},
		{Title: "Nomad: starting server and client", Run: p.startNomad, Log: "nomad"},
		{Title: "Nomad: access rules, tokens, driver", Run: p.secureNomad, Log: "nomad"},
		{Title: "Vault: keys, logins of instances", Run: p.wireVault, Log: "vault"},
		{Title: "Control plane", Run: p.startControl, Log: controlName},
		{Title: "Edge", Run: p.startEdge, Log: edgeName},
	}, more...))
}

// UpBase brings Vault and Nomad up with all access rules, without the platform on top.
func (p *Platform) UpBase(ctx context.Context) error {
	p.base = true
	return p.steps(ctx, []Step{
		{Title: "System: root on Linux", Run: p.checkSystem},
		{Title: "Nomad: program", Run: p.findNomad},
		{Title: "Vault: program", Run: p.findVault},
		{Title: "Builds: package-manager settings of this machine", Run: p.readHost},
		{Title: "Vault: starting, unsealing", Run: p.startVault, Log: "vault"},
		{Title: "Nomad: starting server and client", Run: p.startNomad, Log: "nomad"},
		{Title: "Nomad: access rules, tokens, driver", Run: p.secureNomad, Log: "nomad"},
		{Title: "Vault: keys, logins of instances", Run: p.wireVault, Log: "vault"},
	})
}

// Tools finds Nomad and Vault, or builds them, and gives their paths.
func (p *Platform) Tools(ctx context.Context) (nomad, vault string, err error) {
	lines := &progress{out: p.cfg.Out}
	for i, s := range []Step{
		{Title: "Nomad: program", Run: p.findNomad},
		{Title: "Vault: program", Run: p.findVault},
	} {
		if err := lines.run(ctx, i+1, 2, s); err != nil {
			return "", "", err
		}
	}
	return p.nomadBin, p.vaultBin, nil
}

func (p *Platform) steps(ctx context.Context, steps []Step) error {
	if err := os.MkdirAll(p.cfg.StateDir, 0o755); err != nil {
		return fmt.Errorf("making the state folder: %w", err)
	}
	unlock, err := p.lock()
	if err != nil {
		return err
	}
	defer unlock()
	lines := &progress{out: p.cfg.Out}
	for i, s := range steps {
		if err := lines.run(ctx, i+1, len(steps), s); err != nil {
			return p.failed(ctx, s, err)
		}
	}
	return nil
}

// failed tells what to do next. What is up stays up.
func (p *Platform) failed(ctx context.Context, s Step, err error) error {
	if ctx.Err() != nil {
		return leapcell.Errorf(leapcell.CodeCancelled, "stopped at %q; what is up stays up: `leapcell up` goes on from here, `leapcell down` takes it down", s.Title)
	}
	hint := "what is up stays up; `leapcell up` goes on from here"
	if s.Log != "" {
		hint += ", the whole log is " + p.cfg.LogFile(s.Log)
	}
	return fmt.Errorf("%s: %w\n(%s)", s.Title, err, hint)
}

// lock keeps a second up or down off the same platform.
func (p *Platform) lock() (unlock func(), err error) {
	path := p.cfg.path("lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the platform: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, leapcell.Errorf(leapcell.CodeConflict, "another `leapcell up` or `down` is at work on %s: wait for it to end", p.cfg.StateDir)
	} else if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

func (p *Platform) findNomad(ctx context.Context, note func(string, ...any)) (err error) {
	p.nomadBin, err = p.provide(ctx, nomadTool, note)
	return err
}

func (p *Platform) findVault(ctx context.Context, note func(string, ...any)) (err error) {
	p.vaultBin, err = p.provide(ctx, vaultTool, note)
	return err
}

func (p *Platform) readHost(ctx context.Context, note func(string, ...any)) error {
	p.build = p.hostSettings(ctx)
	for _, n := range p.build.Notes {
		note("%s", n)
	}
	return p.build.Write()
}

// socketDirMax is the longest folder that may hold the unix sockets of Nomad's plugins: an
// address has 107 characters, of which the socket's own name takes some thirty.
const socketDirMax = 70

// serverEnv is the environment of our processes: the operator's, without what would point
// Nomad's and Vault's own clients, or ours, somewhere else. Their temporary files, which a
// kill leaves behind, are kept in the state folder.
func (p *Platform) serverEnv() []string {
	var env []string
	if tmp := p.cfg.path("tmp"); len(tmp) <= socketDirMax && os.MkdirAll(tmp, 0o700) == nil && os.Chmod(tmp, os.ModeSticky|0o777) == nil {
		env = append(env, "TMPDIR="+tmp)
	}
	for _, entry := range p.cfg.Environ {
		name, _, _ := strings.Cut(entry, "=")
		foreign := name == "TMPDIR"
		for _, prefix := range []string{"NOMAD_", "VAULT_", "CONSUL_", "AWS_", "LEAPCELL_"} {
			foreign = foreign || strings.HasPrefix(name, prefix)
		}
		if !foreign {
			env = append(env, entry)
		}
	}
	return env
}

const (
	controlName = "leapcelld"
	edgeName    = "leapcell-edge"
	driverPart  = "driver"       // in [Config.Set]
	clientPart  = "nomad-client" // in [Config.Set]: of the agent's client block
)

// flags are the settings that cfg has for one part, as flags of its program.
func (c Config) flags(part string) []string {
	var flags []string
	names, values := c.set(part)
	for i, name := range names {
		flags = append(flags, "--"+name+"="+values[i])
	}
	return flags
}

func (p *Platform) registryCredentialsFile() string { return p.cfg.path("control", "registry.json") }
func (p *Platform) edgeTokenFile() string           { return p.cfg.path("control", "edge.token") }
func (p *Platform) nodeTokenFile() string           { return p.cfg.path("control", "node.token") }

func (p *Platform) controlDaemon() daemon {
	c := p.cfg
	args := []string{
		"--data-dir", c.path("control"),
		"--listen", address(c.Bind, c.Ports.API),
		"--registry-listen", c.RegistryAddress(),
		"--registry-address", c.RegistryAddress(),
		"--registry-credentials-file", p.registryCredentialsFile(),
		"--nomad-addr", c.NomadAddress(),
		"--nomad-token-file", c.NomadToken("control"),
		"--nomad-namespace", Namespace,
		"--vault-addr", c.VaultAddress(),
		"--vault-token-file", p.vaultTokenFile(),
		"--vault-transit", transitMount,
		"--sign-key", signKey,
		"--domain", c.Domain,
		"--public-url", c.PublicURL(),
		"--edge-token-file", p.edgeTokenFile(),
		"--node-token-file", p.nodeTokenFile(),
		"--apt-config-dir", c.path("host", "apt"),
		"--log-level", c.LogLevel,
		"--build-memory", fmt.Sprint(buildMemory()),
	}
	return daemon{
		name: controlName, path: filepath.Join(c.BinDir, controlName), args: append(args, c.flags(controlName)...),
		env: p.serverEnv(), dir: c.StateDir,
	}
}

// buildMemory is what a build gets, in MB: a small machine must still be able to place it.
func buildMemory() int {
	const plan = 4096
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return plan
	}
	total := info.Totalram * uint64(info.Unit) >> 20
	return max(512, min(plan, int(total*6/10)))
}

func (p *Platform) startControl(ctx context.Context, _ func(string, ...any)) error {
	if err := os.MkdirAll(p.cfg.path("control"), 0o700); err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	d := p.controlDaemon()
	if _, err := d.ensure(ctx); err != nil {
		return err
	}
	return d.await(ctx, readyLimit, func(ctx context.Context) error {
		if err := answers(ctx, p.cfg.APIAddress()+"/v1/health", true); err != nil {
			return err
		}
		_, err := os.Stat(p.cfg.AdminTokenFile())
		return err
	})
}

func (p *Platform) edgeDaemon() daemon {
	c := p.cfg
	args := []string{
		"--listen", address(c.Bind, c.Ports.Edge),
		"--nomad-addr", c.NomadAddress(),
		"--nomad-token-file", c.NomadToken("edge"),
		"--nomad-namespace", Namespace,
		"--api-addr", c.APIAddress(),
		"--api-token-file", p.edgeTokenFile(),
		"--id", "edge-" + c.Name,
		"--data-dir", c.path("edge"),
		"--log-level", c.LogLevel,
	}
	return daemon{
		name: edgeName, path: filepath.Join(c.BinDir, edgeName), args: append(args, c.flags(edgeName)...),
		env: p.serverEnv(), dir: c.StateDir,
	}
}

func (p *Platform) startEdge(ctx context.Context, _ func(string, ...any)) error {
	if err := os.MkdirAll(p.cfg.path("edge"), 0o700); err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	d := p.edgeDaemon()
	if _, err := d.ensure(ctx); err != nil {
		return err
	}
	return d.await(ctx, readyLimit, func(ctx context.Context) error {
		return answers(ctx, "http://"+p.cfg.EdgeAddress()+"/", false)
	})
}
