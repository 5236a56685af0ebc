package harness

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// Spec says what service a test wants. The zero value is the probe app in serverless mode.
type Spec struct {
	Settings leapcell.Settings
	Env      map[string]string
	// Files are the source, by path; nil stands for the compiled probe app.
	Files map[string]string
	// Extra are files that are added to it.
	Extra map[string]string
}

// Service is a service that a test made; it is deleted when the test ends.
type Service struct {
	leapcell.Service
	p    *Platform
	spec Spec
}

// BuildCommand of the probe app leaves a trace of who ran it.
const BuildCommand = `id -u > built-by && chmod 755 probe`

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// Create makes a service with its variables set and nothing deployed.
func (p *Platform) Create(t testing.TB, spec Spec) *Service {
	t.Helper()
	if spec.Settings.Runtime == "" {
		spec.Settings.Runtime = cmp.Or(os.Getenv("LEAPCELL_TEST_RUNTIME"), "go")
	}
	if spec.Files == nil {
		spec.Files = map[string]string{"probe": string(p.compiled(t))}
		spec.Settings = spec.Settings.Over(leapcell.Settings{BuildCommand: BuildCommand, StartCommand: "exec ./probe"})
	}
	if given := Stretch(leapcell.StartTimeout, leapcell.MaxStartTimeout); given != leapcell.StartTimeout && spec.Settings.StartTimeout == 0 {
		spec.Settings.StartTimeout = leapcell.Duration(given)
	}
	s := &Service{p: p, spec: spec}
	s.Change(spec.Extra)
	in := map[string]any{"name": Name(t), "settings": spec.Settings}
	if err := p.API.Call(t.Context(), http.MethodPost, "/v1/services", in, &s.Service); err != nil {
		t.Fatalf("creating a service: %v", err)
	}
	t.Cleanup(func() { s.delete(t) })
	if len(spec.Env) > 0 {
		s.SetEnv(t, spec.Env)
	}
	return s
}

// Probe makes a service, deploys it and waits until it is live.
func (p *Platform) Probe(t testing.TB, spec Spec) *Service {
	t.Helper()
	s := p.Create(t, spec)
	s.Deploy(t)
	return s
}

// Service reads a service by its name.
func (p *Platform) Service(t testing.TB, name string) leapcell.Service {
	t.Helper()
	var s leapcell.Service
	if err := p.API.Call(t.Context(), http.MethodGet, "/v1/services/"+name, nil, &s); err != nil {
		t.Fatalf("service %s: %v", name, err)
	}
	return s
}

// Adopt makes a service that came about otherwise, by the CLI for example, one of the test's.
func (p *Platform) Adopt(t testing.TB, s leapcell.Service) *Service {
	adopted := &Service{Service: s, p: p}
	t.Cleanup(func() { adopted.delete(t) })
	return adopted
}

// Change changes files of the source for the next deployment.
func (s *Service) Change(files map[string]string) {
	s.spec.Files = maps.Clone(s.spec.Files)
	maps.Copy(s.spec.Files, files)
}

// Source is what the next deployment of the service's folder has, by path.
func (s *Service) Source() map[string]string { return maps.Clone(s.spec.Files) }

// At is the service as it is seen under another host.
func (s *Service) At(host string) *Service {
	other := *s
	other.Host = host
	return &other
}

// Name is a new name for a service, after the test.
func Name(t testing.TB) string {
	base := strings.ReplaceAll(t.Name(), "/", "-")
	base = strings.TrimPrefix(strings.TrimPrefix(base, "TestMust_"), "Test")
	base = strings.Trim(notInNames.ReplaceAllString(strings.ToLower(base), "-"), "-")
	unique := make([]byte, 3)
	_, _ = rand.Read(unique) // never fails
	return fmt.Sprintf("t-%s-%s", strings.Trim(base[:min(20, len(base))], "-"), hex.EncodeToString(unique))
}

func (s *Service) delete(t testing.TB) {
	// The test's own context is over by now.
	ctx, cancel := context.WithTimeout(context.Background(), Allow(time.Minute))
	defer cancel()
	if t.Failed() {
		t.Logf("log of %s:\n%s", s.Name, tail(s.logs(ctx), 30))
	}
	err := s.p.API.Call(ctx, http.MethodDelete, "/v1/services/"+s.Name, nil, nil)
	var e *APIError
	if err != nil && !(errors.As(err, &e) && e.Status == http.StatusNotFound) {
		t.Errorf("deleting %s: %v", s.Name, err)
	}
}

