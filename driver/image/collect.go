package image

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

// Collect is the settings of the collector, which removes images that nothing needs: in a round each
// [Collect.Every] and after each pull, the least recently used first. An image is never removed while it is mounted, nor
// for [Grace] after it was last pulled, asked for or unmounted. The zero value collects nothing, unless
// the disk is full.
type Collect struct {
	Age   time.Duration // since an image was last used, after which it goes; 0 for never
	High  int           // percent of the disk, or of its inodes, in use from which on images go; 0 for never
	Low   int           // until which they go
	Every time.Duration // between two rounds; default 5 minutes
}

func (c Collect) on() bool { return c.Age > 0 || c.High > 0 }

// The marks that are set when nothing is said.
const (
	DefaultAge  = 7 * 24 * time.Hour
	DefaultHigh = 85
	DefaultLow  = 75
)

const (
	// Grace is how long an image stays in any case after it was used. Whoever has pulled it, a start or
	// a deployment that is on its way to all nodes, finds it there.
	Grace = 15 * time.Minute
	// roundLimit is how many images one round removes; the next one follows at once.
	roundLimit = 32
	// roundPause is before a round that goes on with the work of another.
	roundPause = 5 * time.Second
)

// round is what a round did.
type round struct {
	removed int
	more    bool // there was more to remove than fits into a round
	before  usage
	after   usage
}

// collector makes rounds until the store is closed.
func (s *Store) collector() {
	every := cmp.Or(s.cfg.Collect.Every, 5*time.Minute)
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-s.end:
			return
		case <-timer.C:
		case <-s.wake:
		}
		next := every
		if s.collect(0).more {
			next = roundPause
		}
		timer.Reset(next)
	}
}

// collect makes a round. need is said when the disk had no room for so many bytes: then the lower mark
// holds whatever the settings are, and so much is to be free.
func (s *Store) collect(need int64) (r round) {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	if !s.isOwner() {
		return r
	}
	s.noteUse()
	var err error
	if r.before, err = s.disk(s.cfg.Dir); err != nil {
		s.cfg.Log.Warn("image collection: the disk cannot be asked how full it is", "folder", s.cfg.Dir, "error", err)
		return r
	}
	r.after = r.before
	set := s.cfg.Collect
	crowded := need > 0 || set.High > 0 && r.before.percent() >= set.High
	low := set.Low
	if need > 0 {
		low = min(cmp.Or(low, DefaultLow), r.before.percent()-1)
	}
	why := map[string]int{}
	s.removeOrphans(need > 0)
	for _, c := range s.candidates(time.Now().Add(-Grace)) {
		reason := ""
		switch {
		case set.Age > 0 && time.Since(c.used) > set.Age:
			reason = "age"
		case crowded && (r.after.percent() > low || r.after.Free < need):
			reason = "disk"
		default:
			continue
		}
		if r.removed == roundLimit {
			r.more = true
			continue
		}
		if !s.forget(c.digest, c.used) {
			continue
		}
		r.removed++
		why[reason]++
		if now, err := s.disk(s.cfg.Dir); err == nil {
			r.after = now
		}
	}
	s.logRound(r, why, crowded)
	return r
}

// logRound says a round in one line; one without anything to do or to worry about only to those who debug.
func (s *Store) logRound(r round, why map[string]int, crowded bool) {
	log := s.cfg.Log.Debug
	if r.removed > 0 {
		log = s.cfg.Log.Info
	} else if crowded {
		log = s.cfg.Log.Warn
	}
	s.mu.Lock()
	kept, mounted := len(s.known), 0
	for _, e := range s.known {
		if e.mounts > 0 {
			mounted++
		}
	}
	s.mu.Unlock()
	log("image collection", "removed", r.removed, "for_age", why["age"], "for_disk", why["disk"], "more", r.more, "kept", kept, "mounted", mounted,
		"disk_before", fmt.Sprintf("%d%%", r.before.percent()), "disk_after", fmt.Sprintf("%d%%", r.after.percent()), "folder", s.cfg.Dir)
}

type candidate struct {
	digest string
	used   time.Time
}

// candidates are the images that nobody has mounted or used since, the least recently used first.
func (s *Store) candidates(since time.Time) (out []candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for digest, e := range s.known {
		if e.mounts == 0 && e.used.Before(since) {
			out = append(out, candidate{digest, e.used})
		}
	}
	slices.SortFunc(out, func(a, b candidate) int {
		return cmp.Or(a.used.Compare(b.used), strings.Compare(a.digest, b.digest))
	})
	return out
}

