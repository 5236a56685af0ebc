package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
	"github.com/leapcell/leapcell/api/problem"
	"github.com/leapcell/leapcell/api/store"
)

// platform is a server with a real store and fakes of the other parts.
type platform struct {
	*Server
	t          *testing.T
	url        string
	admin      string
	edge       string
	store      *store.Store
	client     *client.Client
	log        *lockedBuffer
	cleared    []string // services whose build caches were removed
	submit     func(leapcell.Service, leapcell.Source, io.Reader) (leapcell.Deployment, error)
	wait       func(context.Context, string) (leapcell.Deployment, error)
	deployLog  func(ctx context.Context, follow bool) (io.ReadCloser, error)
	serviceLog func(ctx context.Context, follow bool, tail int) (io.ReadCloser, error)
	setEnv     func(set map[string]string, unset []string) (leapcell.SealedEnv, error)
	reports    chan leapcell.EdgeReport

	mu    sync.Mutex
	calls []string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (p *platform) called(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, fmt.Sprintf(format, args...))
}

func (p *platform) Submit(_ context.Context, svc leapcell.Service, src leapcell.Source, origin leapcell.Origin, archive io.Reader) (leapcell.Deployment, error) {
	if p.submit != nil {
		return p.submit(svc, src, archive)
	}
	return p.store.CreateDeployment(context.Background(), svc.ID, src, svc.Settings, origin)
}

func (p *platform) Split(_ context.Context, svc leapcell.Service, id string, percent int) (*leapcell.Split, error) {
	p.calls = append(p.calls, fmt.Sprintf("split %s %s %d", svc.Name, id, percent))
	if percent == 0 {
		return nil, nil
	}
	return &leapcell.Split{Deployment: id, Percent: percent}, nil
}

func (p *platform) Traffic(context.Context, leapcell.Service) (*leapcell.Split, error) {
	return &leapcell.Split{Deployment: "python-1", Percent: 5}, nil
}

func (p *platform) Redeploy(ctx context.Context, svc leapcell.Service, dep leapcell.Deployment, src leapcell.Source, by leapcell.Origin) (leapcell.Deployment, error) {
	return p.store.CreateDeployment(ctx, svc.ID, src, dep.Settings, leapcell.Origin{Trigger: leapcell.Redeploy, StartedBy: by.StartedBy, Of: dep.ID})
}

func (p *platform) Rollback(_ context.Context, svc leapcell.Service, id string, by leapcell.Origin) (leapcell.Deployment, error) {
	p.called("rollback %s %q by %s", svc.Name, id, by.StartedBy)
	return leapcell.Deployment{ID: svc.Name + "-1"}, nil
}

func (p *platform) ClearCache(_ context.Context, svc leapcell.Service) error {
	p.cleared = append(p.cleared, svc.ID)
	return nil
}

func (p *platform) Place(context.Context, leapcell.Deployment) int { return 0 }

func (p *platform) Cancel(ctx context.Context, id string) error {
	_, err := p.store.UpdateDeployment(ctx, id, func(d *leapcell.Deployment) error { d.State = leapcell.Cancelled; return nil })
	return err
}

func (p *platform) DeleteService(_ context.Context, svc leapcell.Service) error {
	p.called("delete %s", svc.Name)
	return nil
}

func (p *platform) Log(ctx context.Context, _ string, o leapcell.LogOptions) (io.ReadCloser, error) {
	return p.deployLog(ctx, o.Follow)
}

func (p *platform) Wait(ctx context.Context, id string) (leapcell.Deployment, error) {
	return p.wait(ctx, id)
}

func (p *platform) ServiceLogs(ctx context.Context, _ leapcell.Service, follow bool, tail int) (io.ReadCloser, error) {
	return p.serviceLog(ctx, follow, tail)
}

func (p *platform) Instances(_ context.Context, name string) ([]leapcell.Instance, error) {
	return []leapcell.Instance{{ID: "a1", Deployment: name + "-1", Address: "127.0.0.1:1", Status: "running"}}, nil
}

func (p *platform) Report(r leapcell.EdgeReport) { p.reports <- r }

func (p *platform) SetEnv(_ context.Context, _ leapcell.Service, set map[string]string, unset []string) (leapcell.SealedEnv, error) {
	return p.setEnv(set, unset)
}

