package supervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/image"
)

// Config is the settings of a node: the plugin block of the Nomad agent writes it (codec
// tags), the plugin hands it to the supervisor as a file (json tags). driver/plugin/about.go
// documents each.
type Config struct {
	StateDir    string      `codec:"state_dir" json:"stateDir"`
	Name        string      `codec:"name" json:"name"`
	Runtime     string      `codec:"runtime" json:"runtime"`
	Fallback    string      `codec:"-" json:"-"` // why Runtime is not our own, where nobody has set it
	Subnet      string      `codec:"subnet" json:"subnet"`
	NetnsPool   int         `codec:"netns_pool" json:"netnsPool"`
	AllowEgress []string    `codec:"allow_egress" json:"allowEgress"`
	DenyEgress  []string    `codec:"deny_egress" json:"denyEgress"`
	DiskMB      int         `codec:"disk_mb" json:"diskMB"`
	Nomad       string      `codec:"nomad_addr" json:"nomadAddr"`
	NomadToken  string      `codec:"nomad_token_file" json:"nomadTokenFile"`
	Vault       string      `codec:"vault_addr" json:"vaultAddr"`
	VaultAuth   string      `codec:"vault_auth" json:"vaultAuth"`
	VaultRole   string      `codec:"vault_role" json:"vaultRole"`
	Transit     string      `codec:"vault_transit" json:"vaultTransit"`
	VaultCA     string      `codec:"vault_ca_file" json:"vaultCAFile"`
	Credentials string      `codec:"registry_credentials_file" json:"registryCredentialsFile"`
	APIAddr     string      `codec:"api_addr" json:"apiAddr"`
	APIToken    string      `codec:"api_token_file" json:"apiTokenFile"`
	ImageAge    string      `codec:"image_gc_age" json:"imageGCAge"`
	ImageHigh   int         `codec:"image_gc_high_percent" json:"imageGCHighPercent"`
	ImageLow    int         `codec:"image_gc_low_percent" json:"imageGCLowPercent"`
	Verify      string      `codec:"verify" json:"verify"`
	VerifyKeys  string      `codec:"verify_keys_file" json:"verifyKeysFile"`
	Build       BuildConfig `codec:"build" json:"build"`
	Suspend     string      `codec:"suspend_after" json:"suspendAfter"`
	LogLevel    string      `codec:"log_level" json:"logLevel"`

	// TakeOver lets a supervisor that is being started take the tasks of the running one.
	TakeOver bool `codec:"-" json:"-"`
}

// BuildConfig is what the operator passes into builds: proxies, mirrors, CA bundles.
type BuildConfig struct {
	Env   map[string]string `codec:"env" json:"env"`
	Files map[string]string `codec:"files" json:"files"` // path inside -> path on the host
}

var platformName = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

// WithDefaults fills in what was left out and checks the rest. Errors name the setting.
func (c Config) WithDefaults() (Config, error) {
	if c.StateDir == "" {
		return c, errors.New("state_dir is missing: it names the folder in which the driver keeps images, caches and state")
	}
	if !filepath.IsAbs(c.StateDir) {
		return c, fmt.Errorf("state_dir is %q: it must be an absolute path", c.StateDir)
	}
	if c.Name == "" {
		sum := sha256.Sum256([]byte(filepath.Clean(c.StateDir)))
		c.Name = hex.EncodeToString(sum[:3])
	}
	if !platformName.MatchString(c.Name) {
		return c, fmt.Errorf("name is %q: it must be 1 to 8 characters of a-z and 0-9", c.Name)
	}
	for _, d := range []struct {
		setting *string
		value   string
	}{
		{&c.VaultAuth, "jwt-leapcell"}, {&c.VaultRole, "instance"},
		{&c.Transit, "leapcell"}, {&c.Suspend, "20ms"}, {&c.LogLevel, "info"},
	} {
		if *d.setting == "" {
			*d.setting = d.value
		}
	}
	if c.Runtime == "" {
		var lacking error
		if c.Runtime, lacking = cell.Choose(); lacking != nil {
			c.Fallback = leapcell.ErrorMessage(lacking)
		}
	}
	if c.DiskMB == 0 {
		c.DiskMB = 10240
	}
	if c.DiskMB < 64 {
		return c, fmt.Errorf("disk_mb is %d: a persistent instance needs a disk of at least 64 MB", c.DiskMB)
	}
	if c.NetnsPool <= 0 {
		c.NetnsPool = 4
	}
	if d, err := time.ParseDuration(c.Suspend); err != nil || d <= 0 || d > leapcell.SuspendAfter {
		return c, fmt.Errorf("suspend_after is %q: it must be a duration over 0 and up to %s", c.Suspend, leapcell.SuspendAfter)
	}
	if err := c.collectDefaults(); err != nil {
		return c, err
	}
	if err := c.checkVerify(); err != nil {
		return c, err
	}
	if _, err := c.subnet(); err != nil {
		return c, err
	}
	for name, list := range map[string][]string{"allow_egress": c.AllowEgress, "deny_egress": c.DenyEgress} {
		if _, err := prefixes(name, list); err != nil {
			return c, err
		}
	}
	for inside, host := range c.Build.Files {
		if !filepath.IsAbs(inside) || !filepath.IsAbs(host) {
			return c, fmt.Errorf("build.files maps %q to %q: both must be absolute paths", inside, host)
		}
	}
	return c, nil
}

