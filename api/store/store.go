package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is the database. It is safe for concurrent use.
type Store struct {
	db  *sql.DB
	now func() time.Time

	countedMu sync.Mutex
	counted   map[string]leapcell.Counters // by service, since the process started
}

// Open opens the database at dsn, the path of a SQLite file, makes it when it is missing,
// and brings its tables up to date. Close it.
func Open(ctx context.Context, dsn string) (*Store, error) {
	if strings.Contains(dsn, "://") {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "the store must be the path of a SQLite file: other databases are not supported yet")
	}
	db, err := sql.Open("sqlite", sqliteDSN(dsn))
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dsn, err)
	}
	// More readers than this only queue on two cores; writers are one at a time anyway.
	db.SetMaxOpenConns(8)
	if err := migrate(ctx, db); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open store %s: %w", dsn, err)
	}
	return &Store{db: db, now: time.Now, counted: map[string]leapcell.Counters{}}, nil
}

// sqliteDSN sets what every connection needs. Transactions take the write lock at once
// (immediate): one that reads first and writes later could otherwise fail in the middle.
func sqliteDSN(path string) string {
	q := url.Values{}
	q.Set("_txlock", "immediate")
	for _, pragma := range []string{
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)",
	} {
		q.Add("_pragma", pragma)
	}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

func migrate(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrations: %w", friendly(err))
	}
	return nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return friendly(s.db.PingContext(ctx)) }

// tx runs f in one transaction and commits when f returns nil.
func (s *Store) tx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return friendly(err)
	}
	if err := f(tx); err != nil {
		_ = tx.Rollback()
		return friendly(err)
	}
	return friendly(tx.Commit())
}

// friendly gives errors that the operator can do something about their own words; others
// pass unchanged.
func friendly(err error) error {
	var e *sqlite.Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "the disk that holds the store is full: free some space, then repeat")
	case sqlite3.SQLITE_BUSY:
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "the store is busy: repeat in a moment")
	case sqlite3.SQLITE_READONLY:
		return leapcell.Wrap(leapcell.CodeUnavailable, err, "the store cannot be written: check the permissions of the data directory")
	}
	return err
}

// isUnique reports whether err says that a row of that key exists.
func isUnique(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) &&
		(e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// querier is what a row can be read from: the database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(v int64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.UnixMicro(v).UTC()
}
