package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/problem"
)

const (
	// callTimeout bounds calls that are neither streams, uploads nor waits. Deleting a
	// service is the slowest of them.
	callTimeout = 2 * time.Minute
	// maxAnswer bounds what is read of an answer that is not a stream.
	maxAnswer = 64 << 20
)

// Client calls one API. It is safe for concurrent use.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// New makes a client for the API at addr ("http://127.0.0.1:8400", or host:port); it makes
// no call.
func New(addr, token string) *Client {
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   4,
		ExpectContinueTimeout: time.Second, // a refused upload is refused before it is sent
	}
	return &Client{base: strings.TrimRight(addr, "/"), token: token, http: &http.Client{Transport: transport}}
}

// Address is where the API is.
func (c *Client) Address() string { return c.base }

// call makes one call with a JSON body and reads a JSON answer; in and out may be nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	return c.callWith(ctx, method, path, http.Header{}, in, out)
}

// callWith is call with further headers.
func (c *Client) callWith(ctx context.Context, method, path string, header http.Header, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
		header.Set("Content-Type", "application/json")
	}
	resp, err := c.do(ctx, method, path, body, header)
	if err != nil {
		return err
	}
	return c.readAnswer(resp, out)
}

// once is call for a POST whose effect must not come twice. It bears a key by which the API knows it
// again, and is repeated for a minute when its answer was lost and nobody knows whether it arrived.
func (c *Client) once(ctx context.Context, path string, in, out any) error {
	header := http.Header{leapcell.HeaderIdempotencyKey: {rand.Text()}}
	var lostAt time.Time
	for {
		err := c.callWith(ctx, http.MethodPost, path, header, in, out)
		switch {
		case err == nil || ctx.Err() != nil || !answerLost(err):
			return err
		case lostAt.IsZero() && neverSent(err):
			return err // it is not up at all
		case lostAt.IsZero():
			lostAt = time.Now()
		case time.Since(lostAt) > waitOutage:
			return err
		}
		if err := rest(ctx); err != nil {
			return err
		}
	}
}

// rest waits until it is time for another try, unless ctx ends before.
func rest(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(waitRetry):
		return nil
	}
}

// answerLost reports whether a connection broke before the whole answer was here.
func answerLost(err error) bool {
	var broken *url.Error
	return errors.As(err, &broken) || errors.Is(err, io.ErrUnexpectedEOF)
}

// neverSent reports whether there was no connection.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// do sends a request and gives a good answer, whose body the caller closes.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "the API address %q cannot be used: %w", c.base, err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 300 {
		return nil, readProblem(resp)
	}
	return resp, nil
}

func readProblem(resp *http.Response) error {
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // half an error body is better than none
	return problem.Parse(resp.StatusCode, resp.Header.Get("Content-Type"), b)
}

func (c *Client) readAnswer(resp *http.Response, out any) error {
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "the leapcell API at "+c.base+" sent an answer that cannot be read")
	}
	return nil
}

// unreachable says that the API does not answer. The caller's own end stays what it is.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	cause := err.Error()
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		cause = "no answer in time"
	case errors.As(err, &op):
		cause = op.Err.Error()
	default:
		var u *url.Error
		if errors.As(err, &u) {
			cause = u.Err.Error()
		}
	}
	return leapcell.Wrap(leapcell.CodeUnavailable, err,
		fmt.Sprintf("the leapcell API at %s does not answer: %s – is it up? try: leapcell up", c.base, cause))
}

func escape(part string) string { return url.PathEscape(part) }