// OpenAs stands for Vault, to which the token has to be known.
func (p *platform) OpenAs(_ context.Context, token, serviceID, sealed string) (string, error) {
	if token != "hvs.secrets" {
		return "", leapcell.Errorf(leapcell.CodeForbidden, "Vault does not let this token open values")
	}
	return "hunter2-secret of " + serviceID + " " + sealed, nil
}

func (p *platform) Clean(_ context.Context, svc leapcell.Service) error {
	p.called("clean %s", svc.Name)
	return nil
}

func newPlatform(t *testing.T, change func(*Config)) *platform {
	t.Helper()
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	p := &platform{t: t, store: st, log: &lockedBuffer{}, reports: make(chan leapcell.EdgeReport, 10)}
	if p.admin, err = st.CreateToken(t.Context(), "admin", store.RoleAdmin); err != nil {
		t.Fatal(err)
	}
	if p.edge, err = st.CreateToken(t.Context(), "edge", store.RoleEdge); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Store: st, Deployer: p, Env: p, Opener: p, Logs: p, Instances: p, Scaler: p, Cleaner: p,
		Checks: map[string]func(context.Context) error{"store": st.Ping},
		Domain: "leapcell.localhost", PublicURL: "http://leapcell.localhost:8080", Workspace: "default", Version: "1.2.3",
		UploadLimit: 1 << 20, CallsPerMin: 10_000,
		Log: slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	cfg.Hub = p.newHub(&cfg)
	if p.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(p.Server)
	t.Cleanup(ts.Close)
	p.url, p.client = ts.URL, client.New(ts.URL, p.admin)
	return p
}

