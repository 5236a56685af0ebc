package server

import (
	"context"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/leapcell/leapcell"
)

// Supply has the documents of images. A deployment that has none gives CodeNotFound.
type Supply interface {
	Bill(ctx context.Context, dep leapcell.Deployment) ([]byte, error)
	Provenance(ctx context.Context, dep leapcell.Deployment) ([]byte, error)
	// Envelope is the provenance with its signature.
	Envelope(ctx context.Context, dep leapcell.Deployment) ([]byte, error)
}

func (s *Server) getBill(c *gin.Context) error {
	return s.document(c, "application/vnd.cyclonedx+json; version=1.6", s.cfg.Supply.Bill)
}

func (s *Server) getProvenance(c *gin.Context) error {
	switch c.Query("envelope") {
	case "", "false":
		return s.document(c, "application/vnd.in-toto+json", s.cfg.Supply.Provenance)
	case "true":
		return s.document(c, "application/vnd.dsse.envelope.v1+json", s.cfg.Supply.Envelope)
	}
	return leapcell.Errorf(leapcell.CodeInvalid, "envelope is %q: it must be true or false", c.Query("envelope"))
}

func (s *Server) document(c *gin.Context, kind string, read func(context.Context, leapcell.Deployment) ([]byte, error)) error {
	dep, err := s.cfg.Store.Deployment(c.Request.Context(), c.Param("deployment"))
	if err != nil {
		return err
	}
	text, err := read(c.Request.Context(), dep)
	if err != nil {
		return err
	}
	c.Data(http.StatusOK, kind, text)
	return nil
}
