package store

import (
	"context"
	"database/sql"
	"errors"
	"maps"

	"github.com/leapcell/leapcell"
)

// SealedValue is one variable as Vault sealed it, and the size of its clear value in bytes.
type SealedValue struct {
	Sealed string
	Size   int
}

// EnvChange says which variables to set and which to remove.
type EnvChange struct {
	Set   map[string]SealedValue
	Unset []string
}

// Env gives the sealed environment of a service; version 0 without values when none was
// ever set. It does not check that the service exists.
func (s *Store) Env(ctx context.Context, serviceID string) (leapcell.SealedEnv, error) {
	var env leapcell.SealedEnv
	// One transaction, so that version and values belong together.
	err := s.tx(ctx, func(tx *sql.Tx) error {
		version, values, err := readEnv(ctx, tx, serviceID)
		env = sealedEnv(version, values)
		return err
	})
	return env, err
}

// SetEnv changes a service's variables in one transaction and gives the new version. More
// than [leapcell.MaxEnvBytes] in names and values over all gives
// [leapcell.CodeUnprocessable] and changes nothing. [EN3] Removing what is not there is no
// error; a change that changes nothing makes no new version.
func (s *Store) SetEnv(ctx context.Context, serviceID string, change EnvChange) (leapcell.SealedEnv, error) {
	var env leapcell.SealedEnv
	err := s.tx(ctx, func(tx *sql.Tx) error {
		svc, err := service(ctx, tx, serviceID)
		if err != nil {
			return err
		}
		version, before, err := readEnv(ctx, tx, svc.ID)
		if err != nil {
			return err
		}
		after := change.apply(before)
		if maps.Equal(before, after) {
			env = sealedEnv(version, before)
			return nil
		}
		if size := envSize(after); size > leapcell.MaxEnvBytes {
			return leapcell.EnvTooLarge(size)
		}
		env = sealedEnv(version+1, after)
		return writeEnv(ctx, tx, svc.ID, version+1, after)
	})
	if err != nil {
		return leapcell.SealedEnv{}, err
	}
	return env, nil
}

// EnvApplied notes that every running instance of the service has at least that version.
func (s *Store) EnvApplied(ctx context.Context, serviceID string, version int) error {
	_, err := s.db.ExecContext(ctx, `UPDATE env_versions SET applied = ? WHERE service_id = ? AND applied < ?`, version, serviceID, version)
	return friendly(err)
}

// EnvPending gives the IDs of the services whose environment was changed and not noted as
// applied since: what a restart or a failure left undone.
func (s *Store) EnvPending(ctx context.Context) ([]string, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT service_id FROM env_versions WHERE applied < version ORDER BY service_id`)
	if err != nil {
		return nil, friendly(err)
	}
	return scanAll(rows, func(scan func(...any) error) (string, error) {
		var id string
		err := scan(&id)
		return id, err
	})
}

func (c EnvChange) apply(before map[string]SealedValue) map[string]SealedValue {
	after := maps.Clone(before)
	for _, name := range c.Unset {
		delete(after, name)
	}
	maps.Copy(after, c.Set)
	return after
}

func envSize(values map[string]SealedValue) int {
	size := 0
	for name, v := range values {
		size += len(name) + v.Size
	}
	return size
}

func sealedEnv(version int, values map[string]SealedValue) leapcell.SealedEnv {
	env := leapcell.SealedEnv{Version: version, Values: make(map[string]string, len(values))}
	for name, v := range values {
		env.Values[name] = v.Sealed
	}
	return env
}

func readEnv(ctx context.Context, tx *sql.Tx, serviceID string) (int, map[string]SealedValue, error) {
	var version int
	err := tx.QueryRowContext(ctx, `SELECT version FROM env_versions WHERE service_id = ?`, serviceID).Scan(&version)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, nil, err
	}
	rows, err := tx.QueryContext(ctx, `SELECT name, sealed, size FROM env_values WHERE service_id = ?`, serviceID)
	if err != nil {
		return 0, nil, err
	}
	defer rows.Close()
	values := map[string]SealedValue{}
	for rows.Next() {
		var name string
		var v SealedValue
		if err := rows.Scan(&name, &v.Sealed, &v.Size); err != nil {
			return 0, nil, err
		}
		values[name] = v
	}
	return version, values, rows.Err()
}

func writeEnv(ctx context.Context, tx *sql.Tx, serviceID string, version int, values map[string]SealedValue) error {
	if _, err := tx.ExecContext(ctx, `INSERT INTO env_versions (service_id, version, applied) VALUES (?, ?, 0)
		ON CONFLICT (service_id) DO UPDATE SET version = excluded.version`, serviceID, version); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM env_values WHERE service_id = ?`, serviceID); err != nil {
		return err
	}
	for name, v := range values {
		if _, err := tx.ExecContext(ctx, `INSERT INTO env_values (service_id, name, sealed, size) VALUES (?, ?, ?, ?)`,
			serviceID, name, v.Sealed, v.Size); err != nil {
			return err
		}
	}
	return nil
}
