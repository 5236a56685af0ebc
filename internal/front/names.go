package front

import (
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	// digest is what most tools write into a name: "main.3f2a9c1b.js", "app-d41d8cd98f00b204.css".
	digest = regexp.MustCompile(`[.\-_]([0-9a-f]{8,64})(\.chunk|\.min|\.bundle)?\.[a-z0-9]+(\.map)?$`)
	// short is what Rollup and esbuild write: "index-DiwrgTda.js", "main-5INURTSO.js". It may
	// contain - and _ itself.
	short = regexp.MustCompile(`[.\-]([A-Za-z0-9_-]{8})\.[a-z0-9]+(\.map)?$`)
)

// Immutable reports whether what the file's name stands for never changes: its content is
// part of the name. name is within the mount's folder.
func (s *Site) Immutable(tree fs.FS, m Mount, name string) bool {
	if ext := path.Ext(name); ext == ".html" || ext == ".htm" {
		return false
	}
	in := func(dirs []string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(name, dir) })
	}
	if in(m.fresh) {
		return false
	}
	if in(m.hashed) {
		return true
	}
	// What was copied has the name that somebody gave it, whatever that looks like.
	if s.copied != "" && s.copied != m.Folder {
		if _, err := fs.Lstat(tree, path.Join(s.copied, name)); err == nil {
			return false
		}
	}
	base := path.Base(name)
	if found := digest.FindStringSubmatch(base); found != nil && mixed(found[1], "0123456789", "abcdef") {
		return true
	}
	if !in(m.bundled) {
		return false
	}
	found := short.FindStringSubmatch(base)
	return found != nil && random(found[1])
}

func mixed(text, one, other string) bool {
	return strings.ContainsAny(text, one) && strings.ContainsAny(text, other)
}

// random tells eight letters of a hash from a word: it has a digit, or an upper case letter
// where words have none. Of a thousand hashes some three look like words.
func random(text string) bool {
	if strings.ContainsAny(text, "0123456789") {
		return true
	}
	rest := strings.TrimLeft(text[1:], "-_")
	return strings.ToLower(rest) != rest
}
