package cdn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/bucket"
)

// s3 is a store in the bucket of a service.
func s3(t *testing.T, server *bucket.Server, change func(*S3Config)) *S3 {
	t.Helper()
	cfg := S3Config{Endpoint: server.Endpoint, Bucket: bucket.Name, CredentialsFile: server.Keys}
	if change != nil {
		change(&cfg)
	}
	s, err := NewS3(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s Store, content string) error {
	t.Helper()
	return s.Put(t.Context(), service, sum(content), int64(len(content)), strings.NewReader(content))
}

func TestS3Settings(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	bucket.WriteKeys(t, keys, bucket.AccessKey, bucket.Secret)
	good := S3Config{Bucket: "sites", CredentialsFile: keys}
	for want, change := range map[string]func(*S3Config){
		"--static-bucket":           func(c *S3Config) { c.Bucket = "My Sites" },
		"--static-endpoint must be": func(c *S3Config) { c.Endpoint = "s3.example.com" },
		"without path and password": func(c *S3Config) {
			c.Endpoint = "https://" + bucket.AccessKey + ":" + url.QueryEscape(bucket.Secret) + "@s3.example.com"
		},
		"without path":         func(c *S3Config) { c.Endpoint = "https://s3.example.com/sites" },
		"--static-endpoint is": func(c *S3Config) { c.Endpoint = "https://under_score!" },
		"--static-prefix":      func(c *S3Config) { c.Prefix = "a/../b" },
		"--static-addressing":  func(c *S3Config) { c.Addressing = "dns" },
		"no such file":         func(c *S3Config) { c.CredentialsFile = keys + "-gone" },
	} {
		cfg := good
		change(&cfg)
		if _, err := NewS3(cfg); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), bucket.AccessKey) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
	for _, prefix := range []string{"", "/", "a/b.c", "/a/b.c/"} {
		s, err := NewS3(S3Config{Bucket: "sites", CredentialsFile: keys, Prefix: prefix, Region: "eu-central-1"})
		if err != nil {
			t.Fatal(err)
		}
		// With a region an address needs no call.
		link, err := s.Link(t.Context(), service, sum("a"))
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Trim(prefix, "/") + "/" + service + "/" + sum("a")
		if u, err := url.Parse(link); err != nil || u.Path != "/"+strings.TrimPrefix(want, "/") || u.Scheme != "https" || !strings.HasPrefix(u.Host, "sites.s3.") {
			t.Errorf("with the prefix %q: %s://%s%s, %v", prefix, u.Scheme, u.Host, u.Path, err)
		}
	}
}

func TestS3Addressing(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	bucket.WriteKeys(t, keys, bucket.AccessKey, bucket.Secret)
	for how, want := range map[string]string{"auto": "s3.example.com/sites/", "path": "s3.example.com/sites/", "host": "sites.s3.example.com/"} {
		s, err := NewS3(S3Config{Endpoint: "https://s3.example.com", Bucket: "sites", CredentialsFile: keys, Region: "x", Addressing: how})
		if err != nil {
			t.Fatal(err)
		}
		if link, err := s.Link(t.Context(), service, sum("a")); err != nil || !strings.HasPrefix(link, "https://"+want+service+"/") {
			t.Errorf("%s: does not begin with %s, %v", how, want, err)
		}
	}
}

