package supervisor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
	"golang.org/x/sync/semaphore"

	"github.com/leapcell/leapcell"
)

// environment is what the app sees: what the image sets, then the job's and its own variables, then
// those that the platform answers for, which win. [LC2, ID5]
func environment(r StartRequest, image []string, own map[string]string) []string {
	env := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG": "C.UTF-8",
	}
	for _, e := range image {
		if name, value, ok := strings.Cut(e, "="); ok {
			env[name] = value
		}
	}
	env["HOME"] = "/tmp"
	maps.Copy(env, r.Env)
	maps.Copy(env, own)
	env["PORT"] = strconv.Itoa(r.Config.Port)
	env[leapcell.EnvService] = r.Config.Service
	env[leapcell.EnvDeployment] = r.Config.Deployment
	env[leapcell.EnvInstance] = r.AllocID
	env[leapcell.EnvMemoryMB] = strconv.Itoa(r.MemoryMB)
	env[leapcell.EnvMode] = string(r.Config.Mode)
	return list(env)
}

// hostname makes a host name of a name, which may be a job's.
func hostname(name string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r >= 'A' && r <= 'Z':
			return r
		}
		return '-'
	}, name[:min(len(name), 63)])
	return strings.Trim(clean, "-")
}

// buildEnvironment is what a build command sees: the image's, the operator's and those of the
// service that it may.
func buildEnvironment(image []string, operator, secrets map[string]string) []string {
	env := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG": "C.UTF-8",
	}
	for _, e := range image {
		if name, value, ok := strings.Cut(e, "="); ok {
			env[name] = value
		}
	}
	env["HOME"] = "/root"
	env["DEBIAN_FRONTEND"] = "noninteractive"
	maps.Copy(env, operator)
	maps.Copy(env, secrets)
	return list(env)
}

func list(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out = append(out, name+"="+env[name])
	}
	return out
}

// sealedEnvs opens the variables of a task: the sealed ones come from Nomad, and Vault
// opens them for the task's own workload identity. What was opened is kept in memory by
// version, so that the next start of the service on this node does without Vault. [EN1, EN2]
type sealedEnvs struct {
	cfg   Config
	nomad *nomad.Client
	reads *semaphore.Weighted // of [leapcell.NomadCalls]

	mu     sync.Mutex
	opened map[string]opened // by service ID
}

type opened struct {
	version int
	values  map[string]string
}

func newSealedEnvs(cfg Config) (*sealedEnvs, error) {
	c := nomad.DefaultConfig()
	c.Address, c.SecretID = cfg.Nomad, ""
	client, err := nomad.NewClient(c)
	if err != nil {
		return nil, fmt.Errorf("nomad_addr: %w", err)
	}
	return &sealedEnvs{cfg: cfg, nomad: client, reads: semaphore.NewWeighted(leapcell.NomadCalls), opened: map[string]opened{}}, nil
}

// Read implements Envs.
func (s *sealedEnvs) Read(ctx context.Context, r StartRequest) (map[string]string, error) {
	if r.Config.EnvPath == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	sealed, err := s.sealed(ctx, r)
	if err != nil || len(sealed.Values) == 0 {
		return nil, err
	}
	s.mu.Lock()
	o, ok := s.opened[r.Config.ServiceID]
	s.mu.Unlock()
	if ok && o.version == sealed.Version {
		return o.values, nil
	}
	values, err := s.open(ctx, r, sealed)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.opened[r.Config.ServiceID] = opened{sealed.Version, values}
	s.mu.Unlock()
	return values, nil
}

