package platform

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
)

// nomadConfig renders the agent's configuration: one agent that is server and client.
func (p *Platform) nomadConfig(build BuildSettings) []byte {
	c := p.cfg
	var b strings.Builder
	fmt.Fprintf(&b, `# Written by leapcell up; changes are lost.
name                 = "leapcell"
data_dir             = %[1]q
plugin_dir           = %[2]q
bind_addr            = "127.0.0.1"
disable_update_check = true
leave_on_interrupt   = false
leave_on_terminate   = false
log_level            = %[3]q

advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
ports {
  http = %[4]d
  rpc  = %[5]d
  serf = %[6]d
}
acl {
  enabled = true
}
ui {
  enabled = true
}
consul {
  auto_advertise   = false
  server_auto_join = false
  client_auto_join = false
}
telemetry {
  publish_allocation_metrics = false
  publish_node_metrics       = false
}
server {
  enabled          = true
  bootstrap_expect = 1
}
`, c.path("nomad", "data"), c.path("nomad", "plugins"), strings.ToUpper(c.LogLevel),
		c.Ports.Nomad, c.Ports.NomadRPC, c.Ports.NomadSerf)
	// max_kill_timeout covers a request's fifteen minutes, which a stop lets finish, and the
	// ten seconds until SIGKILL. Finished allocations are kept for their logs.
	fmt.Fprintf(&b, `client {
  enabled                  = true
  network_interface        = %[1]q
  min_dynamic_port         = %[2]d
  max_dynamic_port         = %[3]d
  max_kill_timeout         = "20m"
  gc_interval              = "5m"
  gc_max_allocs            = 1000
  gc_disk_usage_threshold  = 95
  gc_inode_usage_threshold = 95
  cgroup_parent            = %[4]q
  options = {
    "driver.allowlist"     = "leapcell"
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
%[5]s}
`, c.NetworkInterface, c.Ports.InstancesFrom, c.Ports.InstancesTo, c.nomadCgroup(), c.clientSettings())
	b.WriteString(p.driverConfig(build))
	return []byte(b.String())
}

// clientSettings are the operator's own, such as memory_total_compute.
func (c Config) clientSettings() string {
	var b strings.Builder
	names, values := c.set(clientPart)
	for i, name := range names {
		fmt.Fprintf(&b, "  %s = %s\n", name, hclString(values[i]))
	}
	return b.String()
}

// nomadCgroup is of our name, so that down knows it: two agents must not share one.
func (c Config) nomadCgroup() string { return "leapcell-" + c.Name + "-nomad" }

// driverConfig renders the block that Nomad hands to the leapcell driver.
func (p *Platform) driverConfig(build BuildSettings) string {
	c := p.cfg
	var b strings.Builder
	fmt.Fprintf(&b, `plugin "nomad-driver-leapcell" {
  config {
    state_dir                 = %q
    name                      = %q
    runtime                   = %q
    nomad_addr                = %q
    nomad_token_file          = %q
    vault_addr                = %q
    vault_auth                = %q
    vault_role                = %q
    vault_transit             = %q
    registry_credentials_file = %q
    api_addr                  = %q
    api_token_file            = %q
    log_level                 = %q
`, c.NodeDir(), c.Name, c.Runtime, c.NomadAddress(), c.NomadToken("node"),
		c.VaultAddress(), jwtMount, instanceRole, transitMount, p.registryCredentialsFile(), c.APIAddress(), p.nodeTokenFile(), c.LogLevel)
	b.WriteString(p.verifyConfig())
	if len(c.AllowEgress) > 0 {
		fmt.Fprintf(&b, "    allow_egress = [%s]\n", strings.Join(quoteAll(c.AllowEgress), ", "))
	}
	names, values := c.set(driverPart)
	for i, name := range names {
		fmt.Fprintf(&b, "    %s = %s\n", name, hclString(values[i]))
	}
	b.WriteString("    build {\n")
	writeMap(&b, "env", build.Env)
	writeMap(&b, "files", build.Files)
	b.WriteString("    }\n  }\n}\n")
	return b.String()
}

func writeMap(b *strings.Builder, name string, m map[string]string) {
	fmt.Fprintf(b, "      %s = {\n", name)
	for _, k := range sortedKeys(m) {
		fmt.Fprintf(b, "        %s = %s\n", hclString(k), hclString(m[k]))
	}
	b.WriteString("      }\n")
}

// hclString quotes s; Nomad's configuration language reads ${ as the start of an expression.
func hclString(s string) string {
	return strings.ReplaceAll(fmt.Sprintf("%q", s), "${", "$${")
}

