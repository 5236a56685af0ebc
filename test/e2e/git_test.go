package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/githost"
	"github.com/leapcell/leapcell/test/harness"
)

// connected is a service that is connected with a repository of a git host on this machine.
type connected struct {
	*harness.Service
	t    *testing.T
	p    *harness.Platform
	repo *githost.Copy
	hook string // where events go
	key  string // the secret that signs them

	mu   sync.Mutex
	told []string // what the host heard of commits
}

// connect makes a service of the probe app, with a repository of it; ssh says how it is read.
func connect(t *testing.T, ssh bool) *connected {
	t.Helper()
	p := harness.Get(t)
	host := githost.New(t)
	c := &connected{t: t, p: p, Service: p.Create(t, harness.Spec{Extra: map[string]string{"answer": "one"}})}
	files := c.Source()
	if probe, ok := files["probe"]; ok {
		delete(files, "probe")
		files["probe*"] = probe
	}
	c.repo = host.Repository("team/shop", files)
	host.Mux.HandleFunc("POST /api/v1/repos/team/shop/statuses/{commit}", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ State, Target_url string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("Authorization") != "token t0ken" {
			t.Errorf("told %+v, %v", in, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.told = append(c.told, r.PathValue("commit")[:8]+" "+in.State)
		w.WriteHeader(http.StatusCreated)
	})
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("t0ken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	address := c.repo.URL
	server := host.SSH()
	if ssh {
		address = server.URL("team/shop")
	}
	var out struct{ HookPath, Secret, PublicKey, HostKey string }
	p.JSON(t, &out, "git", "connect", c.Name, address, "--branch", "main", "--previews", "--provider", "gitea",
		"--git-api", host.URL+"/api/v1", "--git-token-file", token)
	if ssh {
		if out.HostKey != server.Key {
			t.Fatalf("pinned %q, the host has %q", out.HostKey, server.Key)
		}
		server.Allow(t, out.PublicKey)
	}
	c.hook, c.key = p.Config.APIAddress()+out.HookPath, out.Secret
	return c
}

// send sends an event of a Gitea and gives the status of the answer.
func (c *connected) send(kind, secret string, event map[string]any) int {
	c.t.Helper()
	event["at"] = time.Now().UnixNano()
	body, err := json.Marshal(event)
	if err != nil {
		c.t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.hook, strings.NewReader(string(body)))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Gitea-Event", kind)
	req.Header.Set("X-Gitea-Delivery", fmt.Sprint(event["at"]))
	req.Header.Set("X-Gitea-Signature", hex.EncodeToString(mac.Sum(nil)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func (c *connected) pushed(branch, commit string) map[string]any {
	return map[string]any{"ref": "refs/heads/" + branch, "after": commit, "sender": map[string]string{"login": "ada"}}
}

func change(action, branch, commit string) map[string]any {
	repo := map[string]int{"id": 7}
	return map[string]any{"action": action, "number": 12, "sender": map[string]string{"login": "ada"}, "pull_request": map[string]any{
		"head": map[string]any{"ref": branch, "sha": commit, "repo": repo}, "base": map[string]any{"ref": "main", "repo": repo},
	}}
}

// deployment waits for the newest deployment of a commit to end.
func (c *connected) deployment(commit string) leapcell.Deployment {
	c.t.Helper()
	var found leapcell.Deployment
	harness.Eventually(c.t, 20*time.Second, "a deployment of "+commit, func() bool {
		var all []leapcell.Deployment
		if err := c.p.API.Call(c.t.Context(), http.MethodGet, "/v1/services/"+c.Name+"/deployments", nil, &all); err != nil {
			c.t.Fatal(err)
		}
		for _, d := range all {
			if d.Source.Commit == commit {
				found = d
				return true
			}
		}
		return false
	})
	return c.p.Await(c.t, found.ID)
}

// A push, told by a signed webhook, is live; a pull request has a preview until it is
// closed; what is not signed with the secret starts nothing.
func TestPushDeploys(t *testing.T) {
	t.Parallel()
	for name, ssh := range map[string]bool{"http": false, "ssh": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := connect(t, ssh)
			first := c.repo.Head()
			if status := c.send("push", "guess", c.pushed("main", first)); status != http.StatusUnauthorized {
				t.Errorf("a forged event: %d", status)
			}
			if status := c.send("push", c.key, c.pushed("main", first)); status != http.StatusAccepted {
				t.Fatalf("a push: %d", status)
			}
			d := c.deployment(first)
			if d.State != leapcell.Live || d.Number != 1 || d.Trigger != leapcell.Push || d.StartedBy != "ada" || d.Author != "Ada" || d.Subject != "first" {
				t.Fatalf("deployment %+v, error %+v\n%s", d, d.Error, c.BuildLog(t, d.ID))
			}
			c.Reload(t)
			answers(t, c.Service, "one")

			c.repo.Git("checkout", "-q", "-b", "feature/two")
			second := c.repo.Commit("second", map[string]string{"answer": "two"})
			if status := c.send("pull_request", c.key, change("opened", "feature/two", second)); status != http.StatusAccepted {
				t.Fatalf("a pull request: %d", status)
			}
			d = c.deployment(second)
			u, err := url.Parse(d.PreviewURL)
			if d.PreviewURL == "" || err != nil || d.ChangeNumber != 12 {
				t.Fatalf("preview %+v, error %+v\n%s", d, d.Error, c.BuildLog(t, d.ID))
			}
			preview := c.At(u.Hostname())
			answers(t, preview, "two")
			answers(t, c.Service, "one")
			if out := c.p.Must(t, "deployments", c.Name); !strings.Contains(out, d.PreviewURL) {
				t.Errorf("the preview is not listed:\n%s", out)
			}

			if status := c.send("pull_request", c.key, change("closed", "feature/two", second)); status != http.StatusAccepted {
				t.Fatalf("its end: %d", status)
			}
			harness.Eventually(t, 20*time.Second, "the preview is gone", func() bool { return preview.Get(t, "/").Status == http.StatusNotFound })
			answers(t, c.Service, "one")
			want := []string{first[:8] + " pending", first[:8] + " success", second[:8] + " pending", second[:8] + " success"}
			harness.Eventually(t, 20*time.Second, "the host was told of both", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return strings.Join(c.told, ",") == strings.Join(want, ",")
			})
		})
	}
}
