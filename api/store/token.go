package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/hex"
	"errors"

	"github.com/leapcell/leapcell"
)

// Roles of a token.
const (
	RoleAdmin = "admin" // may do everything but what RoleSecrets may
	RoleEdge  = "edge"  // may report load
	RoleNode  = "node"  // may report what it metered
	// RoleSecrets may read values of environment variables back, and nothing else. Its token is one of
	// Vault's, which alone can open them. [EN4]
	RoleSecrets = "secrets"
)

// CreateToken makes a token of that name and gives it in clear, for the only time: the
// store keeps its hash. A former token of the name stops working.
func (s *Store) CreateToken(ctx context.Context, name, role string) (string, error) {
	plain := "lc_" + rand.Text()
	if err := s.PutToken(ctx, name, role, plain); err != nil {
		return "", err
	}
	return plain, nil
}

// PutToken makes plain the token of that name, in place of a former one.
func (s *Store) PutToken(ctx context.Context, name, role, plain string) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		// The same text may be known under another name: the last name wins.
		if _, err := tx.ExecContext(ctx, `DELETE FROM tokens WHERE name = ? OR hash = ?`, name, tokenHash(plain)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO tokens (hash, name, role, created_at) VALUES (?, ?, ?, ?)`,
			tokenHash(plain), name, role, micros(s.now()))
		return err
	})
}

// TokenRole gives name and role of a token, else [leapcell.CodeUnauthorized].
func (s *Store) TokenRole(ctx context.Context, plain string) (name, role string, err error) {
	want := tokenHash(plain)
	var have string
	err = s.db.QueryRowContext(ctx, `SELECT hash, name, role FROM tokens WHERE hash = ?`, want).Scan(&have, &name, &role)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", "", friendly(err)
	}
	// What a lookup by hash gives away in time is about the hash, from which nobody gets to
	// the token; the comparison is constant all the same.
	if subtle.ConstantTimeCompare([]byte(have), []byte(want)) != 1 {
		return "", "", leapcell.Errorf(leapcell.CodeUnauthorized, "the token is not known")
	}
	return name, role, nil
}

// tokenHash needs no salt and no slow hash: tokens are 128 random bits.
func tokenHash(plain string) string {
	sum := sha256.Sum256([]byte(plain))
	return hex.EncodeToString(sum[:])
}
