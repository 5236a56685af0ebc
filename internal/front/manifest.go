package front

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/leapcell/leapcell"
)

// Limits of a front end. An edge keeps the whole list in memory.
const (
	MaxFiles         = 20_000
	MaxFileBytes     = 100 << 20
	MaxBytes         = 1 << 30 // of all files as they were built
	MaxManifestBytes = 24 << 20
	maxPath          = 1024
)

// MediaType is that of a manifest, which is also the configuration of the OCI artifact that
// a front end travels in.
const MediaType = "application/vnd.leapcell.static.manifest.v1+json"

// Manifest is the list of a front end's files. Contents are named by their SHA-256.
type Manifest struct {
	Version   int    `json:"version"`
	Framework string `json:"framework,omitempty"`
	Folder    string `json:"folder"`
	Whole     bool   `json:"whole,omitempty"`
	Fallback  string `json:"fallback,omitempty"` // the path of a file
	Files     []File `json:"files"`              // in the order of their paths
}

// File is one of them.
type File struct {
	Path      string    `json:"path"` // as in a URL, decoded; begins with "/"
	Type      string    `json:"type"`
	Immutable bool      `json:"immutable,omitempty"` // its name changes with its content
	Content             // as it was built
	Encoded   []Encoded `json:"encoded,omitempty"` // smaller ones
}

// Content names bytes.
type Content struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// Encoded is a file compressed.
type Encoded struct {
	Encoding string `json:"encoding"` // as in Content-Encoding
	Content
}

// Encodings that files are compressed with.
var Encodings = []string{"br", "zstd", "gzip"}

// version of manifests that this program writes and reads.
const version = 1

// Bytes are the manifest as it is stored, and its name.
func (m *Manifest) Bytes() (b []byte, digest string, err error) {
	m.Version = version
	slices.SortFunc(m.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	if err := m.validate(); err != nil {
		return nil, "", err
	}
	if b, err = json.Marshal(m); err != nil {
		return nil, "", fmt.Errorf("manifest: %w", err)
	}
	if len(b) > MaxManifestBytes {
		return nil, "", leapcell.Errorf(leapcell.CodeTooLarge, "the list of the front end's files is over %d MB", MaxManifestBytes>>20)
	}
	sum := sha256.Sum256(b)
	return b, hex.EncodeToString(sum[:]), nil
}

// ParseManifest reads what Bytes wrote. It comes from a network and is believed in nothing.
func ParseManifest(b []byte) (*Manifest, error) {
	if len(b) > MaxManifestBytes {
		return nil, fmt.Errorf("manifest: %d bytes are too many", len(b))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	m := &Manifest{}
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("manifest: something follows it")
	}
	if m.Version != version {
		return nil, fmt.Errorf("manifest: version %d is not known", m.Version)
	}
	return m, m.validate()
}

func (m *Manifest) validate() error {
	if len(m.Files) > MaxFiles {
		return fmt.Errorf("manifest: %d files are too many", len(m.Files))
	}
	before, fallback := "", m.Fallback == ""
	for i := range m.Files {
		f := &m.Files[i]
		if err := f.validate(); err != nil {
			return fmt.Errorf("manifest: %q: %w", f.Path, err)
		}
		if f.Path <= before {
			return fmt.Errorf("manifest: %q is not in order", f.Path)
		}
		before, fallback = f.Path, fallback || f.Path == m.Fallback
	}
	if !fallback {
		return fmt.Errorf("manifest: the fallback %q is none of its files", m.Fallback)
	}
	return nil
}

func (f *File) validate() error {
	if !GoodPath(f.Path) {
		return fmt.Errorf("the path cannot be used")
	}
	if f.Type == "" || strings.ContainsFunc(f.Type, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("the type %q cannot be used", f.Type)
	}
	if err := f.Content.validate(); err != nil {
		return err
	}
	seen := ""
	for _, e := range f.Encoded {
		if !slices.Contains(Encodings, e.Encoding) || strings.Contains(seen, e.Encoding+",") {
			return fmt.Errorf("the encoding %q cannot be used", e.Encoding)
		}
		seen += e.Encoding + ","
		if err := e.Content.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (c Content) validate() error {
	if !IsSum(c.SHA256) {
		return fmt.Errorf("%q is no SHA-256", c.SHA256)
	}
	if c.Size < 0 || c.Size > MaxFileBytes {
		return fmt.Errorf("a size of %d bytes cannot be", c.Size)
	}
	return nil
}

// Contents are all that the files consist of, each once.
func (m *Manifest) Contents() map[string]int64 {
	out := make(map[string]int64, 2*len(m.Files))
	for _, f := range m.Files {
		out[f.SHA256] = f.Size
		for _, e := range f.Encoded {
			out[e.SHA256] = e.Size
		}
	}
	return out
}

// IsSum reports whether s is a SHA-256 as the platform writes it. It can be used as a file's
// name then.
func IsSum(s string) bool {
	if len(s) != 2*sha256.Size {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// GoodPath reports whether a path can be one of a front end's: clean, and of characters that
// can be seen.
func GoodPath(p string) bool {
	return len(p) > 1 && len(p) <= maxPath && p[0] == '/' && path.Clean(p) == p && utf8.ValidString(p) &&
		!strings.ContainsFunc(p, unicode.IsControl)
}