// sealed reads the Nomad variable; a service without variables has none.
func (s *sealedEnvs) sealed(ctx context.Context, r StartRequest) (leapcell.SealedEnv, error) {
	var sealed leapcell.SealedEnv
	unavailable := func(err error) error {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "environment variables could not be read from Nomad")
	}
	if err := s.reads.Acquire(ctx, 1); err != nil {
		return sealed, unavailable(err)
	}
	defer s.reads.Release(1)
	query := (&nomad.QueryOptions{Namespace: r.Namespace}).WithContext(ctx)
	if s.cfg.NomadToken != "" {
		token, err := os.ReadFile(s.cfg.NomadToken) // each time: it may be replaced
		if err != nil {
			return sealed, unavailable(err)
		}
		query.AuthToken = strings.TrimSpace(string(token))
	}
	v, _, err := s.nomad.Variables().Peek(r.Config.EnvPath, query)
	if err != nil {
		return sealed, unavailable(err)
	}
	if v == nil || v.Items[leapcell.VariableItem] == "" {
		return sealed, nil
	}
	if err := json.Unmarshal([]byte(v.Items[leapcell.VariableItem]), &sealed); err != nil {
		return sealed, unavailable(fmt.Errorf("variable %s: %w", r.Config.EnvPath, err))
	}
	return sealed, nil
}

// open has Vault decrypt all values in one call.
func (s *sealedEnvs) open(ctx context.Context, r StartRequest, sealed leapcell.SealedEnv) (map[string]string, error) {
	fail := func(err error) error {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "environment variables could not be opened by Vault (unreachable, sealed, or access denied)")
	}
	client, err := s.login(ctx, r)
	if err != nil {
		return nil, fail(err)
	}
	names := slices.Sorted(maps.Keys(sealed.Values))
	batch := make([]any, len(names))
	for i, name := range names {
		batch[i] = map[string]any{"ciphertext": sealed.Values[name]}
	}
	path := s.cfg.Transit + "/decrypt/" + r.Config.ServiceID
	answer, err := client.Logical().WriteWithContext(ctx, path, map[string]any{"batch_input": batch})
	if err != nil {
		return nil, fail(err)
	}
	if answer == nil {
		return nil, fail(fmt.Errorf("%s: empty answer", path))
	}
	results, _ := answer.Data["batch_results"].([]any)
	if len(results) != len(names) {
		return nil, fail(fmt.Errorf("%s: %d results for %d values", path, len(results), len(names)))
	}
	values := make(map[string]string, len(names))
	for i, name := range names {
		result, _ := results[i].(map[string]any)
		if text, _ := result["error"].(string); text != "" {
			return nil, fail(fmt.Errorf("%s: value of %s: %s", path, name, text))
		}
		encoded, _ := result["plaintext"].(string)
		clear, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return nil, fail(fmt.Errorf("%s: value of %s is not base64", path, name))
		}
		values[name] = string(clear)
	}
	return values, nil
}

// login gives a client that acts for the task.
func (s *sealedEnvs) login(ctx context.Context, r StartRequest) (*vault.Client, error) {
	jwt, err := os.ReadFile(r.tokenFile())
	if err != nil {
		return nil, fmt.Errorf("workload identity of the task: %w", err)
	}
	cfg := vault.DefaultConfig()
	if cfg.Error != nil {
		return nil, cfg.Error
	}
	cfg.Address, cfg.MaxRetries = s.cfg.Vault, 1
	if s.cfg.VaultCA != "" {
		if err := cfg.ConfigureTLS(&vault.TLSConfig{CACert: s.cfg.VaultCA}); err != nil {
			return nil, err
		}
	}
	client, err := vault.NewClient(cfg)
	if err != nil {
		return nil, err
	}
	client.ClearToken()
	secret, err := client.Logical().WriteWithContext(ctx, "auth/"+s.cfg.VaultAuth+"/login", map[string]any{
		"role": s.cfg.VaultRole, "jwt": strings.TrimSpace(string(jwt)),
	})
	if err != nil {
		return nil, err
	}
	if secret == nil || secret.Auth == nil {
		return nil, fmt.Errorf("login at auth/%s gave no token", s.cfg.VaultAuth)
	}
	client.SetToken(secret.Auth.ClientToken)
	return client, nil
}
