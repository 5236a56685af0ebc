package contract

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

func TestMust_EN1_ValuesAreNowhereInClear(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	begin := time.Now()
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	secret := "s3cret-" + hex.EncodeToString(random)
	s := p.Probe(t, harness.Spec{Env: map[string]string{"KNOWN_SECRET": secret, "OTHER": "x"}})

	var env map[string]string
	s.Read(t, "/env", &env)
	if env["KNOWN_SECRET"] != secret {
		t.Fatalf("the instance itself does not have the value: %d bytes", len(env["KNOWN_SECRET"]))
	}
	search := newSearch(secret)
	if !search.matches([]byte("x" + secret + "y")) {
		t.Fatal("the search finds nothing")
	}
	alloc := s.Get(t, "/").Instance()
	for _, dir := range []string{p.Config.StateDir, os.TempDir(), "/run", "/dev/shm", "/var/lib", "/var/log"} {
		searchFiles(t, search, dir, begin)
	}
	searchNomad(t, search, alloc)
	searchProcesses(t, search, alloc)
	searchAPI(t, search, s)
}

// The same must hold when a value is changed, and after the service is gone.
func TestMust_EN1_ChangedValuesToo(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	s := p.Probe(t, harness.Spec{})
	begin := time.Now()
	random := make([]byte, 24)
	_, _ = rand.Read(random) // never fails
	secret := "changed-" + hex.EncodeToString(random)
	s.ToZero(t)
	p.Must(t, "env", "set", s.Name, "CHANGED="+secret)
	var env map[string]string
	if s.Read(t, "/env", &env); env["CHANGED"] != secret {
		t.Fatal("the new instance does not have the new value")
	}
	search := newSearch(secret)
	searchFiles(t, search, p.Config.StateDir, begin)
	searchProcesses(t, search, s.Get(t, "/").Instance())
}

// search knows the forms in which a value may lie around.
type search [][]byte

func newSearch(secret string) search {
	b := []byte(secret)
	forms := search{b, []byte(hex.EncodeToString(b))}
	// In base64 a text looks different at each of three offsets; the middle of it does not.
	for offset := range 3 {
		padded := append(bytes.Repeat([]byte{'x'}, offset), b...)
		enc := base64.StdEncoding.EncodeToString(padded)
		forms = append(forms, []byte(enc[4:len(enc)-8]))
	}
	return forms
}

func (s search) matches(text []byte) bool {
	for _, form := range s {
		if bytes.Contains(text, form) {
			return true
		}
	}
	return false
}

// searchFiles reads every file below dir that changed since a time.
func searchFiles(t *testing.T, s search, dir string, since time.Time) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went away meanwhile
		}
		if s.matches([]byte(d.Name())) {
			t.Errorf("the value is the name of %s", path)
		}
		if info, err := d.Info(); err != nil || !d.Type().IsRegular() || changed(info).Before(since.Add(-time.Second)) { // the clock of files is a coarse one
			return nil
		}
		files++
		if found, err := fileMatches(s, path); err == nil && found {
			t.Errorf("the value is in %s", path)
		}
		return nil
	})
	if err != nil {
		t.Errorf("searching %s: %v", dir, err)
	}
	t.Logf("%s: %d files searched", dir, files)
}

// changed is when the kernel last saw something done to a file; nobody can set it back.
func changed(info fs.FileInfo) time.Time {
	return time.Unix(info.Sys().(*syscall.Stat_t).Ctim.Unix())
}

// fileMatches reads in pieces that overlap: a value does not hide on a border.
func fileMatches(s search, path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	const overlap = 512
	buf := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := io.ReadFull(f, buf[kept:])
		if s.matches(buf[:kept+n]) {
			return true, nil
		}
		if err != nil {
			return false, nil // the end
		}
		kept = copy(buf, buf[len(buf)-overlap:])
	}
}