// collectDefaults fills in and checks when images are removed.
func (c *Config) collectDefaults() error {
	if c.ImageAge == "" {
		c.ImageAge = image.DefaultAge.String()
	}
	if d, err := time.ParseDuration(c.ImageAge); err != nil || d < 0 || d > 0 && d < image.Grace {
		return fmt.Errorf("image_gc_age is %q: it must be a duration of at least %s, or 0 for never", c.ImageAge, image.Grace)
	}
	if c.ImageHigh == 0 {
		c.ImageHigh = image.DefaultHigh
	}
	if c.ImageLow == 0 {
		c.ImageLow = min(image.DefaultLow, c.ImageHigh-1)
	}
	if c.ImageLow < 1 || c.ImageLow >= c.ImageHigh || c.ImageHigh > 100 {
		return fmt.Errorf("image_gc_low_percent is %d and image_gc_high_percent %d: they must be from 1 to 100, and low under high", c.ImageLow, c.ImageHigh)
	}
	return nil
}

// checkVerify checks what is done about unsigned images. The keys' file is read when it is needed:
// it may come after the agent has started.
func (c *Config) checkVerify() error {
	switch c.Verify {
	case "":
		c.Verify = image.VerifyOff
	case image.VerifyOff, image.VerifyWarn, image.VerifyRequire:
	default:
		return fmt.Errorf("verify is %q: it must be off, warn or require", c.Verify)
	}
	if c.Verify != image.VerifyOff && !filepath.IsAbs(c.VerifyKeys) {
		return fmt.Errorf("verify_keys_file is %q: with verify = %q it must be the absolute path of a file with public keys in PEM form", c.VerifyKeys, c.Verify)
	}
	return nil
}

func (c Config) verify() image.Verify { return image.Verify{Mode: c.Verify, KeysFile: c.VerifyKeys} }

func (c Config) collect() image.Collect {
	age, _ := time.ParseDuration(c.ImageAge) // checked by WithDefaults
	return image.Collect{Age: age, High: c.ImageHigh, Low: c.ImageLow}
}

// subnet is the one set, or a /20 of the shared address space (100.64.0.0/10) chosen by
// name, so that two platforms on one machine do not meet.
func (c Config) subnet() (netip.Prefix, error) {
	if c.Subnet != "" {
		p, err := netip.ParsePrefix(c.Subnet)
		if err != nil || !p.Addr().Is4() {
			return p, fmt.Errorf("subnet is %q: it must be an IPv4 network such as 100.64.0.0/20", c.Subnet)
		}
		return p.Masked(), nil
	}
	sum := sha256.Sum256([]byte(c.Name))
	n := (uint32(sum[0])<<8 | uint32(sum[1])) % 1024 // the /10 has 1024 networks of /20
	a := uint32(100)<<24 | uint32(64)<<16 | n<<12
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}), 20), nil
}

// prefixes reads a setting that is a list of networks.
func prefixes(name string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%s contains %q: it must be a network such as 10.1.0.0/16", name, s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func (c Config) suspendAfter() time.Duration {
	d, _ := time.ParseDuration(c.Suspend) // checked by WithDefaults
	return d
}

// Group is the cgroup below which everything of this platform runs; also the name of its
// folder in /run.
func (c Config) Group() string { return "leapcell-" + c.Name }

// Socket is where the supervisor listens.
func (c Config) Socket() string { return filepath.Join(c.StateDir, "supervisor.sock") }

// HandoverSocket is where the supervisors of the node meet.
func (c Config) HandoverSocket() string { return filepath.Join(c.StateDir, "handover.sock") }

// RunDir holds what must not reach a disk and need not survive a reboot.
func (c Config) RunDir() string { return filepath.Join("/run", c.Group()) }

func (c Config) path(elem ...string) string {
	return filepath.Join(append([]string{c.StateDir}, elem...)...)
}

// File is where the plugin leaves the settings for the supervisor.
func (c Config) File() string { return c.path("supervisor.json") }

// Write stores the settings in [Config.File], readable by root only.
func (c Config) Write() error {
	if err := os.MkdirAll(c.StateDir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(c.File(), b)
}

// ReadConfig reads what [Config.Write] wrote.
func ReadConfig(file string) (Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Config{}, err
	}
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	return c.WithDefaults()
}

// writeFile replaces a file as a whole: a reader sees the old or the new content.
func writeFile(name string, b []byte) error {
	tmp := name + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}
