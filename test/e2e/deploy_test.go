package e2e

import (
	"encoding/json"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// named is a service that the CLI made; it is deleted when the test ends.
func named(t *testing.T, name string) *harness.Service {
	t.Helper()
	p := harness.Get(t)
	return p.Adopt(t, p.Service(t, name))
}

func visit(t *testing.T, s *harness.Service) harness.Reply {
	t.Helper()
	r := s.Get(t, "/")
	if r.Status != http.StatusOK || r.Err != nil || r.Body == "" {
		t.Errorf("%s answers %d %.200q %v", s.Name, r.Status, r.Body, r.Err)
	}
	return r
}

func TestSamples(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	url := repository(t, filepath.Join(p.Root, "examples"))
	for _, name := range samples(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			service := harness.Name(t)
			begin := time.Now()
			out := p.Must(t, "deploy", filepath.Join(p.Root, "examples", name), "--name", service)
			s := named(t, service)
			if !strings.Contains(out, s.URL) {
				t.Errorf("the URL %s is not at the end of\n%s", s.URL, out)
			}
			t.Logf("from a folder: live after %s: %.100q", time.Since(begin).Round(100*time.Millisecond), visit(t, s).Body)

			begin = time.Now()
			p.Must(t, "deploy", "--git", url, "--branch", "trunk", "--root-dir", "examples/"+name, "--name", service)
			t.Logf("from git: live after %s: %.100q", time.Since(begin).Round(100*time.Millisecond), visit(t, s).Body)
			s.Reload(t)
			if d := p.Deployment(t, s.Live); d.Number != 2 || d.Source.GitURL != url || len(d.Source.Commit) != 40 || d.Source.RootDir != "examples/"+name {
				t.Errorf("the deployment does not say where it came from: %+v", d)
			}
		})
	}
}

func TestGitURLOnThePlatformsDisk(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	if r := p.CLI(t, "deploy", "--git", "file:///etc", "--name", harness.Name(t)); r.Code == 0 || !strings.Contains(r.Output, "file://") {
		t.Errorf("%d %q", r.Code, r.Output)
	}
}

// samples are those of the checkout, or the ones that LEAPCELL_TEST_SAMPLES names.
func samples(t *testing.T) []string {
	if s := os.Getenv("LEAPCELL_TEST_SAMPLES"); s != "" {
		return strings.Split(s, ",")
	}
	return []string{"rust", "node", "python", "go"} // what takes longest begins first
}

// repository serves a git repository with dir in its folder examples, on a branch that is
// not the default one, and gives its URL.
func repository(t *testing.T, dir string) string {
	t.Helper()
	repo := t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", repo, "-c", "user.name=test", "-c", "user.email=test@example.com"}, args...)...)
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", args[0], err, b)
		}
		return string(b)
	}
	git("init", "-q", "-b", "main")
	git("commit", "-q", "--allow-empty", "-m", "empty")
	git("checkout", "-q", "-b", "trunk")
	if err := os.CopyFS(filepath.Join(repo, "examples"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	git("add", ".")
	git("commit", "-q", "-m", "examples")
	git("checkout", "-q", "main")
	server := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(git("--exec-path")), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + repo, "GIT_HTTP_EXPORT_ALL=1"},
	})
	t.Cleanup(server.Close)
	return server.URL + "/.git"
}

func TestRollbackServesTheFormerVersion(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	s := p.Create(t, harness.Spec{Extra: map[string]string{"answer": "one"}})
	first := s.Deploy(t)
	load := s.Visitors(t, 4, "/")
	s.Change(map[string]string{"answer": "two"})
	second := s.Deploy(t)
	answers(t, s, "two")
	if d := p.Deployment(t, first.ID); d.State != leapcell.Superseded {
		t.Errorf("the former deployment is %s", d.State)
	}
	p.Must(t, "rollback", s.Name)
	answers(t, s, "one")
	if s.Reload(t); s.Live != first.ID {
		t.Errorf("live is %s, want %s", s.Live, first.ID)
	}
	p.Must(t, "rollback", s.Name, second.ID)
	answers(t, s, "two")
	load.Check(t) // nobody noticed, except by the answer
}

