package client

import (
	"context"
	"io"
	"net/http"
	"time"
)

// Runtime is a row of the operator's table.
type Runtime struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Others  []struct {
		Version string `json:"version"`
	} `json:"versions"`
	Systems []System `json:"systems"`
}

// System is what builds or instances of a runtime stand on.
type System struct {
	Name   string    `json:"name"`
	Image  string    `json:"image"`
	MadeAt time.Time `json:"madeAt"`
	Making bool      `json:"making"`
	Error  string    `json:"error"`
}

// Runtimes lists the table.
func (c *Client) Runtimes(ctx context.Context) ([]Runtime, error) {
	var all []Runtime
	err := c.call(ctx, http.MethodGet, "/v1/runtimes", nil, &all)
	return all, err
}

// UpdateRuntime makes the systems of a runtime anew and streams how it goes. Close it.
func (c *Client) UpdateRuntime(ctx context.Context, name string) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodPost, "/v1/runtimes/"+escape(name)+"/update", nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// ClearCache removes what nodes keep between builds of a service.
func (c *Client) ClearCache(ctx context.Context, nameOrID string) error {
	return c.call(ctx, http.MethodDelete, "/v1/services/"+escape(nameOrID)+"/cache", nil, nil)
}
