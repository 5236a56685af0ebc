package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/leapcell/leapcell"
)

// Client asks a supervisor; the plugin has one. Errors of the supervisor come back as they
// were: [leapcell.ErrorCode] tells their kind, and errors.Is finds [ErrNotFound].
type Client struct{ http *http.Client }

// NewClient makes a client of the supervisor at socket. It connects when asked something.
func NewClient(socket string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     time.Minute,
	}}}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do asks again, until ctx is done, when a supervisor answers that it has handed its tasks over.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	for {
		err := c.ask(ctx, method, path, query, in, out)
		if leapcell.ErrorCode(err) != CodeMoved {
			return err
		}
		c.http.CloseIdleConnections() // they lead to that one
		select {
		case <-ctx.Done():
			return err
		case <-time.After(2 * time.Millisecond): // there is no event for a socket that changes hands
		}
	}
}

func (c *Client) ask(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path+"?"+query.Encode(), body)
	if err != nil {
		return err
	}
	res, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		var f failure
		if err := json.NewDecoder(res.Body).Decode(&f); err != nil {
			return fmt.Errorf("supervisor: %s", res.Status)
		}
		if f.Code == leapcell.CodeNotFound {
			return &leapcell.Error{Code: f.Code, Message: f.Message, Err: ErrNotFound}
		}
		return &leapcell.Error{Code: f.Code, Message: f.Message}
	}
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("supervisor: %s: %w", path, err)
	}
	return nil
}

func taskID(id string) url.Values { return url.Values{"id": {id}} }

// Health asks whether the supervisor is there.
func (c *Client) Health(ctx context.Context) (h Health, err error) {
	return h, c.do(ctx, http.MethodGet, "/v1/health", nil, nil, &h)
}

// Start is [Supervisor.Start].
func (c *Client) Start(ctx context.Context, req StartRequest) (s Status, err error) {
	return s, c.do(ctx, http.MethodPost, "/v1/task/start", nil, req, &s)
}

// Inspect is [Supervisor.Inspect].
func (c *Client) Inspect(ctx context.Context, id string) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/task", taskID(id), nil, &s)
}

// List is [Supervisor.List].
func (c *Client) List(ctx context.Context) (s []Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/tasks", nil, nil, &s)
}

// Wait is [Supervisor.Wait]: it asks until the task has ended.
func (c *Client) Wait(ctx context.Context, id string) (Exit, error) {
	for {
		var a waitAnswer
		if err := c.do(ctx, http.MethodGet, "/v1/task/wait", taskID(id), nil, &a); err != nil {
			return Exit{}, err
		}
		if a.Exit != nil {
			return *a.Exit, nil
		}
	}
}

// Stop is [Supervisor.Stop].
func (c *Client) Stop(ctx context.Context, id string, timeout time.Duration, signal string) error {
	q := taskID(id)
	q.Set("timeout", timeout.String())
	q.Set("signal", signal)
	return c.do(ctx, http.MethodPost, "/v1/task/stop", q, nil, &struct{}{})
}

// Signal is [Supervisor.Signal].
func (c *Client) Signal(ctx context.Context, id, signal string) error {
	q := taskID(id)
	q.Set("signal", signal)
	return c.do(ctx, http.MethodPost, "/v1/task/signal", q, nil, &struct{}{})
}

// Destroy is [Supervisor.Destroy].
func (c *Client) Destroy(ctx context.Context, id string, force bool) error {
	q := taskID(id)
	q.Set("force", strconv.FormatBool(force))
	return c.do(ctx, http.MethodDelete, "/v1/task", q, nil, &struct{}{})
}

// Stats is [Supervisor.Stats].
func (c *Client) Stats(ctx context.Context, id string) (s TaskStats, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/task/stats", taskID(id), nil, &s)
}

// Events waits for events newer than seq; none come back when it took too long.
func (c *Client) Events(ctx context.Context, seq int64) (e []Event, err error) {
	return e, c.do(ctx, http.MethodGet, "/v1/events", url.Values{"after": {strconv.FormatInt(seq, 10)}}, nil, &e)
}

// Shutdown ends the supervisor's process; with tasks that run only if force is set.
func (c *Client) Shutdown(ctx context.Context, force bool) error {
	return c.do(ctx, http.MethodPost, "/v1/shutdown", url.Values{"force": {strconv.FormatBool(force)}}, nil, &struct{}{})
}
