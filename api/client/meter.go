package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/leapcell/leapcell"
)

// Usage gives what a service used between two points in time, hour by hour. Zero times leave
// the choice to the server: the last 24 hours. A deleted service is found by its ID.
func (c *Client) Usage(ctx context.Context, nameOrID string, from, to time.Time) (leapcell.ServiceUsage, error) {
	query := url.Values{}
	for name, t := range map[string]time.Time{"from": from, "to": to} {
		if !t.IsZero() {
			query.Set(name, t.UTC().Format(time.RFC3339))
		}
	}
	path := "/v1/services/" + escape(nameOrID) + "/usage"
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var usage leapcell.ServiceUsage
	err := c.call(ctx, http.MethodGet, path, nil, &usage)
	return usage, err
}

// ReportMeters sends what a node counted. It may be repeated: nothing is counted twice.
func (c *Client) ReportMeters(ctx context.Context, report leapcell.MeterReport) error {
	return c.call(ctx, http.MethodPost, "/v1/nodes/"+escape(report.Node)+"/meters", report, nil)
}
