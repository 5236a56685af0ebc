package client

import (
	"context"
	"net/http"

	"github.com/leapcell/leapcell"
)

// Connect says with which repository a service is to be connected.
type Connect struct {
	GitURL   string            `json:"gitURL"`
	Branch   string            `json:"branch"`
	RootDir  string            `json:"rootDir,omitempty"`
	Previews bool              `json:"previews"`
	Provider leapcell.Provider `json:"provider,omitempty"` // "" when the address tells
	APIURL   string            `json:"apiURL,omitempty"`   // "" for where such hosts have it
	User     string            `json:"user,omitempty"`
	Token    string            `json:"token,omitempty"`   // "" keeps the one that is there
	HostKey  string            `json:"hostKey,omitempty"` // for ssh: "" takes what the host shows
	Rotate   bool              `json:"rotate,omitempty"`  // makes another secret and another deploy key
}

// Connected is a connection; Secret is that of its webhook when it is a new one, and is told
// only once.
type Connected struct {
	leapcell.Connection
	Secret string `json:"secret,omitempty"`
}

// Connect joins a service with a repository.
func (c *Client) Connect(ctx context.Context, nameOrID string, in Connect) (Connected, error) {
	var out Connected
	err := c.call(ctx, http.MethodPut, "/v1/services/"+escape(nameOrID)+"/connection", in, &out)
	return out, err
}

// Connection gives the connection of a service.
func (c *Client) Connection(ctx context.Context, nameOrID string) (leapcell.Connection, error) {
	var out leapcell.Connection
	err := c.call(ctx, http.MethodGet, "/v1/services/"+escape(nameOrID)+"/connection", nil, &out)
	return out, err
}

// Disconnect ends the connection of a service.
func (c *Client) Disconnect(ctx context.Context, nameOrID string) error {
	return c.call(ctx, http.MethodDelete, "/v1/services/"+escape(nameOrID)+"/connection", nil, nil)
}
