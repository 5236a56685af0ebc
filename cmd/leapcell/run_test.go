package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/problem"
)

// api is a control plane of one service, "shop", as far as the commands see it.
type api struct {
	upload leapcell.Upload // the last one
	begun  int64           // how far uploads are when they are asked for
	*httptest.Server
	t *testing.T

	mu      sync.Mutex
	calls   []string
	bodies  []string
	service leapcell.Service
	final   leapcell.Deployment
	log     string
	missing bool
}

func newAPI(t *testing.T) *api {
	a := &api{t: t, log: "line one\nline two\n", service: leapcell.Service{
		ID: "shop-main-abcd1234", Name: "shop", URL: "http://shop.test", CreatedAt: time.Now().Add(-3 * time.Hour),
		Settings: leapcell.Settings{Runtime: "go"}, Live: "shop-1",
	}}
	a.final = leapcell.Deployment{ID: "shop-2", Service: "shop", ServiceID: a.service.ID, Number: 2, State: leapcell.Live}
	a.Server = httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(a.Close)
	return a
}

func (a *api) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, r.Method+" "+r.URL.RequestURI())
	if r.Header.Get("Content-Type") == "application/json" {
		a.bodies = append(a.bodies, string(body))
	}
	if r.Header.Get("Authorization") != "Bearer secret" {
		a.refuse(w, leapcell.Errorf(leapcell.CodeUnauthorized, "the token is not known"))
		return
	}
	service := r.Method == "GET" && (r.URL.Path == "/v1/services/shop" || r.URL.Path == "/v1/services/"+a.service.ID)
	switch {
	case r.Method == "POST" && r.URL.Path == "/v1/uploads":
		_ = json.Unmarshal(body, &a.upload)
		a.upload.Offset = a.begun
		a.answer(w, a.upload)
	case r.Method == "PATCH" && r.URL.Path == "/v1/uploads/"+a.upload.SHA256:
		a.upload.Offset += int64(len(body))
		a.answer(w, a.upload)
	case service && a.missing, strings.HasPrefix(r.URL.Path, "/v1/services/none"):
		a.refuse(w, leapcell.Errorf(leapcell.CodeNotFound, "there is no service %q", filepath.Base(r.URL.Path)))
	case service:
		a.answer(w, a.service)
	case r.Method == "POST" && r.URL.Path == "/v1/services":
		a.missing = false
		a.answer(w, a.service)
	case r.URL.Path == "/v1/services":
		a.answer(w, []leapcell.Service{a.service})
	case r.Method == "POST" && strings.HasSuffix(r.URL.Path, "/deployments"):
		a.answer(w, leapcell.Deployment{ID: "shop-2", ServiceID: a.service.ID, State: leapcell.Queued})
	case strings.HasSuffix(r.URL.Path, "/deployments"):
		a.answer(w, []leapcell.Deployment{a.final})
	case strings.HasSuffix(r.URL.Path, "/rollback"), strings.HasSuffix(r.URL.Path, "/redeploy"), strings.HasSuffix(r.URL.Path, "/wait"), strings.HasPrefix(r.URL.Path, "/v1/deployments/") && !strings.HasSuffix(r.URL.Path, "/log"):
		a.answer(w, a.final)
	case strings.HasSuffix(r.URL.Path, "/log"), strings.HasSuffix(r.URL.Path, "/logs"):
		_, _ = io.WriteString(w, a.log)
	case strings.HasSuffix(r.URL.Path, "/env"):
		a.answer(w, map[string]any{"version": 2, "names": []string{"A", "B"}})
	case r.Method == "DELETE", r.Method == "PATCH", strings.HasSuffix(r.URL.Path, "/instances"):
		_, _ = io.WriteString(w, "[]")
	default:
		a.t.Errorf("unexpected call: %s %s", r.Method, r.URL)
	}
}

func (a *api) answer(w http.ResponseWriter, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		a.t.Error(err)
	}
}

func (a *api) refuse(w http.ResponseWriter, err error) {
	body := problem.New(err, "r1")
	w.Header().Set("Content-Type", problem.ContentType)
	w.WriteHeader(body.Status)
	a.answer(w, body)
}

