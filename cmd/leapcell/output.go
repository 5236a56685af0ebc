package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/leapcell/leapcell"
)

func (a *app) json(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table writes rows in columns; the first row is the heading.
func (a *app) table(rows ...[]string) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	return w.Flush()
}

// show writes v as JSON or the rows as a table, whichever was asked for.
func (a *app) show(v any, rows ...[]string) error {
	if a.output == "json" {
		return a.json(v)
	}
	return a.table(rows...)
}

// ago is how long ago t was, in its largest unit.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "-"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// nextStep is what to do about a kind of error.
var nextStep = map[leapcell.Code]string{
	leapcell.CodeUnauthorized:     "check the token: --token-file, LEAPCELL_TOKEN_FILE, or --state-dir of the platform on this machine",
	leapcell.CodeForbidden:        "use a token that may do this",
	leapcell.CodeNotFound:         "`leapcell services` lists what is there",
	leapcell.CodeUnavailable:      "`leapcell status` shows which part is down; `leapcell up` brings it back",
	leapcell.CodeInternal:         "`leapcell status` names the log of the control plane, which has the cause",
	leapcell.CodeBuildFailed:      "put the build command or the source right, then `leapcell deploy` again",
	leapcell.CodePortNotListening: "let the app listen on the port in PORT, or set --port to where it listens",
	leapcell.CodeStartExited:      "`leapcell logs SERVICE` has what the app wrote; put --start right, then deploy again",
	leapcell.CodeStartFailed:      "`leapcell logs SERVICE` has what is known; `leapcell status` shows the parts of the platform",
}

// shown is what may be shown of an error, its code, and what to do about it.
func shown(err error) (text string, code leapcell.Code, next string) {
	text, code = err.Error(), leapcell.ErrorCode(err)
	if top, ok := err.(*leapcell.Error); ok { //nolint:errorlint // below the top, what wraps it says more
		text = top.Message
	}
	var e *leapcell.Error
	if !errors.As(err, &e) {
		return text, leapcell.CodeInvalid, "" // of the command line itself, or of this machine: it says all
	}
	return text, code, nextStep[code]
}

// errorText is what the user sees of an error: what happened, and what to do next.
func errorText(err error) string {
	text, _, next := shown(err)
	text = "Error: " + text + "\n"
	if next != "" {
		text += "Next:  " + next + "\n"
	}
	return text
}

// errorJSON is the same for programs, on one line.
func errorJSON(err error) string {
	var e struct {
		Code    leapcell.Code `json:"code"`
		Message string        `json:"message"`
		Next    string        `json:"next,omitempty"`
	}
	e.Message, e.Code, e.Next = shown(err)
	b, _ := json.Marshal(e) // strings only: it cannot fail
	return string(b)
}
