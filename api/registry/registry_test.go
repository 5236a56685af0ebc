package registry

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/leapcell/leapcell"
)

// start serves a registry and gives a client of it.
func start(t *testing.T, minFree uint64, log io.Writer) (*Registry, *Client, Credentials) {
	t.Helper()
	dir := t.TempDir()
	cred := Credentials{Username: "node", Password: "secret", Insecure: true}
	r, err := New(t.Context(), Config{Dir: filepath.Join(dir, "registry"), Credentials: cred, MinFree: minFree, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(r)
	t.Cleanup(ts.Close)
	cred.Address = ts.Listener.Addr().String()
	return r, NewClient(cred), cred
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

func image(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(64<<10, 3)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPushResolvePull(t *testing.T) {
	_, c, cred := start(t, 1, io.Discard)
	ctx, img := t.Context(), image(t)
	ref, err := c.Push(ctx, "python-default-abcdefgh/app", "1", img)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if want := cred.Address + "/python-default-abcdefgh/app@" + digest.String(); ref != want {
		t.Errorf("pushed as %s, want %s", ref, want)
	}
	if got, err := c.Resolve(ctx, "python-default-abcdefgh/app", "1"); err != nil || got != ref {
		t.Errorf("resolved to %s, %v", got, err)
	}
	got, err := c.Image(ctx, "python-default-abcdefgh/app", "1")
	if err != nil {
		t.Fatal(err)
	}
	layers, err := got.Layers()
	if err != nil || len(layers) != 3 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	rc, err := layers[2].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	have, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	pushed, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err = pushed[2].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := io.ReadAll(rc); !bytes.Equal(have, want) {
		t.Error("a layer came back changed")
	}
	_, err = c.Resolve(ctx, "python-default-abcdefgh/app", "2")
	wantCode(t, err, leapcell.CodeNotFound, "app:2")
}

func TestWithoutCredentials(t *testing.T) {
	_, c, cred := start(t, 1, io.Discard)
	if _, err := c.Push(t.Context(), "x/app", "1", image(t)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []Credentials{{}, {Username: "node", Password: "wrong"}, {Username: "other", Password: "secret"}} {
		bad.Address, bad.Insecure = cred.Address, true
		_, err := NewClient(bad).Push(t.Context(), "x/app", "2", image(t))
		wantCode(t, err, leapcell.CodeUnavailable, "refused the credentials")
		_, err = NewClient(bad).Image(t.Context(), "x/app", "1")
		wantCode(t, err, leapcell.CodeUnavailable, "refused the credentials")
	}
	resp, err := http.Get("http://" + cred.Address + "/v2/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

func TestDeleteAndForget(t *testing.T) {
	r, c, cred := start(t, 1, io.Discard)
	for _, repo := range []string{"x/app", "x/source", "y/app"} {
		if _, err := c.Push(t.Context(), repo, "1", image(t)); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := name.ParseReference(mustResolve(t, c, "y/app"), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(ref, c.Options(t.Context())...); err != nil {
		t.Errorf("delete is not enabled: %v", err)
	}
	for range 2 {
		if err := r.Forget("x"); err != nil {
			t.Fatal(err)
		}
	}
	for _, repo := range []string{"x/app", "x/source", "y/app"} {
		_, err := c.Resolve(t.Context(), repo, "1")
		wantCode(t, err, leapcell.CodeNotFound)
	}
	for _, bad := range []string{"", "..", "../..", "/etc", "a/../..", "."} {
		wantCode(t, r.Forget(bad), leapcell.CodeInvalid)
	}
	// What is forgotten can be pushed again.
	if _, err := c.Push(t.Context(), "x/app", "1", image(t)); err != nil {
		t.Errorf("push after forget to %s: %v", cred.Address, err)
	}
}

func mustResolve(t *testing.T, c *Client, repo string) string {
	t.Helper()
	ref, err := c.Resolve(t.Context(), repo, "1")
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestFullDiskIsSaidAtOnce(t *testing.T) {
	logged, log := io.Pipe()
	_, c, _ := start(t, 1<<62, log)
	lines := make(chan string, 100)
	go func() {
		for s := bufio.NewScanner(logged); s.Scan(); {
			lines <- s.Text()
		}
	}()
	_, err := c.Push(t.Context(), "x/app", "1", image(t))
	wantCode(t, err, leapcell.CodeUnavailable, "disk is full", "free some space")
	if line := <-lines; !strings.Contains(line, "disk full") {
		t.Errorf("the log says %q", line)
	}
}

func TestRegistryThatIsNotThere(t *testing.T) {
	c := NewClient(Credentials{Address: "127.0.0.1:1", Username: "u", Password: "p", Insecure: true})
	_, err := c.Resolve(t.Context(), "x/app", "1")
	wantCode(t, err, leapcell.CodeUnavailable, "127.0.0.1:1")
}

func TestCredentialsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.json")
	first, err := LoadCredentials(path, "127.0.0.1:8401")
	if err != nil || first.Username != "node" || len(first.Password) < 20 || !first.Insecure || first.Address != "127.0.0.1:8401" {
		t.Fatalf("%+v, %v", first, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	again, err := LoadCredentials(path, "10.0.0.1:8401")
	if err != nil || again.Password != first.Password || again.Address != "10.0.0.1:8401" {
		t.Errorf("%+v, %v", again, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]any
	if err := json.Unmarshal(b, &file); err != nil || file["address"] != "10.0.0.1:8401" || file["insecure"] != true || len(file) != 4 {
		t.Errorf("file is %s, %v", b, err)
	}
	for _, bad := range []string{"", `{"username":"node"}`, `{"password":"hunter2"`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadCredentials(path, "x")
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q gives %v", bad, err)
		}
	}
}

func FuzzParseCredentials(f *testing.F) {
	f.Add([]byte(`{"address":"a:1","username":"u","password":"p","insecure":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCredentials(b); err == nil && (c.Username == "" || c.Password == "") {
			t.Errorf("%q gives %+v", b, c)
		}
	})
}

// FuzzRegistry throws paths at the door: none may pass it without credentials.
func FuzzRegistry(f *testing.F) {
	r, err := New(f.Context(), Config{Dir: f.TempDir(), Credentials: Credentials{Username: "node", Password: "secret"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("GET", "/v2/", "Basic bm9kZTp3cm9uZw==")
	f.Fuzz(func(t *testing.T, method, path, auth string) {
		req, err := http.NewRequest(method, "http://registry.invalid/"+path, nil)
		if err != nil {
			return
		}
		req.Header.Set("Authorization", auth)
		if user, pass, _ := req.BasicAuth(); user == "node" && pass == "secret" {
			return
		}
		w := httptest.NewRecorder()
		r.ServeHTTP(w, req)
		if w.Code != 401 {
			t.Errorf("%s %s with %q: %d", method, path, auth, w.Code)
		}
	})
}

func TestHealth(t *testing.T) {
	_, c, cred := start(t, 1, io.Discard)
	if err := c.Health(t.Context()); err != nil {
		t.Error(err)
	}
	cred.Password = "wrong"
	wantCode(t, NewClient(cred).Health(t.Context()), leapcell.CodeUnavailable, "401")
	cred.Address = "127.0.0.1:1"
	wantCode(t, NewClient(cred).Health(t.Context()), leapcell.CodeUnavailable, "127.0.0.1:1")
}
