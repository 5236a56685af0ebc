package store

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"time"

	"github.com/leapcell/leapcell"
)

const (
	// meterKept is how long the last reading of an ended task is remembered. A node that
	// repeats it later than that, because it was off all the time, would have it counted twice.
	meterKept = 90 * 24 * time.Hour
	// meterOldest is how far back a first reading may say that it was made.
	meterOldest = 31 * 24 * time.Hour
)

// AddMeters counts readings, all or none. Only what a reading has more than the latest one of
// the same counters is added to the service's usage: one that comes twice, or after a later
// one, changes nothing. [BI3]
func (s *Store) AddMeters(ctx context.Context, node string, readings []leapcell.Meter) error {
	for _, m := range readings {
		if err := m.Validate(); err != nil {
			return err
		}
	}
	now := s.now()
	grown := make([]leapcell.Counters, len(readings))
	err := s.tx(ctx, func(tx *sql.Tx) error {
		for i, m := range readings {
			more, err := addMeter(ctx, tx, node, m, now)
			if err != nil {
				return err
			}
			grown[i] = more
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM meters WHERE ended = 1 AND read_at < ?`, micros(now.Add(-meterKept)))
		return err
	})
	if err == nil {
		s.count(readings, grown)
	}
	return err
}

// count keeps what was added since the process started, for [Store.Counted].
func (s *Store) count(readings []leapcell.Meter, grown []leapcell.Counters) {
	s.countedMu.Lock()
	defer s.countedMu.Unlock()
	for i, m := range readings {
		if grown[i] != (leapcell.Counters{}) {
			s.counted[m.ServiceID] = s.counted[m.ServiceID].Plus(grown[i])
		}
	}
}

// Counted is what was metered since the process started, by service ID.
func (s *Store) Counted() map[string]leapcell.Counters {
	s.countedMu.Lock()
	defer s.countedMu.Unlock()
	return maps.Clone(s.counted)
}

// addMeter gives how much the reading added.
func addMeter(ctx context.Context, tx *sql.Tx, node string, m leapcell.Meter, now time.Time) (leapcell.Counters, error) {
	before, readAt, ended, err := lastReading(ctx, tx, m.ID)
	if err != nil {
		return leapcell.Counters{}, err
	}
	latest, more := growth(before, m.Counters)
	m.At = readingTime(m.At, readAt, now)
	m.Ended = m.Ended || ended
	if more == (leapcell.Counters{}) && m.Ended == ended && !readAt.IsZero() {
		return more, nil
	}
	if err := putReading(ctx, tx, node, m, latest); err != nil {
		return more, err
	}
	if more == (leapcell.Counters{}) {
		return more, nil
	}
	return more, addUsage(ctx, tx, m, more)
}

// growth gives the larger of each counter, and how much b has more than a. Counters never
// fall: a smaller one is an older reading.
func growth(a, b leapcell.Counters) (latest, more leapcell.Counters) {
	grow := func(latest, more *int64, a, b int64) { *latest, *more = max(a, b), max(b-a, 0) }
	grow(&latest.Requests, &more.Requests, a.Requests, b.Requests)
	grow(&latest.ComputeMS, &more.ComputeMS, a.ComputeMS, b.ComputeMS)
	grow(&latest.EgressBytes, &more.EgressBytes, a.EgressBytes, b.EgressBytes)
	grow(&latest.ColdStarts, &more.ColdStarts, a.ColdStarts, b.ColdStarts)
	grow(&latest.RunningMS, &more.RunningMS, a.RunningMS, b.RunningMS)
	grow(&latest.BuildMS, &more.BuildMS, a.BuildMS, b.BuildMS)
	return latest, more
}

// readingTime decides in which hour a reading counts: in that of the node's clock, as it may
// come late. That clock may be wrong, or be set: then the hour is wrong by no more than the
// time since the reading before, and the amount is not touched.
func readingTime(at, before, now time.Time) time.Time {
	oldest := now.Add(-meterOldest)
	if before.After(oldest) {
		oldest = before
	}
	switch {
	case at.After(now):
		return now
	case at.Before(oldest):
		return oldest
	}
	return at
}

// lastReading gives zero values for counters that were never heard of.
func lastReading(ctx context.Context, tx *sql.Tx, id string) (c leapcell.Counters, at time.Time, ended bool, err error) {
	var readAt int64
	err = tx.QueryRowContext(ctx, `SELECT requests, compute_ms, egress_bytes, cold_starts, running_ms, build_ms, read_at, ended
		FROM meters WHERE id = ?`, id).
		Scan(&c.Requests, &c.ComputeMS, &c.EgressBytes, &c.ColdStarts, &c.RunningMS, &c.BuildMS, &readAt, &ended)
	if errors.Is(err, sql.ErrNoRows) {
		return leapcell.Counters{}, time.Time{}, false, nil
	}
	return c, fromMicros(readAt), ended, err
}

func putReading(ctx context.Context, tx *sql.Tx, node string, m leapcell.Meter, c leapcell.Counters) error {
	ended := 0
	if m.Ended {
		ended = 1
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO meters (id, service_id, alloc_id, node,
			requests, compute_ms, egress_bytes, cold_starts, running_ms, build_ms, read_at, ended)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET requests = excluded.requests, compute_ms = excluded.compute_ms,
			egress_bytes = excluded.egress_bytes, cold_starts = excluded.cold_starts, running_ms = excluded.running_ms,
			build_ms = excluded.build_ms, read_at = excluded.read_at, ended = excluded.ended`,
		m.ID, m.ServiceID, m.AllocID, node, c.Requests, c.ComputeMS, c.EgressBytes, c.ColdStarts, c.RunningMS, c.BuildMS, micros(m.At), ended)
	return err
}

func addUsage(ctx context.Context, tx *sql.Tx, m leapcell.Meter, c leapcell.Counters) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO usage_hours (service_id, hour,
			requests, compute_ms, mb_ms, egress_bytes, cold_starts, running_ms, build_ms)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (service_id, hour) DO UPDATE SET requests = usage_hours.requests + excluded.requests,
			compute_ms = usage_hours.compute_ms + excluded.compute_ms, mb_ms = usage_hours.mb_ms + excluded.mb_ms,
			egress_bytes = usage_hours.egress_bytes + excluded.egress_bytes, cold_starts = usage_hours.cold_starts + excluded.cold_starts,
			running_ms = usage_hours.running_ms + excluded.running_ms, build_ms = usage_hours.build_ms + excluded.build_ms`,
		m.ServiceID, micros(m.At.UTC().Truncate(time.Hour)),
		c.Requests, c.ComputeMS, int64(m.MemoryMB)*(c.ComputeMS+c.RunningMS), c.EgressBytes, c.ColdStarts, c.RunningMS, c.BuildMS)
	return err
}

// Usage gives what a service used in each hour that begins before to and ends after from,
// oldest first, and all of it together. Hours without usage are left out. It does not check
// that the service exists: usage outlives it.
func (s *Store) Usage(ctx context.Context, serviceID string, from, to time.Time) (leapcell.ServiceUsage, error) {
	u := leapcell.ServiceUsage{ServiceID: serviceID, From: from.UTC(), To: to.UTC()}
	rows, err := s.db.QueryContext(ctx, `SELECT hour, requests, compute_ms, mb_ms, egress_bytes, cold_starts, running_ms, build_ms
		FROM usage_hours WHERE service_id = ? AND hour >= ? AND hour < ? ORDER BY hour`,
		serviceID, micros(from.UTC().Truncate(time.Hour)), micros(to))
	if err != nil {
		return u, friendly(err)
	}
	var sum usageRow
	u.Hours, err = scanAll(rows, func(scan func(...any) error) (leapcell.Usage, error) {
		var r usageRow
		if err := scan(&r.hour, &r.Requests, &r.ComputeMS, &r.mbMS, &r.EgressBytes, &r.ColdStarts, &r.RunningMS, &r.buildMS); err != nil {
			return leapcell.Usage{}, err
		}
		sum.add(r)
		return r.usage(), nil
	})
	u.Total = sum.usage()
	return u, err
}

// usageRow has the figures as they are stored: whole numbers, which add up exactly.
type usageRow struct {
	leapcell.Usage
	hour, mbMS, buildMS int64
}

func (r *usageRow) add(o usageRow) {
	r.Requests += o.Requests
	r.ComputeMS += o.ComputeMS
	r.mbMS += o.mbMS
	r.EgressBytes += o.EgressBytes
	r.ColdStarts += o.ColdStarts
	r.RunningMS += o.RunningMS
	r.buildMS += o.buildMS
}

func (r usageRow) usage() leapcell.Usage {
	u := r.Usage
	u.Hour = fromMicros(r.hour)
	u.GBSeconds = float64(r.mbMS) / 1024 / 1000
	u.BuildSeconds = float64(r.buildMS) / 1000
	return u
}
