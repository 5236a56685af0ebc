package nomad

import (
	"context"
	"io"
	"strconv"
)

// LogOptions say which log to read and from where.
type LogOptions struct {
	AllocID string
	Task    string
	Stream  string // "stdout" or "stderr"
	Follow  bool   // go on with what is written later
	Offset  int64  // in bytes, from the start, or from the end when FromEnd is set
	FromEnd bool
}

// Logs streams one log as it was written. The stream ends at the end of the log or, when it
// follows, when ctx ends or it is closed: Nomad does not end it when the task does. Close it.
func (c *Client) Logs(ctx context.Context, o LogOptions) (io.ReadCloser, error) {
	origin := "start"
	if o.FromEnd {
		origin = "end"
	}
	q := c.query(ctx)
	q.Params = map[string]string{
		"task": o.Task, "type": o.Stream, "follow": strconv.FormatBool(o.Follow),
		"origin": origin, "offset": strconv.FormatInt(o.Offset, 10), "plain": "true",
	}
	r, err := c.api.Raw().Response("/v1/client/fs/logs/"+o.AllocID, q)
	if err != nil {
		return nil, c.wrap(err, "read the log of "+o.AllocID)
	}
	return r, nil
}
