package front

import (
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/leapcell/leapcell"
)

// None is the setting that says that there is no front end, or no fallback.
const None = "none"

// Options are what is known of the service beside its tree.
type Options struct {
	Folder       string // the setting static
	Fallback     string // the setting staticFallback
	StartCommand string // "" if there is nothing to start
}

// Site is a front end that was found in a tree.
type Site struct {
	Framework string // by which it was recognised; "" for a folder without one
	Whole     bool   // there is nothing to start: the files are all
	Fallback  string // path that other paths get, such as "/index.html"; "" for none
	Mounts    []Mount

	copied string // folder of the sources that the framework copies as it is
}

// Mount is a folder of the tree and where visitors see it.
type Mount struct {
	Folder string // "." is all of it
	Prefix string // begins and ends with "/"

	hashed  []string // folders below, "" is all: each name in them has a hash
	bundled []string // the same, where only some names do
	fresh   []string // but these do not
}

// Recognize looks for a front end in a tree after its build. It gives nil if there is none. The
// error is about settings that do not fit the tree.
func Recognize(tree fs.FS, o Options) (*Site, error) {
	if o.Folder == None {
		return nil, nil
	}
	p := readProject(tree)
	whole := !p.serves(o.StartCommand)
	site := p.find(whole)
	if o.Folder != "" {
		var err error
		if site, err = p.named(o.Folder, site, whole); err != nil {
			return nil, err
		}
	}
	if site == nil {
		return nil, nil
	}
	return site, site.fallBack(p, o.Fallback)
}

// find goes through the table; the first row that fits has it. A tree without a server of its
// own may still be that of a server's framework, which is started by a command of its own. Plain
// files are not looked for where a framework has built nothing: its sources are no site.
func (p *project) find(whole bool) *Site {
	known := false
	for _, r := range table {
		if known && r.plain() || !p.is(r) {
			continue
		}
		known = known || len(r.packages) > 0
		if !whole && !r.beside {
			continue
		}
		if mounts := r.mounts(p); len(mounts) > 0 {
			return &Site{Framework: r.name, Whole: !r.beside, Mounts: mounts, copied: r.copied}
		}
	}
	return nil
}

// named is the site in the folder that the service's settings name. What is known of the
// framework still holds for it.
func (p *project) named(folder string, found *Site, whole bool) (*Site, error) {
	folder = path.Clean(strings.Trim(folder, "/"))
	if !p.isDir(folder) {
		return nil, leapcell.Errorf(leapcell.CodeInvalid,
			"static is %q, but there is no such folder after the build: set it to the folder with the built files, or to none", folder)
	}
	site := &Site{Whole: whole, Mounts: []Mount{{Folder: folder, Prefix: "/"}}}
	if found == nil {
		return site, nil
	}
	site.Framework, site.copied = found.Framework, found.copied
	for _, m := range found.Mounts {
		if m.Folder == folder {
			site.Mounts[0] = m
		} else if m.Prefix == "/" {
			site.Mounts[0].hashed, site.Mounts[0].bundled, site.Mounts[0].fresh = m.hashed, m.bundled, m.fresh
		}
	}
	return site, nil
}

// fallBack decides what paths get that are none of the files. Beside a server, that has them.
func (s *Site) fallBack(p *project, setting string) error {
	if !s.Whole || setting == None {
		return nil
	}
	folder := s.Mounts[0].Folder
	if setting != "" {
		file := path.Clean(strings.TrimLeft(setting, "/"))
		if !fs.ValidPath(file) || !p.isFile(path.Join(folder, file)) {
			return leapcell.Errorf(leapcell.CodeInvalid,
				"staticFallback is %q, but there is no such file in %s after the build: set it to a file of that folder, or to none", setting, folder)
		}
		s.Fallback = "/" + file
		return nil
	}
	choice := []string{"404.html", "200.html"}
	if i := slices.IndexFunc(table, func(r row) bool { return r.name == s.Framework }); i >= 0 && table[i].onePage {
		choice = []string{"index.html"}
	} else if i >= 0 && p.onlyPage(folder) {
		choice = append(choice, "index.html")
	}
	for _, file := range choice {
		if p.isFile(path.Join(folder, file)) {
			s.Fallback = "/" + file
			return nil
		}
	}
	return nil
}

// starters run the script "start" of package.json.
var starters = regexp.MustCompile(`^(npm|yarn|pnpm|bun)( run)? start$`)

// previewers serve a built or unbuilt front end while it is being worked on: they are no
// server of the app's own.
var previewers = regexp.MustCompile(`^(npx )?(vite|react-scripts start|ng serve|ng s|docusaurus (start|serve)|astro|gatsby|vue-cli-service serve|` +
	`nuxi? (dev|preview|start)|nuxt (dev|preview|start)|vitepress|eleventy|serve|http-server|next (dev|start)|react-router dev|parcel)(\s|$)`)

// serves reports whether a command starts a server of the app's own.
func (p *project) serves(command string) bool {
	command = strings.TrimSpace(command)
	if starters.MatchString(command) {
		script, ok := p.scripts["start"]
		if !ok {
			return p.isFile("server.js") // which npm starts then
		}
		command = strings.TrimSpace(script)
	}
	// Of several commands we do not know what the last one does.
	return command != "" && (strings.ContainsAny(command, "&;|\n") || !previewers.MatchString(command))
}
