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
	text   string        // for the visitor
	again  bool          // a later try may succeed
	after  time.Duration // and not before this
}

var (
	refuseQuietly     = &refusal{}
	refuseIgnored     = &refusal{status: http.StatusNoContent}
	refuseNoRoute     = &refusal{status: http.StatusNotFound, text: leapcell.TextNoRoute}
	refuseNoTable     = &refusal{status: http.StatusServiceUnavailable, text: "The edge has not read its routes yet", again: true}
	refuseConnect     = &refusal{status: http.StatusMethodNotAllowed, text: "CONNECT is not offered here"}
	refuseLine        = &refusal{status: http.StatusRequestURITooLong, text: "The request line is longer than 16 KB"}
	refuseHeader      = &refusal{status: http.StatusRequestHeaderFieldsTooLarge, text: "A request header is longer than 16 KB"}
	refuseHeaders     = &refusal{status: http.StatusRequestHeaderFieldsTooLarge, text: "The request headers are longer than 64 KB together"}
	refuseTooMany     = &refusal{status: http.StatusTooManyRequests, text: "Too many requests of this service are in flight", again: true}
	refuseQueueFull   = &refusal{status: http.StatusServiceUnavailable, text: leapcell.TextQueueFull, again: true}
	refuseNoSlot      = &refusal{status: http.StatusServiceUnavailable, text: leapcell.TextQueueFull, again: true}
	refuseNotReady    = &refusal{status: http.StatusGatewayTimeout, text: leapcell.TextStartTimeout, again: true}
	refuseStartFailed = &refusal{status: http.StatusBadGateway, text: leapcell.TextStartFailed}
	refuseBody        = &refusal{status: http.StatusBadRequest, text: "The request body is not well-formed"}
	refuseCrashed     = &refusal{status: http.StatusBadGateway, text: leapcell.TextCrashed}
)

func (f *refusal) write(w http.ResponseWriter, r *http.Request) {
	if f.status == 0 {
		return
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
		return
	}
	head.Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(f.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(f.text + "\n"))
	}
}