// searchNomad asks for every kind of object that could hold a value, in its raw form.
func searchNomad(t *testing.T, s search, alloc string) {
	t.Helper()
	client := harness.Get(t).Nomad
	get := func(path string) []byte {
		r, err := client.Raw().Response(path, nil)
		if err != nil {
			if !strings.Contains(err.Error(), "404") {
				t.Errorf("Nomad %s: %v", path, err)
			}
			return nil
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Errorf("Nomad %s: %v", path, err)
		}
		if s.matches(b) {
			t.Errorf("the value is in Nomad at %s", path)
		}
		return b
	}
	for _, list := range []string{"/v1/jobs", "/v1/allocations?task_states=true&resources=true", "/v1/evaluations", "/v1/deployments", "/v1/vars", "/v1/services", "/v1/nodes", "/v1/acl/policies"} {
		if get(list) == nil {
			t.Errorf("Nomad %s: nothing", list)
		}
	}
	jobs, _, err := client.Jobs().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs {
		get("/v1/job/" + j.ID)
		get("/v1/job/" + j.ID + "/versions")
		get("/v1/job/" + j.ID + "/allocations?all=true")
		get("/v1/job/" + j.ID + "/submission?version=0")
	}
	variables, _, err := client.Variables().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	sealed := false
	for _, v := range variables {
		get("/v1/var/" + v.Path)
		sealed = sealed || strings.HasPrefix(v.Path, leapcell.EnvPrefix)
	}
	if !sealed {
		t.Errorf("no variable below %s: the search looks in the wrong place", leapcell.EnvPrefix)
	}
	allocs, _, err := client.Allocations().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range allocs {
		get("/v1/allocation/" + a.ID)
	}
	for _, path := range []string{"/", "/alloc", "/alloc/logs"} {
		get("/v1/client/fs/ls/" + alloc + "?path=" + path)
	}
}

// searchProcesses looks at arguments and environments of all processes; those inside the
// instance are the one place where the value belongs.
func searchProcesses(t *testing.T, s search, instance string) {
	t.Helper()
	inside := 0
	harness.Processes(func(p harness.Process) bool {
		if p.PID == os.Getpid() {
			return false
		}
		if s.matches([]byte(p.File("cmdline"))) {
			t.Errorf("the value is an argument of process %d", p.PID)
		}
		if s.matches([]byte(p.File("environ"))) {
			if p.Env("LEAPCELL_INSTANCE") == instance {
				inside++
			} else {
				t.Errorf("the value is in the environment of process %d: %s", p.PID, p.Args()[0])
			}
		}
		return false
	})
	if inside == 0 {
		t.Error("not even the instance's own process has the value: the search looks in the wrong place")
	}
}

// searchAPI reads what an owner can read.
func searchAPI(t *testing.T, s search, service *harness.Service) {
	t.Helper()
	p := harness.Get(t)
	service.Reload(t)
	for _, path := range []string{
		"/v1/services", "/v1/services/" + service.Name, "/v1/services/" + service.Name + "/env", "/v1/services/" + service.Name + "/deployments",
		"/v1/services/" + service.Name + "/instances", "/v1/services/" + service.Name + "/logs", "/v1/deployments/" + service.Live, "/v1/deployments/" + service.Live + "/log",
	} {
		var text string
		if err := p.API.Call(t.Context(), http.MethodGet, path, nil, &text); err != nil {
			t.Errorf("GET %s: %v", path, err)
		}
		if s.matches([]byte(text)) {
			t.Errorf("the value is in the answer to GET %s", path)
		}
	}
}

