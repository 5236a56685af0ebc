package registry

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/leapcell/leapcell"
)

// Credentials is the content of the file with which nodes reach the registry.
type Credentials struct {
	Address  string `json:"address"` // host:port
	Username string `json:"username"`
	Password string `json:"password"`
	Insecure bool   `json:"insecure"` // plain HTTP
}

// LoadCredentials reads the file at path, and makes it when it is missing. Its address
// becomes the one given: that is a setting, the password is not.
func LoadCredentials(path, address string) (Credentials, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		c := Credentials{Address: address, Username: "node", Password: rand.Text(), Insecure: true}
		return c, writeCredentials(path, c)
	}
	if err != nil {
		return Credentials{}, fmt.Errorf("registry credentials: %w", err)
	}
	c, err := ParseCredentials(b)
	if err != nil {
		return Credentials{}, fmt.Errorf("%s: %w", path, err)
	}
	if c.Address == address {
		return c, nil
	}
	c.Address = address
	return c, writeCredentials(path, c)
}

// ParseCredentials reads the JSON of a credentials file.
func ParseCredentials(b []byte) (Credentials, error) {
	var c Credentials
	if err := json.Unmarshal(b, &c); err != nil {
		// Without the cause: it could quote the password.
		return Credentials{}, leapcell.Errorf(leapcell.CodeInvalid, "the registry credentials are not valid JSON")
	}
	if c.Username == "" || c.Password == "" {
		return Credentials{}, leapcell.Errorf(leapcell.CodeInvalid, "the registry credentials need a username and a password")
	}
	return c, nil
}

// writeCredentials replaces the file in one step, so that a node never reads half of it.
func writeCredentials(path string, c Credentials) error {
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("registry credentials: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".registry-*") // 0600
	if err != nil {
		return fmt.Errorf("registry credentials: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("registry credentials: %w", err)
	}
	return nil
}
