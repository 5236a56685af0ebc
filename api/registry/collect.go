package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
)

// What is on the disk is the library's layout:
//
//	blobs/sha256/{2 digits}/{hex}/data
//	repositories/{name}/_manifests/revisions/sha256/{hex}/link
//	repositories/{name}/_manifests/tags/{tag}/current/link
//	repositories/{name}/_layers/sha256/{hex}/link
//	repositories/{name}/_uploads/{id}/…
//
// The library's own collection wants the registry to be read-only meanwhile. This one does not:
// every request that brings a blob, or asks whether one is there in order not to bring it,
// renews the age of that blob first ([Registry.renew]), and only what nobody renewed for
// [Collection.Age] is removed, one file at a time, under a lock that renewing takes too.

// Collection says what [Registry.Collect] may remove.
type Collection struct {
	// Age is how long something was not needed, nor asked for by somebody who pushes, before it
	// is removed: longer than a push takes. The disk's times count, so that it holds over restarts.
	Age time.Duration
	// Settled reports whether nobody pushes to a repository, and whether what no tag names may be
	// removed from it. In others all that is there counts as needed.
	Settled func(repository string) bool
}

// Freed is what a collection removed.
type Freed struct {
	Manifests int
	Blobs     int
	Uploads   int   // that were given up on
	Bytes     int64 // of blobs and uploads
	Kept      int64 // bytes of blobs that stay
}

func (r *Registry) root() string { return filepath.Join(r.cfg.Dir, "docker/registry/v2") }

func (r *Registry) repository(name string) string {
	return filepath.Join(r.root(), "repositories", filepath.FromSlash(name))
}

func (r *Registry) blob(hex string) string {
	return filepath.Join(r.root(), "blobs/sha256", hex[:2], hex)
}

// Repositories are the names of all that are there, by name.
func (r *Registry) Repositories() ([]string, error) {
	top := r.repository("")
	var out []string
	err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // nothing was pushed yet, or it has just been forgotten
		}
		if err != nil {
			return err
		}
		if !e.IsDir() || !strings.HasPrefix(e.Name(), "_") {
			return nil
		}
		name, err := filepath.Rel(top, filepath.Dir(path))
		if err != nil {
			return err
		}
		if name = filepath.ToSlash(name); !slices.Contains(out, name) {
			out = append(out, name)
		}
		return fs.SkipDir
	})
	if err != nil {
		return nil, fmt.Errorf("registry: repositories: %w", err)
	}
	slices.Sort(out)
	return out, nil
}

// Tags are those of a repository; none when it is not there.
func (r *Registry) Tags(repository string) ([]string, error) {
	return names(filepath.Join(r.repository(repository), "_manifests/tags"))
}

var goodTag = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)

// Untag removes a tag that nobody asked for since then, and reports whether it did. What the tag
// named goes with a later [Registry.Collect].
func (r *Registry) Untag(repository, tag string, since time.Time) (bool, error) {
	if !goodTag.MatchString(tag) {
		return false, leapcell.Errorf(leapcell.CodeInvalid, "%q is no tag", tag)
	}
	dir := filepath.Join(r.repository(repository), "_manifests/tags", tag)
	r.renewTagged(repository, tag) // it stays for as long as a collection leaves what is young
	r.sweeping.Lock()
	defer r.sweeping.Unlock()
	switch old, err := unchanged(since, filepath.Join(dir, "current/link"), dir); {
	case err != nil:
		return false, fmt.Errorf("registry: tag %s:%s: %w", repository, tag, err)
	case !old:
		return false, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return false, fmt.Errorf("registry: tag %s:%s: %w", repository, tag, err)
	}
	return true, nil
}

// unchanged reports whether none of the files was touched since then; those that are missing
// were not.
func unchanged(since time.Time, paths ...string) (bool, error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || info.ModTime().After(since) {
			return false, err
		}
	}
	return true, nil
}

// Collect removes what nothing refers to. It may run while others push and pull, and may be
// ended anywhere: what it had not removed by then goes the next time.
func (r *Registry) Collect(ctx context.Context, c Collection) (freed Freed, err error) {
	before := time.Now().Add(-c.Age)
	repositories, err := r.Repositories()
	if err != nil {
		return freed, err
	}
	needed := map[string]bool{} // blobs, by their digits
	for _, name := range repositories {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		if err := r.mark(name, before, c.Settled(name), needed, &freed); err != nil {
			return freed, fmt.Errorf("registry: collect %s: %w", name, err)
		}
	}
	if err := r.sweep(ctx, before, needed, &freed); err != nil {
		return freed, fmt.Errorf("registry: collect blobs: %w", err)
	}
	return freed, nil
}