func (a *api) called(call string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.calls {
		if c == call {
			return true
		}
	}
	return false
}

type result struct {
	code     int
	out, err string
}

// cli runs the program against the API; nothing of this machine's own platform is seen.
func (a *api) cli(t *testing.T, in string, args ...string) result {
	t.Helper()
	environ := []string{"LEAPCELL_API=" + a.URL, "LEAPCELL_TOKEN=secret", "LEAPCELL_STATE_DIR=" + t.TempDir()}
	return cli(t, environ, in, args...)
}

func cli(t *testing.T, environ []string, in string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(t.Context(), args, environ, strings.NewReader(in), &out, &errs)
	return result{code, out.String(), errs.String()}
}

func TestDeployFolderEndsWithURL(t *testing.T) {
	a := newAPI(t)
	a.missing = true
	dir := filepath.Join(tree(t, map[string]string{"shop/app.py": "x"}), "shop")
	r := a.cli(t, "", "deploy", dir, "--memory", "1gb")
	if r.code != 0 || !strings.HasSuffix(r.out, "line two\nshop-2 is live: http://shop.test\n") {
		t.Errorf("code %d, output %q, errors %q", r.code, r.out, r.err)
	}
	if !a.called("POST /v1/services") || !strings.Contains(a.bodies[0], `"name":"shop"`) || !strings.Contains(a.bodies[0], `"memoryMB":1024`) {
		t.Errorf("the service was made by %q", a.bodies)
	}
}

// What a former run of the command sent is not sent again, and that is said.
func TestUploadGoesOn(t *testing.T) {
	a := newAPI(t)
	a.begun = 50
	dir := tree(t, map[string]string{"app.py": "x"})
	r := a.cli(t, "", "deploy", dir, "--name", "shop", "--root-dir", "api")
	if r.code != 0 || !strings.Contains(r.err, "going on at 50 B") || !a.upload.Complete() {
		t.Errorf("code %d, %q, upload %+v", r.code, r.err, a.upload)
	}
	if want := `{"source":{"rootDir":"api","upload":"` + a.upload.SHA256 + `"}}`; !slices.Contains(a.bodies, want) {
		t.Errorf("sent %q", a.bodies)
	}
	first := a.upload.SHA256
	if a.cli(t, "", "deploy", dir, "--name", "shop"); a.upload.SHA256 != first {
		t.Error("the same folder is another upload: it could not go on")
	}
}

func TestDeployAsJSONKeepsStdoutForJSON(t *testing.T) {
	a := newAPI(t)
	r := a.cli(t, "", "deploy", tree(t, map[string]string{"app.py": "x"}), "--name", "shop", "-o", "json")
	var v struct{ Deployment leapcell.Deployment }
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || v.Deployment.ID != "shop-2" {
		t.Errorf("stdout %q: %v", r.out, err)
	}
	if !strings.Contains(r.err, "line two") {
		t.Errorf("the log is not on stderr: %q", r.err)
	}
}

func TestDeployGit(t *testing.T) {
	a := newAPI(t)
	r := a.cli(t, "", "deploy", "--git", "https://git.test/team/shop.git", "--branch", "main", "--root-dir", "api")
	want := `{"source":{"gitURL":"https://git.test/team/shop.git","branch":"main","rootDir":"api"}}`
	if r.code != 0 || len(a.bodies) != 1 || a.bodies[0] != want {
		t.Errorf("code %d, %q, sent %q", r.code, r.err, a.bodies)
	}
}

func TestFailedDeploymentSaysWhy(t *testing.T) {
	a := newAPI(t)
	code := 3
	a.final.State = leapcell.Failed
	a.final.Error = &leapcell.Problem{Code: leapcell.CodeBuildFailed, Message: "the build command failed", ExitCode: &code, LogTail: []string{"boom", "bang"}}
	r := a.cli(t, "", "deploy", tree(t, map[string]string{"app.py": "x"}), "--name", "shop")
	want := "Error: shop-2 failed: the build command failed (exit code 3)\nIts last lines:\n  boom\n  bang\nNext:  put the build command"
	if r.code != 1 || !strings.Contains(r.err, want) {
		t.Errorf("code %d, errors\n%s", r.code, r.err)
	}
}

