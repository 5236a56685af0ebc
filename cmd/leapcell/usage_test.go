package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestUsage(t *testing.T) {
	hour := leapcell.Usage{
		Hour: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), Requests: 42, ComputeMS: 1500, GBSeconds: 0.375, EgressBytes: 3 << 19,
		BuildSeconds: 12.34, ColdStarts: 2, RunningMS: 7,
	}
	total := hour
	total.Hour = time.Time{}
	var asked string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.RequestURI()
		if err := json.NewEncoder(w).Encode(leapcell.ServiceUsage{ServiceID: "shop-main-abcd1234", Hours: []leapcell.Usage{hour}, Total: total}); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	call := func(args ...string) (string, string, int) {
		var out, errs bytes.Buffer
		code := run(context.Background(), append(args, "--api", server.URL, "--token", "secret"), nil, strings.NewReader(""), &out, &errs)
		return out.String(), errs.String(), code
	}
	out, errs, code := call("usage", "shop", "--from", "2026-11-22T00:00:00Z", "--to", "2026-11-23T00:00:00Z")
	if code != 0 || asked != "/v1/services/shop/usage?from=2026-11-22T00%3A00%3A00Z&to=2026-11-23T00%3A00%3A00Z" {
		t.Errorf("exit code %d, asked %s\n%s", code, asked, errs)
	}
	for _, want := range []string{"REQUESTS", "42", "1.500 s", "0.375", "1.5 MB", "12.3 s", "total"} {
		if !strings.Contains(out, want) {
			t.Errorf("the table has no %q:\n%s", want, out)
		}
	}
	out, _, code = call("usage", "shop", "-o", "json")
	var u leapcell.ServiceUsage
	if err := json.Unmarshal([]byte(out), &u); err != nil || code != 0 || u.Total.Requests != 42 || asked != "/v1/services/shop/usage" {
		t.Errorf("%v, exit code %d, asked %s\n%s", err, code, asked, out)
	}
	if _, errs, code = call("usage", "shop", "--from", "last week"); code == 0 || !strings.Contains(errs, "--from") {
		t.Errorf("exit code %d\n%s", code, errs)
	}
}
