package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	vault "github.com/hashicorp/vault/api"
)

// Names inside Vault. The driver and the control plane get them as settings.
const (
	transitMount   = "leapcell"
	signKey        = "image.signing" // the dot keeps it apart from keys of services
	jwtMount       = "jwt-leapcell"
	instanceRole   = "instance"
	instancePolicy = "leapcell-instance"
	secretsPolicy  = "leapcell-secrets"
	controlPolicy  = "leapcell-control"
	// controlPeriod is how long a token lives without being renewed.
	controlPeriod = "768h"
)

// TLS is off because Vault listens on loopback only, and whoever reads root's loopback
// traffic can read its memory as well. A Vault of your own, with TLS, takes its place by
// settings of leapcelld and of the driver.
const vaultConfig = `# Written by leapcell up; changes are lost.
storage "raft" {
  path                   = %q
  node_id                = "leapcell"
  performance_multiplier = 1
}
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
}
api_addr      = %q
cluster_addr  = %q
disable_mlock = true
ui            = false
log_level     = %q
`

// controlRules let the control plane make, use and shred keys. Of what is sealed it may open
// only what repositories are read with; the keys of environments are named after services,
// whose names have no dot. With the key that images are signed with it may sign, and nothing else.
const controlRules = `
path "leapcell/keys/+"        { capabilities = ["create", "update", "read", "delete"] }
path "leapcell/keys/+/config" { capabilities = ["update"] }
path "leapcell/encrypt/+"     { capabilities = ["update"] }
path "leapcell/decrypt/source.*" { capabilities = ["update"] }
path "leapcell/keys/image.signing"        { capabilities = ["deny"] }
path "leapcell/keys/image.signing/config" { capabilities = ["deny"] }
path "leapcell/sign/image.signing"        { capabilities = ["update"] }
`

// secretsRules let whoever may read variables back open the values of all services. [EN4]
const secretsRules = `
path "leapcell/decrypt/+"     { capabilities = ["update"] }
path "leapcell/decrypt/source.*" { capabilities = ["deny"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
`

// instanceRules let an instance open the values of its own service and of no other: the
// alias is the claim of its workload identity that names the task, which is the service's ID.
const instanceRules = `
path "leapcell/decrypt/{{identity.entity.aliases.%s.name}}" { capabilities = ["update"] }
`

// vaultKeys is what initialising Vault gave. It is the one secret that opens all others.
type vaultKeys struct {
	UnsealKey string `json:"unsealKey"`
	RootToken string `json:"rootToken"`
}

func (p *Platform) vaultKeysFile() string  { return p.cfg.path("vault", "init.json") }
func (p *Platform) vaultTokenFile() string { return p.cfg.path("vault", "control.token") }

func (p *Platform) vaultDaemon(bin string) daemon {
	c := p.cfg
	config := fmt.Sprintf(vaultConfig, c.path("vault", "data"),
		address("127.0.0.1", c.Ports.Vault), address("127.0.0.1", c.Ports.VaultCluster),
		c.VaultAddress(), "https://"+address("127.0.0.1", c.Ports.VaultCluster), c.LogLevel)
	return daemon{
		name: "vault", path: bin, args: []string{"server", "-config=" + c.path("vault", "vault.hcl")},
		env: p.serverEnv(), dir: c.StateDir, config: []byte(config),
	}
}

// startVault runs Vault and unseals it, initialising it the first time.
func (p *Platform) startVault(ctx context.Context, note func(string, ...any)) error {
	d := p.vaultDaemon(p.vaultBin)
	if err := os.MkdirAll(p.cfg.path("vault", "data"), 0o700); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	if err := writeFile(p.cfg.path("vault", "vault.hcl"), d.config, 0o600); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	if _, err := d.ensure(ctx); err != nil {
		return err
	}
	client, err := p.vaultClient("")
	if err != nil {
		return err
	}
	var status *vault.SealStatusResponse
	err = d.await(ctx, readyLimit, func(ctx context.Context) (err error) {
		status, err = client.Sys().SealStatusWithContext(ctx)
		return err
	})
	if err != nil {
		return err
	}
	keys, err := p.initVault(ctx, client, status.Initialized, note)
	if err != nil {
		return err
	}
	if status.Sealed {
		if _, err := client.Sys().UnsealWithContext(ctx, keys.UnsealKey); err != nil {
			return fmt.Errorf("unsealing Vault with the key in %s: %w", p.vaultKeysFile(), err)
		}
	}
	return d.await(ctx, readyLimit, func(ctx context.Context) error {
		health, err := client.Sys().HealthWithContext(ctx)
		if err != nil {
			return err
		}
		if health.Sealed || health.Standby {
			return errors.New("Vault is not active yet")
		}
		return nil
	})
}

// initVault initialises Vault, or reads what the first start wrote.
func (p *Platform) initVault(ctx context.Context, client *vault.Client, done bool, note func(string, ...any)) (vaultKeys, error) {
	var keys vaultKeys
	if done {
		b, err := os.ReadFile(p.vaultKeysFile())
		if errors.Is(err, fs.ErrNotExist) {
			return keys, fmt.Errorf("Vault is initialised but its key file %s is gone: bring it back, "+
				"or start over with `leapcell down --purge`", p.vaultKeysFile())
		}
		if err != nil {
			return keys, fmt.Errorf("reading Vault's keys: %w", err)
		}
		if err := json.Unmarshal(b, &keys); err != nil {
			return keys, fmt.Errorf("%s is damaged: %w", p.vaultKeysFile(), err)
		}
		return keys, nil
	}
	resp, err := client.Sys().InitWithContext(ctx, &vault.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return keys, fmt.Errorf("initialising Vault: %w", err)
	}
	keys = vaultKeys{UnsealKey: resp.KeysB64[0], RootToken: resp.RootToken}
	b, err := json.Marshal(keys)
	if err != nil {
		return keys, err
	}
	if err := writeFile(p.vaultKeysFile(), append(b, '\n'), 0o600); err != nil {
		return keys, fmt.Errorf("storing Vault's keys: %w", err)
	}
	note("initialised; unseal key and root token are in %s", p.vaultKeysFile())
	return keys, nil
}

