package server

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
	"golang.org/x/time/rate"
)

// TokenStore knows the tokens.
type TokenStore interface {
	// TokenRole gives name and role of a token, else CodeUnauthorized.
	TokenRole(ctx context.Context, plain string) (name, role string, err error)
}

// access lets in who has a token of the role, and not more often than the limit.
func (s *Server) access(need Access) gin.HandlerFunc {
	return func(c *gin.Context) {
		if need == Open || need == Signed {
			return
		}
		name, role, err := s.admit(c, need)
		if err != nil {
			s.fail(c, err)
			return
		}
		c.Set(keyToken, name)
		if need == Edge && c.FullPath() == staticPath {
			return // not a call: a visitor waits for it
		}
		limit := s.cfg.CallsPerMin
		if role == Edge || role == Node {
			limit = maxCallsPerMin // several edges report four times a second each
		}
		if wait := s.overLimit(name, limit); wait > 0 {
			c.Header("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
			s.fail(c, leapcell.Errorf(leapcell.CodeRateLimited, "the token %q made more than %d calls a minute: wait a moment", name, limit))
		}
	}
}

func (s *Server) admit(c *gin.Context, need Access) (name string, role Access, err error) {
	token := bearer(c)
	if token == "" {
		c.Header("WWW-Authenticate", `Bearer realm="leapcell"`)
		return "", "", leapcell.Errorf(leapcell.CodeUnauthorized, "a token is needed: send the header Authorization: Bearer <token>")
	}
	name, text, err := s.cfg.Store.TokenRole(c.Request.Context(), token)
	if err != nil {
		if leapcell.ErrorCode(err) == leapcell.CodeUnauthorized {
			c.Header("WWW-Authenticate", `Bearer realm="leapcell", error="invalid_token"`)
		}
		return "", "", err
	}
	role = Access(text)
	if role != need && (role != Admin || need == Secrets) {
		return "", "", leapcell.Errorf(leapcell.CodeForbidden, "the token %q has the role %s: %s %s needs %s", name, role, c.Request.Method, c.FullPath(), need)
	}
	return name, role, nil
}

// bearer is the token of a request, "" for none.
func bearer(c *gin.Context) string {
	scheme, token, _ := strings.Cut(c.GetHeader("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// overLimit says how long the token of that name has to wait; 0 means not at all.
func (s *Server) overLimit(name string, perMinute int) time.Duration {
	s.limitsMu.Lock()
	l := s.limits[name]
	if l == nil {
		// A minute's calls may come at once; then they come as time passes.
		l = rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute)
		s.limits[name] = l
	}
	s.limitsMu.Unlock()
	r := l.Reserve()
	wait := r.Delay()
	if wait > 0 {
		r.Cancel() // refused calls do not count
	}
	return wait
}

var _ http.Handler = (*Server)(nil)
