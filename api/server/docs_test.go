package server

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/problem"
)

var update = flag.Bool("update", false, "write docs/api.md")

// TestAPIReference holds docs/api.md to the table of routes. Run it with -update to write
// the page.
func TestAPIReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "api.md")
	want := apiReference()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run go test ./api/server -run TestAPIReference -update", err)
	}
	if string(have) != want {
		t.Error("docs/api.md is not what routes.go says: run go test ./api/server -run TestAPIReference -update")
	}
}

func apiReference() string {
	var b strings.Builder
	b.WriteString(`# API

<!-- Made from api/server/routes.go. Change that, then: go test ./api/server -run TestAPIReference -update -->

JSON over HTTP, by default at ` + "`http://127.0.0.1:8400`" + `. Every call but those marked "anyone" and "who signs the body" needs the header
` + "`Authorization: Bearer <token>`" + `; the admin token of a fresh platform is in ` + "`admin.token`" + ` in the data folder of leapcelld.
A service is named by its name or its ID. The Go client is the package ` + "`api/client`" + `.

A call that does not wait is answered at once; slow work (deployments) is answered with 202 and goes on: follow it with
` + "`/wait`" + ` or ` + "`/log?follow=true`" + `. A stream that ends by a cut connection is incomplete.

`)
	for _, r := range Routes() {
		fmt.Fprintf(&b, "## %s %s\n\n%s\n\n| | |\n|---|---|\n| who | %s |\n", r.Method, docPath(r.Path), r.Summary, who(r.Access))
		if r.Request != "" {
			fmt.Fprintf(&b, "| takes | %s |\n", r.Request)
		}
		fmt.Fprintf(&b, "| gives | %s |\n\n", r.Answer)
	}
	b.WriteString("## Errors\n\nErrors are `application/problem+json` (RFC 7807): `{type, title, status, code, detail, requestId}`. `code` is for programs, `detail` for people; " +
		"`requestId` is also in the header `X-Request-Id` and in the log of leapcelld.\n\n| code | status | title |\n|---|---|---|\n")
	for _, code := range problem.Codes() {
		fmt.Fprintf(&b, "| `%s` | %d | %s |\n", code, problem.Status(code), problem.Title(code))
	}
	fmt.Fprintf(&b, "\nA token that makes too many calls a minute gets 429 with `Retry-After`; a source archive over the limit gets 413. "+
		"All variables of a service together may have %d bytes, else 422.\n", leapcell.MaxEnvBytes)
	return b.String()
}

func docPath(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if name, ok := strings.CutPrefix(part, ":"); ok {
			parts[i] = "{" + name + "}"
		}
	}
	return strings.Join(parts, "/")
}

func who(a Access) string {
	switch a {
	case Open:
		return "anyone"
	case Edge:
		return "edges, admins"
	case Node:
		return "nodes, admins"
	case Signed:
		return "who signs the body"
	}
	return "admins"
}

func TestRoutesAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Routes() {
		key := r.Method + " " + r.Path
		if seen[key] || r.Summary == "" || r.Answer == "" || r.handle == nil || !strings.HasPrefix(r.Path, "/v1/") {
			t.Errorf("%s: twice, or something is missing", key)
		}
		seen[key] = true
		if r.Method == http.MethodGet && strings.Contains(r.Request, "{") {
			t.Errorf("%s: a GET with a body", key)
		}
	}
}