// Deploy uploads the source and waits until the deployment is live.
func (s *Service) Deploy(t testing.TB) leapcell.Deployment {
	t.Helper()
	d := s.TryDeploy(t)
	if d.State != leapcell.Live {
		t.Fatalf("deployment %s is %s: %+v\n%s", d.ID, d.State, d.Error, tail(s.BuildLog(t, d.ID), 30))
	}
	return d
}

// TryDeploy uploads the source and waits until the deployment moves no further.
func (s *Service) TryDeploy(t testing.TB) leapcell.Deployment {
	t.Helper()
	return s.p.Await(t, s.Begin(t).ID)
}

// Begin uploads the source and returns at once.
func (s *Service) Begin(t testing.TB) leapcell.Deployment {
	t.Helper()
	var d leapcell.Deployment
	if err := s.p.API.Upload(t.Context(), "/v1/services/"+s.Name+"/deployments", Archive(s.spec.Files), &d); err != nil {
		t.Fatalf("deploying %s: %v", s.Name, err)
	}
	return d
}

// Await waits until a deployment moves no further.
func (p *Platform) Await(t testing.TB, id string) leapcell.Deployment {
	t.Helper()
	deadline := time.Now().Add(15 * time.Minute)
	for {
		var d leapcell.Deployment
		if err := p.API.Call(t.Context(), http.MethodGet, "/v1/deployments/"+id+"/wait?timeout=60s", nil, &d); err != nil {
			t.Fatalf("waiting for %s: %v", id, err)
		}
		if d.State.Done() {
			return d
		}
		if time.Now().After(deadline) {
			t.Fatalf("deployment %s is still %s after 15 minutes", id, d.State)
		}
	}
}

// Deployment reads a deployment.
func (p *Platform) Deployment(t testing.TB, id string) leapcell.Deployment {
	t.Helper()
	var d leapcell.Deployment
	if err := p.API.Call(t.Context(), http.MethodGet, "/v1/deployments/"+id, nil, &d); err != nil {
		t.Fatalf("deployment %s: %v", id, err)
	}
	return d
}

// Reload reads the service again, for its live deployment.
func (s *Service) Reload(t testing.TB) {
	t.Helper()
	s.Service = s.p.Service(t, s.Name)
}

// Set changes settings; they hold from the next deployment on.
func (s *Service) Set(t testing.TB, settings leapcell.Settings) {
	t.Helper()
	err := s.p.API.Call(t.Context(), http.MethodPatch, "/v1/services/"+s.Name, map[string]any{"settings": settings}, nil)
	if err != nil {
		t.Fatalf("settings of %s: %v", s.Name, err)
	}
}

// SetEnv sets variables.
func (s *Service) SetEnv(t testing.TB, values map[string]string) {
	t.Helper()
	if err := s.TrySetEnv(t, values); err != nil {
		t.Fatalf("variables of %s: %v", s.Name, err)
	}
}

// TrySetEnv sets variables and gives the API's error.
func (s *Service) TrySetEnv(t testing.TB, values map[string]string) error {
	t.Helper()
	return s.p.API.Call(t.Context(), http.MethodPatch, "/v1/services/"+s.Name+"/env", map[string]any{"set": values}, nil)
}

// BuildLog is a deployment's log so far.
func (s *Service) BuildLog(t testing.TB, deployment string) string {
	t.Helper()
	var text string
	if err := s.p.API.Call(t.Context(), http.MethodGet, "/v1/deployments/"+deployment+"/log", nil, &text); err != nil {
		return "no build log: " + err.Error()
	}
	return text
}

// Logs is what the owner sees of the service's log.
func (s *Service) Logs(t testing.TB) string {
	t.Helper()
	return s.logs(t.Context())
}

func (s *Service) logs(ctx context.Context) string {
	var text string
	if err := s.p.API.Call(ctx, http.MethodGet, "/v1/services/"+s.Name+"/logs?tail=1000", nil, &text); err != nil {
		return "no log: " + err.Error()
	}
	return text
}

// Reply is the answer that a visitor got.
type Reply struct {
	Status int
	Header http.Header
	Body   string
	// Err is what went wrong while the body was read: the connection broke off.
	Err error
}

