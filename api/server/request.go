package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/problem"
)

// maxJSON bounds a JSON body; the largest honest one is a set of environment variables.
const maxJSON = 1 << 20

// jsonTimeout bounds how long a client may take to send a JSON body.
const jsonTimeout = 30 * time.Second

const (
	headerRequestID = "X-Request-Id"
	keyRequestID    = "leapcell.request_id"
	keyToken        = "leapcell.token"
)

var goodRequestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// requestID takes over the caller's id when it is harmless, else makes one.
func (s *Server) requestID(c *gin.Context) {
	id := c.GetHeader(headerRequestID)
	if !goodRequestID.MatchString(id) {
		id = strings.ToLower(rand.Text()[:16])
	}
	c.Set(keyRequestID, id)
	c.Header(headerRequestID, id)
}

// logged writes one line a request: reads at debug level, the rest at info. The query and
// all headers stay out.
func (s *Server) logged(c *gin.Context) {
	start := time.Now()
	c.Next()
	if s.cfg.Called != nil {
		s.cfg.Called(c.FullPath(), c.Writer.Status(), time.Since(start))
	}
	level := slog.LevelInfo
	if path := c.FullPath(); c.Request.Method == http.MethodGet || path == "/v1/edges/:edge/report" || path == "/v1/nodes/:node/meters" || path == "/v1/edges/:edge/meters" {
		level = slog.LevelDebug
	}
	s.cfg.Log.Log(c.Request.Context(), level, "api call", "method", c.Request.Method, "path", c.Request.URL.Path,
		"status", c.Writer.Status(), "took", time.Since(start).String(), "token", c.GetString(keyToken), "request", c.GetString(keyRequestID))
}

// recovered turns a panic into an internal error. http.ErrAbortHandler passes: it cuts the
// connection on purpose.
func (s *Server) recovered(c *gin.Context) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(p)
		}
		s.cfg.Log.Error("panic in a handler", "panic", fmt.Sprint(p), "request", c.GetString(keyRequestID), "stack", string(debug.Stack()))
		if c.Writer.Written() {
			panic(http.ErrAbortHandler) // the answer cannot be taken back, only cut
		}
		s.answerError(c, errors.New("panic"))
	}()
	c.Next()
}

func (s *Server) handler(h func(*Server, *gin.Context) error) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := h(s, c); err != nil {
			s.fail(c, err)
		}
	}
}

// fail answers with err, and logs what the caller is not shown.
func (s *Server) fail(c *gin.Context, err error) {
	var tooBig *http.MaxBytesError
	if errors.As(err, &tooBig) {
		err = errTooLarge(tooBig.Limit)
	}
	if code := leapcell.ErrorCode(err); code == leapcell.CodeInternal || code == leapcell.CodeUnavailable {
		if errors.Is(err, context.Canceled) && c.Request.Context().Err() != nil {
			c.Abort() // nobody is there to hear it
			return
		}
		s.cfg.Log.Error("api call failed", "err", err, "path", c.Request.URL.Path, "request", c.GetString(keyRequestID))
	}
	s.answerError(c, err)
}

func (s *Server) answerError(c *gin.Context, err error) {
	if c.Writer.Written() {
		panic(http.ErrAbortHandler) // a stream that breaks must not look complete
	}
	body := problem.New(err, c.GetString(keyRequestID))
	b, jsonErr := json.Marshal(body)
	if jsonErr != nil {
		panic(jsonErr)
	}
	c.Abort()
	c.Data(body.Status, problem.ContentType, b)
}

func errTooLarge(limit int64) error {
	return leapcell.Errorf(leapcell.CodeTooLarge, "the body is larger than the limit of %s", sizeText(limit))
}

// sizeText writes a limit as people say it: "100 MB".
func sizeText(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MB", n>>20)
	case n >= 1e6 && n%1e6 == 0:
		return fmt.Sprintf("%d MB", n/1e6)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// readJSON reads the body into v. The error names the field that is wrong. An empty body
// leaves v as it is when optional.
func readJSON(c *gin.Context, v any, optional bool) error {
	if kind, _, err := mime.ParseMediaType(c.ContentType()); c.ContentType() != "" && (err != nil || kind != "application/json") {
		return leapcell.Errorf(leapcell.CodeInvalid, "the body has the type %q: application/json is needed", c.ContentType())
	}
	rc := http.NewResponseController(c.Writer)
	_ = rc.SetReadDeadline(time.Now().Add(jsonTimeout)) // not every writer in tests can
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	b, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, maxJSON))
	if err != nil {
		return bodyError(err)
	}
	if optional && len(b) == 0 {
		return nil
	}
	return decodeJSON(b, v)
}

func bodyError(err error) error {
	var tooBig *http.MaxBytesError
	if errors.As(err, &tooBig) {
		return errTooLarge(tooBig.Limit)
	}
	return leapcell.Wrap(leapcell.CodeInvalid, err, "the body could not be read to its end")
}

// decodeJSON reads exactly one JSON value into v and knows all its fields.
func decodeJSON(b []byte, v any) error {
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return leapcell.Errorf(leapcell.CodeInvalid, "the body has more than one JSON value")
		}
		return nil
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	unknown, isUnknown := strings.CutPrefix(err.Error(), "json: unknown field ")
	switch {
	case errors.Is(err, io.EOF):
		return leapcell.Errorf(leapcell.CodeInvalid, "the body is empty: JSON is needed")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return leapcell.Errorf(leapcell.CodeInvalid, "the body ends in the middle of its JSON")
	case isUnknown:
		return leapcell.Errorf(leapcell.CodeInvalid, "the field %s is not known", unknown)
	case errors.As(err, &kind):
		return leapcell.Errorf(leapcell.CodeInvalid, "the field %q must be %s, not %s", kind.Field, kindText(kind.Type.Kind().String()), kind.Value)
	case errors.As(err, &syntax):
		return leapcell.Errorf(leapcell.CodeInvalid, "the body is not valid JSON: at byte %d, %s", syntax.Offset, syntax)
	}
	return leapcell.Errorf(leapcell.CodeInvalid, "the body cannot be used: %v", err)
}

// kindText says in words of JSON what a Go kind reads.
func kindText(kind string) string {
	switch kind {
	case "struct", "map":
		return "an object"
	case "slice", "array":
		return "a list"
	case "string":
		return "a text"
	case "bool":
		return "true or false"
	}
	return "a whole number"
}

// boolQuery reads a query parameter that is true or false; absent is false.
func boolQuery(c *gin.Context, name string) (bool, error) {
	text := c.Query(name)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, leapcell.Errorf(leapcell.CodeInvalid, "%s is %q: it must be true or false", name, text)
	}
	return v, nil
}

// intQuery reads a whole number between lo and hi; absent is def.
func intQuery(c *gin.Context, name string, def, lo, hi int) (int, error) {
	text := c.Query(name)
	if text == "" {
		return def, nil
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < lo || v > hi {
		return 0, leapcell.Errorf(leapcell.CodeInvalid, "%s is %q: it must be a whole number from %d to %d", name, text, lo, hi)
	}
	return v, nil
}