// forget removes an image, unless it was used since, and the layers that no other one has. The image's file
// goes first: what a kill leaves of the rest belongs to nobody, and is removed at the next start.
func (s *Store) forget(digest string, used time.Time) bool {
	s.mu.Lock()
	e, ok := s.known[digest]
	if !ok || e.mounts > 0 || !e.used.Equal(used) || !s.isOwner() {
		s.mu.Unlock()
		return false
	}
	for _, folder := range []string{"images", "pending"} {
		if err := os.Remove(s.path(folder, fileName(digest))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.mu.Unlock()
			s.cfg.Log.Warn("an image could not be removed", "image", digest, "error", err)
			return false
		}
	}
	delete(s.known, digest)
	for tag, of := range s.tags {
		if of == digest {
			delete(s.tags, tag)
		}
	}
	var gone []string
	for _, l := range e.layers {
		if s.dropLayer(l) {
			gone = s.setAside(l, gone)
		}
	}
	s.mu.Unlock()
	s.forgetChecked(digest)
	s.remove(gone)
	return true
}

// dropLayer gives one reference to a layer back and reports whether it was the last. The caller
// holds mu.
func (s *Store) dropLayer(layer string) bool {
	s.layerRefs[layer]--
	if s.layerRefs[layer] > 0 {
		return false
	}
	delete(s.layerRefs, layer)
	return true
}

// setAside takes a layer that nobody needs out of the store, to be removed without a lock, and
// adds its new place to gone. The caller holds mu.
func (s *Store) setAside(layer string, gone []string) []string {
	to := s.path("tmp", fmt.Sprintf("old-%s-%d", layer, time.Now().UnixNano()))
	if os.Rename(s.path("layers", layer), to) != nil {
		return gone // it never came: its pull failed
	}
	return append(gone, to)
}

// removeOrphans removes layers of pulls that came to nothing. They are kept for a while, so that the
// next attempt finds them, unless the room is needed now.
func (s *Store) removeOrphans(now bool) {
	if s.strange {
		return
	}
	files, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return // the next round is soon
	}
	var gone []string
	for _, f := range files {
		var st unix.Stat_t
		if f.Name() == mountPoints || unix.Lstat(s.path("layers", f.Name()), &st) != nil {
			continue
		}
		if came := time.Unix(st.Ctim.Unix()); !now && time.Since(came) < Grace {
			continue
		}
		s.mu.Lock()
		if s.layerRefs[f.Name()] == 0 {
			gone = s.setAside(f.Name(), gone)
		}
		s.mu.Unlock()
	}
	s.remove(gone)
}

// noteUse writes down when images were used, so that it is known after a restart. Those that are
// mounted are in use now.
func (s *Store) noteUse() {
	now := time.Now()
	s.mu.Lock()
	times := map[string]time.Time{}
	for digest, e := range s.known {
		if e.mounts > 0 {
			e.used = now
		}
		times[digest] = e.used
	}
	s.mu.Unlock()
	for digest, used := range times {
		name := s.path("images", fileName(digest))
		if info, err := os.Stat(name); err == nil && !info.ModTime().Equal(used) {
			if err := os.Chtimes(name, used, used); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.cfg.Log.Warn("the use of an image could not be noted", "file", filepath.Base(name), "error", err)
			}
		}
	}
}

// usage is how full a disk is.
type usage struct {
	Used, Free   int64 // bytes; free for everybody
	Inodes, Left int64
}

// percent is the worse of bytes and inodes, rounded up as df does.
func (u usage) percent() int {
	of := func(used, free int64) int {
		if used+free <= 0 {
			return 0
		}
		return int((used*100 + used + free - 1) / (used + free))
	}
	return max(of(u.Used, u.Free), of(u.Inodes, u.Left))
}

func diskUsage(dir string) (usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return usage{}, err
	}
	size := int64(st.Bsize)
	return usage{
		Used: int64(st.Blocks-st.Bfree) * size, Free: int64(st.Bavail) * size,
		Inodes: int64(st.Files - st.Ffree), Left: int64(st.Ffree),
	}, nil
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// plain puts a full disk in plain words, unless that was done.
func (s *Store) plain(err error) error {
	if isFull(err) && !errors.As(err, new(*leapcell.Error)) {
		return s.full(err, "")
	}
	return err
}

// full is the error about a disk without room; what was to be stored there may be said.
func (s *Store) full(err error, what string) error {
	text := "no space left on the disk of " + s.cfg.Dir
	if u, err := s.disk(s.cfg.Dir); err == nil {
		text += fmt.Sprintf(": %s of %s and %d inodes are free", megabytes(u.Free), megabytes(u.Used+u.Free), u.Left)
	}
	if what != "" {
		text += "; " + what
	}
	return leapcell.Wrap(leapcell.CodeUnavailable, err, text+"; free some or move the state folder")
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
