package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// order is what to build, as driver/supervisor/docker.go sends it.
type order struct {
	Dockerfile string            `json:"dockerfile"` // within the source
	Args       map[string]string `json:"args"`       // ARG
	Secrets    map[string]string `json:"secrets"`    // RUN --mount=type=secret
	Env        []string          `json:"env"`        // of each RUN, beside what the Dockerfile says; in no image
	Files      []string          `json:"files"`      // paths in the sandbox that each RUN sees as well
	Filter     []byte            `json:"filter"`     // system calls of a RUN, as the kernel wants it
	CacheBytes int64             `json:"cacheBytes"` // how much of the cache is kept
}

// hub is the supervisor, at the other end of the socket.
type hub struct{ client *http.Client }

func newHub(socket string) *hub {
	var d net.Dialer
	return &hub{&http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
		DisableCompression: true, // digests are of what is transferred
	}}}
}

func (h *hub) order(ctx context.Context) (o order, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/order", nil)
	if err != nil {
		return o, err
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return o, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return o, fmt.Errorf("the node gives no order: %s", resp.Status)
	}
	return o, json.NewDecoder(resp.Body).Decode(&o)
}

// fail tells what the deployment is to say of the failure.
func (h *hub) fail(ctx context.Context, f failure) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node/failure", bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

var portOf = regexp.MustCompile(`:(\d+)$`)

// hosts leads every registry to the supervisor, which has the operator's mirrors and credentials.
func (h *hub) hosts(host string) ([]docker.RegistryHost, error) {
	if host == "registry-1.docker.io" || host == "index.docker.io" {
		host = "docker.io"
	}
	return []docker.RegistryHost{{
		Client: h.client, Host: "node", Scheme: "http",
		Path:         "/v2/" + portOf.ReplaceAllString(strings.ToLower(host), "--$1"), // a path has no colon
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}}, nil
}
