package hook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/outbound"
	"github.com/leapcell/leapcell/api/store"
)

var (
	commitA = strings.Repeat("a", 40)
	commitB = strings.Repeat("b", 40)
	zeros   = strings.Repeat("0", 40)
)

// plainVault marks what it seals.
type plainVault struct{ down error }

func (v *plainVault) Seal(_ context.Context, key string, values map[string]string) (map[string]string, error) {
	out := map[string]string{}
	for name, value := range values {
		out[name] = "sealed by " + key + ": " + hex.EncodeToString([]byte(value))
	}
	return out, v.down
}

func (v *plainVault) Open(_ context.Context, key, sealed string) (string, error) {
	text, ok := strings.CutPrefix(sealed, "sealed by "+key+": ")
	if !ok {
		return "", errors.New("of another key")
	}
	b, err := hex.DecodeString(text)
	return string(b), errors.Join(v.down, err)
}

func (v *plainVault) Shred(context.Context, string) error { return nil }

// world is a hub with a real store; deployments stay queued until the test ends them.
type world struct {
	*Hub
	t     *testing.T
	store *store.Store
	vault *plainVault
	svc   leapcell.Service
	c     Connected

	mu      sync.Mutex
	down    error // what Submit gives
	ended   []string
	changed chan struct{}
	stop    func()
}

func newWorld(t *testing.T, in Connect) *world {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	w := &world{t: t, store: s, vault: &plainVault{}, changed: make(chan struct{}), stop: func() {}}
	w.svc = leapcell.Service{ID: "shop-default-abcdefgh", Name: "shop", Workspace: "default", Host: "shop-default-abcdefgh.example.com", URL: "http://shop-default-abcdefgh.example.com:8080"}
	if err := s.CreateService(t.Context(), w.svc); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if in.GitURL == "" {
		in.GitURL = "https://git.example.com/team/shop.git"
	}
	if in.Branch == "" {
		in.Branch = "main"
	}
	if in.Provider == "" {
		in.Provider = leapcell.Gitea
	}
	if w.c, err = w.Connect(t.Context(), w.svc, in); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.stop() })
	return w
}

// restart is what a kill -9 and a new process are for the hub: only the store is left.
func (w *world) restart() {
	w.stop()
	w.Hub = New(Config{
		Store: noisy{w.store, w}, Keys: NewKeys(w.store, w.vault), Sources: w, Deployer: w, Pause: time.Millisecond,
		Networks: outbound.Networks{netip.MustParsePrefix("127.0.0.0/8")},
	})
	w.stop = func() {}
}

// noisy says when the hub has done with something.
type noisy struct {
	*store.Store
	w *world
}

func (n noisy) GitEventDone(ctx context.Context, id int64) error {
	defer n.w.said()
	return n.Store.GitEventDone(ctx, id)
}

func (n noisy) WantReport(ctx context.Context, id string) error {
	defer n.w.said()
	return n.Store.WantReport(ctx, id)
}

func (w *world) said() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note()
}

// run has the hub do its work.
func (w *world) run() {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	w.stop = func() { cancel(); <-done }
}

func (w *world) note() { close(w.changed); w.changed = make(chan struct{}) }

// until waits until ok holds, looking whenever something changed.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	end := time.After(time.Minute)
	for {
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-end:
			w.t.Fatalf("never: %s", what)
		}
	}
}

func (w *world) CheckGit(leapcell.Source) error { return nil }

const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDPsIBgEsnUF1VXNyLHQOPXcdsTVCQ2pL5ILKKdHXs7e"

func (w *world) HostKey(context.Context, string) (string, error) { return hostKey, nil }

func (w *world) Submit(ctx context.Context, svc leapcell.Service, src leapcell.Source, origin leapcell.Origin, _ io.Reader) (leapcell.Deployment, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.note()
	if w.down != nil {
		return leapcell.Deployment{}, w.down
	}
	return w.store.CreateDeployment(ctx, svc.ID, src, svc.Settings, origin)
}

func (w *world) Overtake(context.Context, leapcell.Deployment) error { return nil }

func (w *world) EndPreview(_ context.Context, _ leapcell.Service, label string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.note()
	w.ended = append(w.ended, label)
	return nil
}

