package nomad

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/leapcell/leapcell"
)

// callTimeout bounds each call that does not wait for anything.
const callTimeout = 15 * time.Second

// MaxWait is the longest that one blocking query waits for news.
const MaxWait = time.Minute

// Config says where Nomad is.
type Config struct {
	Address   string // "http://127.0.0.1:4646"
	Token     string // needs: write jobs, scale, read logs, write variables in Namespace
	Namespace string // "leapcell"
}

// Client talks to one Nomad in one namespace. It is safe for concurrent use.
type Client struct {
	cfg Config
	api *api.Client
}

// New makes a client; it makes no call.
func New(cfg Config) (*Client, error) {
	c, err := api.NewClient(&api.Config{Address: cfg.Address, SecretID: cfg.Token, Namespace: cfg.Namespace})
	if err != nil {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "the Nomad address %q cannot be used: %v", cfg.Address, err)
	}
	return &Client{cfg: cfg, api: c}, nil
}

// Namespace is where everything of the platform's services lives.
func (c *Client) Namespace() string { return c.cfg.Namespace }

// Health reports whether Nomad answers, has a leader and accepts the token.
func (c *Client) Health(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, _, err := c.api.Namespaces().Info(c.cfg.Namespace, c.query(ctx)); err != nil {
		return c.wrap(err, "look up namespace "+c.cfg.Namespace)
	}
	return nil
}

func (c *Client) query(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{}).WithContext(ctx)
}

func (c *Client) write(ctx context.Context) *api.WriteOptions {
	return (&api.WriteOptions{}).WithContext(ctx)
}

// wrap gives err a code and words. what completes "Nomad refused to …".
func (c *Client) wrap(err error, what string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", what, err)
	}
	status := statusOf(err)
	switch {
	case status == http.StatusNotFound:
		return leapcell.Wrap(leapcell.CodeNotFound, err, "Nomad does not know what it was asked to "+what)
	case status == http.StatusForbidden:
		return leapcell.Wrap(leapcell.CodeUnavailable, err,
			"Nomad refused to "+what+": the token of leapcelld may not do that; check --nomad-token-file")
	case status >= 500 && strings.Contains(err.Error(), "No cluster leader"):
		return leapcell.Wrap(leapcell.CodeUnavailable, err, fmt.Sprintf("Nomad at %s has no leader at the moment: repeat in some seconds", c.cfg.Address))
	case status != 0: // it understood and said no: a fault of ours
		return leapcell.Wrap(leapcell.CodeInternal, err, fmt.Sprintf("Nomad refused to %s: %s", what, oneLine(bodyOf(err))))
	}
	return leapcell.Wrap(leapcell.CodeUnavailable, err,
		fmt.Sprintf("Nomad at %s does not answer: %s; is the agent running?", c.cfg.Address, rootCause(err)))
}

func statusOf(err error) int {
	var e api.UnexpectedResponseError
	if errors.As(err, &e) {
		return e.StatusCode()
	}
	return 0
}

func bodyOf(err error) string {
	var e api.UnexpectedResponseError
	if errors.As(err, &e) && e.HasBody() {
		return strings.TrimSpace(e.Body())
	}
	return err.Error()
}

var errorCount = regexp.MustCompile(`\d+ errors? occurred:`)

// oneLine makes one line of what Nomad lists over many: "1 error occurred:\n\t* a\n\t* b".
func oneLine(text string) string {
	var parts []string
	for line := range strings.Lines(errorCount.ReplaceAllString(text, "")) {
		if part := strings.TrimRight(strings.TrimLeft(line, " \t\n*"), " \t\n:"); part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "; ")
}

// rootCause is the innermost text of err: "connect: connection refused".
func rootCause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer within " + callTimeout.String()
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}
