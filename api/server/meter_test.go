package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
	"github.com/leapcell/leapcell/api/store"
)

// node gives a client with the token of nodes.
func (p *platform) node() *client.Client {
	p.t.Helper()
	token, err := p.store.CreateToken(p.t.Context(), "node", store.RoleNode)
	if err != nil {
		p.t.Fatal(err)
	}
	return client.New(p.url, token)
}

func metered(service string, requests int64) leapcell.Meter {
	return leapcell.Meter{
		ID: strings.Repeat("ab", 16), AllocID: "a", Task: "shop", ServiceID: service, Mode: leapcell.TaskServerless, MemoryMB: 1024,
		At: time.Now(), Counters: leapcell.Counters{Requests: requests, ComputeMS: 1000 * requests, EgressBytes: 7},
	}
}

// Edges say what they answered themselves, and nothing that only nodes can know.
func TestEdgeMeters(t *testing.T) {
	p := newPlatform(t, nil)
	svc := p.newService("shop")
	m := metered(svc.ID, 3)
	m.ComputeMS = 0
	send := func(path string, readings ...leapcell.Meter) int {
		t.Helper()
		b, err := json.Marshal(leapcell.MeterReport{Meters: readings})
		if err != nil {
			t.Fatal(err)
		}
		status, _, _ := p.do(http.MethodPost, path, p.edge, "application/json", string(b))
		return status
	}
	for range 2 {
		if r := send("/v1/edges/e1/meters", m); r != http.StatusNoContent {
			t.Fatalf("status %d", r)
		}
	}
	if u, err := p.client.Usage(t.Context(), "shop", time.Time{}, time.Time{}); err != nil || u.Total.Requests != 3 || u.Total.EgressBytes != 7 || u.Total.ComputeMS != 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if r := send("/v1/edges/e1/meters", metered(svc.ID, 9)); r != http.StatusBadRequest && r != http.StatusUnprocessableEntity {
		t.Errorf("compute time from an edge: %d", r)
	}
	if r := send("/v1/nodes/n1/meters"); r != http.StatusForbidden {
		t.Errorf("an edge as a node: %d", r)
	}
}

func TestMeters(t *testing.T) {
	p := newPlatform(t, nil)
	ctx := t.Context()
	svc := p.newService("shop")
	node := p.node()
	report := leapcell.MeterReport{Node: "node-1", Meters: []leapcell.Meter{metered(svc.ID, 3)}}
	for range 2 {
		if err := node.ReportMeters(ctx, report); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"shop", svc.ID} {
		u, err := p.client.Usage(ctx, name, time.Time{}, time.Time{})
		if err != nil || u.ServiceID != svc.ID || len(u.Hours) != 1 || u.Total.Requests != 3 || u.Total.GBSeconds != 3 || u.Total.EgressBytes != 7 {
			t.Errorf("usage %+v, %v", u, err)
		}
		if span := u.To.Sub(u.From); span != usageDefault {
			t.Errorf("by default %s", span)
		}
	}
	hour := time.Now().Add(-time.Hour)
	if u, err := p.client.Usage(ctx, "shop", hour.Add(-48*time.Hour), hour); err != nil || len(u.Hours) != 0 {
		t.Errorf("usage of before: %+v, %v", u, err)
	}
	// Least privilege: that, and nothing else.
	_, err := node.Usage(ctx, "shop", time.Time{}, time.Time{})
	wantCode(t, err, leapcell.CodeForbidden, "node", "admin")
	wantCode(t, node.Report(ctx, leapcell.EdgeReport{Edge: "e1"}), leapcell.CodeForbidden)
	wantCode(t, client.New(p.url, p.edge).ReportMeters(ctx, report), leapcell.CodeForbidden)

	if err := p.store.DeleteService(ctx, svc.ID); err != nil {
		t.Fatal(err)
	}
	if u, err := p.client.Usage(ctx, svc.ID, time.Time{}, time.Time{}); err != nil || u.Total.Requests != 3 {
		t.Errorf("usage of a deleted service: %+v, %v", u, err)
	}
	_, err = p.client.Usage(ctx, "shop", time.Time{}, time.Time{})
	wantCode(t, err, leapcell.CodeNotFound, "shop")
}

func TestMetersRefused(t *testing.T) {
	p := newPlatform(t, nil)
	ctx := t.Context()
	svc := p.newService("shop")
	node := p.node()
	bad := metered(svc.ID, 1)
	bad.ID = "x"
	wantCode(t, node.ReportMeters(ctx, leapcell.MeterReport{Node: "n", Meters: []leapcell.Meter{metered(svc.ID, 1), bad}}), leapcell.CodeInvalid, "hexadecimal")
	wantCode(t, node.ReportMeters(ctx, leapcell.MeterReport{Node: "n", Meters: make([]leapcell.Meter, leapcell.MaxMeters+1)}), leapcell.CodeTooLarge, "1000")
	if status, body, _ := p.do("POST", "/v1/nodes/n2/meters", p.admin, "", `{"node":"n1"}`); status != 400 || !strings.Contains(body, "n2") {
		t.Errorf("a report of another node: %d %s", status, body)
	}
	if u, err := p.client.Usage(ctx, "shop", time.Time{}, time.Time{}); err != nil || len(u.Hours) != 0 || u.Hours == nil {
		t.Errorf("something was counted: %+v, %v", u, err)
	}
	for query, word := range map[string]string{
		"from=yesterday":                   "yesterday",
		"from=2026-01-02&to=2026-01-01":    "earlier",
		"from=2020-01-01&to=2026-01-01":    "366",
		"to=2026-01-01T00:00:00Z&from=%20": "from",
	} {
		if status, body, _ := p.do("GET", "/v1/services/shop/usage?"+query, p.admin, "", ""); status != 400 || !strings.Contains(body, word) {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	if status, body, _ := p.do("GET", "/v1/services/shop/usage?from=2026-01-01&to=2026-02-01", p.admin, "", ""); status != http.StatusOK || !strings.Contains(body, "2026-01-01T00:00:00Z") {
		t.Errorf("days: %d %s", status, body)
	}
}

// The largest report that a node sends fits into what the API reads.
func TestLargestReportOfANodeFits(t *testing.T) {
	p := newPlatform(t, nil)
	var report leapcell.MeterReport
	for i := range leapcell.MaxMeters {
		m := metered("a-service-name-of-the-longest-kin-default-abcdefgh", 1<<52)
		m.ID, m.Deployment, m.Task = fmt.Sprintf("%032x", i), "a-service-name-of-the-longest-kin-100000", m.ServiceID
		m.AllocID = "01234567-0123-0123-0123-0123456789ab"
		m.ComputeMS, m.EgressBytes, m.RunningMS, m.BuildMS, m.ColdStarts = 1<<30, 1<<52, 1<<40, 1<<40, 1
		report.Meters = append(report.Meters, m)
	}
	report.Node = "node-1"
	if b, err := json.Marshal(report); err != nil || len(b) > maxJSON {
		t.Errorf("%d bytes, %v: the API reads %d", len(b), err, maxJSON)
	}
	if err := p.node().ReportMeters(t.Context(), report); err != nil {
		t.Error(err)
	}
}
