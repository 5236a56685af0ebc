package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
)

const deploymentColumns = `id, service_id, service, number, state, source, settings, image, problem, created_at, updated_at, live_at, facts`

// CreateDeployment adds a queued deployment with the service's next number. A number is
// never given out twice for a name, even when the service was deleted and made again.
func (s *Store) CreateDeployment(ctx context.Context, serviceID string, src leapcell.Source, settings leapcell.Settings, origin leapcell.Origin) (leapcell.Deployment, error) {
	var d leapcell.Deployment
	err := s.tx(ctx, func(tx *sql.Tx) error {
		svc, err := service(ctx, tx, serviceID)
		if err != nil {
			return err
		}
		number, err := nextNumber(ctx, tx, svc.Name)
		if err != nil {
			return err
		}
		now := fromMicros(micros(s.now()))
		d = leapcell.Deployment{
			ID: leapcell.JobID(svc.Name, number), ServiceID: svc.ID, Service: svc.Name, Number: number,
			State: leapcell.Queued, Source: src, Settings: settings, CreatedAt: now, UpdatedAt: now, Origin: origin,
		}
		row, err := newDeploymentRow(d)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO deployments (`+deploymentColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			d.ID, d.ServiceID, d.Service, d.Number, string(d.State), row.source, row.settings, d.Image, row.problem,
			micros(d.CreatedAt), micros(d.UpdatedAt), micros(d.LiveAt), row.facts)
		if err != nil {
			return err
		}
		return count(ctx, tx, svc.Workspace, d, row.facts)
	})
	if err != nil {
		return leapcell.Deployment{}, err
	}
	return d, nil
}

// keepMade is how long it is known that a deployment was made: longer than any plan counts.
const keepMade = 48 * time.Hour

// count notes what plans count of a deployment, which outlives it.
func count(ctx context.Context, tx *sql.Tx, workspace string, d leapcell.Deployment, origin string) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM made WHERE created_at < ?`, micros(d.CreatedAt.Add(-keepMade))); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO made (id, workspace, origin, created_at) VALUES (?, ?, ?, ?)`, d.ID, workspace, origin, micros(d.CreatedAt))
	return err
}

func nextNumber(ctx context.Context, tx *sql.Tx, name string) (int, error) {
	var n int
	err := tx.QueryRowContext(ctx, `INSERT INTO deployment_numbers (name, last) VALUES (?, 1)
		ON CONFLICT (name) DO UPDATE SET last = deployment_numbers.last + 1 RETURNING last`, name).Scan(&n)
	return n, err
}

// Deployment gives the deployment of that ID, else [leapcell.CodeNotFound].
func (s *Store) Deployment(ctx context.Context, id string) (leapcell.Deployment, error) {
	return deployment(ctx, s.db, id)
}

// Requested gives the deployment of a service that was made by the request with that key
// ([leapcell.Origin.Request]), else [leapcell.CodeNotFound].
func (s *Store) Requested(ctx context.Context, serviceID, key string) (leapcell.Deployment, error) {
	row := s.db.QueryRowContext(ctx, `SELECT `+deploymentColumns+` FROM deployments WHERE service_id = ? AND json_extract(facts, '$.request') = ?`, serviceID, key)
	d, err := scanDeployment(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return d, leapcell.Errorf(leapcell.CodeNotFound, "no deployment was made by the request %q", key)
	}
	return d, friendly(err)
}

func deployment(ctx context.Context, q querier, id string) (leapcell.Deployment, error) {
	row := q.QueryRowContext(ctx, `SELECT `+deploymentColumns+` FROM deployments WHERE id = ?`, id)
	d, err := scanDeployment(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return d, leapcell.Errorf(leapcell.CodeNotFound, "there is no deployment %q", id)
	}
	return d, friendly(err)
}

// Deployments gives the newest deployments of a service, newest first; limit 0 means all.
func (s *Store) Deployments(ctx context.Context, serviceID string, limit int) ([]leapcell.Deployment, error) {
	return s.ListDeployments(ctx, serviceID, leapcell.DeploymentQuery{Limit: limit})
}

// ListDeployments gives those deployments of a service that q means, newest first.
func (s *Store) ListDeployments(ctx context.Context, serviceID string, q leapcell.DeploymentQuery) ([]leapcell.Deployment, error) {
	where, args := `service_id = ?`, []any{serviceID}
	if len(q.States) > 0 {
		where += ` AND state IN (?` + strings.Repeat(`, ?`, len(q.States)-1) + `)`
		for _, state := range q.States {
			args = append(args, string(state))
		}
	}
	if q.Branch != "" {
		where += ` AND json_extract(source, '$.branch') = ?`
		args = append(args, q.Branch)
	}
	if q.Before > 0 {
		where += ` AND number < ?`
		args = append(args, q.Before)
	}
	if q.Limit <= 0 {
		q.Limit = 1 << 30
	}
	rows, err := s.db.QueryContext(ctx, `SELECT `+deploymentColumns+` FROM deployments WHERE `+where+`
		ORDER BY number DESC LIMIT ?`, append(args, q.Limit)...)
	if err != nil {
		return nil, friendly(err)
	}
	return scanAll(rows, scanDeployment)
}

// Unfinished gives all deployments that are not done, oldest first: those to resume after
// a restart.
func (s *Store) Unfinished(ctx context.Context) ([]leapcell.Deployment, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT `+deploymentColumns+` FROM deployments WHERE state NOT IN (?, ?, ?, ?)
		ORDER BY created_at, id`, leapcell.Live, leapcell.Superseded, leapcell.Failed, leapcell.Cancelled)
	if err != nil {
		return nil, friendly(err)
	}
	return scanAll(rows, scanDeployment)
}

// DeploymentsSince gives what made the deployments of a workspace since then, oldest first. Those of
// services that were deleted count, for two days.
func (s *Store) DeploymentsSince(ctx context.Context, workspace string, since time.Time) ([]leapcell.Made, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT origin, created_at FROM made WHERE workspace = ? AND created_at >= ? ORDER BY created_at, id`, workspace, micros(since))
	if err != nil {
		return nil, friendly(err)
	}
	return scanAll(rows, func(scan func(...any) error) (m leapcell.Made, err error) {
		var text string
		var created int64
		if err := scan(&text, &created); err != nil {
			return m, err
		}
		m.CreatedAt = fromMicros(created)
		if err := json.Unmarshal([]byte(text), &m.Origin); err != nil {
			return m, fmt.Errorf("facts in the store: %w", err)
		}
		return m, nil
	})
}

// UpdateDeployment changes a deployment in one transaction. A change of state that
// [leapcell.State.CanBecome] forbids gives [leapcell.CodeConflict] and changes nothing.
// change must not block: it holds the store's write lock.
func (s *Store) UpdateDeployment(ctx context.Context, id string, change func(*leapcell.Deployment) error) (leapcell.Deployment, error) {
	var d leapcell.Deployment
	err := s.tx(ctx, func(tx *sql.Tx) error {
		before, err := deployment(ctx, tx, id)
		if err != nil {
			return err
		}
		d = before
		if err := change(&d); err != nil {
			return err
		}
		if d.State != before.State && !before.State.CanBecome(d.State) {
			return leapcell.Errorf(leapcell.CodeConflict, "deployment %s is %s: it cannot become %s", id, before.State, d.State)
		}
		d.ID, d.ServiceID, d.Service, d.Number, d.CreatedAt, d.Origin = before.ID, before.ServiceID, before.Service, before.Number, before.CreatedAt, before.Origin
		d.UpdatedAt = fromMicros(micros(s.now()))
		row, err := newDeploymentRow(d)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE deployments SET state = ?, source = ?, settings = ?, image = ?, problem = ?, updated_at = ?, live_at = ?, facts = ? WHERE id = ?`,
			string(d.State), row.source, row.settings, d.Image, row.problem, micros(d.UpdatedAt), micros(d.LiveAt), row.facts, d.ID)
		return err
	})
	if err != nil {
		return leapcell.Deployment{}, err
	}
	return d, nil
}