// What is wrong with a bucket is said with what to do about it, and without its keys.
func TestS3Refuses(t *testing.T) {
	server := bucket.Start(t)
	wrong := filepath.Join(t.TempDir(), "keys")
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<p>no bucket here", http.StatusTeapot) }))
	defer page.Close()
	for _, c := range []struct {
		name, want string
		change     func(*S3Config)
	}{
		{"no bucket", "--static-bucket", func(c *S3Config) { c.Bucket = "nowhere" }},
		{"no bucket, region known", "--static-bucket", func(c *S3Config) { c.Bucket, c.Region = "nowhere", "us-east-1" }},
		{"another secret", "--static-credentials-file", func(c *S3Config) { bucket.WriteKeys(t, wrong, bucket.AccessKey, "other"); c.CredentialsFile = wrong }},
		{"another key", "--static-credentials-file", func(c *S3Config) { bucket.WriteKeys(t, wrong, "nobody", bucket.Secret); c.CredentialsFile = wrong }},
		{"another region", "--static-region", func(c *S3Config) { c.Region = "mars-1" }},
		{"nobody there", "connection refused; is it up, and --static-endpoint right?", func(c *S3Config) { c.Endpoint = closed.URL }},
		{"no TLS there", "HTTP response to HTTPS client", func(c *S3Config) { c.Endpoint = strings.Replace(c.Endpoint, "http:", "https:", 1) }},
		{"no S3", "is --static-endpoint that of an S3 service?", func(c *S3Config) { c.Endpoint = page.URL }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := s3(t, server, c.change)
			_, listed := s.List(t.Context(), service)
			_, _, opened := s.Open(t.Context(), service, sum("a"))
			for what, err := range map[string]error{
				"health": s.Health(t.Context()), "list": listed, "open": opened, "put": put(t, s, "a"),
				"delete": s.Delete(t.Context(), service, sum("a")), "delete all": s.Delete(t.Context(), service),
			} {
				if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(leapcell.ErrorMessage(err), c.want) || !strings.Contains(err.Error(), s.cfg.Bucket) {
					t.Errorf("%s: %s %v, want %q", what, leapcell.ErrorCode(err), err, c.want)
				}
				if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, bucket.Secret) || strings.Contains(text, "Signature=") {
					t.Errorf("%s: the error gives a secret away", what)
				}
			}
		})
	}
}