// mark adds what a repository needs to needed. From a settled one it first removes what no tag
// leads to.
func (r *Registry) mark(name string, before time.Time, settled bool, needed map[string]bool, freed *Freed) error {
	own := map[string]bool{}
	if settled {
		n, err := r.dropRevisions(name, before)
		freed.Manifests += n
		if err != nil {
			return err
		}
	}
	revisions, err := names(filepath.Join(r.repository(name), "_manifests/revisions/sha256"))
	if err != nil {
		return err
	}
	for _, hex := range revisions {
		if err := r.refer(name, hex, own); err != nil {
			return err
		}
	}
	layers, err := names(filepath.Join(r.repository(name), "_layers/sha256"))
	if err != nil {
		return err
	}
	for _, hex := range layers {
		if !settled || own[hex] {
			own[hex] = true
			continue
		}
		dir := filepath.Join(r.repository(name), "_layers/sha256", hex)
		if gone, err := r.removeOld(dir, "link", before); err != nil {
			return err
		} else if !gone {
			own[hex] = true // somebody may be about to push what refers to it
		}
	}
	for hex := range own {
		needed[hex] = true
	}
	if settled {
		return r.dropUploads(name, before, freed)
	}
	return nil
}

// belongs are the tags that say of which image something is: its signatures, and the list of its documents.
var belongs = regexp.MustCompile(`^sha256-([0-9a-f]{64})(\.sig)?$`)

