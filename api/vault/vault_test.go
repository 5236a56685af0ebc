package vault

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/ports"
)

// policy is all that leapcelld may do.
const policy = `
path "leapcell/keys/+"        { capabilities = ["create", "update", "delete"] }
path "leapcell/keys/+/config" { capabilities = ["update"] }
path "leapcell/encrypt/+"     { capabilities = ["update"] }
path "leapcell/decrypt/source.*" { capabilities = ["update"] }
path "leapcell/keys/image.signing"        { capabilities = ["deny"] }
path "leapcell/keys/image.signing/config" { capabilities = ["deny"] }
path "leapcell/sign/image.signing"        { capabilities = ["update"] }
`

// server is a real Vault with a transit mount, unsealed, and root's client of it.
type server struct {
	addr   string
	unseal string
	root   *api.Client
}

func vaultBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("VAULT_BIN"); path != "" {
		return path
	}
	path, err := exec.LookPath("vault")
	if err != nil {
		t.Skip("no vault on PATH and VAULT_BIN is not set: this test needs a real Vault")
	}
	return path
}

func startVault(t *testing.T) *server {
	t.Helper()
	bin := vaultBinary(t)
	port, err := ports.Free(1, ports.ForPrograms)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	config := filepath.Join(t.TempDir(), "vault.hcl")
	text := fmt.Sprintf("disable_mlock = true\nstorage \"inmem\" {}\nlistener \"tcp\" {\n  address = %q\n  tls_disable = true\n}\napi_addr = \"http://%s\"\n", address, address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "server", "-config", config)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	started := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "Vault server started") {
				started <- true
			}
		}
		started <- false
	}()
	if !<-started {
		t.Fatal("vault ended at its start")
	}
	s := &server{addr: "http://" + address}
	s.prepare(t)
	return s
}

func (s *server) prepare(t *testing.T) {
	t.Helper()
	cfg := api.DefaultConfig()
	cfg.Address = s.addr
	root, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := root.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.unseal, s.root = keys.KeysB64[0], root
	root.SetToken(keys.RootToken)
	s.unsealNow(t)
	if err := root.Sys().Mount("leapcell", &api.MountInput{Type: "transit"}); err != nil {
		t.Fatal(err)
	}
	if err := root.Sys().PutPolicy("leapcelld", policy); err != nil {
		t.Fatal(err)
	}
}

func (s *server) unsealNow(t *testing.T) {
	t.Helper()
	if _, err := s.root.Sys().Unseal(s.unseal); err != nil {
		t.Fatal(err)
	}
}

func (s *server) token(t *testing.T, ttl string) string {
	t.Helper()
	secret, err := s.root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"leapcelld"}, TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	return secret.Auth.ClientToken
}