// Without keys nothing is asked of the bucket.
func TestS3WithoutKeys(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	role := httptest.NewServer(http.NotFoundHandler())
	defer role.Close()
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
	s, err := NewS3(S3Config{Endpoint: "http://127.0.0.1:1", Bucket: "sites"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Health(t.Context()); leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(leapcell.ErrorMessage(err), "no credentials") {
		t.Errorf("got %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	if err := s.Health(t.Context()); err == nil || !strings.Contains(leapcell.ErrorMessage(err), "does not answer") {
		t.Errorf("with keys: %v", err)
	}
}

func TestS3ReadOnly(t *testing.T) {
	server := bucket.Start(t)
	s := s3(t, server, nil)
	if err := put(t, s, "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Health(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	server.Up("--readonly")
	for what, err := range map[string]error{"put": put(t, s, "b"), "delete": s.Delete(t.Context(), service, sum("a")), "delete all": s.Delete(t.Context(), service)} {
		if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(leapcell.ErrorMessage(err), "s3:PutObject") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Once a content was refused, health says so.
	if err := s.Health(t.Context()); err == nil || !strings.Contains(leapcell.ErrorMessage(err), "refused to store") {
		t.Errorf("health: %v", err)
	}
	server.Kill()
	server.Up()
	if err := s.Health(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(server.Dir, "health")); err == nil && len(left) > 0 {
		t.Errorf("%d files of trials are left", len(left))
	}
}

// The trial is one for all who ask: that the first of them leaves is no fault of the bucket.
func TestS3HealthOutlivesWhoAskedFirst(t *testing.T) {
	server := bucket.Start(t)
	entered, held := make(chan struct{}, 100), make(chan struct{})
	behind, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(behind)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-held
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	release := sync.OnceFunc(func() { close(held) })
	defer release()
	s := s3(t, server, func(c *S3Config) { c.Endpoint = front.URL })
	ctx, leave := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- s.Health(ctx) }()
	<-entered
	go func() { second <- s.Health(t.Context()) }()
	time.Sleep(50 * time.Millisecond) // most likely it waits by now; if not, this shows less
	leave()
	if err := <-first; err == nil {
		t.Error("who left was told that all is well")
	}
	release()
	if err := <-second; err != nil {
		t.Errorf("who stayed: %v", err)
	}
}

// Who asks for the health often does not have the bucket asked as often, but hears of its end.
func TestS3Health(t *testing.T) {
	server := bucket.Start(t)
	s := s3(t, server, nil)
	for range 2 { // the first one tries all
		if err := s.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if s.healthy.Load() == nil {
		t.Error("when it was healthy is not known")
	}
	server.Kill()
	just, before := time.Now().Add(time.Hour), time.Now().Add(-s3Healthy)
	for range 2 {
		s.healthy.Store(&just)
		if err := s.Health(t.Context()); err != nil || s.healthy.Load() != &just {
			t.Errorf("asked again at once: %v", err)
		}
	}
	s.healthy.Store(&before)
	if err := s.Health(t.Context()); leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
		t.Errorf("asked later: %v", err)
	}
}

// Those who ask at the same time have one trial: a service that keeps files refuses what is put
// while the folder of another trial goes.
func TestS3HealthIsTriedOnce(t *testing.T) {
	server := bucket.Start(t)
	to, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy, puts, begun, held := httputil.NewSingleHostReverseProxy(to), atomic.Int32{}, make(chan struct{}), make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && puts.Add(1) == 1 {
			close(begun)
			<-held
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	s := s3(t, server, func(c *S3Config) { c.Endpoint = front.URL })
	var asking errgroup.Group
	asking.Go(func() error { return s.Health(t.Context()) })
	<-begun
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Health(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("without waiting for it: %v", err)
	}
	for range 8 {
		asking.Go(func() error { return s.Health(t.Context()) })
	}
	time.Sleep(10 * time.Millisecond) // for a fault to show: without one, nothing depends on it
	close(held)
	if err := asking.Wait(); err != nil || puts.Load() != 1 {
		t.Errorf("%d trials, %v", puts.Load(), err)
	}
}

// The bucket has a content that its name says, or none.
func TestS3ChecksContents(t *testing.T) {
	s := s3(t, bucket.Start(t), nil)
	for what, content := range map[string]string{"another": "wrong", "a shorter one": "righ", "a longer one": "wrong or right"} {
		if err := s.Put(t.Context(), service, sum("right"), 5, strings.NewReader(content)); leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	if there, err := s.List(t.Context(), service); err != nil || len(there) > 0 {
		t.Errorf("there are %v, %v", there, err)
	}
}

// Lists and deletions take more than one call from a thousand contents on.
func TestS3ManyContents(t *testing.T) {
	server := bucket.Start(t)
	s := s3(t, server, nil)
	const many = 2*s3Batch + 1
	for _, of := range []string{service, service + "-2"} {
		if err := os.MkdirAll(filepath.Join(server.Dir, of), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for n := range many {
		if err := os.WriteFile(filepath.Join(server.Dir, service, sum(fmt.Sprint(n))), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(server.Dir, service+"-2", sum("x")), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if there, err := s.List(t.Context(), service); err != nil || len(there) != many {
		t.Errorf("%d of %d, %v", len(there), many, err)
	}
	if err := s.Delete(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	if there, err := s.List(t.Context(), service); err != nil || len(there) != 0 {
		t.Errorf("%d are left, %v", len(there), err)
	}
	if there, err := s.List(t.Context(), service+"-2"); err != nil || len(there) != 1 {
		t.Errorf("another service has %d, %v", len(there), err)
	}
}

// dying has the service killed in the middle of the first content that is put.
type dying struct {
	*S3

	server *bucket.Server
}

func (d *dying) Put(ctx context.Context, service, sum string, size int64, content io.ReadSeeker) error {
	b, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	return d.S3.Put(ctx, service, sum, size, &bucket.Killer{Reader: bytes.NewReader(b), Server: d.server, After: size / 2})
}

// A service that dies in the middle of a content leaves nothing of it, and the next publishing
// completes it.
func TestS3Dies(t *testing.T) {
	server := bucket.Start(t)
	big := strings.Repeat("0123456789abcdef", 1<<20)
	images := fakeImages{service + "/static:1": artifact(t, map[string]string{"/big.bin": big})}
	s := s3(t, server, nil)
	o := origin(t, &dying{s, server}, images)
	f, err := o.Look(t.Context(), service, "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Publish(t.Context(), f); leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(leapcell.ErrorMessage(err), "the bucket "+bucket.Name+" at "+strings.TrimPrefix(server.Endpoint, "http://")+" does not answer") {
		t.Errorf("to a service that dies: %v", err)
	}
	server.Up()
	if there, err := s.List(t.Context(), service); err != nil || len(there) > 0 {
		t.Errorf("it left %v, %v", there, err)
	}
	whole := origin(t, s, images)
	publish(t, whole, "1")
	if got := have(t, whole, sum(big)); got != big {
		t.Errorf("%d bytes of %d", len(got), len(big))
	}
}

// One that takes a request and says nothing is given up.
func TestS3Stalls(t *testing.T) {
	held := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-held
	}))
	defer server.Close()
	defer close(held)
	keys := filepath.Join(t.TempDir(), "keys")
	bucket.WriteKeys(t, keys, bucket.AccessKey, bucket.Secret)
	s, err := NewS3(S3Config{Endpoint: server.URL, Bucket: "sites", Region: "x", CredentialsFile: keys, answer: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, listed := s.List(t.Context(), service)
	for what, err := range map[string]error{"list": listed, "put": put(t, s, "a"), "delete": s.Delete(t.Context(), service, sum("a"))} {
		if leapcell.ErrorCode(err) != leapcell.CodeUnavailable || !strings.Contains(leapcell.ErrorMessage(err), "does not answer") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// An address is good for its content alone, for some minutes, and without the key.
func TestS3Link(t *testing.T) {
	s := s3(t, bucket.Start(t), nil)
	if err := put(t, s, "hello"); err != nil {
		t.Fatal(err)
	}
	link, err := s.Link(t.Context(), service, sum("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if got := follow(t, link); got != "hello" {
		t.Errorf("got %q", got)
	}
	u, err := url.Parse(link)
	if err != nil || u.Query().Get("X-Amz-Expires") != "300" || strings.Contains(link, bucket.Secret) || strings.Contains(link, url.QueryEscape(bucket.Secret)) {
		t.Errorf("it is good for %s seconds, %v", u.Query().Get("X-Amz-Expires"), err)
	}
	for what, other := range map[string]string{
		"another content": strings.Replace(link, sum("hello"), sum("other"), 1), "a longer time": strings.Replace(link, "X-Amz-Expires=300", "X-Amz-Expires=3000", 1),
	} {
		resp, err := http.Get(other)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("for %s it answered %s", what, resp.Status)
		}
	}
	if _, err := s.Link(t.Context(), "..", sum("hello")); leapcell.ErrorCode(err) != leapcell.CodeInvalid {
		t.Errorf("of another folder: %v", err)
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	for text, want := range map[string]credentials.Value{
		"[default]\naws_access_key_id = a\naws_secret_access_key = s=/+\n": {AccessKeyID: "a", SecretAccessKey: "s=/+"},
		"# of the bucket\n[other]\naws_access_key_id=x\naws_secret_access_key=y\n\n[ default ]\r\naws_access_key_id=a\r\naws_secret_access_key=s\r\naws_session_token=t\r\nregion=r": {AccessKeyID: "a", SecretAccessKey: "s", SessionToken: "t"},
		"[default]\naws_access_key_id = a\n":           {},
		"aws_access_key_id=a\naws_secret_access_key=s": {},
		"": {},
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := (&keyFile{path: path}).RetrieveWithCredContext(nil)
		if want.SecretAccessKey == "" {
			if err == nil || !strings.Contains(err.Error(), path+" needs the lines [default]") {
				t.Errorf("%q: %v", text, err)
			}
			continue
		}
		if want.SignerType = credentials.SignatureV4; err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := (&keyFile{path: path}).RetrieveWithCredContext(nil); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("that others may read: %v", err)
	}
}

// Keys can be changed without a restart; while their file is gone, the old ones hold.
func TestKeysChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	bucket.WriteKeys(t, path, "first", "secret")
	keys := credentials.New(&keyFile{path: path})
	id := func() string {
		t.Helper()
		v, err := keys.GetWithContext(nil)
		if err != nil {
			t.Fatal(err)
		}
		return v.AccessKeyID
	}
	if got := id(); got != "first" {
		t.Errorf("got %s", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := id(); got != "first" {
		t.Errorf("without the file: %s", got)
	}
	bucket.WriteKeys(t, path, "second", "secret")
	if got := id(); got != "second" {
		t.Errorf("with another file: %s", got)
	}
}
