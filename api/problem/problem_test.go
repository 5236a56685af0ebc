package problem

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
)

// TestEveryCodeHasARow reads the codes from the root package's source, so that a new one
// cannot be forgotten here.
func TestEveryCodeHasARow(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../../error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	known := map[leapcell.Code]bool{}
	for _, row := range table {
		known[row.code] = true
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		found++
		lit, ok := spec.Values[0].(*ast.BasicLit)
		if !ok {
			t.Fatalf("%s is no literal", spec.Names[0].Name)
		}
		if code := leapcell.Code(strings.Trim(lit.Value, `"`)); !known[code] {
			t.Errorf("%s (%q) has no row in the table", spec.Names[0].Name, code)
		}
		return true
	})
	if found != len(table) {
		t.Errorf("%d codes and %d rows", found, len(table))
	}
}

func TestRoundTrip(t *testing.T) {
	for _, row := range table {
		body := New(leapcell.Errorf(row.code, "what happened"), "r1")
		if body.Status != row.status || body.Title == "" || body.RequestID != "r1" {
			t.Errorf("%s: body %+v", row.code, body)
		}
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		got := Parse(row.status, ContentType+"; charset=utf-8", b)
		if got.Code != row.code || !strings.HasPrefix(got.Message, "what happened") {
			t.Errorf("%s came back as %s: %s", row.code, got.Code, got.Message)
		}
	}
}

func TestCausesAreNotShown(t *testing.T) {
	for _, err := range []error{
		errors.New("secret"),
		leapcell.Wrap(leapcell.CodeUnavailable, errors.New("secret"), "try again"),
	} {
		b, jsonErr := json.Marshal(New(err, ""))
		if jsonErr != nil {
			t.Fatal(jsonErr)
		}
		if strings.Contains(string(b), "secret") {
			t.Errorf("%s shows the cause", b)
		}
	}
	if got := New(errors.New("x"), "").Status; got != http.StatusInternalServerError {
		t.Errorf("an unknown error has status %d", got)
	}
}

func TestParseForeignAnswers(t *testing.T) {
	for _, c := range []struct {
		status      int
		contentType string
		body        string
		want        leapcell.Code
	}{
		{404, "text/html", "<html>", leapcell.CodeNotFound},
		{502, "text/html", "bad gateway", leapcell.CodeUnavailable},
		{503, ContentType, "{broken", leapcell.CodeUnavailable},
		{503, "", "", leapcell.CodeUnavailable},
		{418, ContentType, `{"detail":"no code"}`, leapcell.CodeInvalid},
		{599, "x", "", leapcell.CodeInternal},
	} {
		if got := Parse(c.status, c.contentType, []byte(c.body)); got.Code != c.want || got.Message == "" {
			t.Errorf("%d %q %q is %s %q, want %s", c.status, c.contentType, c.body, got.Code, got.Message, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(500, ContentType, []byte(`{"code":"internal","detail":"x","requestId":"1"}`))
	f.Add(0, "", []byte(nil))
	f.Fuzz(func(t *testing.T, status int, contentType string, body []byte) {
		if e := Parse(status, contentType, body); e.Code == "" || e.Message == "" {
			t.Errorf("no code or no message: %+v", e)
		}
	})
}
