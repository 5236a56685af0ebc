package problem

import (
	"encoding/json"
	"mime"
	"net/http"
	"strings"

	"github.com/leapcell/leapcell"
)

// ContentType is that of an error body.
const ContentType = "application/problem+json"

// typePrefix makes the "type" member of a code; it names the kind and is no address to visit.
const typePrefix = "urn:leapcell:problem:"

// Body is an error as the API sends it.
type Body struct {
	Type      string        `json:"type"`
	Title     string        `json:"title"`
	Status    int           `json:"status"`
	Code      leapcell.Code `json:"code"`
	Detail    string        `json:"detail"` // what went wrong, where, and what to do
	RequestID string        `json:"requestId,omitempty"`
}

// table has one row for each code, by rising status. The first row of a status is the code
// that a bare status is read as.
var table = []struct {
	code   leapcell.Code
	status int
	title  string
}{
	{leapcell.CodeInvalid, http.StatusBadRequest, "Invalid request"},
	{leapcell.CodeUnauthorized, http.StatusUnauthorized, "Unauthorized"},
	{leapcell.CodeForbidden, http.StatusForbidden, "Forbidden"},
	{leapcell.CodeNotFound, http.StatusNotFound, "Not found"},
	{leapcell.CodeConflict, http.StatusConflict, "Conflict"},
	{leapcell.CodeCancelled, http.StatusConflict, "Cancelled"},
	{leapcell.CodeTooLarge, http.StatusRequestEntityTooLarge, "Too large"},
	{leapcell.CodeUnprocessable, http.StatusUnprocessableEntity, "Not acceptable"},
	{leapcell.CodeBuildFailed, http.StatusUnprocessableEntity, "The build failed"},
	{leapcell.CodeRateLimited, http.StatusTooManyRequests, "Too many calls"},
	{leapcell.CodeInternal, http.StatusInternalServerError, "Internal error"},
	{leapcell.CodeUpgradeForbidden, http.StatusNotImplemented, "Upgrade not possible"},
	{leapcell.CodePortNotListening, http.StatusBadGateway, "The service does not listen"},
	{leapcell.CodeStartExited, http.StatusBadGateway, "The start command ended"},
	{leapcell.CodeStartFailed, http.StatusBadGateway, "The service could not be started"},
	{leapcell.CodeResponseTooLarge, http.StatusBadGateway, "The response is too large"},
	{leapcell.CodeInstanceCrashed, http.StatusBadGateway, "The service stopped"},
	{leapcell.CodeUnavailable, http.StatusServiceUnavailable, "Unavailable"},
	{leapcell.CodeRequestTimeout, http.StatusGatewayTimeout, "Timed out"},
}

// Status is the HTTP status of a code; 500 for one that is not known.
func Status(code leapcell.Code) int {
	for _, row := range table {
		if row.code == code {
			return row.status
		}
	}
	return http.StatusInternalServerError
}

// Code is what an HTTP status without a readable body stands for.
func Code(status int) leapcell.Code {
	if status == http.StatusBadGateway || status == http.StatusGatewayTimeout {
		return leapcell.CodeUnavailable // a proxy before the API, not an instance
	}
	for _, row := range table {
		if row.status == status {
			return row.code
		}
	}
	if status >= 400 && status < 500 {
		return leapcell.CodeInvalid
	}
	return leapcell.CodeInternal
}

// New makes the body for an error. Only the safe part of err gets in.
func New(err error, requestID string) Body {
	code := leapcell.ErrorCode(err)
	status := Status(code)
	if status == http.StatusInternalServerError {
		code = leapcell.CodeInternal
	}
	return Body{
		Type: typePrefix + string(code), Title: Title(code), Status: status, Code: code,
		Detail: leapcell.ErrorMessage(err), RequestID: requestID,
	}
}

// Parse makes an [leapcell.Error] of an HTTP answer. contentType and body may be anything: a
// proxy on the way may have answered.
func Parse(status int, contentType string, body []byte) *leapcell.Error {
	var b Body
	if kind, _, err := mime.ParseMediaType(contentType); err == nil && kind == ContentType {
		if json.Unmarshal(body, &b) == nil && b.Code != "" && b.Detail != "" {
			detail := b.Detail
			if b.Code == leapcell.CodeInternal && b.RequestID != "" {
				detail += " (request " + b.RequestID + ": the log of leapcelld says more)"
			}
			return &leapcell.Error{Code: b.Code, Message: detail}
		}
	}
	return leapcell.Errorf(Code(status), "the server answered %d %s", status, strings.ToLower(http.StatusText(status)))
}

// Codes gives all codes, by rising status.
func Codes() []leapcell.Code {
	codes := make([]leapcell.Code, 0, len(table))
	for _, row := range table {
		codes = append(codes, row.code)
	}
	return codes
}

// Title is what a code is called in an error body.
func Title(code leapcell.Code) string {
	for _, row := range table {
		if row.code == code {
			return row.title
		}
	}
	return ""
}
