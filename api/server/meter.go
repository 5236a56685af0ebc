package server

import (
	"context"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell"
)

// MeterStore counts what nodes report.
type MeterStore interface {
	// AddMeters counts readings, all or none; repeating it changes nothing.
	AddMeters(ctx context.Context, node string, readings []leapcell.Meter) error
	// Usage gives what a service used, also of one that is deleted.
	Usage(ctx context.Context, serviceID string, from, to time.Time) (leapcell.ServiceUsage, error)
}

// reportMeters answers when the readings are on the disk: before that the node keeps them.
func (s *Server) reportMeters(c *gin.Context) error {
	var report leapcell.MeterReport
	if err := readJSON(c, &report, false); err != nil {
		return err
	}
	node := c.Param("node")
	if report.Node != "" && report.Node != node {
		return leapcell.Errorf(leapcell.CodeInvalid, "the report is of node %q but was sent to that of %q", report.Node, node)
	}
	return s.addMeters(c, node, report.Meters)
}

// reportEdgeMeters takes what edges can know: requests that they answered themselves.
func (s *Server) reportEdgeMeters(c *gin.Context) error {
	var report leapcell.MeterReport
	if err := readJSON(c, &report, false); err != nil {
		return err
	}
	for _, m := range report.Meters {
		if m.Counters != (leapcell.Counters{Requests: m.Requests, EgressBytes: m.EgressBytes}) {
			return leapcell.Errorf(leapcell.CodeInvalid, "the reading %s has more than requests and egress: only nodes meter that", m.ID)
		}
	}
	return s.addMeters(c, "edge/"+c.Param("edge"), report.Meters)
}

func (s *Server) addMeters(c *gin.Context, by string, readings []leapcell.Meter) error {
	if len(readings) > leapcell.MaxMeters {
		return leapcell.Errorf(leapcell.CodeTooLarge, "the report has %d readings: at most %d are taken", len(readings), leapcell.MaxMeters)
	}
	if err := s.cfg.Store.AddMeters(c.Request.Context(), by, readings); err != nil {
		return err
	}
	c.Status(http.StatusNoContent)
	return nil
}

const (
	usageDefault = 24 * time.Hour
	usageLongest = 366 * 24 * time.Hour
)

func (s *Server) getUsage(c *gin.Context) error {
	to, err := timeQuery(c, "to", time.Now())
	if err != nil {
		return err
	}
	from, err := timeQuery(c, "from", to.Add(-usageDefault))
	if err != nil {
		return err
	}
	if !from.Before(to) || to.Sub(from) > usageLongest {
		return leapcell.Errorf(leapcell.CodeInvalid, "from is %s and to is %s: from must be the earlier, by at most 366 days",
			from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	id := c.Param("service")
	svc, missing := s.service(c)
	if missing == nil {
		id = svc.ID
	} else if leapcell.ErrorCode(missing) != leapcell.CodeNotFound {
		return missing
	}
	usage, err := s.cfg.Store.Usage(c.Request.Context(), id, from, to)
	if err != nil {
		return err
	}
	if missing != nil && len(usage.Hours) == 0 {
		return missing // neither a service nor the ID of one that was deleted
	}
	c.JSON(http.StatusOK, usage)
	return nil
}

// timeQuery reads a point in time, or a day, which is its beginning in UTC; absent is def.
func timeQuery(c *gin.Context, name string, def time.Time) (time.Time, error) {
	text := c.Query(name)
	if text == "" {
		return def, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return def, leapcell.Errorf(leapcell.CodeInvalid, "%s is %q: it must be like 2006-01-02 or 2006-01-02T15:04:05Z", name, text)
}
