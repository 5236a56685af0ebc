package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/leapcell/leapcell"
)

// API speaks to the control plane as the documentation of its API says.
type API struct{ Base, Token string }

// APIError is an answer of the API that is not 2xx.
type APIError struct {
	Status      int
	ContentType string
	Body        string
	Code        leapcell.Code `json:"code"`
	Detail      string        `json:"detail"`
	RequestID   string        `json:"requestId"`
}

func (e *APIError) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Detail) }

// Call sends in as JSON (nothing if nil) and reads the answer into out (ignored if nil).
// An answer that is not 2xx is an [*APIError].
func (a *API) Call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	return a.send(ctx, method, path, "application/json", body, out)
}

// Upload sends an archive.
func (a *API) Upload(ctx context.Context, path string, archive io.Reader, out any) error {
	return a.send(ctx, http.MethodPost, path, "application/gzip", archive, out)
}

func (a *API) send(ctx context.Context, method, path, contentType string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, a.Base+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Authorization", "Bearer "+a.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		e := &APIError{Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type"), Body: string(b)}
		_ = json.Unmarshal(b, e) // a body of another form stays in Body
		return e
	}
	switch out := out.(type) {
	case nil:
	case *string:
		*out = string(b)
	default:
		if err := json.Unmarshal(b, out); err != nil {
			return fmt.Errorf("%s %s: %w in %q", method, path, err, b)
		}
	}
	return nil
}
