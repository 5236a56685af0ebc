package server

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
	"github.com/leapcell/leapcell/api/hook"
)

// plainVault seals nothing.
type plainVault struct{}

func (plainVault) Seal(_ context.Context, _ string, values map[string]string) (map[string]string, error) {
	return values, nil
}
func (plainVault) Open(_ context.Context, _, sealed string) (string, error) { return sealed, nil }
func (plainVault) Shred(context.Context, string) error                      { return nil }

func (p *platform) CheckGit(leapcell.Source) error                  { return nil }
func (p *platform) HostKey(context.Context, string) (string, error) { return "ssh-ed25519 AAAA", nil }
func (p *platform) Overtake(context.Context, leapcell.Deployment) error {
	return nil
}
func (p *platform) EndPreview(_ context.Context, _ leapcell.Service, label string) error {
	p.called("end %s", label)
	return nil
}

// newHub is a real one that nobody runs: events stay where they are.
func (p *platform) newHub(cfg *Config) *hook.Hub {
	return hook.New(hook.Config{Store: p.store, Keys: hook.NewKeys(p.store, plainVault{}), Sources: p, Deployer: p, Log: cfg.Log})
}

// post sends an event of a Gitea.
func (p *platform) post(path, secret, body string) (int, string) {
	p.t.Helper()
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.url+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("X-Gitea-Event", "push")
	req.Header.Set("X-Gitea-Signature", hex.EncodeToString(mac.Sum(nil)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Content-Type")
}

func TestConnectionsAndHooks(t *testing.T) {
	p := newPlatform(t, nil)
	p.newService("shop")
	_, err := p.client.Connection(t.Context(), "shop")
	wantCode(t, err, leapcell.CodeNotFound, "not connected")
	_, err = p.client.DeployGit(t.Context(), "shop", leapcell.Source{})
	wantCode(t, err, leapcell.CodeInvalid, "gitURL is missing")
	_, err = p.client.Connect(t.Context(), "shop", client.Connect{GitURL: "https://git.example/team/shop.git", Branch: "main", Provider: leapcell.Gitea, RootDir: "../x"})
	wantCode(t, err, leapcell.CodeInvalid, "rootDir")
	in := client.Connect{GitURL: "https://git.example/team/shop.git", Branch: "main", Provider: leapcell.Gitea, RootDir: "web/", Token: "t0ken"}
	c, err := p.client.Connect(t.Context(), "shop", in)
	if err != nil || len(c.Secret) < 20 || c.RootDir != "web" || !c.HasToken || c.APIURL != "https://git.example/api/v1" {
		t.Fatalf("connected %+v, %v", c, err)
	}
	again, err := p.client.Connect(t.Context(), "shop", in)
	if err != nil || again.Secret != "" || again.ID != c.ID {
		t.Errorf("connected again: %+v, %v", again, err)
	}
	if known, err := p.client.Connection(t.Context(), "shop"); err != nil || known != c.Connection {
		t.Errorf("known as %+v, %v", known, err)
	}

	push := `{"ref":"refs/heads/main","after":"` + strings.Repeat("a", 40) + `","sender":{"login":"marker-of-the-content"}}`
	for name, test := range map[string]struct {
		path, secret, body string
		want               int
	}{
		"forged":       {c.HookPath, "guess", push, http.StatusUnauthorized},
		"unknown":      {"/v1/hooks/cnothing", c.Secret, push, http.StatusUnauthorized},
		"not an event": {c.HookPath, c.Secret, `{"marker-of-the-content":`, http.StatusBadRequest},
		"too large":    {c.HookPath, c.Secret, strings.Repeat("x", hook.MaxBody+1), http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			if status, kind := p.post(test.path, test.secret, test.body); status != test.want || kind != "application/problem+json" {
				t.Errorf("status %d, %s", status, kind)
			}
		})
	}
	if all, _ := p.store.GitEvents(t.Context()); len(all) != 0 {
		t.Errorf("events %+v", all)
	}
	if status, _ := p.post(c.HookPath, c.Secret, push); status != http.StatusAccepted {
		t.Errorf("status %d", status)
	}
	if status, _ := p.post(c.HookPath, c.Secret, push); status != http.StatusOK {
		t.Errorf("again: status %d", status)
	}
	if all, _ := p.store.GitEvents(t.Context()); len(all) != 1 {
		t.Errorf("events %+v", all)
	}
	log := p.log.String()
	for _, secret := range []string{"marker-of-the-content", c.Secret, "t0ken"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is in the log", secret)
		}
	}

	d, err := p.client.DeployGit(t.Context(), "shop", leapcell.Source{})
	if err != nil || d.Source.GitURL != in.GitURL || d.Source.Branch != "main" || d.Source.RootDir != "web" || d.Source.Connection != c.ID {
		t.Errorf("deployed from the connection: %+v, %v", d.Source, err)
	}
	d, err = p.client.DeployGit(t.Context(), "shop", leapcell.Source{GitURL: "https://git.example/other", Branch: "main"})
	if err != nil || d.Source.Connection != "" {
		t.Errorf("another repository is read with the credentials of this one: %+v, %v", d.Source, err)
	}
	if err := p.client.Disconnect(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	if status, _ := p.post(c.HookPath, c.Secret, push); status != http.StatusUnauthorized {
		t.Errorf("after the end: status %d", status)
	}
	wantCode(t, p.client.Disconnect(t.Context(), "shop"), leapcell.CodeNotFound)
}
