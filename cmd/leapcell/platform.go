package main

import (
	"context"

	"fmt"
	"maps"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/platform"
)

// settings of a new platform, or changes to the one that is there.
type platformFlags struct {
	ports     platform.Ports
	bind      string
	domain    string
	runtime   string
	iface     string
	logLevel  string
	egress    []string
	set       map[string]string
	freePorts bool
	base      bool
	noSample  bool
	sample    string
}

func (a *app) upCommand() *cobra.Command {
	var f platformFlags
	d := platform.DefaultPorts()
	cmd := &cobra.Command{
		Use: "up", Short: "Bring the platform up on this machine, deploy a sample and visit it", Args: cobra.NoArgs,
		Long: `Brings the whole platform up on this machine, as root: installs the system packages it lacks, finds Nomad and Vault or
builds them, starts everything in the background, deploys a sample and visits it. It may be repeated at any time: what is
up stays up. Settings are remembered in the state folder.`,
		Example: `  leapcell up
  leapcell up --state-dir /srv/leapcell --bind 0.0.0.0 --domain apps.example.com
  leapcell up --state-dir /tmp/second --free-ports   # beside the first`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.up(cmd, f) },
	}
	fl := cmd.Flags()
	fl.IntVar(&f.ports.Edge, "port", d.Edge, "port of the edge, where services answer")
	fl.IntVar(&f.ports.API, "api-port", d.API, "port of the API")
	fl.IntVar(&f.ports.Registry, "registry-port", d.Registry, "port of the private registry")
	fl.IntVar(&f.ports.Nomad, "nomad-port", d.Nomad, "port of Nomad's API and UI")
	fl.IntVar(&f.ports.NomadRPC, "nomad-rpc-port", d.NomadRPC, "port between Nomad's servers and clients")
	fl.IntVar(&f.ports.NomadSerf, "nomad-serf-port", d.NomadSerf, "port of Nomad's gossip")
	fl.IntVar(&f.ports.Vault, "vault-port", d.Vault, "port of Vault's API")
	fl.IntVar(&f.ports.VaultCluster, "vault-cluster-port", d.VaultCluster, "port between Vault's servers")
	fl.BoolVar(&f.freePorts, "free-ports", false, "choose ports that are free, unless the platform has some already")
	fl.StringVar(&f.bind, "bind", "127.0.0.1", "address that the edge and the API listen on")
	fl.StringVar(&f.domain, "domain", "leapcell.localhost", "services answer below this domain")
	fl.StringVar(&f.runtime, "runtime", "", "what makes the sandboxes of instances: leapcell, runc or crun (default leapcell, or runc where the kernel lacks something)")
	fl.StringVar(&f.iface, "network-interface", "lo", "network interface whose address instances get")
	fl.StringSliceVar(&f.egress, "allow-egress", nil, "private ranges that instances may reach, such as 10.1.0.0/16")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.StringToStringVar(&f.set, "set", nil, "settings of single parts, such as leapcelld.builds=2, driver.suspend_after=50ms or nomad-client.memory_total_compute=64000")
	fl.StringVar(&f.sample, "sample", "", "folder to deploy at the end; default examples/go of the checkout")
	fl.BoolVar(&f.noSample, "no-sample", false, "do not deploy a sample")
	fl.BoolVar(&f.base, "base", false, "only Vault and Nomad, with their access rules and the driver")
	_ = cmd.MarkFlagDirname("sample")
	return cmd
}

func (a *app) up(cmd *cobra.Command, f platformFlags) error {
	cfg, err := a.upConfig(cmd, f)
	if err != nil {
		return err
	}
	p, err := platform.New(cfg)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	if f.base {
		return p.UpBase(ctx)
	}
	var steps []platform.Step
	s := &sample{cfg: cfg, dir: f.sample}
	if !f.noSample {
		if s.dir == "" {
			s.dir = filepath.Join(filepath.Dir(cfg.BinDir), "examples", "go")
		}
		steps = []platform.Step{
			{Title: "Sample: deploying " + s.dir, Run: s.deploy, Log: "leapcelld"},
			{Title: "Sample: visit", Run: s.visit, Log: "leapcell-edge"},
		}
	}
	if err := p.Up(ctx, steps...); err != nil {
		return err
	}
	return a.upSummary(cfg, s)
}