func (w *world) Wait(ctx context.Context, id string) (leapcell.Deployment, error) {
	for {
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		dep, err := w.store.Deployment(ctx, id)
		if err != nil || dep.State.Done() {
			return dep, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return dep, ctx.Err()
		}
	}
}

// end brings a deployment to its end.
func (w *world) end(id string, change func(*leapcell.Deployment)) {
	w.t.Helper()
	if _, err := w.store.UpdateDeployment(w.t.Context(), id, func(d *leapcell.Deployment) error { change(d); return nil }); err != nil {
		w.t.Fatal(err)
	}
	w.said()
}

func (w *world) deployments() []leapcell.Deployment {
	w.t.Helper()
	all, err := w.store.Deployments(w.t.Context(), w.svc.ID, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	slices.Reverse(all)
	return all
}

func (w *world) events() int {
	w.t.Helper()
	all, err := w.store.GitEvents(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return len(all)
}

// told is an event as the providers tell it.
func told(p leapcell.Provider, e leapcell.GitEvent) (kind, body string) {
	by := fmt.Sprintf(`"sender":{"login":%q}`, e.By)
	switch p {
	case leapcell.GitLab:
		switch e.Kind {
		case leapcell.GitPush, leapcell.GitBranchGone:
			after := e.Commit
			if e.Kind == leapcell.GitBranchGone {
				after = zeros
			}
			return "Push Hook", fmt.Sprintf(`{"object_kind":"push","ref":"refs/heads/%s","after":%q,"user_username":%q}`, e.Branch, after, e.By)
		}
		action := map[leapcell.GitEventKind]string{leapcell.GitChange: "open", leapcell.GitChangeEnded: "merge"}[e.Kind]
		return "Merge Request Hook", fmt.Sprintf(`{"object_kind":"merge_request","user":{"username":%q},"object_attributes":{"iid":%d,"action":%q,"source_branch":%q,"source_project_id":7,"target_project_id":7,"last_commit":{"id":%q}}}`,
			e.By, e.Change, action, e.Branch, commitA)
	}
	switch e.Kind {
	case leapcell.GitPush:
		return "push", fmt.Sprintf(`{"ref":"refs/heads/%s","after":%q,%s}`, e.Branch, e.Commit, by)
	case leapcell.GitBranchGone:
		return "delete", fmt.Sprintf(`{"ref":%q,"ref_type":"branch",%s}`, e.Branch, by)
	}
	action := map[leapcell.GitEventKind]string{leapcell.GitChange: "opened", leapcell.GitChangeEnded: "closed"}[e.Kind]
	return "pull_request", fmt.Sprintf(`{"action":%q,"number":%d,"pull_request":{"head":{"ref":%q,"sha":%q,"repo":{"id":7}},"base":{"ref":"main","repo":{"id":7}}},%s}`,
		action, e.Change, e.Branch, commitA, by)
}

// signed are the headers of a body.
func signed(p leapcell.Provider, kind, secret, id, body string) http.Header {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	sum := hex.EncodeToString(mac.Sum(nil))
	h := http.Header{}
	switch p {
	case leapcell.GitHub:
		h.Set("X-GitHub-Event", kind)
		h.Set("X-GitHub-Delivery", id)
		h.Set("X-Hub-Signature-256", "sha256="+sum)
	case leapcell.GitLab:
		h.Set("X-Gitlab-Event", kind)
		h.Set("Idempotency-Key", id)
		h.Set("X-Gitlab-Token", secret)
	default:
		h.Set("X-Gitea-Event", kind)
		h.Set("X-GitHub-Event", kind)
		h.Set("X-Gitea-Delivery", id)
		h.Set("X-Gitea-Signature", sum)
		h.Set("X-Hub-Signature-256", "sha256="+sum)
	}
	return h
}

var providers = []leapcell.Provider{leapcell.GitHub, leapcell.GitLab, leapcell.Gitea}

// send tells the hub of an event, each time with something else in it.
func (w *world) send(e leapcell.GitEvent) string {
	w.t.Helper()
	kind, body := told(leapcell.Gitea, e)
	body = strings.Replace(body, "{", fmt.Sprintf(`{"at":"%d",`, time.Now().UnixNano()), 1)
	why, err := w.Receive(w.t.Context(), w.c.ID, signed(leapcell.Gitea, kind, w.c.Secret, fmt.Sprint(time.Now().UnixNano()), body), []byte(body))
	if err != nil {
		w.t.Fatal(err)
	}
	return why
}

func TestEventsOfAllProviders(t *testing.T) {
	for _, p := range providers {
		for _, want := range []leapcell.GitEvent{
			{Kind: leapcell.GitPush, Branch: "feature/x", Commit: commitB, By: "ada"},
			{Kind: leapcell.GitBranchGone, Branch: "feature/x", By: "ada"},
			{Kind: leapcell.GitChange, Branch: "feature/x", Commit: commitA, Change: 12, By: "ada"},
			{Kind: leapcell.GitChangeEnded, Branch: "feature/x", Change: 12, By: "ada"},
		} {
			kind, body := told(p, want)
			in := request{signed(p, kind, "secret", "1", body), []byte(body)}
			if in.provider() != p || !in.signed(p, "secret") {
				t.Errorf("%s: taken for %s, signed is %v", p, in.provider(), in.signed(p, "secret"))
			}
			if got, why, err := in.parse(p); err != nil || why != "" || got != want {
				t.Errorf("%s: %s is %+v, %q, %v", p, body, got, why, err)
			}
		}
	}
}

func TestEventsOfNoInterest(t *testing.T) {
	for name, c := range map[string]struct {
		p          leapcell.Provider
		kind, body string
		why        string // "" for an error
	}{
		"ping":          {leapcell.GitHub, "ping", `{"zen":"x"}`, "of this kind"},
		"tag":           {leapcell.GitHub, "push", `{"ref":"refs/tags/v1","after":"` + commitA + `"}`, "only branches"},
		"tag of GitLab": {leapcell.GitLab, "Tag Push Hook", `{"ref":"refs/tags/v1"}`, "of this kind"},
		"deleted tag":   {leapcell.Gitea, "delete", `{"ref":"v1","ref_type":"tag"}`, "only branches"},
		"label":         {leapcell.GitHub, "pull_request", `{"action":"labeled","number":1,"pull_request":{}}`, "no other commit"},
		"title":         {leapcell.GitLab, "Merge Request Hook", `{"object_attributes":{"action":"update","iid":1}}`, "no other commit"},
		"fork": {leapcell.GitHub, "pull_request", `{"action":"opened","number":1,"pull_request":{"head":{"ref":"x","sha":"` + commitA +
			`","repo":{"id":8}},"base":{"repo":{"id":7}}}}`, "another repository"},
		"lost fork": {leapcell.Gitea, "pull_request", `{"action":"opened","number":1,"pull_request":{"head":{"ref":"x","sha":"` + commitA +
			`","repo":null},"base":{"repo":{"id":7}}}}`, "another repository"},
		"fork of GitLab": {leapcell.GitLab, "Merge Request Hook", `{"object_attributes":{"action":"open","iid":1,"source_branch":"x","source_project_id":8,"target_project_id":7,"last_commit":{"id":"` + commitA + `"}}}`, "another repository"},
		"form":           {leapcell.GitHub, "push", `payload=%7B%7D`, ""},
		"cut":            {leapcell.GitHub, "push", `{"ref":"refs/heads/ma`, ""},
		"other types":    {leapcell.GitHub, "push", `{"ref":7}`, ""},
		"no commit":      {leapcell.GitHub, "push", `{"ref":"refs/heads/main","after":"abc"}`, ""},
		"bad branch":     {leapcell.GitHub, "push", `{"ref":"refs/heads/a..b","after":"` + commitA + `"}`, ""},
		"option":         {leapcell.GitHub, "push", `{"ref":"refs/heads/--upload-pack=x","after":"` + commitA + `"}`, ""},
		"no change":      {leapcell.GitLab, "Merge Request Hook", `{}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, why, err := request{signed(c.p, c.kind, "s", "1", c.body), []byte(c.body)}.parse(c.p)
			if got != (leapcell.GitEvent{}) && err == nil {
				t.Errorf("there is something to do: %+v", got)
			}
			if c.why == "" && leapcell.ErrorCode(err) != leapcell.CodeInvalid || c.why != "" && (err != nil || !strings.Contains(why, c.why)) {
				t.Errorf("%q, %v", why, err)
			}
		})
	}
}

func TestForged(t *testing.T) {
	w := newWorld(t, Connect{})
	for _, p := range providers {
		kind, body := told(p, leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: commitA})
		good := signed(p, kind, w.c.Secret, "1", body)
		for name, spoil := range map[string]func(http.Header){
			"another secret": func(h http.Header) {
				for k, v := range signed(p, kind, "guess", "1", body) {
					h[k] = v
				}
			},
			"no signature": func(h http.Header) {
				for _, k := range []string{"X-Hub-Signature-256", "X-Gitlab-Token", "X-Gitea-Signature"} {
					h.Del(k)
				}
			},
			"no digits": func(h http.Header) {
				for _, k := range []string{"X-Hub-Signature-256", "X-Gitlab-Token", "X-Gitea-Signature"} {
					h.Set(k, "zz")
				}
			},
			"nobody's": func(h http.Header) {
				for _, k := range []string{"X-Github-Event", "X-Gitlab-Event", "X-Gitea-Event"} {
					h.Del(k)
				}
			},
		} {
			h := good.Clone()
			spoil(h)
			if _, err := w.Receive(t.Context(), w.c.ID, h, []byte(body)); leapcell.ErrorCode(err) != leapcell.CodeUnauthorized {
				t.Errorf("%s, %s: %v", p, name, err)
			}
		}
		if _, err := w.Receive(t.Context(), w.c.ID, good, []byte(body+" ")); p != leapcell.GitLab && leapcell.ErrorCode(err) != leapcell.CodeUnauthorized {
			t.Errorf("%s, another body: %v", p, err)
		}
		if _, err := w.Receive(t.Context(), "cother", good, []byte(body)); leapcell.ErrorCode(err) != leapcell.CodeUnauthorized {
			t.Errorf("%s, unknown connection: %v", p, err)
		}
	}
	w.run()
	if n := w.events(); n > 1 { // the last of GitLab is as good as another: its token is right
		t.Errorf("%d events", n)
	}
}

func TestReplayDoesNothing(t *testing.T) {
	for _, p := range providers {
		t.Run(string(p), func(t *testing.T) {
			w := newWorld(t, Connect{})
			kind, body := told(p, leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: commitA})
			send := func(id string) string {
				t.Helper()
				why, err := w.Receive(t.Context(), w.c.ID, signed(p, kind, w.c.Secret, id, body), []byte(body))
				if err != nil {
					t.Fatal(err)
				}
				return why
			}
			if why := send("1"); why != "" {
				t.Fatal(why)
			}
			if why := send("1"); !strings.Contains(why, "delivered before") {
				t.Errorf("the same delivery: %q", why)
			}
			w.restart()
			if why := send("2"); p != leapcell.GitLab && !strings.Contains(why, "delivered before") {
				t.Errorf("with another name: %q", why)
			}
			w.restart()
			if why := send("1"); !strings.Contains(why, "delivered before") {
				t.Errorf("after a restart: %q", why)
			}
		})
	}
}

func TestPushDeploysTheBranch(t *testing.T) {
	w := newWorld(t, Connect{RootDir: "web"})
	w.run()
	if why := w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "next", Commit: commitB}); !strings.Contains(why, "previews are switched off") {
		t.Errorf("another branch: %q", why)
	}
	w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: commitA, By: "ada\u202e"})
	w.until("a deployment", func() bool { return w.events() == 0 })
	if n := len(w.deployments()); n != 1 {
		t.Fatalf("%d deployments", n)
	}
	d := w.deployments()[0]
	want := leapcell.Source{GitURL: w.c.GitURL, Branch: "main", Commit: commitA, RootDir: "web", Connection: w.c.ID}
	if d.Source != want || d.Trigger != leapcell.Push || d.StartedBy != "ada" || d.Preview != "" {
		t.Errorf("deployment %+v", d)
	}
}

func TestPreviews(t *testing.T) {
	w := newWorld(t, Connect{Previews: true})
	w.run()
	label := leapcell.BranchLabel(w.svc.Host, "feature/x")
	w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "feature/x", Commit: commitA})
	w.until("a preview", func() bool { return len(w.deployments()) == 1 })
	if d := w.deployments()[0]; d.Preview != label || d.Trigger != leapcell.Push || d.Source.Branch != "feature/x" {
		t.Errorf("deployment %+v", d)
	}
	// The change that is opened for the branch has the same commit: it is there already.
	w.send(leapcell.GitEvent{Kind: leapcell.GitChange, Branch: "feature/x", Commit: commitA, Change: 3})
	w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "feature/x", Commit: commitB})
	w.until("the next preview", func() bool { return len(w.deployments()) >= 2 })
	if all := w.deployments(); len(all) != 2 || all[1].Source.Commit != commitB {
		t.Errorf("deployments %+v", all)
	}
	// A change of the deployed branch is no preview of it.
	if why := w.send(leapcell.GitEvent{Kind: leapcell.GitChangeEnded, Branch: "main", Change: 4}); why == "" {
		t.Error("the end of a change from the deployed branch does something")
	}
	w.send(leapcell.GitEvent{Kind: leapcell.GitChangeEnded, Branch: "feature/x", Change: 3})
	w.until("the end", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return slices.Equal(w.ended, []string{label}) })
	w.send(leapcell.GitEvent{Kind: leapcell.GitBranchGone, Branch: "feature/x"})
	w.until("the end once more", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.ended) == 2 })
}

// An event that was taken in is acted on, whatever is down and however often the process is
// killed, and makes one deployment.
func TestEventsSurvive(t *testing.T) {
	w := newWorld(t, Connect{})
	w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: commitA})
	w.restart()
	w.down = leapcell.Errorf(leapcell.CodeUnavailable, "the disk is full")
	w.run()
	w.until("a failed try", func() bool { return true })
	w.restart()
	if w.events() != 1 {
		t.Fatalf("%d events", w.events())
	}
	w.down = nil
	w.run()
	w.until("a deployment", func() bool { return len(w.deployments()) == 1 })
	w.restart()

	// Killed between the deployment and the end of the event.
	w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: commitB})
	all, _ := w.store.GitEvents(t.Context())
	e := all[len(all)-1]
	for range 2 {
		if err := w.handle(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		w.restart()
	}
	w.run()
	w.until("all reports are wanted", func() bool { ids, _ := w.store.Reports(t.Context()); return len(ids) == 2 })
	w.restart()
	if n := len(w.deployments()); n != 2 {
		t.Errorf("%d deployments of two pushes", n)
	}
}

func TestConnectKeepsSecrets(t *testing.T) {
	in := Connect{GitURL: "git@git.example.com:team/shop.git", Token: "t0ken"}
	w := newWorld(t, in)
	if w.c.GitURL != "ssh://git@git.example.com/team/shop.git" || !strings.HasPrefix(w.c.PublicKey, "ssh-ed25519 ") || w.c.HostKey != hostKey || w.c.APIURL != "https://git.example.com/api/v1" {
		t.Errorf("connected %+v", w.c)
	}
	stored, err := w.store.Connection(t.Context(), w.c.ID)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range stored.Sealed {
		if !strings.HasPrefix(value, "sealed by source."+w.svc.ID) {
			t.Errorf("%s is stored as %q", name, value)
		}
	}
	access, err := w.cfg.Keys.Access(t.Context(), w.c.ID)
	if err != nil || access.Token != "t0ken" || !strings.Contains(string(access.Key), "PRIVATE KEY") || access.HostKey != hostKey {
		t.Errorf("access %+v, %v", access, err)
	}
	again := func(in Connect) (Connected, error) { return w.Connect(t.Context(), w.svc, in) }
	in.Branch, in.Token = "main", ""
	kept, err := again(in)
	if err != nil || kept.Secret != "" || kept.PublicKey != w.c.PublicKey || !kept.HasToken || kept.Provider != leapcell.Gitea {
		t.Errorf("kept %+v, %v", kept, err)
	}
	in.APIURL = "https://elsewhere.example.com/api/v1"
	if _, err := again(in); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
		t.Errorf("the token goes to another host unasked: %v", err)
	}
	in.APIURL, in.Rotate = "", true
	fresh, err := again(in)
	if err != nil || fresh.Secret == "" || fresh.Secret == w.c.Secret || fresh.PublicKey == w.c.PublicKey {
		t.Errorf("rotated %+v, %v", fresh, err)
	}
	other, err := again(Connect{GitURL: "https://git.example.com/team/other.git", Branch: "main", Provider: leapcell.GitLab})
	if err != nil || other.ID == w.c.ID || other.HasToken || other.PublicKey != "" || other.Secret == "" {
		t.Errorf("another repository: %+v, %v", other, err)
	}
	if _, err := w.cfg.Keys.Access(t.Context(), w.c.ID); leapcell.ErrorCode(err) != leapcell.CodeUnprocessable {
		t.Errorf("access of a connection that is gone: %v", err)
	}
	for name, bad := range map[string]Connect{
		"no branch":   {GitURL: "https://github.com/a/b"},
		"no provider": {GitURL: "https://git.example.com/a/b", Branch: "main"},
		"provider":    {GitURL: "https://git.example.com/a/b", Branch: "main", Provider: "cvs"},
		"api":         {GitURL: "https://github.com/a/b", Branch: "main", APIURL: "ftp://x"},
		"token":       {GitURL: "https://github.com/a/b", Branch: "main", Token: "a\nb"},
		"host key":    {GitURL: "git@github.com:a/b", Branch: "main", HostKey: "nothing"},
	} {
		if _, err := again(bad); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// host is the API of a git host, as far as commits' states go.
type host struct {
	t     *testing.T
	url   string
	mu    sync.Mutex
	calls []string
	fail  []int // statuses of the next answers
	world *world
}

func newHost(t *testing.T) *host {
	h := &host{t: t}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	h.url = s.URL
	return h
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body map[string]string
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		h.t.Error(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	status := http.StatusCreated
	if len(h.fail) > 0 {
		status, h.fail = h.fail[0], h.fail[1:]
	} else {
		auth := r.Header.Get("Authorization") + r.Header.Get("Private-Token")
		h.calls = append(h.calls, fmt.Sprintf("%s %s [%s] %s %q %s", r.Method, r.URL.EscapedPath(), auth, body["state"], body["description"], body["target_url"]))
	}
	w.WriteHeader(status)
	if h.world != nil {
		h.world.said()
	}
}

func (h *host) heard() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

func TestHostsAreTold(t *testing.T) {
	live := func(d *leapcell.Deployment) { d.State, d.LiveAt = leapcell.Live, time.Now() }
	for name, test := range map[string]struct {
		provider leapcell.Provider
		path     string
		auth     string
		end      func(*leapcell.Deployment)
		want     string
	}{
		"github": {leapcell.GitHub, "/repos/team/shop/statuses/", "Bearer t0ken", live, `success "shop-1 is live" http://shop-default-abcdefgh.example.com:8080`},
		"gitea": {leapcell.Gitea, "/repos/team/shop/statuses/", "token t0ken", func(d *leapcell.Deployment) {
			d.State, d.Error = leapcell.Failed, &leapcell.Problem{Code: leapcell.CodeBuildFailed, Message: "the build command exited with code 1\nmore"}
		}, `failure "shop-1 failed: the build command exited with code 1" `},
		"gitlab": {leapcell.GitLab, "/projects/team%2Fshop/statuses/", "t0ken", func(d *leapcell.Deployment) { d.State = leapcell.Superseded }, `failed "shop-1 was overtaken by a newer one" `},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			w := newWorld(t, Connect{Provider: test.provider, APIURL: h.url, Token: "t0ken"})
			h.world = w
			h.fail = []int{500, 429}
			w.run()
			w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: commitA})
			w.until("the beginning is told", func() bool { return len(h.heard()) == 1 })
			w.end("shop-1", test.end)
			w.until("the end is told", func() bool { return len(h.heard()) == 2 })
			prefix := "POST " + test.path + commitA + " [" + test.auth + "] "
			if got, want := h.heard(), []string{prefix + `pending "shop-1 is being deployed" `, prefix + test.want}; !slices.Equal(got, want) {
				t.Errorf("heard\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// A push over the plan's limit is no deployment that could fail: the host is told by itself.
func TestRefusedPushIsTold(t *testing.T) {
	h := newHost(t)
	w := newWorld(t, Connect{APIURL: h.url, Token: "t0ken"})
	h.world = w
	h.fail = []int{500}
	w.down = leapcell.Errorf(leapcell.CodeRateLimited, "no more than ten: the next one is possible in 3h")
	w.run()
	w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: commitA})
	w.until("it is told", func() bool { return len(h.heard()) == 1 })
	want := "POST /repos/team/shop/statuses/" + commitA + ` [token t0ken] failure "no more than ten: the next one is possible in 3h" `
	if got := h.heard()[0]; got != want {
		t.Errorf("heard\n%s\nwant\n%s", got, want)
	}
	w.until("the event is done", func() bool { return w.events() == 0 })
	if n := len(w.deployments()); n != 0 {
		t.Errorf("%d deployments", n)
	}
}

// The outcome is told after a restart too, and a host that will not hear it is left alone.
func TestReportsSurvive(t *testing.T) {
	h := newHost(t)
	w := newWorld(t, Connect{APIURL: h.url, Token: "t0ken"})
	h.world = w
	w.run()
	w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: commitA})
	w.until("the beginning is told", func() bool { return len(h.heard()) == 1 })
	w.restart()
	w.end("shop-1", func(d *leapcell.Deployment) { d.State, d.LiveAt = leapcell.Live, time.Now() })
	w.run()
	w.until("the end is told", func() bool { return len(h.heard()) == 2 })
	if !strings.Contains(h.heard()[1], "success") {
		t.Errorf("heard %v", h.heard())
	}

	h.mu.Lock()
	h.fail = []int{403, 403}
	h.mu.Unlock()
	w.send(leapcell.GitEvent{Kind: leapcell.GitPush, Branch: "main", Commit: commitB})
	w.until("the beginning is refused", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.fail) == 1 })
	w.end("shop-2", func(d *leapcell.Deployment) { d.State = leapcell.Cancelled })
	w.until("the end is refused", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.fail) == 0 })
	if n := len(h.heard()); n != 2 {
		t.Errorf("heard %d", n)
	}
}

