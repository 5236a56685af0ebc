package wake

import (
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/leapcell/leapcell"
)

// refusal is an answer that the edge gives itself.
type refusal struct {
	status int           // 0 for no answer at all: the visitor has gone
	reason string        // for metrics and the access log
	text   string        // for the visitor
	again  bool          // a later try may succeed
	after  time.Duration // and not before this
}

var (
	refuseQuietly     = &refusal{}
	refuseIgnored     = &refusal{status: http.StatusNoContent, reason: "ignored"}
	refuseNoRoute     = &refusal{status: http.StatusNotFound, reason: "no_route", text: leapcell.TextNoRoute}
	refuseNoTable     = &refusal{status: http.StatusServiceUnavailable, reason: "no_table", text: "The edge has not read its routes yet", again: true}
	refuseNoStatic    = &refusal{status: http.StatusServiceUnavailable, reason: "no_static", text: "The files of this site cannot be read at the moment", again: true}
	refuseConnect     = &refusal{status: http.StatusMethodNotAllowed, reason: "connect", text: "CONNECT is not offered here"}
	refuseTarget      = &refusal{status: http.StatusBadRequest, reason: "bad_target", text: "The target of the request is neither a path nor an address"}
	refuseLine        = &refusal{status: http.StatusRequestURITooLong, reason: "line_too_long", text: "The request line is longer than 16 KB"}
	refuseHeader      = &refusal{status: http.StatusRequestHeaderFieldsTooLarge, reason: "header_too_long", text: "A request header is longer than 16 KB"}
	refuseHeaders     = &refusal{status: http.StatusRequestHeaderFieldsTooLarge, reason: "headers_too_long", text: "The request headers are longer than 64 KB together"}
	refuseTooMany     = &refusal{status: http.StatusTooManyRequests, reason: "too_many", text: "Too many requests of this service are in flight", again: true}
	refuseQueueFull   = &refusal{status: http.StatusServiceUnavailable, reason: "queue_full", text: leapcell.TextQueueFull, again: true}
	refuseNoSlot      = &refusal{status: http.StatusServiceUnavailable, reason: "no_slot", text: leapcell.TextQueueFull, again: true}
	refuseNotReady    = &refusal{status: http.StatusGatewayTimeout, reason: "start_timeout", text: leapcell.TextStartTimeout, again: true}
	refuseStartFailed = &refusal{status: http.StatusBadGateway, reason: "start_failed", text: leapcell.TextStartFailed}
	refuseBody        = &refusal{status: http.StatusBadRequest, reason: "bad_body", text: "The request body is not well-formed"}
	refuseCrashed     = &refusal{status: http.StatusBadGateway, reason: "instance_crashed", text: leapcell.TextCrashed}
)

// write sends it, and says how many bytes the body has.
func (f *refusal) write(w http.ResponseWriter, r *http.Request) (bytes int64) {
	if f.status == 0 {
		return 0
	}
	head := w.Header()
	if id := r.Header.Get(headerRequestID); id != "" && saneRequestID(id) {
		head.Set(headerRequestID, id)
	}
	switch {
	case f.after > 0:
		head.Set("Retry-After", strconv.Itoa(int(math.Ceil(f.after.Seconds()))))
	case f.again:
		head.Set("Retry-After", "1")
	}
	if f.status == http.StatusNoContent {
		w.WriteHeader(f.status)
		return 0
	}
	head.Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(f.status)
	if r.Method == http.MethodHead {
		return 0
	}
	n, _ := w.Write([]byte(f.text + "\n"))
	return int64(n)
}

// Reasons are all the values of [Visit.Refused] that are the edge's own.
func Reasons() []string {
	out := []string{reasonLeft, reasonBroken, reasonBackingOff}
	for _, f := range []*refusal{refuseIgnored, refuseNoRoute, refuseNoTable, refuseNoStatic, refuseConnect, refuseTarget, refuseLine, refuseHeader, refuseHeaders,
		refuseTooMany, refuseQueueFull, refuseNoSlot, refuseNotReady, refuseStartFailed, refuseBody, refuseCrashed} {
		out = append(out, f.reason)
	}
	return out
}
