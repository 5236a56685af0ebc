package leapcell

import (
	"errors"
	"fmt"
	"strings"
)

// Code is the machine-readable kind of an [Error].
type Code string

// The kinds of error. api/server maps each to an HTTP status in one table.
const (
	CodeInvalid          Code = "invalid"            // the input is wrong; the message says where
	CodeNotFound         Code = "not_found"          // no such thing
	CodeConflict         Code = "conflict"           // it exists already, or is in the wrong state
	CodeUnauthorized     Code = "unauthorized"       // no token, or a wrong one
	CodeForbidden        Code = "forbidden"          // the token may not do this
	CodeTooLarge         Code = "too_large"          // over a limit; the message names it
	CodeUnprocessable    Code = "unprocessable"      // well-formed, but not acceptable
	CodeRateLimited      Code = "rate_limited"       // too many calls
	CodeUnavailable      Code = "unavailable"        // Nomad, Vault, the registry or the disk: try again later
	CodeInternal         Code = "internal"           // a fault of ours; logged with the request id
	CodeBuildFailed      Code = "build_failed"       // the build command failed
	CodePortNotListening Code = "port_not_listening" // LC5
	CodeStartExited      Code = "start_exited"       // LC6
	CodeStartFailed      Code = "start_failed"       // the sandbox could not be made
	CodeRequestTimeout   Code = "request_timeout"    // RQ1
	CodeResponseTooLarge Code = "response_too_large" // RQ2
	CodeUpgradeForbidden Code = "upgrade_forbidden"  // RQ4
	CodeInstanceCrashed  Code = "instance_crashed"   // LI5
	CodeCancelled        Code = "cancelled"          // somebody stopped it
)

// Error is what crosses an edge of the platform: a code for programs and a message that
// is safe to show to whoever asked. Causes that are not safe to show are wrapped.
type Error struct {
	Code    Code
	Message string
	Err     error // the cause; logged, never shown
}

// Error gives the safe message, and the cause behind it for the log.
func (e *Error) Error() string {
	if e.Err != nil && !strings.Contains(e.Message, e.Err.Error()) {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an [Error]; a %w verb in format becomes its cause as well as part of the text.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Wrap makes an [Error] whose cause is kept for the log but not shown.
func Wrap(code Code, err error, message string) *Error {
	return &Error{Code: code, Message: message, Err: err}
}

// ErrorCode is the code of err: that of the first [Error] in its chain, else [CodeInternal],
// else "" for nil.
func ErrorCode(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// ErrorMessage is the part of err that may be shown: the message of the first [Error] in
// its chain, else a text that gives nothing away.
func ErrorMessage(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "internal error"
}
