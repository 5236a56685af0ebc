package gate

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/leapcell/leapcell"
)

// refusal is an answer that the gate gives instead of the app.
type refusal struct {
	status int
	code   leapcell.Code
	text   string
	gone   bool // no byte went to the app: the edge may ask another instance
	retry  bool // worth asking again in a second
}

var (
	gone             = &refusal{status: http.StatusServiceUnavailable, code: leapcell.CodeUnavailable, text: "This instance of the service is stopping", gone: true}
	queueFull        = &refusal{status: http.StatusServiceUnavailable, code: leapcell.CodeUnavailable, text: leapcell.TextQueueFull, retry: true}
	startTimeout     = &refusal{status: http.StatusServiceUnavailable, code: leapcell.CodeUnavailable, text: leapcell.TextStartTimeout, retry: true}
	requestTimeout   = &refusal{status: http.StatusGatewayTimeout, code: leapcell.CodeRequestTimeout, text: leapcell.TextRequestTimedOut}
	responseTooBig   = &refusal{status: http.StatusBadGateway, code: leapcell.CodeResponseTooLarge, text: leapcell.TextResponseTooBig}
	badResponse      = &refusal{status: http.StatusBadGateway, code: leapcell.CodeInstanceCrashed, text: "The service gave an answer that is not HTTP"}
	headersTooBig    = &refusal{status: http.StatusBadGateway, code: leapcell.CodeResponseTooLarge, text: "The response headers are bigger than the maximum allowed size of 32 KB"}
	crashed          = &refusal{status: http.StatusBadGateway, code: leapcell.CodeInstanceCrashed, text: leapcell.TextCrashed}
	upgradeForbidden = &refusal{status: http.StatusNotImplemented, code: leapcell.CodeUpgradeForbidden, text: leapcell.TextUpgradeForbidden}
	lineTooLong      = &refusal{status: http.StatusRequestURITooLong, code: leapcell.CodeTooLarge, text: "The request line is bigger than 16 KB"}
	headerTooLong    = &refusal{status: http.StatusRequestHeaderFieldsTooLarge, code: leapcell.CodeTooLarge, text: "A request header is bigger than 16 KB"}
	headersTooLong   = &refusal{status: http.StatusRequestHeaderFieldsTooLarge, code: leapcell.CodeTooLarge, text: "The request headers together are bigger than 64 KB"}
	bodyTooLarge     = &refusal{status: http.StatusRequestEntityTooLarge, code: leapcell.CodeTooLarge, text: "The request body is bigger than the maximum allowed size"}
	bodyStalled      = &refusal{status: http.StatusRequestTimeout, code: leapcell.CodeRequestTimeout, text: "The request body did not come: nothing of it was received for too long"}
	bodyMalformed    = &refusal{status: http.StatusBadRequest, code: leapcell.CodeInvalid, text: "The request body is not well-formed"}
	connectForbidden = &refusal{status: http.StatusMethodNotAllowed, code: leapcell.CodeInvalid, text: "CONNECT is not offered here"}
	badTarget        = &refusal{status: http.StatusBadRequest, code: leapcell.CodeInvalid, text: "The target of the request is neither a path nor an address"}
	badPreface       = &refusal{status: http.StatusHTTPVersionNotSupported, code: leapcell.CodeInvalid, text: "This is not how HTTP/2 begins"}
	clientGone       = &refusal{} // nobody is there to be told
)

// refuse answers r. It reads nothing of the request's body.
func (g *Gate) refuse(w http.ResponseWriter, r *refusal) {
	if r == clientGone {
		panic(http.ErrAbortHandler)
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(r.text)+1))
	h.Set(leapcell.HeaderError, string(r.code))
	h[leapcell.HeaderInstance] = g.header
	if r.gone {
		h.Set(leapcell.HeaderGone, "1")
		h["Connection"] = closing
	}
	if r.retry {
		h.Set("Retry-After", "1")
	}
	w.WriteHeader(r.status)
	_, _ = w.Write([]byte(r.text + "\n"))
}

// answerProbe holds the question until the start is decided. It neither thaws nor counts.
func (g *Gate) answerProbe(w http.ResponseWriter, r *http.Request) {
	select {
	case <-g.started:
	case <-r.Context().Done():
		return
	}
	g.mu.Lock()
	state, status := g.state, leapcell.GateStatus{Ready: g.state == Ready}
	if state == Failed {
		status = g.failure
	}
	if !g.launched.IsZero() {
		w.Header()[leapcell.HeaderTiming] = []string{g.timing()}
	}
	g.mu.Unlock()
	if state == Draining || state == Stopped {
		g.refuse(w, gone)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if !status.Ready {
		w.Header().Set(leapcell.HeaderError, string(status.Code))
		w.WriteHeader(http.StatusBadGateway)
	}
	_ = json.NewEncoder(w).Encode(status)
}

// timing is the value of HeaderTiming. The caller holds mu.
func (g *Gate) timing() string {
	b := make([]byte, 0, 32)
	ms := func(d time.Duration) {
		b = strconv.AppendFloat(b, float64(max(d, 0))/float64(time.Millisecond), 'f', 1, 64)
	}
	b = append(b, "sandbox="...)
	ms(g.launched.Sub(g.cfg.Begin))
	if g.wasReady {
		b = append(b, ",app="...)
		ms(g.ready.Sub(g.launched))
	}
	return string(b)
}
