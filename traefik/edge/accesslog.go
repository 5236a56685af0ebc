package edge

import (
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/trace"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/traefik/wake"
)

// longestText bounds what a visitor can write into a line.
const longestText = 2 << 10

// accessLog writes one line of JSON for each request, whatever became of it. The line is in
// the file before the end of the answer is sent, so that the sum of the lines is never less
// than what visitors got. Fields that Traefik's access log has too are called as there.
//
// It is not Traefik's: that one makes a map and some thirty fields for a line, of which a
// third says nothing where one router leads to one middleware.
type accessLog struct {
	out  io.WriteCloser
	log  *slog.Logger
	lost atomic.Int64 // lines that could not be written

	mu      sync.Mutex
	line    []byte
	failing bool
}

// openAccessLog opens a file, or standard output for "-".
func openAccessLog(name string, log *slog.Logger) (*accessLog, error) {
	if name == "-" {
		return &accessLog{out: keepOpen{os.Stdout}, log: log}, nil
	}
	// Whoever rotates the file by copying and truncating it finds the next line at its start.
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeInvalid, err, "the access log "+name+" cannot be written")
	}
	return &accessLog{out: f, log: log}, nil
}

type keepOpen struct{ io.Writer }

func (keepOpen) Close() error { return nil }

// Close is called when no request is left.
func (a *accessLog) Close() error { return a.out.Close() }

// Woke is said by the line of the request that waited.
func (a *accessLog) Woke(*leapcell.Route) {}

// Visited writes the line. A disk that is full costs lines, and no request.
func (a *accessLog) Visited(v *wake.Visit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.line = appendLine(a.line[:0], v)
	_, err := a.out.Write(a.line)
	if err != nil {
		a.lost.Add(1)
	}
	switch {
	case err != nil && !a.failing:
		a.log.Error("the access log cannot be written: lines are lost", "error", err)
	case err == nil && a.failing:
		a.log.Info("the access log can be written again", "lost", a.lost.Load())
	}
	a.failing = err != nil
}

// appendLine gives the line of a request. The query stays out: it may hold what nobody but
// the service should see.
func appendLine(b []byte, v *wake.Visit) []byte {
	r := v.Request
	b = append(b, `{"time":"`...)
	b = v.Arrived.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, '"')
	if ids := r.Header["X-Request-Id"]; len(ids) == 1 {
		b = appendText(b, "RequestID", ids[0])
	}
	if span := trace.SpanContextFromContext(r.Context()); span.IsValid() {
		b = appendText(b, "TraceId", span.TraceID().String())
	}
	if v.Route != nil {
		b = appendText(b, "Service", v.Route.ServiceID)
		b = appendText(b, "Deployment", v.Route.Deployment)
	}
	if v.Instance != "" {
		b = appendText(b, "Instance", v.Instance)
	}
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = r.RemoteAddr
	}
	b = appendText(b, "ClientHost", client)
	b = appendText(b, "RequestMethod", r.Method)
	b = appendText(b, "RequestHost", requestHost(v))
	b = appendText(b, "RequestPath", requestPath(r))
	b = appendText(b, "RequestProtocol", r.Proto)
	b = appendNumber(b, "DownstreamStatus", int64(v.Status))
	b = appendNumber(b, "DownstreamContentSize", v.Bytes)
	b = appendNumber(b, "Duration", int64(v.Took)) // ns
	b = append(b, `,"Cold":`...)
	b = strconv.AppendBool(b, v.Cold)
	if v.Timed {
		b = append(b, `,"Phases":{`...)
		for i, d := range phaseTimes(v.Phases) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, '"')
			b = append(b, phaseNames[i]...)
			b = append(b, `":`...)
			b = strconv.AppendInt(b, int64(d), 10)
		}
		b = append(b, '}')
	}
	b = appendNumber(b, "RetryAttempts", int64(v.Retries))
	if v.Refused != "" {
		b = appendText(b, "Refused", v.Refused)
	}
	if v.Aborted {
		b = append(b, `,"Aborted":true`...)
	}
	return append(b, '}', '\n')
}

func requestHost(v *wake.Visit) string {
	if v.Host != "" {
		return v.Host
	}
	return wake.Host(v.Request.Host)
}

// requestPath is the path as the visitor sent it.
func requestPath(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		path, _, _ := strings.Cut(r.RequestURI, "?")
		return path
	}
	return r.URL.EscapedPath()
}

func appendNumber(b []byte, name string, v int64) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, v, 10)
}

// appendText writes a field. Nearly all values are plain; json knows what to do with others.
func appendText(b []byte, name, v string) []byte {
	if len(v) > longestText {
		v = v[:longestText]
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	for i := range len(v) {
		if c := v[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(v) // of a string: cannot fail
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, v...)
	return append(b, '"')
}
