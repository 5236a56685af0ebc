package static

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	dialTimeout = 2 * time.Second
	// answerTimeout is until the first byte.
	answerTimeout = 5 * time.Second
	// fetchTimeout is for all of a content.
	fetchTimeout = 2 * time.Minute
)

// origin is where contents come from: a control plane, or where that sends us.
type origin struct {
	apis  []string
	token string
	http  *http.Client
}

func newOrigin(apis []string, token string) *origin {
	return &origin{apis: apis, token: token, http: &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout:   dialTimeout,
			ResponseHeaderTimeout: answerTimeout,
			MaxIdleConnsPerHost:   16,
			IdleConnTimeout:       90 * time.Second,
			DisableCompression:    true, // digests are of what is transferred
		},
		// The token is for the control plane alone, also where another server has its name.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// fetch asks one control plane after the other.
func (o *origin) fetch(ctx context.Context, service, sum string) (io.ReadCloser, error) {
	err := errors.New("the edge knows no control plane to fetch static files from: give --api-addr")
	for _, api := range o.apis {
		var body io.ReadCloser
		if body, err = o.from(ctx, api, service, sum); err == nil {
			return body, nil
		}
	}
	return nil, err
}

func (o *origin) from(ctx context.Context, api, service, sum string) (io.ReadCloser, error) {
	resp, err := o.get(ctx, api+"/v1/static/"+service+"/"+sum, o.token)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusTemporaryRedirect {
		resp.Body.Close()
		to, err := resp.Location()
		if err != nil {
			return nil, err
		}
		if resp, err = o.get(ctx, to.String(), ""); err != nil {
			return nil, fmt.Errorf("content %s at %s: %w", sum, to.Host, errors.Unwrap(err)) // the address has a signature
		}
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("content %s of %s: %s answered %s", sum, service, resp.Request.URL.Host, resp.Status)
	}
	return resp.Body, nil
}

func (o *origin) get(ctx context.Context, url, token string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return o.http.Do(req)
}
