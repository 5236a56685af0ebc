package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leapcell/leapcell"
)

// The calls themselves are tested in api/server, against the real server.

func wantCode(t *testing.T, err error, code leapcell.Code, words ...string) {
	t.Helper()
	if got := leapcell.ErrorCode(err); got != code {
		t.Fatalf("error %v has code %q, want %q", err, got, code)
	}
	for _, word := range words {
		if !strings.Contains(leapcell.ErrorMessage(err), word) {
			t.Errorf("%q does not say %q", leapcell.ErrorMessage(err), word)
		}
	}
}

func TestAPIThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	c := New(address, "x")
	for name, call := range map[string]func() error{
		"services": func() error { _, err := c.Services(t.Context()); return err },
		"health":   func() error { _, err := c.Health(t.Context()); return err },
		"logs":     func() error { _, err := c.Logs(t.Context(), "x", LogOptions{}); return err },
		"upload": func() error {
			_, err := c.DeployUpload(t.Context(), "x", Upload{Archive: strings.NewReader("x"), Size: 1})
			return err
		},
	} {
		err := call()
		t.Log(name, err)
		wantCode(t, err, leapcell.CodeUnavailable, "http://"+address+" does not answer", "refused", "try: leapcell up")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Services(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

func TestAnswersThatCannotBeRead(t *testing.T) {
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }))
	defer ts.Close()
	_, err := New(ts.URL+"/", "").Services(t.Context())
	wantCode(t, err, leapcell.CodeUnavailable, ts.URL, "cannot be read")
}

func TestPathsAreEscaped(t *testing.T) {
	var got string
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.URL.EscapedPath()
		_, _ = io.WriteString(w, "{}")
	}))
	defer ts.Close()
	if _, err := New(ts.URL, "").Service(t.Context(), "../a?b/c"); err != nil {
		t.Fatal(err)
	}
	if got != "/v1/services/..%2Fa%3Fb%2Fc" {
		t.Errorf("path is %s", got)
	}
}

// fakeAPI answers long polls without a network, so that time can be fake too.
type fakeAPI func(*http.Request) (int, string, error)

func (f fakeAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body, err := f(r)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
}

func TestWaitPollsUntilDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls, start := 0, time.Now()
		c := &Client{base: "http://x", http: &http.Client{Transport: fakeAPI(func(r *http.Request) (int, string, error) {
			switch calls++; calls {
			case 1:
				time.Sleep(pollLength) // as a server does
				return 200, `{"state":"building"}`, nil
			case 2, 3: // as one that ends does
				return 200, `{"state":"building"}`, nil
			}
			return 200, `{"state":"failed"}`, nil
		})}}
		d, err := c.Wait(t.Context(), "python-1")
		if err != nil || d.State != leapcell.Failed || calls != 4 {
			t.Errorf("%+v, %v after %d calls", d, err, calls)
		}
		if took := time.Since(start); took != pollLength+2*waitRetry {
			t.Errorf("took %s: a server that answers at once must not be asked without a pause", took)
		}
	})
}

// A wish that must not be fulfilled twice is repeated under the same name when its answer was lost.
func TestALostAnswerIsAskedForAgain(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	for name, test := range map[string]struct {
		answers []any // errors, or bodies
		calls   int
		works   bool
	}{
		"reset, away for a moment, there":  {[]any{io.ErrUnexpectedEOF, refused, refused, `{"id":"shop-1"}`}, 4, true},
		"cut short":                        {[]any{`{"id":"sho`, `{"id":"shop-1"}`}, 2, true},
		"not up":                           {[]any{refused, `{"id":"shop-1"}`}, 1, false},
		"answers what it does not promise": {[]any{`<html>`, `{"id":"shop-1"}`}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, calls := map[string]bool{}, 0
				c := &Client{base: "http://x", http: &http.Client{Transport: fakeAPI(func(r *http.Request) (int, string, error) {
					keys[r.Header.Get(leapcell.HeaderIdempotencyKey)] = true
					calls++
					if body, ok := test.answers[calls-1].(string); ok {
						return 202, body, nil
					}
					return 0, "", test.answers[calls-1].(error)
				})}}
				d, err := c.Rollback(t.Context(), "shop", "")
				if (err == nil) != test.works || test.works && d.ID != "shop-1" || calls != test.calls || len(keys) != 1 || keys[""] {
					t.Errorf("%s, %v after %d calls, named by %v", d.ID, err, calls, keys)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := &Client{base: "http://x", http: &http.Client{Transport: fakeAPI(func(*http.Request) (int, string, error) { return 0, "", io.ErrUnexpectedEOF })}}
		_, err := c.Redeploy(t.Context(), "shop", "")
		wantCode(t, err, leapcell.CodeUnavailable, "does not answer")
		if took := time.Since(began); took < waitOutage || took > waitOutage+2*waitRetry {
			t.Errorf("gave up after %s", took)
		}
	})
}

func TestWaitBearsARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c := &Client{base: "http://x", http: &http.Client{Transport: fakeAPI(func(*http.Request) (int, string, error) {
			if time.Since(start) < 50*time.Second {
				return 0, "", errors.New("connection refused")
			}
			return 200, `{"state":"live"}`, nil
		})}}
		if d, err := c.Wait(t.Context(), "python-1"); err != nil || d.State != leapcell.Live {
			t.Errorf("%+v, %v", d, err)
		}
	})
}

func TestWaitGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c := &Client{base: "http://x", http: &http.Client{Transport: fakeAPI(func(*http.Request) (int, string, error) {
			return 0, "", errors.New("connection refused")
		})}}
		_, err := c.Wait(t.Context(), "python-1")
		wantCode(t, err, leapcell.CodeUnavailable)
		if took := time.Since(start); took < waitOutage || took > waitOutage+5*time.Second {
			t.Errorf("gave up after %s", took)
		}
		for _, status := range []int{401, 404} { // these do not pass by waiting
			c.http.Transport = fakeAPI(func(*http.Request) (int, string, error) { return status, "", nil })
			start := time.Now()
			if _, err := c.Wait(t.Context(), "python-1"); err == nil || time.Since(start) > 0 {
				t.Errorf("%d: %v after %s", status, err, time.Since(start))
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		c.http.Transport = fakeAPI(func(*http.Request) (int, string, error) { return 0, "", fmt.Errorf("refused") })
		if _, err := c.Wait(ctx, "python-1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline of its own: %v", err)
		}
	})
}