// With the networks of nobody allowed, the API of a host cannot be within the platform.
func TestReportsLeaveThePlatformAlone(t *testing.T) {
	h := newHost(t)
	w := newWorld(t, Connect{APIURL: h.url, Token: "t0ken"})
	w.web = outbound.Networks(nil).Client(time.Minute)
	dep, err := w.Submit(t.Context(), w.svc, leapcell.Source{Connection: w.c.ID, Commit: commitA}, leapcell.Origin{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.tellOnce(t.Context(), dep); leapcell.ErrorCode(err) != leapcell.CodeUnprocessable {
		t.Errorf("told a host on this machine: %v", err)
	}
	if len(h.heard()) != 0 {
		t.Error("the host heard it")
	}
}

func FuzzGitHub(f *testing.F) { fuzz(f, leapcell.GitHub, "push", "pull_request", "delete") }
func FuzzGitLab(f *testing.F) { fuzz(f, leapcell.GitLab, "Push Hook", "Merge Request Hook") }
func FuzzGitea(f *testing.F)  { fuzz(f, leapcell.Gitea, "push", "pull_request_sync", "delete") }

// Whatever a host sends: what comes of it names a branch and a commit and nothing else.
func fuzz(f *testing.F, p leapcell.Provider, kinds ...string) {
	for _, e := range []leapcell.GitEvent{
		{Kind: leapcell.GitPush, Branch: "main", Commit: commitA}, {Kind: leapcell.GitBranchGone, Branch: "x"},
		{Kind: leapcell.GitChange, Branch: "x", Change: 1}, {Kind: leapcell.GitChangeEnded, Branch: "x", Change: 1},
	} {
		_, body := told(p, e)
		f.Add([]byte(body), 0)
	}
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		kind := kinds[uint(n)%uint(len(kinds))]
		e, why, err := request{signed(p, kind, "s", "1", string(body)), body}.parse(p)
		if err != nil || why != "" {
			return
		}
		if !isBranch(e.Branch) || e.Commit != "" && !isCommit(e.Commit) || len(e.By) > 100 || strings.ContainsAny(e.Branch+e.By, "\n\x1b\x00") {
			t.Errorf("%+v", e)
		}
	})
}