func (s *server) sealer(t *testing.T) *Sealer {
	t.Helper()
	sealer, err := New(Config{Address: s.addr, Token: s.token(t, "1h"), Transit: "leapcell"})
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

func wantCode(t *testing.T, err error, code leapcell.Code, words ...string) {
	t.Helper()
	if got := leapcell.ErrorCode(err); got != code {
		t.Fatalf("error %v has code %q, want %q", err, got, code)
	}
	for _, word := range words {
		if !strings.Contains(leapcell.ErrorMessage(err), word) {
			t.Errorf("%q does not say %q", leapcell.ErrorMessage(err), word)
		}
	}
}

func TestRealVault(t *testing.T) {
	s := startVault(t)
	sealer := s.sealer(t)
	ctx := t.Context()
	const id = "python-default-abcdefgh"
	values := map[string]string{"A": "hunter2", "EMPTY": "", "LONG": strings.Repeat("ü", 1000)}
	sealed, err := sealer.Seal(ctx, id, values)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range values {
		if !strings.HasPrefix(sealed[name], "vault:v1:") {
			t.Errorf("%s is %q", name, sealed[name])
		}
		secret, err := s.root.Logical().Write("leapcell/decrypt/"+id, map[string]any{"ciphertext": sealed[name]})
		if err != nil {
			t.Fatal(err)
		}
		text, _ := secret.Data["plaintext"].(string)
		if b, err := base64.StdEncoding.DecodeString(text); err != nil || string(b) != want {
			t.Errorf("%s opens to %q, %v", name, b, err)
		}
	}
	// A second time the key is there.
	if _, err := sealer.Seal(ctx, id, map[string]string{"B": "x"}); err != nil {
		t.Fatal(err)
	}
	if none, err := sealer.Seal(ctx, id, nil); err != nil || none == nil || len(none) != 0 {
		t.Errorf("of nothing: %v, %v", none, err)
	}
	if err := sealer.Health(ctx); err != nil {
		t.Error(err)
	}
	t.Run("CannotOpen", func(t *testing.T) {
		_, err := sealer.api.Logical().Write("leapcell/decrypt/"+id, map[string]any{"ciphertext": sealed["A"]})
		if err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("leapcelld's token may decrypt: %v", err)
		}
	})
	t.Run("AnotherMayOpen", func(t *testing.T) {
		if _, err := sealer.OpenAs(ctx, sealer.cfg.Token, id, sealed["A"]); leapcell.ErrorCode(err) != leapcell.CodeForbidden {
			t.Errorf("by leapcelld's own token: %v", err)
		}
		for name, want := range values {
			if got, err := sealer.OpenAs(ctx, s.root.Token(), id, sealed[name]); err != nil || got != want {
				t.Errorf("%s opens to %q, %v", name, got, err)
			}
		}
	})
	t.Run("Shred", func(t *testing.T) {
		for range 2 { // the second time there is nothing to shred
			if err := sealer.Shred(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.root.Logical().Write("leapcell/decrypt/"+id, map[string]any{"ciphertext": sealed["A"]}); err == nil {
			t.Error("a shredded key still opens")
		}
	})
	t.Run("WrongToken", func(t *testing.T) {
		bad, err := New(Config{Address: s.addr, Token: "hvs.wrong", Transit: "leapcell"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = bad.Seal(ctx, id, map[string]string{"A": "hunter2"})
		wantCode(t, err, leapcell.CodeUnavailable, "token")
		wantCode(t, bad.Health(ctx), leapcell.CodeUnavailable, "token")
	})
	t.Run("Sealed", func(t *testing.T) {
		if err := s.root.Sys().Seal(); err != nil {
			t.Fatal(err)
		}
		defer s.unsealNow(t)
		_, err := sealer.Seal(ctx, id, map[string]string{"A": "hunter2"})
		wantCode(t, err, leapcell.CodeUnavailable, "sealed", "unseal it")
		if strings.Contains(err.Error(), "hunter2") {
			t.Error("the error holds the value")
		}
		wantCode(t, sealer.Health(ctx), leapcell.CodeUnavailable, "sealed")
		wantCode(t, sealer.Shred(ctx, id), leapcell.CodeUnavailable, "sealed")
	})
}

func TestTokenIsRenewedAndReadAgain(t *testing.T) {
	s := startVault(t)
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := s.token(t, "1h")
	write(first)
	sealer, err := New(Config{Address: s.addr, TokenFile: file, Transit: "leapcell"})
	if err != nil {
		t.Fatal(err)
	}
	next, err := sealer.renew(t.Context())
	if err != nil || next < 29*time.Minute || next > 30*time.Minute {
		t.Errorf("renew again in %s, %v: want half an hour", next, err)
	}
	if err := s.root.Auth().Token().RevokeTree(first); err != nil {
		t.Fatal(err)
	}
	_, err = sealer.renew(t.Context())
	wantCode(t, err, leapcell.CodeUnavailable, "token")
	write(s.token(t, "1h"))
	if err := sealer.loadToken(); err != nil {
		t.Fatal(err)
	}
	if _, err = sealer.renew(t.Context()); err != nil {
		t.Errorf("with the new token: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { sealer.KeepToken(ctx); close(done) }()
	cancel()
	<-done
}

func TestVaultThatIsNotThere(t *testing.T) {
	port, err := ports.Free(1, ports.ForPrograms)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("http://127.0.0.1:%d", port)
	sealer, err := New(Config{Address: address, Token: "x", Transit: "leapcell"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = sealer.Seal(t.Context(), "x", map[string]string{"A": "hunter2"})
	wantCode(t, err, leapcell.CodeUnavailable, address, "refused", "is it running?")
	_, err = New(Config{Address: address, TokenFile: "/no/such/file"})
	wantCode(t, err, leapcell.CodeInvalid, "token")
}

func FuzzSealedValues(f *testing.F) {
	f.Add("vault:v1:abc", 1)
	f.Fuzz(func(t *testing.T, text string, n int) {
		secret := &api.Secret{Data: map[string]any{"batch_results": []any{map[string]any{"ciphertext": text}}}}
		sealed, err := sealedValues(make([]string, max(0, min(n, 3))), secret)
		if err == nil && !strings.HasPrefix(sealed[""], "vault:") {
			t.Errorf("%q was taken for a sealed value", text)
		}
	})
}

// The control plane opens what repositories are read with, and no environment, whatever the
// service is called.
func TestOpenIsForSourcesOnly(t *testing.T) {
	s := startVault(t)
	sealer := s.sealer(t)
	for _, id := range []string{"shop-default-abcdefgh", "source-default-abcdefgh"} {
		for key, may := range map[string]bool{id: false, SourceKey(id): true} {
			sealed, err := sealer.Seal(t.Context(), key, map[string]string{"key": "hunter2"})
			if err != nil {
				t.Fatal(err)
			}
			plain, err := sealer.Open(t.Context(), key, sealed["key"])
			if may && (err != nil || plain != "hunter2") {
				t.Errorf("%s: opened to %q, %v", key, plain, err)
			}
			if !may {
				wantCode(t, err, leapcell.CodeUnavailable, "may not do that")
			}
		}
	}
	if err := sealer.Shred(t.Context(), SourceKey("shop-default-abcdefgh")); err != nil {
		t.Error(err)
	}
}