// upConfig is what the state folder remembers, changed by the flags that were given.
func (a *app) upConfig(cmd *cobra.Command, f platformFlags) (platform.Config, error) {
	cfg, known, err := platform.LoadConfig(a.platformDir())
	if err != nil {
		return cfg, err
	}
	if f.freePorts && !known {
		if cfg.Ports, err = platform.FreePorts(); err != nil {
			return cfg, err
		}
	}
	given := cmd.Flags().Changed
	for name, set := range map[string]func(){
		"port":               func() { cfg.Ports.Edge = f.ports.Edge },
		"api-port":           func() { cfg.Ports.API = f.ports.API },
		"registry-port":      func() { cfg.Ports.Registry = f.ports.Registry },
		"nomad-port":         func() { cfg.Ports.Nomad = f.ports.Nomad },
		"nomad-rpc-port":     func() { cfg.Ports.NomadRPC = f.ports.NomadRPC },
		"nomad-serf-port":    func() { cfg.Ports.NomadSerf = f.ports.NomadSerf },
		"vault-port":         func() { cfg.Ports.Vault = f.ports.Vault },
		"vault-cluster-port": func() { cfg.Ports.VaultCluster = f.ports.VaultCluster },
		"bind":               func() { cfg.Bind = f.bind },
		"domain":             func() { cfg.Domain = f.domain },
		"runtime":            func() { cfg.Runtime = f.runtime },
		"network-interface":  func() { cfg.NetworkInterface = f.iface },
		"allow-egress":       func() { cfg.AllowEgress = f.egress },
		"log-level":          func() { cfg.LogLevel = f.logLevel },
		"set": func() {
			merged := maps.Clone(cfg.Set)
			if merged == nil {
				merged = map[string]string{}
			}
			maps.Copy(merged, f.set)
			cfg.Set = merged
		},
	} {
		if given(name) {
			set()
		}
	}
	cfg.Environ, cfg.Out = a.environ, a.out
	if a.output == "json" {
		cfg.Out = a.err
	}
	return cfg, nil
}

func (a *app) downCommand() *cobra.Command {
	var purge bool
	cmd := &cobra.Command{
		Use: "down", Short: "Stop everything that up started; the data stays", Args: cobra.NoArgs,
		Long: `Stops everything of the platform on this machine and removes its mounts, networks, firewall rules and cgroups. The data
stays: the next up brings the services back. It may be repeated, and works when half of it is dead already.`,
		Example: "  leapcell down\n  leapcell down --purge   # the data as well",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := platform.LoadConfig(a.platformDir())
			if err != nil {
				return err
			}
			cfg.Environ, cfg.Out = a.environ, a.out
			p, err := platform.New(cfg)
			if err != nil {
				return err
			}
			return p.Down(cmd.Context(), purge)
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the state folder too: services, images, keys, logs")
	return cmd
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show each part of the platform on this machine, and what to do when one is down", Args: cobra.NoArgs,
		Example: "  leapcell status\n  leapcell status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, known, err := platform.LoadConfig(a.platformDir())
			if err != nil {
				return err
			}
			if !known {
				return leapcell.Errorf(leapcell.CodeNotFound, "there is no platform in %s: `leapcell up` makes one, --state-dir names another folder", cfg.StateDir)
			}
			p, err := platform.New(cfg)
			if err != nil {
				return err
			}
			return a.status(cmd.Context(), p)
		},
	}
}

func (a *app) toolsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tools", Short: "Find Nomad and Vault on this machine, or build them", Args: cobra.NoArgs,
		Long:    "Does the longest part of up beforehand: finds Nomad and Vault on PATH, or builds the pinned versions beside this program.",
		Example: "  leapcell tools",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := platform.LoadConfig(a.platformDir())
			if err != nil {
				return err
			}
			cfg.Environ, cfg.Out = a.environ, a.err
			p, err := platform.New(cfg)
			if err != nil {
				return err
			}
			nomad, vault, err := p.Tools(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(map[string]string{"nomad": nomad, "vault": vault}, []string{"nomad", nomad}, []string{"vault", vault})
		},
	}
}

func (a *app) status(ctx context.Context, p *platform.Platform) error {
	report := struct {
		platform.Report
		Services []leapcell.Service `json:"services"`
	}{Report: p.Status(ctx)}
	services, listErr := a.listServices(ctx)
	report.Services = append([]leapcell.Service{}, services...) // [] for JSON, not null
	rows := [][]string{{"PART", "STATE", "PID", "ADDRESS", "VERSION"}}
	for _, part := range report.Parts {
		state, pid := "healthy", ""
		if !part.Healthy {
			state = "unhealthy"
		}
		if !part.Running {
			state = "stopped"
		}
		if part.PID != 0 {
			pid = fmt.Sprint(part.PID)
		}
		rows = append(rows, []string{part.Name, state, dash(pid), part.Address, dash(part.Version)})
	}
	if err := a.show(report, rows...); err != nil {
		return err
	}
	if a.output == "table" {
		fmt.Fprintf(a.out, "\n%d services; state folder %s\n", len(report.Services), report.StateDir)
		for _, part := range report.Parts {
			if part.Advice != "" {
				fmt.Fprintf(a.out, "\n%s: %s\n  %s\n", part.Name, part.Detail, part.Advice)
			}
		}
	}
	if !report.Healthy || listErr != nil {
		return &exitError{1}
	}
	return nil
}
