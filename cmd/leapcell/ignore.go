package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/gitignore"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/leapcell/leapcell"
)

// ignore decides what of a tree is left out. A .gitignore counts for its folder and all
// below, as for git, those above the tree included; so does a .dockerignore, with Docker's
// own rules.
type ignore struct {
	root   string
	above  []string // the path of root within its repository
	git    []gitignore.Pattern
	docker []dockerRules
}

type dockerRules struct {
	folder  string // "" for the top
	matcher *patternmatcher.PatternMatcher
}

func newIgnore(root string) *ignore {
	ig := &ignore{root: root}
	abs, err := filepath.Abs(root)
	if err != nil {
		return ig
	}
	top, ok := repository(abs)
	if !ok || top == abs {
		return ig
	}
	rel, err := filepath.Rel(top, abs)
	if err != nil {
		return ig
	}
	parts := strings.Split(rel, string(filepath.Separator))
	var patterns []gitignore.Pattern
	for i := range parts {
		found, err := readGitignore(filepath.Join(top, filepath.Join(parts[:i]...)), parts[:i])
		if err != nil {
			return ig // one that cannot be read leaves nothing out
		}
		patterns = append(patterns, found...)
	}
	// Whoever names a folder that git ignores, such as dist, wants what is in it.
	if gitignore.NewMatcher(patterns).Match(parts, true) {
		return ig
	}
	ig.above, ig.git = parts, patterns
	return ig
}

func repository(dir string) (string, bool) {
	for {
		if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
			return dir, true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
}

// enter reads the rules of one folder; folders are entered from the top down.
func (ig *ignore) enter(rel string) error {
	dir := filepath.Join(ig.root, filepath.FromSlash(rel))
	patterns, err := readGitignore(dir, ig.domain(rel))
	if err != nil {
		return err
	}
	ig.git = append(ig.git, patterns...)
	f, err := os.Open(filepath.Join(dir, ".dockerignore"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines, err := ignorefile.ReadAll(f)
	if err != nil {
		return err
	}
	matcher, err := patternmatcher.New(lines)
	if err != nil {
		return leapcell.Errorf(leapcell.CodeInvalid, "%s: %w", f.Name(), err)
	}
	ig.docker = append(ig.docker, dockerRules{rel, matcher})
	return nil
}

func (ig *ignore) domain(rel string) []string {
	domain := ig.above[:len(ig.above):len(ig.above)]
	if rel != "" {
		domain = append(domain, strings.Split(rel, "/")...)
	}
	return domain
}

func readGitignore(dir string, domain []string) ([]gitignore.Pattern, error) {
	b, err := os.ReadFile(filepath.Join(dir, ".gitignore"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var patterns []gitignore.Pattern
	for line := range strings.SplitSeq(string(b), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#") {
			patterns = append(patterns, gitignore.ParsePattern(line, domain))
		}
	}
	return patterns, nil
}

// match reports whether a path of the tree is left out.
func (ig *ignore) match(rel string, isDir bool) bool {
	if len(ig.git) > 0 && gitignore.NewMatcher(ig.git).Match(ig.domain(rel), isDir) {
		return true
	}
	return ig.matchDocker(rel)
}

func (ig *ignore) matchDocker(rel string) bool {
	for _, rules := range ig.docker {
		below, ok := within(rules.folder, rel)
		if !ok {
			continue
		}
		if out, err := rules.matcher.MatchesOrParentMatches(below); err == nil && out {
			return true
		}
	}
	return false
}

// mayInclude reports whether something below an ignored folder may still be wanted: Docker
// allows exceptions there, git does not.
func (ig *ignore) mayInclude(rel string) bool {
	if len(ig.git) > 0 && gitignore.NewMatcher(ig.git).Match(ig.domain(rel), true) {
		return false
	}
	for _, rules := range ig.docker {
		if _, ok := within(rules.folder, rel); ok && rules.matcher.Exclusions() {
			return true
		}
	}
	return false
}

func within(folder, rel string) (string, bool) {
	if folder == "" {
		return rel, true
	}
	return strings.CutPrefix(rel, folder+"/")
}
