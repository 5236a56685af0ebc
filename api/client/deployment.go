package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
)

// DeployGit starts a deployment from a git repository; without GitURL from the one that the
// service is connected with, or of the ready image that src names.
func (c *Client) DeployGit(ctx context.Context, nameOrID string, src leapcell.Source) (leapcell.Deployment, error) {
	var d leapcell.Deployment
	var in struct {
		Source leapcell.Source `json:"source"`
	}
	in.Source = leapcell.Source{GitURL: src.GitURL, Branch: src.Branch, Tag: src.Tag, Commit: src.Commit, RootDir: src.RootDir, Image: src.Image}
	err := c.once(ctx, "/v1/services/"+escape(nameOrID)+"/deployments", in, &d)
	return d, err
}

// Deployments lists those deployments of a service that q means, newest first; limit 0 leaves
// the number to the server.
func (c *Client) Deployments(ctx context.Context, nameOrID string, q leapcell.DeploymentQuery) ([]leapcell.Deployment, error) {
	query := url.Values{}
	if q.Limit > 0 {
		query.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Before > 0 {
		query.Set("before", strconv.Itoa(q.Before))
	}
	if q.Branch != "" {
		query.Set("branch", q.Branch)
	}
	states := make([]string, len(q.States))
	for i, state := range q.States {
		states[i] = string(state)
	}
	if len(states) > 0 {
		query.Set("state", strings.Join(states, ","))
	}
	path := "/v1/services/" + escape(nameOrID) + "/deployments"
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var all []leapcell.Deployment
	err := c.call(ctx, http.MethodGet, path, nil, &all)
	return all, err
}

// Deployment gives one deployment.
func (c *Client) Deployment(ctx context.Context, id string) (leapcell.Deployment, error) {
	var d leapcell.Deployment
	err := c.call(ctx, http.MethodGet, "/v1/deployments/"+escape(id), nil, &d)
	return d, err
}

// Cancel stops a deployment that is not done.
func (c *Client) Cancel(ctx context.Context, id string) (leapcell.Deployment, error) {
	var d leapcell.Deployment
	err := c.call(ctx, http.MethodPost, "/v1/deployments/"+escape(id)+"/cancel", nil, &d)
	return d, err
}

// Rollback makes a former deployment live again; "" means the last superseded one.
func (c *Client) Rollback(ctx context.Context, nameOrID, deployment string) (leapcell.Deployment, error) {
	var d leapcell.Deployment
	err := c.once(ctx, "/v1/services/"+escape(nameOrID)+"/rollback", map[string]string{"deployment": deployment}, &d)
	return d, err
}

// Redeploy deploys the source of a deployment again, in a fresh build; "" means the newest one.
func (c *Client) Redeploy(ctx context.Context, nameOrID, deployment string) (leapcell.Deployment, error) {
	var d leapcell.Deployment
	err := c.once(ctx, "/v1/services/"+escape(nameOrID)+"/redeploy", map[string]string{"deployment": deployment}, &d)
	return d, err
}

type traffic struct {
	Split *leapcell.Split `json:"split"`
}

// Traffic is the part of the requests that a former deployment gets, nil for none.
func (c *Client) Traffic(ctx context.Context, nameOrID string) (*leapcell.Split, error) {
	var t traffic
	err := c.call(ctx, http.MethodGet, "/v1/services/"+escape(nameOrID)+"/traffic", nil, &t)
	return t.Split, err
}

// Split sends percent of the requests to a former deployment; 0 ends it.
func (c *Client) Split(ctx context.Context, nameOrID, deployment string, percent int) (*leapcell.Split, error) {
	var t traffic
	err := c.call(ctx, http.MethodPut, "/v1/services/"+escape(nameOrID)+"/traffic",
		map[string]any{"deployment": deployment, "percent": percent}, &t)
	return t.Split, err
}

const (
	pollLength = 60 * time.Second // of one long poll
	waitOutage = 60 * time.Second // how long the API may be away while somebody waits
	waitRetry  = time.Second
)

// Wait blocks until the deployment is done or ctx ends. It bears a restart of the API: only
// when the API is away for a minute does it give up.
func (c *Client) Wait(ctx context.Context, id string) (leapcell.Deployment, error) {
	var lostAt time.Time
	for {
		asked := time.Now()
		d, err := c.wait(ctx, id)
		switch {
		case err == nil && d.State.Done():
			return d, nil
		case err == nil:
			lostAt = time.Time{}
			if time.Since(asked) > waitRetry {
				continue
			} // else the server ends, and answers at once
		case ctx.Err() != nil:
			return d, ctx.Err()
		case leapcell.ErrorCode(err) != leapcell.CodeUnavailable:
			return d, err
		case lostAt.IsZero():
			lostAt = time.Now()
		case time.Since(lostAt) > waitOutage:
			return d, err
		}
		if err := rest(ctx); err != nil {
			return d, err
		}
	}
}

func (c *Client) wait(ctx context.Context, id string) (leapcell.Deployment, error) {
	ctx, cancel := context.WithTimeout(ctx, pollLength+15*time.Second)
	defer cancel()
	var d leapcell.Deployment
	resp, err := c.do(ctx, http.MethodGet, "/v1/deployments/"+escape(id)+"/wait?timeout="+pollLength.String(), nil, nil)
	if err != nil {
		return d, err
	}
	err = c.readAnswer(resp, &d)
	return d, err
}

// DeploymentLog streams a deployment's log; when it follows, until the deployment is done.
// Close it. A Read that ends with anything but io.EOF means that the rest is missing.
func (c *Client) DeploymentLog(ctx context.Context, id string, o leapcell.LogOptions) (io.ReadCloser, error) {
	return c.stream(ctx, fmt.Sprintf("/v1/deployments/%s/log?follow=%t&timestamps=%t&offset=%d", escape(id), o.Follow, o.Timestamps, o.Offset))
}

// Bill is the bill of materials of a deployment's image, a CycloneDX document in JSON.
func (c *Client) Bill(ctx context.Context, id string) ([]byte, error) {
	return c.document(ctx, "/v1/deployments/"+escape(id)+"/sbom")
}

// Provenance says how a deployment's image came about, as in-toto statement in JSON.
func (c *Client) Provenance(ctx context.Context, id string) ([]byte, error) {
	return c.document(ctx, "/v1/deployments/"+escape(id)+"/provenance")
}

func (c *Client) document(ctx context.Context, path string) ([]byte, error) {
	r, err := c.stream(ctx, path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// LogOptions say which part of a service's log to read.
type LogOptions struct {
	Follow bool
	Tail   int // lines from before
}

// Logs streams what a service's instances write. Close it.
func (c *Client) Logs(ctx context.Context, nameOrID string, o LogOptions) (io.ReadCloser, error) {
	return c.stream(ctx, "/v1/services/"+escape(nameOrID)+"/logs?follow="+strconv.FormatBool(o.Follow)+"&tail="+strconv.Itoa(o.Tail))
}

func (c *Client) stream(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
