package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/cdn"
	"github.com/leapcell/leapcell/api/outbound"
)

// Config is all that an operator can set. Each field is a flag, and a variable of the
// environment: --nomad-addr is LEAPCELL_NOMAD_ADDR. The flag wins.
type Config struct {
	DataDir     string
	Standby     bool
	Listen      string
	AdminListen string

	RegistryListen          string
	RegistryAddress         string
	RegistryCredentialsFile string

	NomadAddr      string
	NomadTokenFile string
	NomadNamespace string

	VaultAddr      string
	VaultTokenFile string
	VaultTransit   string
	SignKey        string

	Domain         string
	PublicURL      string
	EdgeTokenFile  string
	NodeTokenFile  string
	UploadLimit    size
	CallsPerMinute int

	RuntimesFile   string
	BaseSuite      string
	BaseAge        time.Duration
	AptConfigDir   string
	Mirrors        string
	Plan           leapcell.Plan // as the flag of that name says, changed by the others
	AllowFileURLs  bool
	SourceNetworks outbound.Networks

	Static cdn.S3Config // without a bucket: the folder "static" in the data folder

	CollectAge      time.Duration
	MetricsServices int
	LogLevel        slog.Level
}

// defaults are those of one machine.
func defaults() Config {
	return Config{
		DataDir: ".leapcell/control", Listen: "127.0.0.1:8400", RegistryListen: "127.0.0.1:8401",
		NomadAddr: "http://127.0.0.1:4646", NomadNamespace: "leapcell",
		VaultAddr: "http://127.0.0.1:8200", VaultTransit: "leapcell",
		Domain: "leapcell.localhost", PublicURL: "http://leapcell.localhost:8080",
		UploadLimit: 100 << 20, CallsPerMinute: 10_000,
		MetricsServices: 100, CollectAge: time.Hour, Static: cdn.S3Config{Addressing: "auto"},
		BaseSuite: "trixie", BaseAge: 30 * 24 * time.Hour, Plan: leapcell.Plans()[0],
	}
}

// flags declares every setting over its value in c.
func (c *Config) flags(out io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("leapcelld", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&c.DataDir, "data-dir", c.DataDir, "folder for the store, the registry, uploads and logs")
	f.BoolVar(&c.Standby, "standby", c.Standby, "wait while another leapcelld works in the data folder, and take over when it ends; both have the same settings")
	f.StringVar(&c.Listen, "listen", c.Listen, "address of the API")
	f.StringVar(&c.AdminListen, "admin-listen", c.AdminListen, "address for /metrics, such as 127.0.0.1:8402; it asks for no token (default off)")
	f.IntVar(&c.MetricsServices, "metrics-services", c.MetricsServices, "services with a label of their own in /metrics; the others share one")
	f.StringVar(&c.RegistryListen, "registry-listen", c.RegistryListen, "address of the embedded registry")
	f.StringVar(&c.RegistryAddress, "registry-address", c.RegistryAddress, "host:port by which nodes reach the registry (default that of --registry-listen)")
	f.StringVar(&c.RegistryCredentialsFile, "registry-credentials-file", c.RegistryCredentialsFile, "file with which nodes get into the registry; made when missing (default registry.json in the data folder)")
	f.StringVar(&c.NomadAddr, "nomad-addr", c.NomadAddr, "address of Nomad")
	f.StringVar(&c.NomadTokenFile, "nomad-token-file", c.NomadTokenFile, "file with the Nomad token (default none)")
	f.StringVar(&c.NomadNamespace, "nomad-namespace", c.NomadNamespace, "Nomad namespace of services and builds")
	f.StringVar(&c.VaultAddr, "vault-addr", c.VaultAddr, "address of Vault")
	f.StringVar(&c.VaultTokenFile, "vault-token-file", c.VaultTokenFile, "file with the Vault token; read again when Vault no longer takes it")
	f.StringVar(&c.SignKey, "sign-key", c.SignKey, "key in that mount that images are signed with, such as image.signing, or image.signing:2 for one version of it (default none: images are not signed)")
	f.StringVar(&c.VaultTransit, "vault-transit", c.VaultTransit, "mount of Vault's transit engine")
	f.StringVar(&c.Domain, "domain", c.Domain, "domain below which services get their names")
	f.StringVar(&c.PublicURL, "public-url", c.PublicURL, "how visitors reach the edge; scheme and port are taken from it")
	f.StringVar(&c.EdgeTokenFile, "edge-token-file", c.EdgeTokenFile, "file with the token that edges report with; made when missing (default edge.token in the data folder)")
	f.StringVar(&c.NodeTokenFile, "node-token-file", c.NodeTokenFile, "file with the token that nodes report usage with; made when missing (default node.token in the data folder)")
	f.Var(&c.UploadLimit, "upload-limit", "largest source archive, such as 100MB")
	f.IntVar(&c.CallsPerMinute, "calls-per-minute", c.CallsPerMinute, "API calls a minute for each token, 100 to 10000")
	f.StringVar(&c.RuntimesFile, "runtimes-file", c.RuntimesFile, "YAML file with runtimes of your own or changes to the built-in ones (default none)")
	f.StringVar(&c.BaseSuite, "base-suite", c.BaseSuite, "Debian suite that base images are assembled from")
	f.StringVar(&c.Mirrors, "mirrors", c.Mirrors, "where images of a registry are read instead, such as docker.io=registry.example.com/hub,quay.io=http://10.0.0.5:5000/quay; a registry that leads to itself need not be public (default none)")
	f.DurationVar(&c.BaseAge, "base-age", c.BaseAge, "base images older than this are made anew when they are next used; 0 is never")
	f.StringVar(&c.AptConfigDir, "apt-config-dir", c.AptConfigDir, "folder with apt settings for assembling base images (default none)")
	c.planFlags(f)
	c.staticFlags(f)
	f.DurationVar(&c.CollectAge, "collect-age", c.CollectAge, "how long images, layers and build results stay at least after nothing needs them any more: longer than a push takes")
	f.BoolVar(&c.AllowFileURLs, "allow-file-urls", c.AllowFileURLs, "let deployments read git repositories on this machine's disk (file://)")
	f.Var((*networks)(&c.SourceNetworks), "source-networks", "private networks that git repositories and the APIs of their hosts may be in, such as 10.1.0.0/16,192.168.7.2 (default none)")
	f.TextVar(&c.LogLevel, "log-level", c.LogLevel, "debug, info, warn or error")
	return f
}