func quoteAll(values []string) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = hclString(v)
	}
	return out
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (p *Platform) nomadDaemon(config []byte) (daemon, error) {
	d := daemon{
		name: "nomad", path: p.nomadBin, args: []string{"agent", "-config=" + p.cfg.path("nomad", "nomad.hcl")},
		env: p.serverEnv(), dir: p.cfg.StateDir, config: config,
	}
	// A new driver needs a new agent as well: Nomad starts plugins once.
	driver := daemon{path: p.driverBin()}
	print, err := driver.fingerprint()
	if err != nil {
		return d, err
	}
	d.config = append(config[:len(config):len(config)], "# driver "+print+"\n"...)
	return d, nil
}

func (p *Platform) driverBin() string { return filepath.Join(p.cfg.BinDir, "nomad-driver-leapcell") }

// startNomad runs the agent and waits until it has a leader.
func (p *Platform) startNomad(ctx context.Context, _ func(string, ...any)) error {
	d, err := p.nomadDaemon(p.nomadConfig(p.build))
	if err != nil {
		return err
	}
	plugins := p.cfg.path("nomad", "plugins")
	if err := errors.Join(os.MkdirAll(plugins, 0o755), os.MkdirAll(p.cfg.path("nomad", "data"), 0o700)); err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	if err := link(p.driverBin(), filepath.Join(plugins, "nomad-driver-leapcell")); err != nil {
		return fmt.Errorf("nomad: installing the driver: %w", err)
	}
	if err := writeFile(p.cfg.path("nomad", "nomad.hcl"), d.config, 0o600); err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	if len(defaultCgroups()) == 0 {
		if err := writeFile(p.madeCgroups(), nil, 0o600); err != nil {
			return fmt.Errorf("nomad: %w", err)
		}
	}
	if _, err := d.ensure(ctx); err != nil {
		return err
	}
	return d.await(ctx, readyLimit, func(ctx context.Context) error {
		var leader string
		err := getJSON(ctx, p.cfg.NomadAddress()+"/v1/status/leader", &leader)
		if err == nil && leader == "" {
			err = errors.New("Nomad has no leader yet")
		}
		return err
	})
}

// madeCgroups is there when this platform's agent was the one to make [defaultCgroups].
func (p *Platform) madeCgroups() string { return p.cfg.path("nomad", "made-cgroups") }

// link points name at target, replacing what was there.
func link(target, name string) error {
	if old, err := os.Readlink(name); err == nil && old == target {
		return nil
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, name)
}

func (p *Platform) nomadClient(token string) (*nomad.Client, error) {
	client, err := nomad.NewClient(&nomad.Config{Address: p.cfg.NomadAddress(), SecretID: token, TLSConfig: &nomad.TLSConfig{}})
	if err != nil {
		return nil, fmt.Errorf("nomad client: %w", err)
	}
	client.SetNamespace("default") // whatever the operator's shell says
	client.SetRegion("")
	return client, nil
}

// nomadManager is a client with the management token, once there is one.
func (p *Platform) nomadManager() (*nomad.Client, error) {
	token, err := os.ReadFile(p.cfg.NomadTokenFile())
	if err != nil {
		return nil, fmt.Errorf("Nomad's management token: %w", err)
	}
	return p.nomadClient(strings.TrimSpace(string(token)))
}

// What each part of the platform may do in Nomad, and nothing else.
var nomadPolicies = map[string]string{
	// the control plane registers, scales and removes jobs, reads logs, writes variables
	"control": `
namespace "leapcell" {
  capabilities = ["list-jobs", "parse-job", "read-job", "submit-job", "dispatch-job", "scale-job", "read-job-scaling",
                  "list-scaling-policies", "read-scaling-policy", "read-logs", "read-fs", "alloc-lifecycle"]
  variables {
    path "leapcell/*" { capabilities = ["list", "read", "write", "destroy"] }
  }
}
node { policy = "read" }
agent { policy = "read" }
`,
	// the edge reads routes and instances, and wakes services
	"edge": `
namespace "leapcell" {
  capabilities = ["list-jobs", "read-job", "scale-job"]
  variables {
    path "leapcell/routes/*" { capabilities = ["list", "read"] }
  }
}
`,
	// a node reads what is sealed for the services that it runs
	"node": `
namespace "leapcell" {
  variables {
    path "leapcell/env/*" { capabilities = ["read"] }
  }
}
`,
}

