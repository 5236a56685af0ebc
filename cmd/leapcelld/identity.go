package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// identity is the name by which this control plane is known to others, and again after a
// restart. It is made at the first start.
func identity(file string) (string, error) {
	b, err := os.ReadFile(file)
	if id := strings.TrimSpace(string(b)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the identity of this control plane: %w", err)
	}
	id := rand.Text()
	// Whole or not at all: a crash leaves no half a name.
	temporary := filepath.Join(filepath.Dir(file), ".id-"+id)
	if err := os.WriteFile(temporary, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("the identity of this control plane: %w", err)
	}
	return id, os.Rename(temporary, file)
}