// staticFlags declares where static files are.
func (c *Config) staticFlags(f *flag.FlagSet) {
	s := &c.Static
	f.StringVar(&s.Bucket, "static-bucket", s.Bucket, "bucket of S3, or of what speaks like it, for static files; edges fetch from it (default none: they are in the data folder)")
	f.StringVar(&s.Endpoint, "static-endpoint", s.Endpoint, "address of the bucket's service, such as https://s3.example.com, as edges reach it too (default Amazon S3)")
	f.StringVar(&s.Region, "static-region", s.Region, "region of the bucket (default: the service is asked)")
	f.StringVar(&s.Prefix, "static-prefix", s.Prefix, "what all names in the bucket begin with, for platforms that share one (default none)")
	f.StringVar(&s.Addressing, "static-addressing", s.Addressing, "where the bucket's name stands in an address: path, host, or auto: in the host for services that are known to want it there, such as Amazon's, else in the path")
	f.StringVar(&s.CredentialsFile, "static-credentials-file", s.CredentialsFile, "file (0600) with the bucket's keys in the form of ~/.aws/credentials, profile default; read again when it changes (default: AWS_* in the environment, ~/.aws/credentials, the machine's role)")
}

// planFlags declares the plan and what an operator may change of it.
func (c *Config) planFlags(f *flag.FlagSet) {
	p := &c.Plan
	f.Func("plan", "limits of workspaces: hobby (default) or pro; the flags from here to --images-kept change single ones", func(name string) error {
		_, err := leapcell.PlanOf(name)
		return err
	})
	f.IntVar(&p.Builds, "builds", p.Builds, "builds at the same time in a workspace")
	f.IntVar(&p.BuildCPUs, "build-cpus", p.BuildCPUs, "cores of a build")
	f.IntVar(&p.BuildMemoryMB, "build-memory", p.BuildMemoryMB, "memory of a build in MB")
	f.IntVar(&p.BuildDiskMB, "build-disk", p.BuildDiskMB, "what a build may write, in MB")
	f.DurationVar((*time.Duration)(&p.BuildTimeout), "build-timeout", time.Duration(p.BuildTimeout), "how long a build may take")
	f.IntVar(&p.CacheMB, "cache-limit", p.CacheMB, "dependencies kept between the builds of a service, in MB on each node")
	f.IntVar(&p.DeploymentsPerDay, "deployments-per-day", p.DeploymentsPerDay, "deployments of a workspace in 24 hours that somebody asked for; 0 is no limit")
	f.IntVar(&p.AutomaticPerDay, "automatic-per-day", p.AutomaticPerDay, "deployments of a workspace in 24 hours that pushes made; 0 is no limit")
	f.IntVar(&p.ImageMB, "image-limit", p.ImageMB, "size of an image with its base, in MB")
	f.IntVar(&p.ImagesKept, "images-kept", p.ImagesKept, "former images of a service kept for rollback")
}

