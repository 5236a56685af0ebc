package server

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/hook"
)

// Hub joins services with repositories.
type Hub interface {
	Connect(ctx context.Context, svc leapcell.Service, in hook.Connect) (hook.Connected, error)
	// Connection gives the connection of a service, else CodeNotFound.
	Connection(ctx context.Context, svc leapcell.Service) (leapcell.Connection, error)
	Disconnect(ctx context.Context, svc leapcell.Service) error
	// Receive takes in what a host tells; why says why nothing comes of it.
	Receive(ctx context.Context, connection string, header http.Header, body []byte) (why string, err error)
}

const (
	// hookCalls are taken in at a time: each may hold its whole body in memory.
	hookCalls = 8
	// hookTimeout bounds how long a host may take to send its event.
	hookTimeout = 10 * time.Second
)

func (s *Server) connect(c *gin.Context) error {
	var in hook.Connect
	if err := readJSON(c, &in, false); err != nil {
		return err
	}
	root, err := cleanRootDir(in.RootDir)
	if err != nil {
		return err
	}
	in.RootDir = root
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	out, err := s.cfg.Hub.Connect(c.Request.Context(), svc, in)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, out)
	return nil
}

func (s *Server) getConnection(c *gin.Context) error {
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	out, err := s.cfg.Hub.Connection(c.Request.Context(), svc)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, out)
	return nil
}

func (s *Server) disconnect(c *gin.Context) error {
	svc, err := s.service(c)
	if err != nil {
		return err
	}
	if err := s.cfg.Hub.Disconnect(c.Request.Context(), svc); err != nil {
		return err
	}
	c.Status(http.StatusNoContent)
	return nil
}

// receiveHook takes in an event. Anybody may call it: nothing is done before the signature
// is checked, and nothing of what was sent is logged.
func (s *Server) receiveHook(c *gin.Context) error {
	if c.Request.ContentLength > hook.MaxBody {
		return errTooLarge(hook.MaxBody) // before a byte of it is read
	}
	select {
	case s.hooks <- struct{}{}:
		defer func() { <-s.hooks }()
	case <-c.Request.Context().Done():
		return c.Request.Context().Err()
	case <-time.After(hookTimeout):
		return leapcell.Errorf(leapcell.CodeUnavailable, "too many events come in at the moment: deliver it again")
	}
	rc := http.NewResponseController(c.Writer)
	_ = rc.SetReadDeadline(time.Now().Add(hookTimeout)) // not every writer in tests can
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, hook.MaxBody))
	if err != nil {
		return bodyError(err)
	}
	why, err := s.cfg.Hub.Receive(c.Request.Context(), c.Param("connection"), c.Request.Header, body)
	if err != nil {
		return err
	}
	if why != "" {
		c.JSON(http.StatusOK, gin.H{"ignored": why})
		return nil
	}
	c.JSON(http.StatusAccepted, gin.H{"accepted": true})
	return nil
}
