package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/signature"
)

// What is done about images without a signature that counts.
const (
	VerifyOff     = "off"     // nobody looks
	VerifyWarn    = "warn"    // they are used, and each start says so
	VerifyRequire = "require" // they are refused
)

// Verify says which images may be used: those with a signature by one of the keys.
type Verify struct {
	Mode string // "" is VerifyOff
	// KeysFile has public keys in PEM form, one after the other. It is read again when it has
	// changed. An image counts as checked for as long as the key that signed it is in there.
	KeysFile string
}

func (v Verify) on() bool { return v.Mode == VerifyWarn || v.Mode == VerifyRequire }

// checks is what is known of signatures. What was found is on disk as well, so that an image that
// is here is never asked about again: a start needs no registry.
type checks struct {
	mu    sync.Mutex
	state os.FileInfo // of the keys' file when it was read
	keys  signature.Keys
	by    map[string]string // IDs of keys by digest of the image that they signed
}

// read gives the keys that count now.
func (v Verify) read(c *checks) (signature.Keys, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state, err := os.Stat(v.KeysFile)
	if err == nil && c.state != nil && os.SameFile(c.state, state) && c.state.ModTime().Equal(state.ModTime()) && c.state.Size() == state.Size() {
		return c.keys, nil
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(v.KeysFile)
	}
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnavailable, err, fmt.Sprintf("the public keys that images are signed with cannot be read from %s (verify_keys_file)", v.KeysFile))
	}
	keys, err := signature.ParseKeys(text)
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnavailable, err, fmt.Sprintf("the public keys in %s (verify_keys_file): %s", v.KeysFile, leapcell.ErrorMessage(err)))
	}
	c.state, c.keys = state, keys
	return keys, nil
}

// loadChecked reads what a former process found out about signatures.
func (s *Store) loadChecked() error {
	s.checks.by = map[string]string{}
	files, err := os.ReadDir(s.path("signed"))
	if err != nil {
		return err
	}
	for _, f := range files {
		digest := "sha256:" + f.Name()
		s.mu.Lock()
		_, known := s.known[digest]
		s.mu.Unlock()
		key, err := os.ReadFile(s.path("signed", f.Name()))
		if err == nil && known {
			s.checks.by[digest] = string(key) // what a crash cut off is no key's ID
			continue
		}
		if err := os.Remove(s.path("signed", f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// trusted reports whether nothing has to be asked about an image: nobody looks at signatures, or it
// was found good before, by a key that counts still.
func (s *Store) trusted(digest string) bool {
	if !s.cfg.Verify.on() {
		return true
	}
	keys, err := s.cfg.Verify.read(&s.checks)
	if err != nil {
		return false
	}
	s.checks.mu.Lock()
	defer s.checks.mu.Unlock()
	return keys.Has(s.checks.by[digest])
}

// verify refuses an image without a signature that counts, before anything of it is transferred.
// Where that is no reason to refuse it, warning says what is wrong. Nothing is asked of the registry
// about an image that was found good before, by a key that counts still.
func (s *Store) verify(ctx context.Context, ref name.Digest) (warning string, err error) {
	if s.trusted(ref.DigestStr()) {
		return "", nil
	}
	keys, err := s.cfg.Verify.read(&s.checks)
	if err == nil {
		err = s.lookAtSignature(ctx, ref, keys)
	}
	if err != nil && s.cfg.Verify.Mode == VerifyWarn && ctx.Err() == nil {
		s.cfg.Log.Warn("an image is used without a signature that counts", "image", ref.String(), "error", err)
		return describeCheck(err), nil
	}
	return "", err
}

func describeCheck(err error) string {
	if text := leapcell.ErrorMessage(err); leapcell.ErrorCode(err) != leapcell.CodeInternal {
		return text
	}
	return err.Error()
}

func (s *Store) lookAtSignature(ctx context.Context, ref name.Digest, keys signature.Keys) error {
	var all []signature.Signed
	err := s.patiently(ctx, func() (err error) {
		all, err = s.signatures(ctx, ref)
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = s.explain(err, ref.String())
		return leapcell.Wrap(leapcell.ErrorCode(err), err, "the signature of the image could not be read: "+leapcell.ErrorMessage(err))
	}
	id, err := keys.Of(ref.DigestStr(), all)
	if err != nil {
		return leapcell.Errorf(leapcell.CodeForbidden, "image not signed by a key in %s: %s: %w", s.cfg.Verify.KeysFile, ref, err)
	}
	return s.noteChecked(ref.DigestStr(), id)
}

// signatures reads the signatures of an image; none is no error.
func (s *Store) signatures(ctx context.Context, ref name.Digest) ([]signature.Signed, error) {
	l, err := s.link(ref.RegistryStr())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	img, err := remote.Image(ref.Context().Tag(signature.Tag(ref.DigestStr())), l.options(ctx)...)
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return nil, unreadable("manifest", err)
	}
	var all []signature.Signed
	for _, desc := range manifest.Layers {
		if string(desc.MediaType) != signature.MediaType || len(all) == signature.MaxSignatures || desc.Size > signature.MaxPayload {
			continue // cosign may keep something else there; a payload is small
		}
		sig, err := signature.Decode(desc.Annotations[signature.Annotation])
		if err != nil {
			continue
		}
		layer, err := img.LayerByDigest(desc.Digest)
		if err != nil {
			return nil, err
		}
		text, err := readPayload(layer)
		if err != nil {
			return nil, err
		}
		all = append(all, signature.Signed{Payload: text, Signature: sig})
	}
	return all, nil
}

// readPayload gives what could be read of a payload that is not as long as its manifest says: its
// signature does not fit it then.
func readPayload(layer interface{ Compressed() (io.ReadCloser, error) }) ([]byte, error) {
	r, err := layer.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, signature.MaxPayload+1))
	if err != nil && !isAway(err) {
		return text, nil
	}
	return text, err
}

func unreadable(what string, err error) error {
	return leapcell.Errorf(leapcell.CodeUnprocessable, "its %s cannot be read: %w", what, err)
}

// noteChecked remembers who signed an image, as long as the image is here.
func (s *Store) noteChecked(digest, key string) error {
	hex := strings.TrimPrefix(digest, "sha256:")
	temp := s.path("tmp", "signed"+hex)
	s.checks.mu.Lock() // starts of one image are checked side by side, and would rename each other's file
	defer s.checks.mu.Unlock()
	err := os.WriteFile(temp, []byte(key), 0o600)
	if err == nil {
		err = os.Rename(temp, s.path("signed", hex))
	}
	if err != nil {
		return s.plain(err)
	}
	s.checks.by[digest] = key
	return nil
}

// forgetChecked goes with the image. What a kill leaves is removed at the next start.
func (s *Store) forgetChecked(digest string) {
	s.checks.mu.Lock()
	defer s.checks.mu.Unlock()
	delete(s.checks.by, digest)
	if err := os.Remove(s.path("signed", strings.TrimPrefix(digest, "sha256:"))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.Warn("what is known of an image's signature could not be removed", "image", digest, "error", err)
	}
}