func TestLeavingADeployment(t *testing.T) {
	a := newAPI(t)
	ctx, cancel := context.WithCancel(t.Context())
	log := writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil }) // Ctrl-C at the first line
	var errs bytes.Buffer
	code := run(ctx, []string{"deploy", tree(t, map[string]string{"app.py": "x"}), "--name", "shop"},
		[]string{"LEAPCELL_API=" + a.URL, "LEAPCELL_TOKEN=secret"}, strings.NewReader(""), log, &errs)
	if code != 130 || !strings.Contains(errs.String(), "shop-2 goes on") || !strings.Contains(errs.String(), "leapcell deployment log shop-2 -f") {
		t.Errorf("code %d, %q", code, errs.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestErrors(t *testing.T) {
	a := newAPI(t)
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"unknown service":    {[]string{"service", "show", "none"}, []string{`there is no service "none"`, "Next:  `leapcell services`"}},
		"wrong token":        {[]string{"services", "--token", "wrong"}, []string{"the token is not known", "--token-file"}},
		"nobody there":       {[]string{"services", "--api", "http://127.0.0.1:1"}, []string{"127.0.0.1:1 does not answer", "Next:  `leapcell status`"}},
		"no service named":   {[]string{"logs"}, []string{"leapcell logs needs SERVICE", "leapcell logs --help"}},
		"unknown flag":       {[]string{"services", "--bogus"}, []string{"--bogus", "leapcell services --help"}},
		"unknown command":    {[]string{"depoly"}, []string{"depoly", "deploy"}},
		"output":             {[]string{"services", "-o", "yaml"}, []string{"table or json"}},
		"memory":             {[]string{"deploy", ".", "--memory", "much"}, []string{"much", "512mb"}},
		"memory too small":   {[]string{"deploy", ".", "--memory", "64"}, []string{"from 128 to 7076"}},
		"no such folder":     {[]string{"deploy", "/none/such"}, []string{"there is no folder /none/such"}},
		"folder and git":     {[]string{"deploy", ".", "--git", "https://git.test/x"}, []string{"not both"}},
		"branch of a folder": {[]string{"deploy", ".", "--branch", "x"}, []string{"--branch goes with --git"}},
		"bad name":           {[]string{"deploy", ".", "--name", "A_b"}, []string{"A_b", "--name"}},
		"no assignment":      {[]string{"env", "set", "shop", "A"}, []string{"NAME=VALUE"}},
		"set twice":          {[]string{"env", "set", "shop", "A=1", "A=2"}, []string{"A is set twice"}},
		"bad variable":       {[]string{"env", "set", "shop", "1A=x"}, []string{"1A"}},
		"nothing to set":     {[]string{"service", "set", "shop"}, []string{"nothing to set"}},
		"status of nothing":  {[]string{"status"}, []string{"there is no platform in", "leapcell up"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := a.cli(t, "", c.args...)
			if r.code != 1 || !strings.HasPrefix(r.err, "Error: ") {
				t.Fatalf("code %d, %q", r.code, r.err)
			}
			for _, want := range c.want {
				if !strings.Contains(r.err, want) {
					t.Errorf("%q is not in %q", want, r.err)
				}
			}
		})
	}
}

func TestErrorAsJSON(t *testing.T) {
	r := newAPI(t).cli(t, "", "deployments", "none", "-o", "json")
	var e struct{ Code, Message, Next string }
	if err := json.Unmarshal([]byte(r.err), &e); err != nil || e.Code != "not_found" || e.Message == "" || e.Next == "" || r.out != "" {
		t.Errorf("code %d, stdout %q, stderr %q (%v)", r.code, r.out, r.err, err)
	}
}

func TestTokenSources(t *testing.T) {
	a := newAPI(t)
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	for path, token := range map[string]string{good: "secret\n", bad: "wrong\n"} {
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state := "LEAPCELL_STATE_DIR=" + dir
	for name, c := range map[string]struct {
		environ, args []string
		ok            bool
	}{
		"flag over variable": {[]string{"LEAPCELL_TOKEN=wrong"}, []string{"--token", "secret"}, true},
		"variable":           {[]string{"LEAPCELL_TOKEN=secret"}, nil, true},
		"file":               {nil, []string{"--token-file", good}, true},
		"file by variable":   {[]string{"LEAPCELL_TOKEN_FILE=" + good}, nil, true},
		"wrong file":         {nil, []string{"--token-file", bad}, false},
		"no file":            {nil, []string{"--token-file", filepath.Join(dir, "none")}, false},
		"nothing":            {nil, nil, false},
	} {
		r := cli(t, append(c.environ, state), "", append([]string{"services", "--api", a.URL}, c.args...)...)
		if (r.code == 0) != c.ok || !c.ok && !strings.Contains(r.err, "token") {
			t.Errorf("%s: code %d, %q", name, r.code, r.err)
		}
	}
}

func TestPlatformIsFoundByStateFolder(t *testing.T) {
	a := newAPI(t)
	var port int
	if _, err := fmt.Sscanf(a.URL, "http://127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	top := tree(t, map[string]string{
		".leapcell/config.json":         fmt.Sprintf(`{"name":"test","bind":"127.0.0.1","ports":{"api":%d}}`, port),
		".leapcell/control/admin.token": "secret\n", "some/where/": "",
	})
	t.Chdir(filepath.Join(top, "some", "where"))
	if r := cli(t, nil, "", "services"); r.code != 0 || !strings.Contains(r.out, "http://shop.test") {
		t.Errorf("code %d, %q %q", r.code, r.out, r.err)
	}
}

func TestServicesTable(t *testing.T) {
	r := newAPI(t).cli(t, "", "services")
	want := "NAME  KIND        LIVE    URL               CREATED\nshop  serverless  shop-1  http://shop.test  3h ago\n"
	if r.out != want {
		t.Errorf("got\n%swant\n%s", r.out, want)
	}
}

func TestEnv(t *testing.T) {
	a := newAPI(t)
	r := a.cli(t, "from stdin\n", "env", "set", "shop", "A=1=2", "B=-")
	if want := `{"set":{"A":"1=2","B":"from stdin"}}`; r.code != 0 || len(a.bodies) != 1 || a.bodies[0] != want {
		t.Errorf("code %d %q, sent %q, want %q", r.code, r.err, a.bodies, want)
	}
	if r = a.cli(t, "", "env", "unset", "shop", "A"); r.code != 0 || a.bodies[1] != `{"unset":["A"]}` {
		t.Errorf("code %d %q, sent %q", r.code, r.err, a.bodies)
	}
	if r = a.cli(t, "", "env", "list", "shop"); r.out != "NAME\nA\nB\n" {
		t.Errorf("listed %q", r.out)
	}
}

func TestDeleteAsks(t *testing.T) {
	a := newAPI(t)
	del := "DELETE /v1/services/" + a.service.ID
	if r := a.cli(t, "no\n", "delete", "shop"); r.code == 0 || a.called(del) {
		t.Errorf("deleted although nobody agreed: %q", r.err)
	}
	if r := a.cli(t, "shop\n", "delete", "shop"); r.code != 0 || !a.called(del) || r.out != "deleted shop\n" {
		t.Errorf("code %d, %q %q", r.code, r.out, r.err)
	}
	a.calls = nil
	if r := a.cli(t, "", "delete", "shop", "--yes"); r.code != 0 || !a.called(del) || strings.Contains(r.err, "?") {
		t.Errorf("code %d, %q", r.code, r.err)
	}
}

func TestRollbackAndLogs(t *testing.T) {
	a := newAPI(t)
	if r := a.cli(t, "", "rollback", "shop", "shop-1"); r.code != 0 || !strings.Contains(r.out, "http://shop.test") {
		t.Errorf("code %d, %q %q", r.code, r.out, r.err)
	}
	if a.bodies[0] != `{"deployment":"shop-1"}` {
		t.Errorf("sent %q", a.bodies)
	}
	if r := a.cli(t, "", "logs", "shop", "--tail", "5"); r.out != a.log || !a.called("GET /v1/services/shop/logs?follow=false&tail=5") {
		t.Errorf("%q, calls %q", r.out, a.calls)
	}
}

func TestCompletionOffersServices(t *testing.T) {
	a := newAPI(t)
	if r := a.cli(t, "", "__complete", "logs", ""); !strings.HasPrefix(r.out, "shop\thttp://shop.test\n") {
		t.Errorf("offered %q", r.out)
	}
	if r := a.cli(t, "", "__complete", "rollback", "shop", ""); !strings.HasPrefix(r.out, "shop-2\tlive\n") {
		t.Errorf("offered %q", r.out)
	}
}

func TestParseBuildArgs(t *testing.T) {
	got, err := parseBuildArgs([]string{"VERSION=1.20", "LIST=a,b=c", "EMPTY="})
	if want := map[string]string{"VERSION": "1.20", "LIST": "a,b=c", "EMPTY": ""}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got, err := parseBuildArgs(nil); got != nil || err != nil {
		t.Errorf("without any: %v, %v", got, err)
	}
	for given, want := range map[string]string{"VERSION": "write it as NAME=value", "A=1 A=2": "given twice"} {
		if _, err := parseBuildArgs(strings.Fields(given)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", given, err)
		}
	}
}

func TestParseMemory(t *testing.T) {
	for in, want := range map[string]int{"": 0, "512": 512, "512mb": 512, "2 GB": 2048, "1g": 1024, "300M": 300} {
		if got, err := parseMemory(in); err != nil || got != want {
			t.Errorf("parseMemory(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
}

func TestDeploymentsTableHasOneLineEach(t *testing.T) {
	a := newAPI(t)
	a.final.State, a.final.Error = leapcell.Failed, &leapcell.Problem{Message: "two reasons:\n* one\n* two"}
	r := a.cli(t, "", "deployments", "shop")
	if lines := strings.Split(strings.TrimSpace(r.out), "\n"); len(lines) != 2 || !strings.HasSuffix(lines[1], "two reasons …") {
		t.Errorf("got\n%s", r.out)
	}
}

func TestDeploymentsTableSays(t *testing.T) {
	made := time.Now().Add(-time.Hour)
	d := leapcell.Deployment{ID: "shop-2", State: leapcell.Superseded, Image: "x", CreatedAt: made,
		Source:  leapcell.Source{GitURL: "https://git.example/shop", Branch: "main", Commit: "0123456789abcdef"},
		Origin:  leapcell.Origin{Trigger: leapcell.Push, StartedBy: "ada"},
		Outcome: leapcell.Outcome{Subject: "Sell more", Author: "Ada L.", ImageBytes: 5 << 20, EndedAt: made.Add(12 * time.Second), ImageGone: made},
	}
	a := newAPI(t)
	d.ServiceID = a.service.ID
	a.final = d
	r := a.cli(t, "", "deployments", "shop", "--limit", "3", "--state", "live,superseded", "--branch", "main")
	for _, want := range []string{"0123456 Sell more", "Ada L.", "12s", "5.0 MB, not kept", "push by ada", "git https://git.example/shop main", "1h ago"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in\n%s", want, r.out)
		}
	}
	if !a.called("GET /v1/services/shop/deployments?branch=main&limit=3&state=live%2Csuperseded") {
		t.Errorf("calls %q", a.calls)
	}
	d.Origin = leapcell.Origin{Trigger: leapcell.Redeploy, StartedBy: "ada", Of: "shop-1"}
	d.RestoredBy, d.RestoredFrom = "bob", "shop-3"
	if got := byText(d); got != "redeploy of shop-1 by ada; rollback of shop-3 by bob" {
		t.Errorf("by %q", got)
	}
	if r := a.cli(t, "", "redeploy", "shop", "shop-2", "--detach"); r.code != 0 || !a.called("POST /v1/services/shop/redeploy") || !strings.Contains(r.out, "follow it") {
		t.Errorf("%+v", r)
	}
	r = a.cli(t, "", "redeploy", "shop")
	if r.code == 0 || !strings.Contains(r.err, "overtaken") {
		t.Errorf("%+v", r)
	}
}