// do makes a raw call and gives status and body.
func (p *platform) do(method, path, token, contentType, body string) (int, string, http.Header) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func (p *platform) newService(name string) leapcell.Service {
	p.t.Helper()
	svc, err := p.client.CreateService(p.t.Context(), name, leapcell.Settings{})
	if err != nil {
		p.t.Fatal(err)
	}
	return svc
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

func TestServicesByClient(t *testing.T) {
	p := newPlatform(t, nil)
	ctx := t.Context()
	svc, err := p.client.CreateService(ctx, "python", leapcell.Settings{MemoryMB: 512, StartTimeout: leapcell.Duration(5 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(svc.ID, "python-default-") || svc.Host != svc.ID+".leapcell.localhost" || svc.URL != "http://"+svc.Host+":8080" {
		t.Errorf("made %+v", svc)
	}
	_, err = p.client.CreateService(ctx, "python", leapcell.Settings{})
	wantCode(t, err, leapcell.CodeConflict, "python")
	_, err = p.client.CreateService(ctx, "Bad Name", leapcell.Settings{})
	wantCode(t, err, leapcell.CodeInvalid, "Bad Name")
	_, err = p.client.CreateService(ctx, "build-python", leapcell.Settings{})
	wantCode(t, err, leapcell.CodeInvalid, "build-")
	_, err = p.client.CreateService(ctx, "big", leapcell.Settings{MemoryMB: 1 << 20})
	wantCode(t, err, leapcell.CodeInvalid, "memory")

	got, err := p.client.UpdateService(ctx, svc.ID, leapcell.Settings{Port: 9000})
	if err != nil || got.Settings.Port != 9000 || got.Settings.MemoryMB != 512 {
		t.Errorf("updated to %+v, %v", got.Settings, err)
	}
	got, err = p.client.PatchService(ctx, "python", map[string]any{"port": nil, "startTimeout": "7s"})
	if err != nil || got.Settings.Port != 0 || time.Duration(got.Settings.StartTimeout) != 7*time.Second || got.Settings.MemoryMB != 512 {
		t.Errorf("null gave %+v, %v", got.Settings, err)
	}
	_, err = p.client.PatchService(ctx, "python", map[string]any{"prot": 1})
	wantCode(t, err, leapcell.CodeInvalid, "prot")
	_, err = p.client.PatchService(ctx, "python", map[string]any{"prot": nil})
	wantCode(t, err, leapcell.CodeInvalid, "prot")
	_, err = p.client.PatchService(ctx, "python", map[string]any{"port": 99999})
	wantCode(t, err, leapcell.CodeInvalid, "port")

	all, err := p.client.Services(ctx)
	if err != nil || len(all) != 1 {
		t.Errorf("services: %v, %v", all, err)
	}
	instances, err := p.client.Instances(ctx, "python")
	if err != nil || len(instances) != 1 || instances[0].Deployment != "python-1" {
		t.Errorf("instances: %v, %v", instances, err)
	}
	if err := p.client.DeleteService(ctx, "python"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.calls); got != "[delete python clean python]" {
		t.Errorf("deleting called %s", got)
	}
	_, err = p.client.Service(ctx, "python")
	wantCode(t, err, leapcell.CodeNotFound, "python")
}

func TestJSONErrorsNameTheField(t *testing.T) {
	p := newPlatform(t, nil)
	for body, word := range map[string]string{
		``:                      "empty",
		`{`:                     "ends in the middle",
		`[]`:                    "an object",
		`{"name":"x","nmae":1}`: `\"nmae\" is not known`,
		`{"name":7}`:            "name",
		`{"name":"x"} {}`:       "more than one",
		`{"name":"x","settings":{"port":"8080"}}`:         "settings.port",
		`{"name":"x","settings":{"startTimeout":"soon"}}`: "not a duration",
		`{"name":"x","settings":{"memoryMB":1.5}}`:        "memoryMB",
		`{"name":"x",}`:                          "not valid JSON",
		`"` + strings.Repeat("x", maxJSON) + `"`: "1 MB",
	} {
		status, got, header := p.do("POST", "/v1/services", p.admin, "application/json", body)
		if len(body) > 100 {
			body = body[:100] + "…"
		}
		if (status != 400 && status != 413) || !strings.Contains(got, word) {
			t.Errorf("%s: %d %s, want the text %q", body, status, got, word)
		}
		if header.Get("Content-Type") != problem.ContentType {
			t.Errorf("%s: content type %q", body, header.Get("Content-Type"))
		}
	}
	if status, got, _ := p.do("POST", "/v1/services", p.admin, "text/xml", `{}`); status != 400 || !strings.Contains(got, "text/xml") {
		t.Errorf("a foreign type: %d %s", status, got)
	}
}

func TestWhoMayComeIn(t *testing.T) {
	p := newPlatform(t, nil)
	for _, r := range Routes() {
		path := strings.NewReplacer(":service", "nobody", ":deployment", "nobody-1", ":edge", "e1", ":node", "n1").Replace(r.Path)
		status := func(token string) int {
			code, _, _ := p.do(r.Method, path, token, "application/json", "{}")
			return code
		}
		switch r.Access {
		case Open:
			if got := status(""); got == 401 || got == 403 {
				t.Errorf("%s %s: %d without a token", r.Method, r.Path, got)
			}
		case Signed:
			for _, token := range []string{"", p.edge, p.admin} {
				if got := status(token); got != 401 {
					t.Errorf("%s %s: %d without a signature, want 401", r.Method, r.Path, got)
				}
			}
		default:
			if got := status(""); got != 401 {
				t.Errorf("%s %s: %d without a token, want 401", r.Method, r.Path, got)
			}
			if got := status("lc_wrong"); got != 401 {
				t.Errorf("%s %s: %d with a wrong token, want 401", r.Method, r.Path, got)
			}
			if got := status(p.admin); got == 401 || (got == 403) != (r.Access == Secrets) {
				t.Errorf("%s %s: %d for an admin", r.Method, r.Path, got)
			}
			if got, want := status(p.edge), r.Access == Edge; (got != 403) != want {
				t.Errorf("%s %s: %d for an edge", r.Method, r.Path, got)
			}
		}
	}
	if status, body, _ := p.do("GET", "/v1/nothing", p.admin, "", ""); status != 404 || !strings.Contains(body, "/v1/nothing") {
		t.Errorf("an unknown path: %d %s", status, body)
	}
}

func TestRateLimitPerToken(t *testing.T) {
	p := newPlatform(t, func(c *Config) { c.CallsPerMin = 100 })
	begin := time.Now()
	for passed := 0; ; passed++ {
		status, body, header := p.do("GET", "/v1/services", p.admin, "", "")
		if status == 429 {
			if passed < 100 {
				t.Errorf("only %d calls passed", passed)
			}
			if header.Get("Retry-After") == "" || !strings.Contains(body, "100 calls a minute") {
				t.Errorf("429 says %s, Retry-After %q", body, header.Get("Retry-After"))
			}
			break
		}
		if status != 200 {
			t.Fatalf("call %d: %d %s", passed, status, body)
		}
		if refilled := int(100 * time.Since(begin).Minutes()); passed > 100+refilled {
			t.Fatalf("%d calls passed in %s", passed+1, time.Since(begin))
		}
	}
	if status, _, _ := p.do("POST", "/v1/edges/e1/report", p.edge, "", `{}`); status != 204 {
		t.Errorf("another token is limited too: %d", status)
	}
}

func TestConfigValidate(t *testing.T) {
	good := Config{CallsPerMin: 100, UploadLimit: 1, PublicURL: "https://x.example", Domain: "x.example", Workspace: "w"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"calls": func(c *Config) { c.CallsPerMin = 99 }, "many calls": func(c *Config) { c.CallsPerMin = 10_001 },
		"upload": func(c *Config) { c.UploadLimit = 0 }, "url": func(c *Config) { c.PublicURL = "x.example" },
		"workspace": func(c *Config) { c.Workspace = "A" },
	} {
		bad := good
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDeployFromGit(t *testing.T) {
	p := newPlatform(t, nil)
	p.newService("python")
	d, err := p.client.DeployGit(t.Context(), "python", leapcell.Source{GitURL: "https://git.example/x", Branch: "main", RootDir: "./app/"})
	if err != nil || d.ID != "python-1" || d.Source.GitURL != "https://git.example/x" || d.Source.RootDir != "app" {
		t.Fatalf("%+v, %v", d, err)
	}
	for _, root := range []string{"../x", "/etc", "a/../../b", `a\b`} {
		_, err := p.client.DeployGit(t.Context(), "python", leapcell.Source{GitURL: "https://git.example/x", RootDir: root})
		wantCode(t, err, leapcell.CodeInvalid, "rootDir")
	}
	_, err = p.client.DeployGit(t.Context(), "python", leapcell.Source{})
	wantCode(t, err, leapcell.CodeInvalid, "gitURL")
	got, err := p.client.Deployment(t.Context(), "python-1")
	if err != nil || got.State != leapcell.Queued {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = p.client.Cancel(t.Context(), "python-1"); err != nil || got.State != leapcell.Cancelled {
		t.Errorf("cancelled: %+v, %v", got, err)
	}
	all, err := p.client.Deployments(t.Context(), "python", leapcell.DeploymentQuery{Limit: 10})
	if err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
	if all, err := p.client.Deployments(t.Context(), "python", leapcell.DeploymentQuery{States: []leapcell.State{leapcell.Live}, Branch: "main", Before: 9}); err != nil || len(all) != 0 {
		t.Errorf("live ones: %v, %v", all, err)
	}
	_, err = p.client.Deployments(t.Context(), "python", leapcell.DeploymentQuery{States: []leapcell.State{"dead"}})
	wantCode(t, err, leapcell.CodeInvalid, "dead", "cancelled")
	for _, id := range []string{"", "python-1"} {
		again, err := p.client.Redeploy(t.Context(), "python", id)
		if err != nil || again.Of == "" || again.Source != d.Source || again.Trigger != leapcell.Redeploy || again.StartedBy != "admin" {
			t.Errorf("redeploy of %q: %+v, %v", id, again, err)
		}
	}
	for key, status := range map[string]int{`"a key"`: 400, `""`: 400, strings.Repeat("k", 129): 400, `"k-1"`: 202} {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", p.url+"/v1/services/python/deployments", strings.NewReader(`{"source":{"gitURL":"https://git.example/x"}}`))
		req.Header = http.Header{"Authorization": {"Bearer " + p.admin}, "Content-Type": {"application/json"}, leapcell.HeaderIdempotencyKey: {key}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("key %s: %s", key, resp.Status)
		}
	}
	if all, err := p.client.Deployments(t.Context(), "python", leapcell.DeploymentQuery{Limit: 1}); err != nil || len(all) != 1 || all[0].Request != "k-1" {
		t.Errorf("made by a named request: %+v, %v", all, err)
	}
	p.newService("empty")
	_, err = p.client.Redeploy(t.Context(), "empty", "python-1")
	wantCode(t, err, leapcell.CodeNotFound, "python-1")
	_, err = p.client.Redeploy(t.Context(), "empty", "")
	wantCode(t, err, leapcell.CodeConflict, "no deployment yet")
	if split, err := p.client.Traffic(t.Context(), "python"); err != nil || split == nil || split.Percent != 5 {
		t.Errorf("traffic: %+v, %v", split, err)
	}
	if split, err := p.client.Split(t.Context(), "python", "python-1", 10); err != nil || split == nil || split.Percent != 10 || fmt.Sprint(p.calls) != `[split python python-1 10]` {
		t.Errorf("%+v, %v, %v", split, err, p.calls)
	}
	if split, err := p.client.Split(t.Context(), "python", "", 0); err != nil || split != nil {
		t.Errorf("ended: %+v, %v", split, err)
	}
	p.calls = nil
	if _, err := p.client.Rollback(t.Context(), "python", ""); err != nil || fmt.Sprint(p.calls) != `[rollback python "" by admin]` {
		t.Errorf("rollback: %v, %v", err, p.calls)
	}
	if status, body, _ := p.do("POST", "/v1/services/python/rollback", p.admin, "", ""); status != 202 {
		t.Errorf("rollback without a body: %d %s", status, body)
	}
}

// postArchive sends an archive in one request, as a script does.
func (p *platform) postArchive(rootDir string, size int64, body io.Reader) (leapcell.Deployment, error) {
	p.t.Helper()
	var d leapcell.Deployment
	req, err := http.NewRequestWithContext(p.t.Context(), "POST", p.url+"/v1/services/python/deployments?rootDir="+url.QueryEscape(rootDir), body)
	if err != nil {
		p.t.Fatal(err)
	}
	if size > 0 {
		req.ContentLength = size
	}
	req.Header.Set("Content-Type", "application/gzip")
	req.Header.Set("Expect", "100-continue")
	req.Header.Set("Authorization", "Bearer "+p.admin)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return d, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return d, err
	}
	if resp.StatusCode != http.StatusAccepted {
		return d, problem.Parse(resp.StatusCode, resp.Header.Get("Content-Type"), b)
	}
	return d, json.Unmarshal(b, &d)
}

func TestUpload(t *testing.T) {
	p := newPlatform(t, nil)
	p.newService("python")
	p.submit = func(_ leapcell.Service, src leapcell.Source, archive io.Reader) (leapcell.Deployment, error) {
		n, err := io.Copy(io.Discard, archive)
		if err != nil {
			return leapcell.Deployment{}, fmt.Errorf("receive: %w", err)
		}
		return leapcell.Deployment{ID: fmt.Sprintf("%d bytes of %s", n, src.RootDir)}, nil
	}
	d, err := p.postArchive("a b", 1<<20, zeros(1<<20))
	if err != nil || d.ID != "1048576 bytes of a b" {
		t.Errorf("exactly the limit: %+v, %v", d, err)
	}
	_, err = p.postArchive("", 1<<20+1, zeros(1<<20+1))
	wantCode(t, err, leapcell.CodeTooLarge, "1 MB")
	// Without a length the limit is found while reading.
	_, err = p.postArchive("", 0, zeros(1<<20+1))
	wantCode(t, err, leapcell.CodeTooLarge, "1 MB")
	if status, body, _ := p.do("POST", "/v1/services/python/deployments", p.admin, "application/zip", "x"); status != 400 || !strings.Contains(body, "application/zip") {
		t.Errorf("a zip: %d %s", status, body)
	}
}

// A client that still sends must get the reason, not a broken connection.
func TestUploadRefusedMidway(t *testing.T) {
	p := newPlatform(t, func(c *Config) { c.UploadLimit = 64 << 20 })
	p.newService("python")
	p.submit = func(_ leapcell.Service, _ leapcell.Source, archive io.Reader) (leapcell.Deployment, error) {
		_, _ = io.CopyN(io.Discard, archive, 1<<20)
		return leapcell.Deployment{}, leapcell.Errorf(leapcell.CodeUnavailable, "the platform's disk is full")
	}
	for range 10 {
		_, err := p.postArchive("", 32<<20, zeros(32<<20))
		wantCode(t, err, leapcell.CodeUnavailable, "disk is full")
	}
}

func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { return len(b), nil }

func TestEnvNeverShowsValues(t *testing.T) {
	p := newPlatform(t, nil)
	p.newService("python")
	var gotUnset []string
	p.setEnv = func(set map[string]string, unset []string) (leapcell.SealedEnv, error) {
		gotUnset = unset
		if set["BOOM"] != "" {
			return leapcell.SealedEnv{}, leapcell.Wrap(leapcell.CodeUnavailable, errors.New("cause"), "Vault is sealed: unseal it, then repeat")
		}
		return leapcell.SealedEnv{Version: 4, Values: map[string]string{"KEY": "vault:v1:abc", "A": "vault:v1:d"}}, nil
	}
	env, err := p.client.SetEnv(t.Context(), "python", map[string]string{"KEY": "hunter2-secret"}, []string{"OLD"})
	if err != nil || env.Version != 4 || fmt.Sprint(env.Names) != "[A KEY]" || fmt.Sprint(gotUnset) != "[OLD]" {
		t.Errorf("%+v, %v", env, err)
	}
	_, err = p.client.SetEnv(t.Context(), "python", map[string]string{"BOOM": "hunter2-secret"}, nil)
	wantCode(t, err, leapcell.CodeUnavailable, "sealed")
	// A body that cannot be read must not be quoted either.
	for _, body := range []string{`{"set":{"A":"hunter2-secret"}`, `{"set":"hunter2-secret"}`, `{"sett":{"A":"hunter2-secret"}}`} {
		if _, got, _ := p.do("PATCH", "/v1/services/python/env", p.admin, "application/json", body); strings.Contains(got, "hunter2") {
			t.Errorf("%s is quoted in %s", body, got)
		}
	}
	if env, err := p.client.Env(t.Context(), "python"); err != nil || env.Names == nil || len(env.Names) != 0 {
		t.Errorf("of a fresh service: %+v, %v", env, err)
	}
	if log := p.log.String(); strings.Contains(log, "hunter2") || strings.Contains(log, p.admin) {
		t.Error("a value or a token is in the log")
	}
}

// Reading back takes a role that nobody else has, admins included, and leaves a trace. [EN4]
func TestEnvValueTakesARoleOfItsOwn(t *testing.T) {
	p := newPlatform(t, nil)
	svc := p.newService("python")
	if _, err := p.store.SetEnv(t.Context(), svc.ID, store.EnvChange{Set: map[string]store.SealedValue{"KEY": {Sealed: "vault:v1:abc", Size: 3}}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"secrets", "revoked"} {
		if err := p.store.PutToken(t.Context(), name, store.RoleSecrets, "hvs."+name); err != nil {
			t.Fatal(err)
		}
	}
	secrets := client.New(p.url, "hvs.secrets")
	if value, err := secrets.EnvValue(t.Context(), "python", "KEY"); err != nil || value != "hunter2-secret of "+svc.ID+" vault:v1:abc" {
		t.Errorf("%q, %v", value, err)
	}
	_, err := secrets.EnvValue(t.Context(), "python", "OTHER")
	wantCode(t, err, leapcell.CodeNotFound, "OTHER")
	for token, what := range map[string]string{p.admin: "admin", p.edge: "edge", "hvs.revoked": "Vault"} {
		_, err := client.New(p.url, token).EnvValue(t.Context(), "python", "KEY")
		wantCode(t, err, leapcell.CodeForbidden, what)
	}
	_, err = secrets.Env(t.Context(), "python") // it may nothing else
	wantCode(t, err, leapcell.CodeForbidden, "secrets")
	log := p.log.String()
	for _, line := range []string{"name=KEY ok=true token=secrets", "name=OTHER ok=false token=secrets", "name=KEY ok=false token=revoked"} {
		if !strings.Contains(log, line) {
			t.Errorf("the log has no line with %q", line)
		}
	}
	if strings.Contains(log, "hunter2") || strings.Contains(log, "hvs.") {
		t.Error("a value or a token is in the log")
	}
}

func TestEdgeReport(t *testing.T) {
	p := newPlatform(t, nil)
	c := client.New(p.url, p.edge)
	want := leapcell.EdgeReport{Edge: "e1", Services: []leapcell.EdgeService{{ServiceID: "s", InFlight: 3}}}
	if err := c.Report(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if got := <-p.reports; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("reported %+v", got)
	}
	if status, body, _ := p.do("POST", "/v1/edges/e2/report", p.edge, "", `{"edge":"e1"}`); status != 400 {
		t.Errorf("a report of another edge: %d %s", status, body)
	}
	_, err := c.Services(t.Context())
	wantCode(t, err, leapcell.CodeForbidden, "edge", "admin")
}

func TestPanicIsInternalWithRequestID(t *testing.T) {
	p := newPlatform(t, nil)
	p.newService("python")
	p.submit = func(leapcell.Service, leapcell.Source, io.Reader) (leapcell.Deployment, error) { panic("kaboom") }
	req, _ := http.NewRequestWithContext(t.Context(), "POST", p.url+"/v1/services/python/deployments", strings.NewReader(`{"source":{"gitURL":"x"}}`))
	req.Header.Set("Authorization", "Bearer "+p.admin)
	req.Header.Set("X-Request-Id", "my-id-1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body problem.Body
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 500 || body.Code != leapcell.CodeInternal || body.RequestID != "my-id-1" || resp.Header.Get("X-Request-Id") != "my-id-1" || strings.Contains(body.Detail, "kaboom") {
		t.Errorf("%d %+v", resp.StatusCode, body)
	}
	if !strings.Contains(p.log.String(), "kaboom") || !strings.Contains(p.log.String(), "my-id-1") {
		t.Error("the log does not say what happened")
	}
}

func TestForgedRequestIDsAreReplaced(t *testing.T) {
	p := newPlatform(t, nil)
	for _, id := range []string{"a b", strings.Repeat("x", 65), `"><script>`} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", p.url+"/v1/version", nil)
		req.Header.Set("X-Request-Id", id)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("X-Request-Id"); got == id || got == "" {
			t.Errorf("%q became %q", id, got)
		}
	}
}

func TestHealth(t *testing.T) {
	p := newPlatform(t, func(c *Config) {
		c.Checks["vault"] = func(context.Context) error {
			return leapcell.Wrap(leapcell.CodeUnavailable, errors.New("cause"), "Vault is sealed: unseal it, then repeat")
		}
	})
	h, err := p.client.Health(t.Context())
	if err != nil || h.OK() || h["store"] != "ok" || !strings.Contains(h["vault"], "sealed") || strings.Contains(h["vault"], "cause") {
		t.Errorf("%v, %v", h, err)
	}
	if v, err := p.client.Version(t.Context()); err != nil || v != "1.2.3" {
		t.Errorf("version %q, %v", v, err)
	}
	if h, err := newPlatform(t, nil).client.Health(t.Context()); err != nil || !h.OK() {
		t.Errorf("%v, %v", h, err)
	}
}

func TestWait(t *testing.T) {
	p := newPlatform(t, nil)
	svc := p.newService("python")
	d, err := p.store.CreateDeployment(t.Context(), svc.ID, leapcell.Source{}, leapcell.Settings{}, leapcell.Origin{})
	if err != nil {
		t.Fatal(err)
	}
	p.wait = func(ctx context.Context, _ string) (leapcell.Deployment, error) {
		<-ctx.Done()
		return leapcell.Deployment{}, ctx.Err()
	}
	// At the timeout it is given as it is.
	status, body, _ := p.do("GET", "/v1/deployments/python-1/wait?timeout=1ms", p.admin, "", "")
	if status != 200 || !strings.Contains(body, `"queued"`) {
		t.Errorf("%d %s", status, body)
	}
	for _, bad := range []string{"-1s", "6m", "x"} {
		if status, _, _ := p.do("GET", "/v1/deployments/python-1/wait?timeout="+bad, p.admin, "", ""); status != 400 {
			t.Errorf("timeout %s: %d", bad, status)
		}
	}
	if status, _, _ := p.do("GET", "/v1/deployments/nobody-1/wait", p.admin, "", ""); status != 404 {
		t.Errorf("of nobody: %d", status)
	}
	p.wait = func(context.Context, string) (leapcell.Deployment, error) {
		return leapcell.Deployment{ID: d.ID, State: leapcell.Live}, nil
	}
	got, err := p.client.Wait(t.Context(), d.ID)
	if err != nil || got.State != leapcell.Live {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestStreamFlushesAndEndsWithTheClient: a line is there before the next is written, and a
// client that goes ends the source.
func TestStreamFlushesAndEndsWithTheClient(t *testing.T) {
	p := newPlatform(t, nil)
	p.newService("python")
	source, lines := io.Pipe()
	ended := make(chan struct{})
	p.serviceLog = func(ctx context.Context, follow bool, tail int) (io.ReadCloser, error) {
		if !follow || tail != 7 {
			t.Errorf("follow %v, tail %d", follow, tail)
		}
		context.AfterFunc(ctx, func() { close(ended) })
		return source, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := p.client.Logs(ctx, "python", client.LogOptions{Follow: true, Tail: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	buf := make([]byte, 100)
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := lines.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		n, err := r.Read(buf) // blocks for ever if the server holds the line back
		if err != nil || string(buf[:n]) != line {
			t.Fatalf("read %q, %v, want %q", buf[:n], err, line)
		}
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the source lives on after its client")
	}
	for err = nil; err == nil; { // one that is never closed hangs the test
		_, err = lines.Write([]byte("x"))
	}
}

// TestBrokenStreamIsNotTakenForWhole: when the source fails in the middle the client must
// see an error, not an end.
func TestBrokenStreamIsNotTakenForWhole(t *testing.T) {
	p := newPlatform(t, nil)
	p.deployLog = func(context.Context, bool) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader("half\n"), failingReader{})), nil
	}
	r, err := p.client.DeploymentLog(t.Context(), "python-1", leapcell.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err == nil || string(b) != "half\n" {
		t.Errorf("read %q, %v: want half and an error", b, err)
	}
	p.deployLog = func(context.Context, bool) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("whole\n")), nil
	}
	if r, err = p.client.DeploymentLog(t.Context(), "python-1", leapcell.LogOptions{Follow: true}); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "whole\n" {
		t.Errorf("read %q, %v", b, err)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("disk on fire") }

func TestShutdownEndsStreams(t *testing.T) {
	p := newPlatform(t, nil)
	svc := p.newService("python")
	if _, err := p.store.CreateDeployment(t.Context(), svc.ID, leapcell.Source{}, leapcell.Settings{}, leapcell.Origin{}); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan struct{})
	p.wait = func(ctx context.Context, _ string) (leapcell.Deployment, error) {
		close(waiting)
		<-ctx.Done()
		return leapcell.Deployment{}, ctx.Err()
	}
	source, lines := io.Pipe()
	p.serviceLog = func(context.Context, bool, int) (io.ReadCloser, error) { return source, nil }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, l) }()
	c := client.New(l.Addr().String(), p.admin)
	r, err := c.Logs(t.Context(), "python", client.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() { _, _ = lines.Write([]byte("x\n")) }()
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	waited := make(chan string, 1)
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String()+"/v1/deployments/python-1/wait?timeout=5m", nil)
		req.Header.Set("Authorization", "Bearer "+p.admin)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			waited <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		waited <- string(b)
	}()
	<-waiting
	start := time.Now()
	stop()
	if err := <-served; err != nil {
		t.Errorf("served: %v", err)
	}
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("shutting down took %s", took)
	}
	if got := <-waited; !strings.Contains(got, `"queued"`) {
		t.Errorf("who waited got %s", got)
	}
	if _, err := io.ReadAll(r); err == nil {
		t.Error("a stream that was cut looks complete")
	}
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"name":"x","settings":{"port":1,"startTimeout":"1s"}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var in struct {
			Name     string            `json:"name"`
			Settings leapcell.Settings `json:"settings"`
		}
		if err := decodeJSON(b, &in); err != nil && leapcell.ErrorCode(err) != leapcell.CodeInvalid {
			t.Errorf("%q gives %v", b, err)
		}
	})
}

func FuzzMergeSettings(f *testing.F) {
	f.Add([]byte(`{"port":null,"memoryMB":256}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var patch map[string]json.RawMessage
		if json.Unmarshal(b, &patch) != nil {
			return
		}
		merged, err := mergeSettings(leapcell.Settings{Port: 1}, patch)
		if err == nil && merged.Validate() != nil {
			t.Errorf("%q gives settings that are not valid", b)
		}
		if err != nil && leapcell.ErrorCode(err) != leapcell.CodeInvalid {
			t.Errorf("%q gives %v", b, err)
		}
	})
}

func FuzzCleanRootDir(f *testing.F) {
	f.Add("a/b/../c")
	f.Fuzz(func(t *testing.T, dir string) {
		clean, err := cleanRootDir(dir)
		if err != nil {
			return
		}
		for _, part := range strings.Split(clean, "/") {
			if part == ".." || strings.HasPrefix(clean, "/") {
				t.Errorf("%q became %q", dir, clean)
			}
		}
	})
}

func TestClearCache(t *testing.T) {
	p := newPlatform(t, nil)
	svc, err := p.client.CreateService(t.Context(), "python", leapcell.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.client.ClearCache(t.Context(), "python"); err != nil || len(p.cleared) != 1 || p.cleared[0] != svc.ID {
		t.Errorf("cleared %q, %v", p.cleared, err)
	}
	if err := p.client.ClearCache(t.Context(), "none"); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		t.Errorf("error is %v", err)
	}
}
