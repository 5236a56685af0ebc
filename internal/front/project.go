package front

import (
	"encoding/json"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxText bounds what is read of a file of settings; hostile trees have larger ones.
	maxText = 1 << 20
	// maxLook bounds the names that are looked at to find out whether a site has one page.
	maxLook = 10_000
)

// project is a tree with what its files of settings say. What cannot be read says nothing: a
// tree without a front end must build as it did before.
type project struct {
	tree         fs.FS
	dependencies map[string]bool
	scripts      map[string]string
	python       string // names of packages, one a line
}

func readProject(tree fs.FS) *project {
	p := &project{tree: tree, dependencies: map[string]bool{}}
	var pkg struct {
		Dependencies    map[string]any    `json:"dependencies"`
		DevDependencies map[string]any    `json:"devDependencies"`
		Scripts         map[string]string `json:"scripts"`
	}
	_ = json.Unmarshal([]byte(p.text("package.json")), &pkg)
	for name := range pkg.Dependencies {
		p.dependencies[name] = true
	}
	for name := range pkg.DevDependencies {
		p.dependencies[name] = true
	}
	p.scripts = pkg.Scripts
	p.python = p.text("requirements.txt") + "\n" + p.text("pyproject.toml") + "\n" + p.text("Pipfile")
	return p
}

// is reports whether the tree is of a row's framework.
func (p *project) is(r row) bool {
	if r.server != "" && len(p.glob(r.server)) > 0 || slices.ContainsFunc(r.without, p.isFile) {
		return false
	}
	if r.setting != nil && !p.says(r.setting) {
		return false
	}
	if r.python != "" {
		return regexp.MustCompile(`(?im)^[\s"']*` + r.python + `\b`).MatchString(p.python)
	}
	for _, name := range r.packages {
		if p.dependencies[name] {
			return true
		}
	}
	for _, name := range r.files {
		if p.isFile(name) {
			return true
		}
	}
	return len(r.packages) == 0 && len(r.files) == 0
}

// says reports whether one of the framework's files of settings has what s looks for.
func (p *project) says(s *said) bool {
	for _, name := range s.files {
		if s.pattern.MatchString(p.text(name)) {
			return true
		}
	}
	return false
}

// text is the content of a regular file, "" if there is none that can be read.
func (p *project) text(name string) string {
	if !p.isFile(name) {
		return ""
	}
	f, err := p.tree.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxText))
	return string(b)
}

func (p *project) isFile(name string) bool {
	info, err := fs.Lstat(p.tree, name)
	return err == nil && info.Mode().IsRegular()
}

func (p *project) isDir(name string) bool {
	if !fs.ValidPath(name) {
		return false
	}
	info, err := fs.Lstat(p.tree, name)
	return err == nil && info.IsDir()
}

// glob gives the folders and files of a pattern with * for one whole element.
func (p *project) glob(pattern string) []string {
	before, after, any := strings.Cut(pattern, "*")
	if !any {
		if _, err := fs.Lstat(p.tree, pattern); err != nil {
			return nil
		}
		return []string{pattern}
	}
	names, err := list(p.tree, path.Clean(before), maxLook)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range names {
		out = append(out, p.glob(before+e.Name()+after)...)
	}
	return out
}

// onlyPage reports whether index.html is the one page of a folder.
func (p *project) onlyPage(folder string) bool {
	only := true
	err := Walk(p.tree, folder, maxLook, func(name string, d fs.DirEntry) error {
		only = only && (path.Ext(name) != ".html" || name == "index.html")
		return nil
	})
	return only && err == nil
}
