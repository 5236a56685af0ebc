package harness

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell/internal/ports"
)

// hubSetting makes a platform read the images of Docker's registry at [Platform.ServeHub].
func hubSetting() (string, error) {
	port, err := ports.Free(1, ports.ForPrograms)
	return fmt.Sprintf("leapcelld.mirrors=docker.io=http://127.0.0.1:%d/hub", port), err
}

// ServeHub stands in for Docker's registry until the test ends. images says which of the
// platform's own systems is meant by a name: {"library/golang": "base/go"}. Those that were not
// used yet are made, which takes a minute or more.
func (p *Platform) ServeHub(t testing.TB, images map[string]string) {
	t.Helper()
	_, at, ok := strings.Cut(p.Config.Set["leapcelld.mirrors"], "docker.io=http://")
	at, prefix, ok2 := strings.Cut(at, "/")
	if !ok || !ok2 {
		t.Skip("the platform was not brought up with a mirror of Docker's registry: see hubSetting")
	}
	h := &hub{own: p.registry(t), prefix: "/v2/" + prefix + "/", tags: map[string]string{}, images: images}
	for _, repository := range images {
		if h.tag(t, repository) == "" {
			p.Must(t, "runtimes", "update", "go") // and what its programs stand on
		}
		if h.tags[repository] = h.tag(t, repository); h.tags[repository] == "" {
			t.Fatalf("the platform's registry has no %s", repository)
		}
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	h.proxy = &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: h.own.Address})
		r.Out.SetBasicAuth(h.own.Username, h.own.Password)
	}}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

// credentials are those of the platform's registry.
type credentials struct{ Address, Username, Password string }

func (p *Platform) registry(t testing.TB) (c credentials) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.Config.StateDir, "control", "registry.json"))
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// hub hands requests on to the platform's registry, under the names of that.
type hub struct {
	own    credentials
	prefix string
	images map[string]string
	tags   map[string]string // by repository there
	proxy  http.Handler
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		return // 200: no login is needed
	}
	rest, _ := strings.CutPrefix(r.URL.Path, h.prefix)
	for image, repository := range h.images {
		what, ok := strings.CutPrefix(rest, image+"/")
		if !ok {
			continue
		}
		if tag, ok := strings.CutPrefix(what, "manifests/"); ok && !strings.Contains(tag, ":") {
			what = "manifests/" + h.tags[repository]
		}
		r.URL.Path, r.URL.RawPath = "/v2/"+repository+"/"+what, ""
		h.proxy.ServeHTTP(w, r)
		return
	}
	http.NotFound(w, r)
}

// tag gives a tag of a repository of the platform's registry, "" if it has none.
func (h *hub) tag(t testing.TB, repository string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+h.own.Address+"/v2/"+repository+"/tags/list", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(h.own.Username, h.own.Password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list struct{ Tags []string }
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&list) != nil || len(list.Tags) == 0 {
		return ""
	}
	return list.Tags[0]
}