func TestMust_EN3_NamesAndSize(t *testing.T) {
	t.Parallel()
	s := harness.Get(t).Create(t, harness.Spec{})
	refused := func(values map[string]string, status int, says string) {
		t.Helper()
		err := s.TrySetEnv(t, values)
		var e *harness.APIError
		if !errors.As(err, &e) || status != 0 && e.Status != status || e.Status/100 != 4 || !strings.Contains(e.Detail, says) {
			t.Errorf("%.60q: %v, want %d and a text that names %q", fmt.Sprint(values), err, status, says)
		}
	}
	for _, name := range []string{"1A", "A-B", "A B", "", "Ä", "A=B"} {
		refused(map[string]string{name: "v"}, 0, name)
	}
	const most = leapcell.MaxEnvBytes
	refused(map[string]string{"A": strings.Repeat("x", most)}, http.StatusUnprocessableEntity, fmt.Sprint(most+1))
	s.SetEnv(t, map[string]string{"A": strings.Repeat("x", most-1)})
	// All together count, whenever they were set.
	refused(map[string]string{"B": "1"}, http.StatusUnprocessableEntity, fmt.Sprint(most+2))
	var env struct{ Names []string }
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := harness.Get(t).API.Call(ctx, http.MethodGet, "/v1/services/"+s.Name+"/env", nil, &env); err != nil || fmt.Sprint(env.Names) != "[A]" {
		t.Errorf("after all that the names are %q, %v", env.Names, err)
	}
}

// Values are written and listed by name. Reading one back takes a role that not even the admin has,
// Vault's consent, and is written down.
func TestMust_EN4_ReadingBackTakesARoleOfItsOwn(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	random := make([]byte, 24)
	_, _ = rand.Read(random) // never fails
	value := "read-back-" + hex.EncodeToString(random)
	s := p.Create(t, harness.Spec{})
	s.SetEnv(t, map[string]string{"READ_BACK": value})
	path := "/v1/services/" + s.Name + "/env"
	var list string
	if err := p.API.Call(t.Context(), http.MethodGet, path, nil, &list); err != nil || !strings.Contains(list, "READ_BACK") || strings.Contains(list, value) {
		t.Errorf("the list is %s, %v", list, err)
	}
	denied := func(what, file, path string) {
		t.Helper()
		token, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		api := &harness.API{Base: p.API.Base, Token: strings.TrimSpace(string(token))}
		var e *harness.APIError
		if err := api.Call(t.Context(), http.MethodGet, path, nil, nil); !errors.As(err, &e) || e.Status != http.StatusForbidden || strings.Contains(e.Body, value) {
			t.Errorf("%s: %v, want it refused", what, err)
		}
	}
	control := filepath.Join(p.Config.StateDir, "control")
	for _, role := range []string{"admin", "edge", "node"} {
		denied("the value for the role "+role, filepath.Join(control, role+".token"), path+"/READ_BACK")
	}
	denied("the list for the role secrets", p.Config.SecretsTokenFile(), path)
	if got := p.Must(t, "env", "get", s.Name, "READ_BACK"); got != value+"\n" {
		t.Errorf("the value read back is %q", got)
	}
	log, err := os.ReadFile(filepath.Join(p.Config.StateDir, "logs", "leapcelld.log"))
	if err != nil {
		t.Fatal(err)
	}
	written := false
	for line := range strings.Lines(string(log)) {
		var entry struct {
			Msg, Name, Token string
			OK               bool
		}
		written = written || json.Unmarshal([]byte(line), &entry) == nil && strings.HasPrefix(entry.Msg, "audit:") &&
			entry.Name == "READ_BACK" && entry.Token == "secrets" && entry.OK
	}
	if !written {
		t.Error("nothing in the control plane's log says who read the value")
	}
	if bytes.Contains(log, []byte(value)) {
		t.Error("the value is in the log")
	}
}

// A change is in effect everywhere within seconds, without a deploy and without a request
// that fails.
func TestMust_EN2_ChangeTakesEffect(t *testing.T) {
	modes(t, func(t *testing.T, mode leapcell.Mode, s *harness.Service) {
		load := s.Visitors(t, 4, "/sleep?ms=20")
		harness.Eventually(t, aMinute, "visits are answered", func() bool { return load.Answered() > 20 })
		s.SetEnv(t, map[string]string{"COLOUR": "blue"})
		begin := time.Now()
		harness.Eventually(t, 5*time.Second, "every answer comes from an instance with the new value", func() bool {
			for range 5 {
				var env map[string]string
				if s.Read(t, "/env", &env); env["COLOUR"] != "blue" {
					return false
				}
			}
			return true
		})
		t.Logf("in effect after %s", time.Since(begin).Round(time.Millisecond))
		load.Check(t)
	})
}
