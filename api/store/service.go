package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/leapcell/leapcell"
)

const serviceColumns = `id, name, workspace, host, url, settings, live, created_at, updated_at`

// CreateService adds a service; its times are set here. A name or ID that exists gives
// [leapcell.CodeConflict].
func (s *Store) CreateService(ctx context.Context, svc leapcell.Service) error {
	settings, err := json.Marshal(svc.Settings)
	if err != nil {
		return fmt.Errorf("settings of %s: %w", svc.ID, err)
	}
	now := micros(s.now())
	_, err = s.db.ExecContext(ctx, `INSERT INTO services (`+serviceColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		svc.ID, svc.Name, svc.Workspace, svc.Host, svc.URL, string(settings), svc.Live, now, now)
	if isUnique(err) {
		return leapcell.Errorf(leapcell.CodeConflict, "a service named %q exists already", svc.Name)
	}
	return friendly(err)
}

// Service gives the service of that ID or name, else [leapcell.CodeNotFound].
func (s *Store) Service(ctx context.Context, nameOrID string) (leapcell.Service, error) {
	return service(ctx, s.db, nameOrID)
}

func service(ctx context.Context, q querier, nameOrID string) (leapcell.Service, error) {
	// An ID wins over a name: a service may be named as another one's ID.
	row := q.QueryRowContext(ctx, `SELECT `+serviceColumns+` FROM services WHERE id = ? OR name = ?
		ORDER BY CASE WHEN id = ? THEN 0 ELSE 1 END LIMIT 1`, nameOrID, nameOrID, nameOrID)
	svc, err := scanService(row.Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return svc, leapcell.Errorf(leapcell.CodeNotFound, "there is no service %q", nameOrID)
	}
	return svc, friendly(err)
}

// Services gives all services by name.
func (s *Store) Services(ctx context.Context) ([]leapcell.Service, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT `+serviceColumns+` FROM services ORDER BY name`)
	if err != nil {
		return nil, friendly(err)
	}
	return scanAll(rows, scanService)
}

// UpdateService changes a service in one transaction. change must not block: it holds the
// store's write lock. ID and name cannot be changed.
func (s *Store) UpdateService(ctx context.Context, id string, change func(*leapcell.Service) error) (leapcell.Service, error) {
	var svc leapcell.Service
	err := s.tx(ctx, func(tx *sql.Tx) error {
		var err error
		if svc, err = service(ctx, tx, id); err != nil {
			return err
		}
		key, name, created := svc.ID, svc.Name, svc.CreatedAt
		if err := change(&svc); err != nil {
			return err
		}
		svc.ID, svc.Name, svc.CreatedAt = key, name, created
		settings, err := json.Marshal(svc.Settings)
		if err != nil {
			return fmt.Errorf("settings of %s: %w", svc.ID, err)
		}
		svc.UpdatedAt = fromMicros(micros(s.now()))
		_, err = tx.ExecContext(ctx, `UPDATE services SET workspace = ?, host = ?, url = ?, settings = ?, live = ?, updated_at = ? WHERE id = ?`,
			svc.Workspace, svc.Host, svc.URL, string(settings), svc.Live, micros(svc.UpdatedAt), svc.ID)
		return err
	})
	if err != nil {
		return leapcell.Service{}, err
	}
	return svc, nil
}

// DeleteService removes a service with its deployments and sealed environment. The numbers
// of its deployments stay taken. One that is gone already gives [leapcell.CodeNotFound].
func (s *Store) DeleteService(ctx context.Context, id string) error {
	res, err := s.db.ExecContext(ctx, `DELETE FROM services WHERE id = ?`, id)
	if err != nil {
		return friendly(err)
	}
	if n, err := res.RowsAffected(); err == nil && n == 0 {
		return leapcell.Errorf(leapcell.CodeNotFound, "there is no service %q", id)
	}
	return nil
}

func scanService(scan func(...any) error) (leapcell.Service, error) {
	var svc leapcell.Service
	var settings string
	var created, updated int64
	if err := scan(&svc.ID, &svc.Name, &svc.Workspace, &svc.Host, &svc.URL, &settings, &svc.Live, &created, &updated); err != nil {
		return leapcell.Service{}, err
	}
	if err := json.Unmarshal([]byte(settings), &svc.Settings); err != nil {
		return leapcell.Service{}, fmt.Errorf("settings of %s in the store: %w", svc.ID, err)
	}
	svc.CreatedAt, svc.UpdatedAt = fromMicros(created), fromMicros(updated)
	return svc, nil
}

// scanAll reads and closes rows.
func scanAll[T any](rows *sql.Rows, one func(scan func(...any) error) (T, error)) ([]T, error) {
	defer rows.Close()
	all := []T{} // never nil: it becomes [] in JSON
	for rows.Next() {
		v, err := one(rows.Scan)
		if err != nil {
			return nil, friendly(err)
		}
		all = append(all, v)
	}
	return all, friendly(rows.Err())
}
