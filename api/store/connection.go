package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/leapcell/leapcell"
)

const connectionColumns = `id, service_id, settings, sealed, created_at`

// SealedConnection is a connection with its secrets, by name, as Vault sealed them.
type SealedConnection struct {
	leapcell.Connection
	Sealed map[string]string
}

// PutConnection stores the connection of a service in place of a former one.
func (s *Store) PutConnection(ctx context.Context, c SealedConnection) error {
	settings, err := json.Marshal(c.Connection)
	if err != nil {
		return fmt.Errorf("connection %s: %w", c.ID, err)
	}
	sealed, err := json.Marshal(c.Sealed)
	if err != nil {
		return fmt.Errorf("connection %s: %w", c.ID, err)
	}
	return s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := service(ctx, tx, c.ServiceID); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM connections WHERE service_id = ? AND id <> ?`, c.ServiceID, c.ID); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO connections (`+connectionColumns+`) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET settings = excluded.settings, sealed = excluded.sealed`,
			c.ID, c.ServiceID, string(settings), string(sealed), micros(c.CreatedAt))
		return err
	})
}

// Connection gives the connection of that ID, else [leapcell.CodeNotFound].
func (s *Store) Connection(ctx context.Context, id string) (SealedConnection, error) {
	return s.connection(ctx, `id = ?`, id)
}

// ConnectionOf gives the connection of a service, else [leapcell.CodeNotFound].
func (s *Store) ConnectionOf(ctx context.Context, serviceID string) (SealedConnection, error) {
	return s.connection(ctx, `service_id = ?`, serviceID)
}

func (s *Store) connection(ctx context.Context, where, key string) (SealedConnection, error) {
	var c SealedConnection
	var id, serviceID, settings, sealed string
	var created int64
	err := s.db.QueryRowContext(ctx, `SELECT `+connectionColumns+` FROM connections WHERE `+where, key).Scan(&id, &serviceID, &settings, &sealed, &created)
	if errors.Is(err, sql.ErrNoRows) {
		return c, leapcell.Errorf(leapcell.CodeNotFound, "the service is not connected with a repository")
	}
	if err != nil {
		return c, friendly(err)
	}
	if err := errors.Join(json.Unmarshal([]byte(settings), &c.Connection), json.Unmarshal([]byte(sealed), &c.Sealed)); err != nil {
		return c, fmt.Errorf("connection %s in the store: %w", id, err)
	}
	c.ID, c.ServiceID, c.CreatedAt = id, serviceID, fromMicros(created)
	return c, nil
}

// DeleteConnection removes a service's connection, with its secrets and all that came by
// it. That there is none is no error.
func (s *Store) DeleteConnection(ctx context.Context, serviceID string) error {
	_, err := s.db.ExecContext(ctx, `DELETE FROM connections WHERE service_id = ?`, serviceID)
	return friendly(err)
}

// StoredEvent is a git event that has not been acted on.
type StoredEvent struct {
	ID           int64
	ConnectionID string
	Event        leapcell.GitEvent
	At           time.Time // when it was stored
}

// AddGitEvent stores an event, unless one of the names of its delivery is known: then it
// reports false, and that the event is not new.
func (s *Store) AddGitEvent(ctx context.Context, connectionID string, deliveries []string, event leapcell.GitEvent) (added bool, err error) {
	b, err := json.Marshal(event)
	if err != nil {
		return false, fmt.Errorf("git event: %w", err)
	}
	err = s.tx(ctx, func(tx *sql.Tx) error {
		now := micros(s.now())
		for _, delivery := range deliveries {
			res, err := tx.ExecContext(ctx, `INSERT INTO git_deliveries (connection_id, delivery, at) VALUES (?, ?, ?)
				ON CONFLICT (connection_id, delivery) DO NOTHING`, connectionID, delivery, now)
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err == nil && n == 0 {
				return errKnown
			}
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO git_events (connection_id, event, at) VALUES (?, ?, ?)`, connectionID, string(b), now)
		return err
	})
	if errors.Is(err, errKnown) {
		return false, nil
	}
	return err == nil, err
}

var errKnown = errors.New("delivered before")

// GitEvents gives the events that have not been acted on, oldest first.
func (s *Store) GitEvents(ctx context.Context) ([]StoredEvent, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT id, connection_id, event, at FROM git_events ORDER BY id`)
	if err != nil {
		return nil, friendly(err)
	}
	return scanAll(rows, func(scan func(...any) error) (StoredEvent, error) {
		var e StoredEvent
		var text string
		var at int64
		if err := scan(&e.ID, &e.ConnectionID, &text, &at); err != nil {
			return e, err
		}
		e.At = fromMicros(at)
		return e, json.Unmarshal([]byte(text), &e.Event)
	})
}

// GitEventDone forgets an event that was acted on.
func (s *Store) GitEventDone(ctx context.Context, id int64) error {
	_, err := s.db.ExecContext(ctx, `DELETE FROM git_events WHERE id = ?`, id)
	return friendly(err)
}

// ForgetDeliveries forgets what hosts told before t.
func (s *Store) ForgetDeliveries(ctx context.Context, before time.Time) error {
	_, err := s.db.ExecContext(ctx, `DELETE FROM git_deliveries WHERE at < ?`, micros(before))
	return friendly(err)
}

// WantReport notes that a deployment's outcome is to be told to the host of its repository.
func (s *Store) WantReport(ctx context.Context, deploymentID string) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO git_reports (deployment_id) VALUES (?) ON CONFLICT (deployment_id) DO NOTHING`, deploymentID)
	return friendly(err)
}

// Reports gives the deployments whose outcome is still to be told.
func (s *Store) Reports(ctx context.Context) ([]string, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT deployment_id FROM git_reports ORDER BY deployment_id`)
	if err != nil {
		return nil, friendly(err)
	}
	return scanAll(rows, func(scan func(...any) error) (string, error) {
		var id string
		err := scan(&id)
		return id, err
	})
}

// ReportDone notes that the outcome was told.
func (s *Store) ReportDone(ctx context.Context, deploymentID string) error {
	_, err := s.db.ExecContext(ctx, `DELETE FROM git_reports WHERE deployment_id = ?`, deploymentID)
	return friendly(err)
}