// dropRevisions removes the manifests of a repository that no tag names, and before that the tags of what
// belongs to an image that has none itself any more. What a tagged list names stays.
func (r *Registry) dropRevisions(name string, before time.Time) (n int, err error) {
	dir := filepath.Join(r.repository(name), "_manifests")
	// As long as it is held no manifest can be stored: what has no tag now does not get one.
	r.sweeping.Lock()
	defer r.sweeping.Unlock()
	tags, err := names(filepath.Join(dir, "tags"))
	if err != nil {
		return 0, err
	}
	tagged := map[string]bool{}
	slices.SortStableFunc(tags, func(a, b string) int { // images first
		return strings.Compare(belongs.FindString(a), belongs.FindString(b))
	})
	for _, tag := range tags {
		link, err := os.ReadFile(filepath.Join(dir, "tags", tag, "current/link"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if m := belongs.FindStringSubmatch(tag); m != nil && !tagged[m[1]] {
			of := filepath.Join(dir, "tags", tag)
			if old, err := unchanged(before, filepath.Join(of, "current/link"), of); err != nil {
				return 0, err
			} else if old {
				if err := os.RemoveAll(of); err != nil {
					return 0, err
				}
				continue
			}
		}
		hex, ok := digitsOf(string(link))
		if !ok {
			continue
		}
		tagged[hex] = true
		manifest, err := os.ReadFile(filepath.Join(r.blob(hex), "data"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		for _, listed := range references(manifest) {
			tagged[listed] = true
		}
	}
	revisions, err := names(filepath.Join(dir, "revisions/sha256"))
	if err != nil {
		return 0, err
	}
	for _, hex := range revisions {
		if tagged[hex] {
			continue
		}
		gone, err := removeOldLocked(filepath.Join(dir, "revisions/sha256", hex), "link", before)
		if err != nil {
			return n, err
		}
		if gone {
			n++
		}
	}
	return n, nil
}

// refer adds a manifest, and what it refers to, to needed. One that is damaged cannot be pulled,
// and needs nothing.
func (r *Registry) refer(name, hex string, needed map[string]bool) error {
	b, err := os.ReadFile(filepath.Join(r.blob(hex), "data"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	needed[hex] = true
	if digits(b) != hex {
		r.cfg.Log.Warn("registry: a manifest is damaged", "repository", name, "manifest", hex)
		return nil
	}
	for _, ref := range references(b) {
		needed[ref] = true
	}
	return nil
}

func digits(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// references are the digits of all that a manifest or an index names.
func references(manifest []byte) (out []string) {
	type one struct {
		Digest string `json:"digest"`
	}
	var m struct {
		Config    one   `json:"config"`
		Layers    []one `json:"layers"`
		Manifests []one `json:"manifests"`
		Blobs     []one `json:"blobs"`
		Subject   one   `json:"subject"`
	}
	if json.Unmarshal(manifest, &m) != nil {
		return nil
	}
	for _, d := range slices.Concat([]one{m.Config, m.Subject}, m.Layers, m.Manifests, m.Blobs) {
		if hex, ok := digitsOf(d.Digest); ok {
			out = append(out, hex)
		}
	}
	return out
}

var goodDigest = regexp.MustCompile(`^sha256:([0-9a-f]{64})$`)

func digitsOf(digest string) (hex string, ok bool) {
	m := goodDigest.FindStringSubmatch(digest)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// sweep removes the blobs that are not needed.
func (r *Registry) sweep(ctx context.Context, before time.Time, needed map[string]bool, freed *Freed) error {
	top := filepath.Join(r.root(), "blobs/sha256")
	shelves, err := names(top)
	if err != nil {
		return err
	}
	for _, shelf := range shelves {
		if err := ctx.Err(); err != nil {
			return err
		}
		blobs, err := names(filepath.Join(top, shelf))
		if err != nil {
			return err
		}
		for _, hex := range blobs {
			dir := filepath.Join(top, shelf, hex)
			var size int64
			info, err := os.Stat(filepath.Join(dir, "data"))
			switch {
			case err == nil:
				size = info.Size()
			case !errors.Is(err, fs.ErrNotExist):
				return err
			}
			gone := false
			if !needed[hex] {
				if gone, err = r.removeOld(dir, "data", before); err != nil {
					return err
				}
			}
			if !gone {
				freed.Kept += size
				continue
			}
			freed.Blobs++
			freed.Bytes += size
		}
	}
	return nil
}

// removeOld removes a folder with its one file, unless somebody touched either of them, and
// reports whether it did.
func (r *Registry) removeOld(dir, file string, before time.Time) (bool, error) {
	if old, err := unchanged(before, filepath.Join(dir, file), dir); err != nil || !old {
		return false, err // without the lock: most are young
	}
	r.sweeping.Lock()
	defer r.sweeping.Unlock()
	return removeOldLocked(dir, file, before)
}

func removeOldLocked(dir, file string, before time.Time) (bool, error) {
	path := filepath.Join(dir, file)
	if old, err := unchanged(before, path, dir); err != nil || !old {
		return false, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, os.Remove(dir)
}

// dropUploads removes what was sent of blobs that never came to their end.
func (r *Registry) dropUploads(name string, before time.Time, freed *Freed) error {
	top := filepath.Join(r.repository(name), "_uploads")
	uploads, err := names(top)
	if err != nil {
		return err
	}
	for _, id := range uploads {
		dir := filepath.Join(top, id)
		old, err := unchanged(before, filepath.Join(dir, "data"), filepath.Join(dir, "startedat"), dir)
		if err != nil {
			return err
		}
		if !old {
			continue
		}
		if info, err := os.Stat(filepath.Join(dir, "data")); err == nil {
			freed.Bytes += info.Size()
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		freed.Uploads++
	}
	return nil
}

// names are those of the entries of a folder, none when it is not there.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Name()
	}
	return out, nil
}

// renew makes blobs young that somebody relies on who pushes to repository.
func (r *Registry) renew(repository string, hexes ...string) {
	r.sweeping.RLock()
	defer r.sweeping.RUnlock()
	for _, hex := range hexes {
		dir := r.blob(hex)
		r.touch(filepath.Join(dir, "data"), dir)
		for _, links := range []string{"_layers/sha256", "_manifests/revisions/sha256"} {
			link := filepath.Join(r.repository(repository), links, hex)
			r.touch(filepath.Join(link, "link"), link)
		}
	}
}

// renewTagged makes young what a tag names that is about to name something else, or nothing:
// somebody may have looked it up a moment ago.
func (r *Registry) renewTagged(repository, tag string) {
	if !goodTag.MatchString(tag) {
		return // a digest, which names itself
	}
	link, err := os.ReadFile(filepath.Join(r.repository(repository), "_manifests/tags", tag, "current/link"))
	if hex, ok := digitsOf(string(link)); ok && err == nil {
		r.renew(repository, hex)
	}
}

// renewMirrored makes an image below [MirrorPath] young: somebody builds on it.
func (r *Registry) renewMirrored(repository, digest string) {
	hex, ok := digitsOf(digest)
	if !ok {
		return
	}
	r.renew(repository, hex)
	r.sweeping.RLock()
	defer r.sweeping.RUnlock()
	r.touch(filepath.Join(r.repository(repository), "_manifests/tags", mirrorTag(digest), "current/link"))
}

func (r *Registry) touch(paths ...string) {
	now := time.Now()
	for _, path := range paths {
		if err := os.Chtimes(path, now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.cfg.Log.Warn("registry: the age of a file could not be renewed", "err", err)
		}
	}
}
