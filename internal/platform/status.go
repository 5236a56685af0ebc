package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Part is one process of the platform, as [Platform.Status] finds it.
type Part struct {
	Name    string `json:"name"`
	Running bool   `json:"running"`
	Healthy bool   `json:"healthy"`
	PID     int    `json:"pid,omitempty"`
	Address string `json:"address"`
	Version string `json:"version,omitempty"`
	Detail  string `json:"detail,omitempty"` // what is wrong
	Advice  string `json:"advice,omitempty"` // what to do about it
}

// Report is the state of a platform.
type Report struct {
	StateDir string `json:"stateDir"`
	Healthy  bool   `json:"healthy"`
	Parts    []Part `json:"parts"`
}

// Status looks at every part. It changes nothing and works when parts are missing.
func (p *Platform) Status(ctx context.Context) Report {
	c := p.cfg
	parts := []Part{
		p.part(ctx, "vault", c.VaultAddress(), "/v1/sys/health?standbyok=true", true),
		p.part(ctx, "nomad", c.NomadAddress(), "/v1/agent/health", true),
		p.part(ctx, controlName, c.APIAddress(), "/v1/health", true),
		p.part(ctx, edgeName, "http://"+c.EdgeAddress(), "/", false),
	}
	r := Report{StateDir: c.StateDir, Healthy: true, Parts: parts}
	for _, part := range parts {
		r.Healthy = r.Healthy && part.Healthy
	}
	return r
}

func (p *Platform) part(ctx context.Context, name, addr, health string, want200 bool) Part {
	part := Part{Name: name, Address: addr}
	r, alive := readRecord(p.cfg.path("run", name+".json"))
	if !alive {
		part.Detail = "not running"
		part.Advice = "run `leapcell up`; its last words are in " + p.cfg.LogFile(name)
		return part
	}
	part.Running, part.PID = true, r.PID
	if err := answers(ctx, addr+health, want200); err != nil {
		part.Detail = err.Error()
		if strings.Contains(part.Detail, `"sealed":true`) {
			part.Detail = "is sealed"
		}
		part.Advice = "look into " + p.cfg.LogFile(name) + ", then run `leapcell up`"
		if name == "vault" {
			part.Advice = "run `leapcell up`: it unseals Vault; its log is " + p.cfg.LogFile(name)
		}
		return part
	}
	part.Healthy = true
	part.Version = p.version(ctx, name, addr)
	return part
}

// version asks the part itself; "" when it does not say.
func (p *Platform) version(ctx context.Context, name, addr string) string {
	var v struct {
		Version string `json:"version"`
	}
	switch name {
	case "vault":
		_ = getJSON(ctx, addr+"/v1/sys/health?standbyok=true", &v)
	case controlName:
		_ = getJSON(ctx, addr+"/v1/version", &v)
	case "nomad":
		client, err := p.nomadManager()
		if err != nil {
			return ""
		}
		if self, err := client.Agent().Self(); err == nil {
			return self.Member.Tags["build"]
		}
	}
	return v.Version
}

// local never goes through a proxy and never follows a redirect.
var local = &http.Client{
	Timeout:       5 * time.Second,
	Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// answers asks url; with want200 any other status is an error that quotes the answer.
func answers(ctx context.Context, address string, want200 bool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := local.Do(req)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // without the address, which whoever shows it has
		}
		return fmt.Errorf("does not answer: %w", err)
	}
	defer resp.Body.Close()
	if want200 && resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		return fmt.Errorf("answers %d: %s", resp.StatusCode, body)
	}
	return nil
}

func getJSON(ctx context.Context, address string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := local.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}
