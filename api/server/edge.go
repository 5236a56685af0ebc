package server

import (
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
)

func (s *Server) edgeReport(c *gin.Context) error {
	var report leapcell.EdgeReport
	if err := readJSON(c, &report, false); err != nil {
		return err
	}
	edge := c.Param("edge")
	if report.Edge != "" && report.Edge != edge {
		return leapcell.Errorf(leapcell.CodeInvalid, "the report is of edge %q but was sent to that of %q", report.Edge, edge)
	}
	report.Edge = edge
	s.cfg.Scaler.Report(report)
	c.Status(http.StatusNoContent)
	return nil
}