func (p *Platform) vaultClient(token string) (*vault.Client, error) {
	config := vault.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("vault client: %w", config.Error)
	}
	config.Address, config.MaxRetries, config.Timeout = p.cfg.VaultAddress(), 0, 30*time.Second
	client, err := vault.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("vault client: %w", err)
	}
	client.ClearNamespace()
	client.SetToken(token)
	return client, nil
}

// wireVault gives the control plane a token that can seal, and the instances a login by
// their Nomad identity that can open. It needs Nomad: Vault reads its signing keys at once.
func (p *Platform) wireVault(ctx context.Context, _ func(string, ...any)) error {
	keys, err := p.initVault(ctx, nil, true, nil)
	if err != nil {
		return err
	}
	client, err := p.vaultClient(keys.RootToken)
	if err != nil {
		return err
	}
	if err := enableMounts(ctx, client); err != nil {
		return err
	}
	auths, err := client.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return fmt.Errorf("vault: listing logins: %w", err)
	}
	accessor := auths[jwtMount+"/"].Accessor
	for name, rules := range map[string]string{
		controlPolicy: controlRules, instancePolicy: fmt.Sprintf(instanceRules, accessor), secretsPolicy: secretsRules,
	} {
		if err := client.Sys().PutPolicyWithContext(ctx, name, rules); err != nil {
			return fmt.Errorf("vault: writing policy %s: %w", name, err)
		}
	}
	if err := p.writeLogin(ctx, client); err != nil {
		return err
	}
	if err := p.signingKey(ctx, client); err != nil {
		return err
	}
	if err := p.vaultToken(ctx, client, p.vaultTokenFile(), "leapcelld", controlPolicy); err != nil {
		return err
	}
	return p.vaultToken(ctx, client, p.cfg.SecretsTokenFile(), "leapcell-secrets", secretsPolicy)
}

func enableMounts(ctx context.Context, client *vault.Client) error {
	mounts, err := client.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return fmt.Errorf("vault: listing mounts: %w", err)
	}
	if _, ok := mounts[transitMount+"/"]; !ok {
		err := client.Sys().MountWithContext(ctx, transitMount, &vault.MountInput{
			Type: "transit", Description: "seals the variables of services, one key a service",
		})
		if err != nil {
			return fmt.Errorf("vault: enabling transit: %w", err)
		}
	}
	auths, err := client.Sys().ListAuthWithContext(ctx)
	if err != nil {
		return fmt.Errorf("vault: listing logins: %w", err)
	}
	if _, ok := auths[jwtMount+"/"]; !ok {
		err := client.Sys().EnableAuthWithOptionsWithContext(ctx, jwtMount, &vault.EnableAuthOptions{
			Type: "jwt", Description: "instances log in with their Nomad identity",
		})
		if err != nil {
			return fmt.Errorf("vault: enabling logins by JWT: %w", err)
		}
	}
	return nil
}

func (p *Platform) writeLogin(ctx context.Context, client *vault.Client) error {
	_, err := client.Logical().WriteWithContext(ctx, "auth/"+jwtMount+"/config", map[string]any{
		"jwks_url":           p.cfg.NomadAddress() + "/.well-known/jwks.json",
		"jwt_supported_algs": []string{"RS256", "EdDSA"},
		"default_role":       instanceRole,
	})
	if err != nil {
		return fmt.Errorf("vault: setting up logins by JWT: %w", err)
	}
	_, err = client.Logical().WriteWithContext(ctx, "auth/"+jwtMount+"/role/"+instanceRole, map[string]any{
		"role_type":               "jwt",
		"bound_audiences":         []string{"leapcell"},
		"bound_claims":            map[string]any{"nomad_namespace": Namespace},
		"user_claim":              "nomad_task",
		"token_type":              "batch",
		"token_policies":          []string{instancePolicy},
		"token_ttl":               "60s",
		"token_max_ttl":           "60s",
		"token_no_default_policy": true,
	})
	if err != nil {
		return fmt.Errorf("vault: writing the role of instances: %w", err)
	}
	return nil
}

// vaultToken keeps the token in a file alive, or makes one.
func (p *Platform) vaultToken(ctx context.Context, root *vault.Client, file, name, policy string) error {
	if b, err := os.ReadFile(file); err == nil {
		own, err := p.vaultClient(strings.TrimSpace(string(b)))
		if err != nil {
			return err
		}
		if _, err := own.Auth().Token().RenewSelfWithContext(ctx, 0); err == nil {
			return nil
		} // else it expired, or Vault is a new one
	}
	secret, err := root.Auth().Token().CreateOrphanWithContext(ctx, &vault.TokenCreateRequest{
		DisplayName: name, Policies: []string{policy}, Period: controlPeriod,
	})
	if err != nil {
		return fmt.Errorf("vault: making the token %s: %w", name, err)
	}
	return writeFile(file, []byte(secret.Auth.ClientToken+"\n"), 0o600)
}
