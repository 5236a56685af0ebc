package client

import (
	"context"
	"net/http"

	"github.com/leapcell/leapcell"
)

// CreateService makes a service.
func (c *Client) CreateService(ctx context.Context, name string, settings leapcell.Settings) (leapcell.Service, error) {
	var svc leapcell.Service
	in := map[string]any{"name": name, "settings": settings}
	err := c.call(ctx, http.MethodPost, "/v1/services", in, &svc)
	return svc, err
}

// Services lists all services.
func (c *Client) Services(ctx context.Context) ([]leapcell.Service, error) {
	var all []leapcell.Service
	err := c.call(ctx, http.MethodGet, "/v1/services", nil, &all)
	return all, err
}

// Service gives one service, by name or ID.
func (c *Client) Service(ctx context.Context, nameOrID string) (leapcell.Service, error) {
	var svc leapcell.Service
	err := c.call(ctx, http.MethodGet, "/v1/services/"+escape(nameOrID), nil, &svc)
	return svc, err
}

// UpdateService changes the settings that are set in settings.
func (c *Client) UpdateService(ctx context.Context, nameOrID string, settings leapcell.Settings) (leapcell.Service, error) {
	return c.PatchService(ctx, nameOrID, settings)
}

// PatchService changes settings by a JSON merge patch: a value that marshals to an object,
// in which null takes a setting back.
func (c *Client) PatchService(ctx context.Context, nameOrID string, patch any) (leapcell.Service, error) {
	var svc leapcell.Service
	err := c.call(ctx, http.MethodPatch, "/v1/services/"+escape(nameOrID), map[string]any{"settings": patch}, &svc)
	return svc, err
}

// DeleteService deletes a service with all that belongs to it.
func (c *Client) DeleteService(ctx context.Context, nameOrID string) error {
	return c.call(ctx, http.MethodDelete, "/v1/services/"+escape(nameOrID), nil, nil)
}

// Instances lists the running instances of a service.
func (c *Client) Instances(ctx context.Context, nameOrID string) ([]leapcell.Instance, error) {
	var all []leapcell.Instance
	err := c.call(ctx, http.MethodGet, "/v1/services/"+escape(nameOrID)+"/instances", nil, &all)
	return all, err
}

// Env is what can be read of a service's environment.
type Env struct {
	Version int      `json:"version"`
	Names   []string `json:"names"`
}

// Env lists the names of a service's variables.
func (c *Client) Env(ctx context.Context, nameOrID string) (Env, error) {
	var env Env
	err := c.call(ctx, http.MethodGet, "/v1/services/"+escape(nameOrID)+"/env", nil, &env)
	return env, err
}

// EnvValue reads one value back; it takes a token of the role secrets.
func (c *Client) EnvValue(ctx context.Context, nameOrID, name string) (string, error) {
	var out struct{ Value string }
	err := c.call(ctx, http.MethodGet, "/v1/services/"+escape(nameOrID)+"/env/"+escape(name), nil, &out)
	return out.Value, err
}

// SetEnv sets and removes variables of a service.
func (c *Client) SetEnv(ctx context.Context, nameOrID string, set map[string]string, unset []string) (Env, error) {
	var env Env
	in := struct {
		Set   map[string]string `json:"set,omitempty"`
		Unset []string          `json:"unset,omitempty"`
	}{set, unset}
	err := c.call(ctx, http.MethodPatch, "/v1/services/"+escape(nameOrID)+"/env", in, &env)
	return env, err
}

// Health is the state of each part by name: "ok" or what is wrong. "status" is that of all.
type Health map[string]string

// OK reports whether every part works.
func (h Health) OK() bool { return h["status"] == "ok" }

// Health asks whether the platform works. A part that does not is no error: see [Health.OK].
func (c *Client) Health(ctx context.Context) (Health, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/v1/health", nil)
	if err != nil {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "the API address %q cannot be used: %w", c.base, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	var h Health
	err = c.readAnswer(resp, &h)
	return h, err
}

// Version gives the version of leapcelld.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"version"`
	}
	err := c.call(ctx, http.MethodGet, "/v1/version", nil, &v)
	return v.Version, err
}

// Report sends what an edge sees.
func (c *Client) Report(ctx context.Context, report leapcell.EdgeReport) error {
	return c.call(ctx, http.MethodPost, "/v1/edges/"+escape(report.Edge)+"/report", report, nil)
}