// answers waits a moment for edges to hear of the new route.
func answers(t *testing.T, s *harness.Service, word string) {
	t.Helper()
	harness.Eventually(t, 5*time.Second, "the answer is "+word, func() bool {
		var r struct{ Text string }
		s.Read(t, "/read?path=/app/answer", &r)
		return r.Text == word
	})
}

func TestEnvTakesEffect(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{Env: map[string]string{"GREETING": "one"}})
	see := func(name string) string {
		var env map[string]string
		s.Read(t, "/env", &env)
		return env[name]
	}
	load := s.Visitors(t, 4, "/")
	p.Must(t, "env", "set", s.Name, "GREETING=two words", "MORE=x=y")
	harness.Eventually(t, 20*time.Second, "the running service has the new values", func() bool {
		return see("GREETING") == "two words" && see("MORE") == "x=y"
	})
	p.Must(t, "env", "unset", s.Name, "MORE")
	harness.Eventually(t, 20*time.Second, "the running service has lost the variable", func() bool { return see("MORE") == "" })
	load.Check(t)
	if out := p.Must(t, "env", "list", s.Name); !strings.Contains(out, "GREETING") || strings.Contains(out, "two words") {
		t.Errorf("env list must have names and no values: %q", out)
	}
}

func TestDeleteLeavesNothing(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{Env: map[string]string{"A": "1"}})
	inside := s.Inside(t, s.Get(t, "/").Instance())
	live := s.AllAllocs(t)[0].JobID
	p.Must(t, "delete", s.Name, "--yes")
	harness.Eventually(t, 40*time.Second, "its process has ended", func() bool { return !inside.Alive() })
	if r := s.Get(t, "/"); r.Status != http.StatusNotFound {
		t.Errorf("its address answers %d %q", r.Status, r.Body)
	}
	// Nomad forgets a job when it has heard of the end of its last instance.
	harness.Eventually(t, 40*time.Second, "Nomad has forgotten its job", func() bool {
		_, _, err := p.Nomad.Jobs().Info(live, nil)
		return err != nil && strings.Contains(err.Error(), "404")
	})
	variables, _, err := p.Nomad.Variables().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range variables {
		if strings.Contains(v.Path, s.ID) {
			t.Errorf("the variable %s is left", v.Path)
		}
	}
	if r := p.CLI(t, "deployments", s.Name); r.Code == 0 || !strings.Contains(r.Output, s.Name) {
		t.Errorf("asking for it: %d %q", r.Code, r.Output)
	}
}

func TestLogsFollow(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{})
	s.Get(t, "/log?out=before-following")
	harness.Eventually(t, 10*time.Second, "the line is there", func() bool { return strings.Contains(p.Must(t, "logs", s.Name), "before-following") })
	f := p.Follow(t, "logs", s.Name, "-f")
	s.Get(t, "/log?out=while-following")
	harness.Eventually(t, 10*time.Second, "the new line comes by itself", func() bool { return strings.Contains(f.Output(), "while-following") })
}

func TestEveryCommandSpeaksJSON(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{Env: map[string]string{"A": "1"}})
	for _, args := range [][]string{
		{"status"}, {"services"}, {"service", "show", s.Name}, {"deployments", s.Name}, {"env", "list", s.Name}, {"env", "set", s.Name, "B=2"}, {"env", "unset", s.Name, "B"}, {"version"},
	} {
		var v any
		p.JSON(t, &v, args...)
		if v == nil {
			t.Errorf("%s says null", strings.Join(args, " "))
		}
	}
	r := p.CLI(t, "deployments", "no-such-service", "-o", "json")
	var problem struct{ Code leapcell.Code }
	if err := json.Unmarshal([]byte(lastLine(r.Output)), &problem); r.Code == 0 || err != nil && !strings.Contains(r.Output, "no-such-service") {
		t.Errorf("an error with -o json: code %d, %q", r.Code, r.Output)
	}
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
