package main

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/cdn"
	"github.com/leapcell/leapcell/internal/front"
	"github.com/leapcell/leapcell/test/bucket"
	"github.com/leapcell/leapcell/traefik/static"
)

// watched stands before a bucket's service and notes what is asked of it.
type watched struct {
	*httptest.Server

	mu   sync.Mutex
	seen []*http.Request
}

func watch(t *testing.T, endpoint string) *watched {
	t.Helper()
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	w, to := &watched{}, httputil.NewSingleHostReverseProxy(u)
	to.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	w.Server = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.seen = append(w.seen, r.Clone(r.Context()))
		w.mu.Unlock()
		to.ServeHTTP(out, r)
	}))
	t.Cleanup(w.Close)
	return w
}

// links are the requests that came with an address of leapcelld.
func (w *watched) links() (out []*http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.seen {
		if r.URL.Query().Has("X-Amz-Signature") {
			out = append(out, r)
		}
	}
	return out
}

// An edge fetches from the bucket, with an address that leapcelld gives it and nothing else.
func TestStaticFilesInABucket(t *testing.T) {
	const service = "shop-default-a1b2c3d4"
	server := bucket.Start(t)
	at := watch(t, server.Endpoint)
	dir := t.TempDir()
	c, stop := start(t, dir, "--static-bucket", bucket.Name, "--static-endpoint", at.URL, "--static-prefix", "one", "--static-credentials-file", server.Keys)
	defer stop()
	if h, err := c.Health(t.Context()); err != nil || h["static"] != "ok" {
		t.Errorf("health is %v, %v", h, err)
	}

	store, err := cdn.NewS3(cdn.S3Config{Endpoint: at.URL, Bucket: bucket.Name, Prefix: "one", CredentialsFile: server.Keys})
	if err != nil {
		t.Fatal(err)
	}
	put := func(content string) front.Content {
		t.Helper()
		h := sha256.Sum256([]byte(content))
		sum := hex.EncodeToString(h[:])
		if err := store.Put(t.Context(), service, sum, int64(len(content)), strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		return front.Content{SHA256: sum, Size: int64(len(content))}
	}
	list := &front.Manifest{Whole: true, Folder: "dist", Files: []front.File{
		{Path: "/index.html", Type: "text/html", Content: put("<p>home")}, {Path: "/other.html", Type: "text/html", Content: put("<p>other")},
	}}
	text, digest, err := list.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	put(string(text))

	token, err := os.ReadFile(filepath.Join(dir, "edge.token"))
	if err != nil {
		t.Fatal(err)
	}
	edge, err := static.New(static.Config{Dir: t.TempDir(), MaxBytes: 1 << 20, APIs: []string{c.Address()}, Token: strings.TrimSpace(string(token)), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	route := &leapcell.Route{ServiceID: service, Deployment: "shop-1", Static: &leapcell.RouteStatic{Manifest: digest, Whole: true}}
	get := func(path string) string {
		w := httptest.NewRecorder()
		if edge.Serve(w, httptest.NewRequest(http.MethodGet, path, nil), route, nil).Missing {
			return "missing"
		}
		b, _ := io.ReadAll(w.Body)
		return string(b)
	}
	if got := get("/"); got != "<p>home" {
		t.Errorf("the edge gave %q", got)
	}
	links := at.links()
	if len(links) != 2 { // the list, and the page
		t.Errorf("the edge asked the bucket %d times", len(links))
	}
	for _, r := range links {
		var head strings.Builder
		_ = r.Header.Write(&head)
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" || strings.Contains(head.String(), strings.TrimSpace(string(token))) {
			t.Errorf("the edge told the bucket more than the address: %s %s", r.Method, r.URL.Path)
		}
	}

	server.Kill()
	h, err := c.Health(t.Context())
	for err == nil && h["static"] == "ok" { // which holds for a moment
		h, err = c.Health(t.Context())
	}
	if err != nil || !strings.Contains(h["static"], "the bucket "+bucket.Name+" at ") || h["store"] != "ok" {
		t.Errorf("without the bucket health is %v, %v", h, err)
	}
	if here, there := get("/"), get("/other.html"); here != "<p>home" || there != "missing" {
		t.Errorf("without the bucket the edge gave %q and %q", here, there)
	}
	server.Up()
	if got := get("/other.html"); got != "<p>other" {
		t.Errorf("when it was back: %q", got)
	}
}

func TestBucketSettings(t *testing.T) {
	for want, args := range map[string][]string{
		"--static-bucket is empty": {"--static-prefix", "one"},
		"--static-bucket is":       {"--data-dir", t.TempDir(), "--static-bucket", "a"},
		"no such file":             {"--data-dir", t.TempDir(), "--static-bucket", "sites", "--static-credentials-file", "/no/such"},
	} {
		if err := run(t.Context(), args, noEnv, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}