// Instance is the one that answered.
func (r Reply) Instance() string { return r.Header.Get("Probe-Instance") }

// Get visits the service; a connection that fails before the answer fails the test.
func (s *Service) Get(t testing.TB, path string) Reply {
	t.Helper()
	r, err := s.Visit(t.Context(), s.p.HTTP, path)
	if err != nil {
		t.Fatalf("GET %s%s: %v", s.Host, path, err)
	}
	return r
}

// Visit visits the service as a visitor of one's own.
func (s *Service) Visit(ctx context.Context, visitor *http.Client, path string) (Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, Allow(2*time.Minute))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Host+path, nil)
	if err != nil {
		return Reply{}, err
	}
	resp, err := visitor.Do(req)
	if err != nil {
		return Reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return Reply{resp.StatusCode, resp.Header, string(b), err}, nil
}

// Read visits the service and reads the JSON of a 200.
func (s *Service) Read(t testing.TB, path string, out any) Reply {
	t.Helper()
	r := s.Get(t, path)
	if r.Status != http.StatusOK || r.Err != nil {
		t.Fatalf("GET %s%s: %d %.300q %v", s.Host, path, r.Status, r.Body, r.Err)
	}
	if err := json.Unmarshal([]byte(r.Body), out); err != nil {
		t.Fatalf("GET %s%s: %v in %.300q", s.Host, path, err, r.Body)
	}
	return r
}

// Allocs are the allocations of the service's live deployment that run or are about to.
func (s *Service) Allocs(t testing.TB) []*nomad.AllocationListStub {
	t.Helper()
	return slices.DeleteFunc(s.AllAllocs(t), func(a *nomad.AllocationListStub) bool {
		return a.ClientStatus != nomad.AllocClientStatusPending && a.ClientStatus != nomad.AllocClientStatusRunning
	})
}

// AllAllocs are all allocations of the live deployment that Nomad remembers.
func (s *Service) AllAllocs(t testing.TB) []*nomad.AllocationListStub {
	t.Helper()
	s.Reload(t)
	allocs, _, err := s.p.Nomad.Jobs().Allocations(s.Live, true, (&nomad.QueryOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatalf("allocations of %s: %v", s.Live, err)
	}
	return allocs
}

// Scale asks Nomad for a number of instances.
func (s *Service) Scale(t testing.TB, n int) {
	t.Helper()
	s.Reload(t)
	_, _, err := s.p.Nomad.Jobs().Scale(s.Live, leapcell.Group, &n, "test", false, nil, (&nomad.WriteOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatalf("scaling %s: %v", s.Live, err)
	}
}

// ToZero takes all instances away and waits until they are gone. A persistent service is given
// others at once, maybe before that.
func (s *Service) ToZero(t testing.TB) {
	t.Helper()
	there := map[string]bool{}
	for _, a := range s.Allocs(t) {
		there[a.ID] = true
	}
	s.Scale(t, 0)
	Eventually(t, 40*time.Second, "none of the instances is left", func() bool {
		return !slices.ContainsFunc(s.Allocs(t), func(a *nomad.AllocationListStub) bool { return there[a.ID] })
	})
}

// Eventually polls, for what other processes do and nobody announces. The limit is that of a
// machine of full speed.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	limit = Allow(limit)
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// compiled is the probe app, made on this machine without anything to link to, so that it
// runs on every runtime and its build in the platform takes no time.
func (p *Platform) compiled(t testing.TB) []byte {
	t.Helper()
	p.compiling.Lock()
	defer p.compiling.Unlock()
	if p.probe == nil {
		out := filepath.Join(t.TempDir(), "probe")
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, ".")
		cmd.Dir = filepath.Join(p.Root, "test", "apps", "probe")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOTOOLCHAIN=local")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("compiling the probe app: %v\n%s", err, b)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		p.probe = b
	}
	return p.probe
}

// Archive packs files as an upload.
func Archive(files map[string]string) io.Reader {
	var buf bytes.Buffer
	zip, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	w := tar.NewWriter(zip)
	for name, text := range files {
		// Writing to memory does not fail.
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text)), ModTime: time.Unix(1700000000, 0)})
		_, _ = io.WriteString(w, text)
	}
	_, _ = w.Close(), zip.Close()
	return &buf
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
