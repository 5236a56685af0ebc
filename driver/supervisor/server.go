package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Version of the driver; the plugin asks for it, so that it can tell an operator that the
// running supervisor is of another build.
const Version = "0.1.0"

// longPoll bounds how long one question may hang; askers ask again.
const longPoll = 50 * time.Second

// Handler is the supervisor's API: JSON over HTTP, on a socket that only root can open.
// Tasks are named by the query parameter "id", because their IDs contain slashes. shutdown
// is called when the last answer has been given and the process should end.
func (s *Supervisor) Handler(shutdown func()) http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]handler{
		"GET /v1/health":       func(r *http.Request) (any, error) { return s.health(), nil },
		"GET /v1/tasks":        func(r *http.Request) (any, error) { return s.List(), nil },
		"GET /v1/task":         func(r *http.Request) (any, error) { return s.Inspect(r.FormValue("id")) },
		"GET /v1/task/stats":   func(r *http.Request) (any, error) { return s.Stats(r.FormValue("id")) },
		"GET /v1/task/wait":    s.handleWait,
		"POST /v1/task/stop":   s.handleStop,
		"POST /v1/task/signal": s.handleSignal,
		"DELETE /v1/task":      s.handleDestroy,
		"GET /v1/events":       s.handleEvents,
		"POST /v1/shutdown": func(r *http.Request) (any, error) {
			if err := s.Shutdown(r.FormValue("force") == "true"); err != nil {
				return nil, leapcell.Wrap(leapcell.CodeConflict, nil, err.Error())
			}
			time.AfterFunc(50*time.Millisecond, shutdown)
			return struct{}{}, nil
		},
	} {
		mux.Handle(pattern, s.unlessMoved(h))
	}
	mux.HandleFunc("POST /v1/task/start", s.serveStart)
	mux.HandleFunc("POST /v1/task/exec", s.serveExec)
	return mux
}

// unlessMoved answers that the tasks were handed over, also to who was waiting meanwhile.
func (s *Supervisor) unlessMoved(h handler) handler {
	return func(r *http.Request) (any, error) {
		if s.pace.isMoved() {
			return nil, errMoved
		}
		v, err := h(r)
		if err != nil && s.pace.isMoved() {
			return nil, errMoved
		}
		return v, err
	}
}

// handler answers with its value as JSON, or with its error.
type handler func(r *http.Request) (any, error)

// failure is the body of an error.
type failure struct {
	Code    leapcell.Code `json:"code"`
	Message string        `json:"message"`
}

// ServeHTTP implements http.Handler.
func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v, err := h(r)
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		f := failure{Code: leapcell.ErrorCode(err), Message: err.Error()}
		status := http.StatusInternalServerError
		switch {
		case errors.Is(err, ErrNotFound):
			f.Code, status = leapcell.CodeNotFound, http.StatusNotFound
		case f.Code == leapcell.CodeInvalid:
			status = http.StatusBadRequest
		case f.Code == leapcell.CodeConflict:
			status = http.StatusConflict
		case f.Code == CodeMoved:
			status = http.StatusMisdirectedRequest
			w.Header().Set("Connection", "close")
		}
		w.WriteHeader(status)
		v = f
	}
	_ = json.NewEncoder(w).Encode(v)
}

// serveStart starts a task for as long as somebody wants it: when the answer cannot be
// delivered, whoever asked believes that the start failed, and nobody would ever stop it.
func (s *Supervisor) serveStart(w http.ResponseWriter, r *http.Request) {
	var req StartRequest
	begun := false
	s.unlessMoved(func(r *http.Request) (any, error) {
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			return nil, leapcell.Errorf(leapcell.CodeInvalid, "start: %w", err)
		}
		status, first, err := s.start(req)
		begun = first
		return status, err
	}).ServeHTTP(w, r)
	if err := http.NewResponseController(w).Flush(); err == nil || !begun {
		return
	}
	s.log.Warn("nobody waits for the start any more: the task is ended", "task", req.ID)
	if err := s.Destroy(req.ID, true); err != nil && !errors.Is(err, ErrNotFound) {
		s.log.Error("task could not be ended", "task", req.ID, "error", err)
	}
}

// waitAnswer has no exit when the task did not end in time.
type waitAnswer struct {
	Exit *Exit `json:"exit,omitempty"`
}

func (s *Supervisor) handleWait(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), longPoll)
	defer cancel()
	exit, err := s.Wait(ctx, r.FormValue("id"))
	if errors.Is(err, context.DeadlineExceeded) {
		return waitAnswer{}, nil
	}
	if err != nil {
		return nil, err
	}
	return waitAnswer{Exit: &exit}, nil
}

func (s *Supervisor) handleStop(r *http.Request) (any, error) {
	timeout, err := time.ParseDuration(r.FormValue("timeout"))
	if err != nil {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "stop: timeout: %w", err)
	}
	return struct{}{}, s.Stop(r.FormValue("id"), timeout, unix.SignalNum(r.FormValue("signal")))
}

func (s *Supervisor) handleSignal(r *http.Request) (any, error) {
	name := r.FormValue("signal")
	signal := unix.SignalNum(name)
	if signal == 0 {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "there is no signal %q", name)
	}
	return struct{}{}, s.Signal(r.FormValue("id"), signal)
}

func (s *Supervisor) handleDestroy(r *http.Request) (any, error) {
	return struct{}{}, s.Destroy(r.FormValue("id"), r.FormValue("force") == "true")
}

func (s *Supervisor) handleEvents(r *http.Request) (any, error) {
	after, err := strconv.ParseInt(r.FormValue("after"), 10, 64)
	if err != nil {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "events: after: %w", err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), longPoll)
	defer cancel()
	ctx, stop := s.present(ctx)
	defer stop()
	return s.events.after(ctx, after), nil
}