// choosePlan finds which plan is meant: the other flags change that one.
func (c *Config) choosePlan(args []string, env func(string) string) {
	name := env(envName("plan"))
	for i, arg := range args {
		flag := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		if value, ok := strings.CutPrefix(flag, "plan="); ok && flag != arg {
			name = value
		} else if flag == "plan" && flag != arg && i+1 < len(args) {
			name = args[i+1]
		}
	}
	if p, err := leapcell.PlanOf(name); err == nil { // else the flag itself says what is wrong
		c.Plan = p
	}
}

// readConfig reads environment and flags over the defaults.
func readConfig(args []string, env func(string) string, out io.Writer) (Config, error) {
	c := defaults()
	c.choosePlan(args, env)
	f := c.flags(out)
	var bad error
	f.VisitAll(func(one *flag.Flag) {
		name := envName(one.Name)
		if v := env(name); v != "" {
			if err := one.Value.Set(v); err != nil {
				bad = errors.Join(bad, fmt.Errorf("%s is %q: %w", name, v, err))
			}
		}
	})
	if bad != nil {
		return c, bad
	}
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q: all settings are flags", f.Arg(0))
	}
	return c.complete(), c.Validate()
}

// envName is the variable of the environment that stands for a flag.
func envName(flag string) string {
	return "LEAPCELL_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// complete fills in the settings that follow from others.
func (c Config) complete() Config {
	for file, name := range map[*string]string{&c.RegistryCredentialsFile: "registry.json", &c.EdgeTokenFile: "edge.token", &c.NodeTokenFile: "node.token"} {
		if *file == "" {
			*file = c.path(name)
		}
	}
	if c.RegistryAddress == "" {
		c.RegistryAddress = c.RegistryListen
	}
	return c
}

// Validate checks what flags of the right type can still have wrong. The parts check the
// rest when they are made.
func (c Config) Validate() error {
	var bad []error
	for name, value := range map[string]string{
		"--data-dir": c.DataDir, "--nomad-addr": c.NomadAddr, "--nomad-namespace": c.NomadNamespace,
		"--vault-addr": c.VaultAddr, "--vault-transit": c.VaultTransit, "--domain": c.Domain,
	} {
		if value == "" {
			bad = append(bad, fmt.Errorf("%s is empty: it is needed", name))
		}
	}
	for name, value := range map[string]string{"--listen": c.Listen, "--registry-listen": c.RegistryListen} {
		if _, _, err := net.SplitHostPort(value); err != nil {
			bad = append(bad, fmt.Errorf("%s is %q: it must be host:port", name, value))
		}
	}
	if c.Static.Bucket == "" && c.Static != defaults().Static {
		bad = append(bad, errors.New("--static-bucket is empty, and another setting of the bucket is set: it is needed"))
	}
	if c.CollectAge < time.Second {
		bad = append(bad, fmt.Errorf("--collect-age is %s: it must be at least 1s", c.CollectAge))
	}
	if err := c.Plan.Validate(); err != nil {
		bad = append(bad, fmt.Errorf("--%w", err))
	}
	return errors.Join(bad...)
}

func (c Config) path(name string) string { return c.DataDir + string(os.PathSeparator) + name }

// size is a number of bytes that is written with a unit.
type size int64

var units = []struct {
	name  string
	bytes int64
}{{"GB", 1 << 30}, {"MB", 1 << 20}, {"KB", 1 << 10}, {"", 1}}

// String writes it in the largest unit that fits.
func (s size) String() string {
	for _, u := range units {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return "0"
}

// Set reads it.
func (s *size) Set(text string) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(strings.ToUpper(text), u.name)
		if !ok {
			continue
		}
		v, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || v < 1 || v > (1<<50)/u.bytes {
			break
		}
		*s = size(v * u.bytes)
		return nil
	}
	return fmt.Errorf("%q is not a size such as 100MB", text)
}

// networks is a list of networks as a flag.
type networks outbound.Networks

func (n networks) String() string { return outbound.Networks(n).String() }

func (n *networks) Set(text string) error {
	parsed, err := outbound.ParseNetworks(text)
	*n = networks(parsed)
	return err
}
