package supervisor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/crowd"
)

// vaultAndNomad are servers that answer as the real ones do on the paths we ask.
type vaultAndNomad struct {
	sealed   *leapcell.SealedEnv
	decrypts int
	status   int // of Vault; 0 is fine
}

func (v *vaultAndNomad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reply := func(x any) { json.NewEncoder(w).Encode(x) }
	switch {
	case r.URL.Path == "/v1/var/leapcell/env/shop":
		if r.Header.Get("X-Nomad-Token") != "node-token" || r.FormValue("namespace") != "leapcell" || v.sealed == nil {
			http.NotFound(w, r)
			return
		}
		b, _ := json.Marshal(v.sealed)
		reply(map[string]any{"Items": map[string]string{"json": string(b)}})
	case v.status != 0:
		http.Error(w, `{"errors":["Vault is sealed"]}`, v.status)
	case r.URL.Path == "/v1/auth/jwt-leapcell/login":
		var in map[string]string
		json.NewDecoder(r.Body).Decode(&in)
		if in["jwt"] != "task-jwt" || in["role"] != "instance" {
			http.Error(w, `{"errors":["denied"]}`, http.StatusForbidden)
			return
		}
		reply(map[string]any{"auth": map[string]any{"client_token": "vault-token"}})
	case r.URL.Path == "/v1/leapcell/decrypt/shop" && r.Header.Get("X-Vault-Token") == "vault-token":
		v.decrypts++
		var in struct {
			Batch []map[string]string `json:"batch_input"`
		}
		json.NewDecoder(r.Body).Decode(&in)
		var out []any
		for _, x := range in.Batch {
			clear, _ := strings.CutPrefix(x["ciphertext"], "vault:v1:")
			out = append(out, map[string]string{"plaintext": base64.StdEncoding.EncodeToString([]byte(clear))})
		}
		reply(map[string]any{"data": map[string]any{"batch_results": out}})
	default:
		http.Error(w, `{"errors":["no such path"]}`, 404)
	}
}

func TestSealedEnvs(t *testing.T) {
	backend := &vaultAndNomad{}
	server := httptest.NewServer(backend)
	defer server.Close()
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(name), 0o755)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	cfg, err := Config{StateDir: dir, Nomad: server.URL, Vault: server.URL, NomadToken: write("token", "node-token\n")}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	envs, err := newSealedEnvs(cfg)
	if err != nil {
		t.Fatal(err)
	}
	req := StartRequest{Name: "task", Dir: dir, Namespace: "leapcell", Config: leapcell.TaskConfig{ServiceID: "shop", EnvPath: "leapcell/env/shop"}}
	write("task/secrets/nomad_vault_leapcell.jwt", "task-jwt\n")

	if v, err := envs.Read(context.Background(), req); v != nil || err != nil {
		t.Errorf("without a variable: %v, %v", v, err)
	}
	backend.sealed = &leapcell.SealedEnv{Version: 1, Values: map[string]string{"A": "vault:v1:one", "B": "vault:v1:two"}}
	for range 2 {
		v, err := envs.Read(context.Background(), req)
		if err != nil || v["A"] != "one" || v["B"] != "two" {
			t.Errorf("%v, %v", v, err)
		}
	}
	if backend.decrypts != 1 {
		t.Errorf("Vault was asked %d times for one version", backend.decrypts)
	}
	backend.status = 503
	if v, err := envs.Read(context.Background(), req); err != nil || v["A"] != "one" {
		t.Errorf("without Vault: %v, %v", v, err)
	}
	backend.sealed.Version++
	_, err = envs.Read(context.Background(), req)
	if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || strings.Contains(leapcell.ErrorMessage(err), "jwt") {
		t.Errorf("Vault sealed: %v", err)
	}
	backend.status = 0
	backend.sealed.Values["A"] = "vault:v1:three"
	if v, err := envs.Read(context.Background(), req); err != nil || v["A"] != "three" {
		t.Errorf("next version: %v, %v", v, err)
	}
}

// However many tasks start at once, Nomad sees a bounded number of calls.
func TestSealedEnvsOfManyTasks(t *testing.T) {
	server := crowd.Start(t, leapcell.NomadCalls, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound) // a service without variables
	})
	envs, err := newSealedEnvs(Config{Nomad: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	const tasks = 10 * leapcell.NomadCalls
	var reads sync.WaitGroup
	for range tasks {
		reads.Go(func() {
			if _, err := envs.Read(t.Context(), StartRequest{Config: leapcell.TaskConfig{EnvPath: "leapcell/env/shop"}}); err != nil {
				t.Error(err)
			}
		})
	}
	reads.Wait()
	server.Check(t, tasks)
}

func TestConfig(t *testing.T) {
	good := Config{StateDir: "/var/lib/leapcell"}
	c, err := good.WithDefaults()
	if err != nil || len(c.Name) != 6 || c.Runtime == "" || c.suspendAfter() != 20e6 {
		t.Fatalf("%+v, %v", c, err)
	}
	p, err := c.subnet()
	if err != nil || p.Bits() != 20 || p != p.Masked() || p.Addr().As4()[0] != 100 || p.Addr().As4()[1]&0xc0 != 64 {
		t.Errorf("subnet %s, %v", p, err)
	}
	dir := t.TempDir()
	c.StateDir = dir
	if err := c.Write(); err != nil {
		t.Fatal(err)
	}
	if back, err := ReadConfig(c.File()); err != nil || back.Name != c.Name {
		t.Errorf("%+v, %v", back, err)
	}
	for part, change := range map[string]func(c *Config){
		"state_dir is missing":  func(c *Config) { c.StateDir = "" },
		"must be an absolute":   func(c *Config) { c.StateDir = "x" },
		`name is "A b"`:         func(c *Config) { c.Name = "A b" },
		`subnet is "x"`:         func(c *Config) { c.Subnet = "x" },
		`suspend_after is "1s"`: func(c *Config) { c.Suspend = "1s" },
		"allow_egress contains": func(c *Config) { c.AllowEgress = []string{"10.0.0.0"} },
		"both must be absolute": func(c *Config) { c.Build.Files = map[string]string{"x": "/y"} },
	} {
		bad := good
		change(&bad)
		if _, err := bad.WithDefaults(); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", part, err)
		}
	}
}