// deploymentRow is the part of a deployment that is stored as JSON.
type deploymentRow struct{ source, settings, problem, facts string }

// facts are the parts of a deployment that grow with the platform: one document, so that
// another field needs no other table.
type facts struct {
	leapcell.Origin
	leapcell.Outcome
}

func newDeploymentRow(d leapcell.Deployment) (deploymentRow, error) {
	source, err := json.Marshal(d.Source)
	if err != nil {
		return deploymentRow{}, fmt.Errorf("source of %s: %w", d.ID, err)
	}
	settings, err := json.Marshal(d.Settings)
	if err != nil {
		return deploymentRow{}, fmt.Errorf("settings of %s: %w", d.ID, err)
	}
	known, err := json.Marshal(facts{d.Origin, d.Outcome})
	if err != nil {
		return deploymentRow{}, fmt.Errorf("facts of %s: %w", d.ID, err)
	}
	row := deploymentRow{source: string(source), settings: string(settings), facts: string(known)}
	if d.Error != nil {
		problem, err := json.Marshal(d.Error)
		if err != nil {
			return deploymentRow{}, fmt.Errorf("error of %s: %w", d.ID, err)
		}
		row.problem = string(problem)
	}
	return row, nil
}

func scanDeployment(scan func(...any) error) (leapcell.Deployment, error) {
	var d leapcell.Deployment
	var row deploymentRow
	var created, updated, live int64
	if err := scan(&d.ID, &d.ServiceID, &d.Service, &d.Number, &d.State, &row.source, &row.settings, &d.Image, &row.problem,
		&created, &updated, &live, &row.facts); err != nil {
		return leapcell.Deployment{}, err
	}
	d.CreatedAt, d.UpdatedAt, d.LiveAt = fromMicros(created), fromMicros(updated), fromMicros(live)
	if err := json.Unmarshal([]byte(row.source), &d.Source); err != nil {
		return leapcell.Deployment{}, fmt.Errorf("source of %s in the store: %w", d.ID, err)
	}
	if err := json.Unmarshal([]byte(row.settings), &d.Settings); err != nil {
		return leapcell.Deployment{}, fmt.Errorf("settings of %s in the store: %w", d.ID, err)
	}
	var known facts
	if err := json.Unmarshal([]byte(row.facts), &known); err != nil {
		return leapcell.Deployment{}, fmt.Errorf("facts of %s in the store: %w", d.ID, err)
	}
	d.Origin, d.Outcome = known.Origin, known.Outcome
	if row.problem != "" {
		if err := json.Unmarshal([]byte(row.problem), &d.Error); err != nil {
			return leapcell.Deployment{}, fmt.Errorf("error of %s in the store: %w", d.ID, err)
		}
	}
	return d, nil
}