// secureNomad makes the namespace, the policies and a token for each part.
func (p *Platform) secureNomad(ctx context.Context, note func(string, ...any)) error {
	if err := p.bootstrapACL(ctx, note); err != nil {
		return err
	}
	client, err := p.nomadManager()
	if err != nil {
		return err
	}
	w := (&nomad.WriteOptions{}).WithContext(ctx)
	_, err = client.Namespaces().Register(&nomad.Namespace{
		Name: Namespace, Description: "services and builds of leapcell",
	}, w)
	if err != nil {
		return fmt.Errorf("nomad: making the namespace: %w", err)
	}
	for part, rules := range nomadPolicies {
		policy := &nomad.ACLPolicy{Name: "leapcell-" + part, Rules: rules}
		if _, err := client.ACLPolicies().Upsert(policy, w); err != nil {
			return fmt.Errorf("nomad: writing policy %s: %w", policy.Name, err)
		}
		if err := p.partToken(ctx, client, part, policy.Name); err != nil {
			return err
		}
	}
	hurryRegistration(ctx, client)
	return p.nodeEligible(ctx, client)
}

// hurryRegistration makes Nomad's client try anew to register, which it does after 15 to 30 s if
// it first tried before its server had a key to sign with ("keyring has not been initialized
// yet"), or after any call to the server that works: it makes one to check our token. (client.go,
// retryRegisterNode, and rpc.go in Nomad 1.11)
func hurryRegistration(ctx context.Context, client *nomad.Client) {
	var stats any
	// Where it does not help nothing is lost but time.
	_, _ = client.Raw().Query("/v1/client/stats", &stats, (&nomad.QueryOptions{}).WithContext(ctx))
}

// bootstrapACL sets the management token. The token is written down before it is used, so
// that a crash in between loses nothing.
func (p *Platform) bootstrapACL(ctx context.Context, note func(string, ...any)) error {
	path := p.cfg.NomadTokenFile()
	_, err := os.Stat(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	if fresh {
		if err := writeFile(path, []byte(newUUID()+"\n"), 0o600); err != nil {
			return fmt.Errorf("nomad: %w", err)
		}
	}
	client, err := p.nomadManager()
	if err != nil {
		return err
	}
	if _, _, err := client.ACLTokens().Self((&nomad.QueryOptions{}).WithContext(ctx)); err == nil {
		return nil
	}
	token, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	_, _, err = client.ACLTokens().BootstrapOpts(strings.TrimSpace(string(token)), (&nomad.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("nomad: the token in %s is refused and cannot be made the management token "+
			"(start over with `leapcell down --purge`): %w", path, err)
	}
	if fresh {
		note("management token is in %s", path)
	}
	return nil
}

// partToken keeps the token of one part while it is valid.
func (p *Platform) partToken(ctx context.Context, client *nomad.Client, part, policy string) error {
	path := p.cfg.NomadToken(part)
	if b, err := os.ReadFile(path); err == nil {
		own, err := p.nomadClient(strings.TrimSpace(string(b)))
		if err != nil {
			return err
		}
		if _, _, err := own.ACLTokens().Self((&nomad.QueryOptions{}).WithContext(ctx)); err == nil {
			return nil
		}
	}
	token, _, err := client.ACLTokens().Create(&nomad.ACLToken{
		Name: policy, Type: "client", Policies: []string{policy},
	}, (&nomad.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("nomad: making the %s token: %w", part, err)
	}
	return writeFile(path, []byte(token.SecretID+"\n"), 0o600)
}

// nodeEligible waits for this machine to join, and takes back the drain of a former down.
func (p *Platform) nodeEligible(ctx context.Context, client *nomad.Client) error {
	d := daemon{name: "nomad", dir: p.cfg.StateDir}
	return d.await(ctx, readyLimit, func(ctx context.Context) error {
		nodes, _, err := client.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.Status != "ready" {
				continue
			}
			if driver := n.Drivers["leapcell"]; driver == nil || !driver.Detected || !driver.Healthy {
				return errors.New("the leapcell driver is not healthy" + driverSays(driver))
			}
			if n.SchedulingEligibility == "eligible" {
				return nil
			}
			_, err := client.Nodes().UpdateDrain(n.ID, nil, true, (&nomad.WriteOptions{}).WithContext(ctx))
			return err
		}
		return errors.New("no Nomad client is ready yet")
	})
}

func driverSays(d *nomad.DriverInfo) string {
	if d == nil {
		return ": Nomad has not found it yet"
	}
	return ": " + d.HealthDescription
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
