package front

import (
	"encoding/json"
	"path"
	"regexp"
	"strings"
)

// row says by what a framework is recognised, and where it puts what it built.
type row struct {
	name     string
	packages []string // one of them is a dependency in package.json
	files    []string // or one of these is there
	python   string   // or this package is one of a Python app
	setting  *said    // and the framework's own settings say this
	server   string   // and this is not there: a server that was built along
	without  []string // nor any of these: the sources of one

	folders []string // that may have the site: the first with an index.html
	copied  string   // folder of the sources whose files come as they are
	hashed  []string // see Mount
	bundled []string
	fresh   []string
	// onePage: paths that are no files are the app's own, and get index.html.
	onePage bool

	// beside: the files are beside a server, which has all other paths. They are these.
	beside bool
	assets func(p *project) []Mount
}

// said is what a file of settings says.
type said struct {
	files   []string
	pattern *regexp.Regexp
}

var (
	nextConfig = []string{"next.config.js", "next.config.mjs", "next.config.ts", "next.config.cjs"}
	nextExport = &said{nextConfig, regexp.MustCompile(`output\s*:\s*['"` + "`" + `]export['"` + "`" + `]`)}
)

// table is in the order in which rows are tried: what is built on something else comes before
// it. The folders are the frameworks' defaults, as their own documentation has them.
var table = []row{
	{name: "Next.js export", packages: []string{"next"}, setting: nextExport,
		folders: []string{"out"}, copied: "public", hashed: []string{"_next/static/"}},
	{name: "Nuxt generate", packages: []string{"nuxt"}, server: ".output/server/index.mjs",
		folders: []string{".output/public", "dist"}, copied: "public", hashed: []string{"_nuxt/"}, fresh: []string{"_nuxt/builds/"}},
	{name: "Astro", packages: []string{"astro"}, server: "dist/server",
		folders: []string{"dist"}, copied: "public", hashed: []string{"_astro/"}},
	{name: "SvelteKit", packages: []string{"@sveltejs/kit"}, server: "build/handler.js",
		folders: []string{"build"}, copied: "static", hashed: []string{"_app/immutable/"}},
	{name: "Docusaurus", packages: []string{"@docusaurus/core"}, folders: []string{"build"}, copied: "static"},
	{name: "Gatsby", packages: []string{"gatsby"}, folders: []string{"public"}, copied: "static"},
	{name: "VitePress", packages: []string{"vitepress"},
		folders: []string{".vitepress/dist", "docs/.vitepress/dist"}, copied: "public", bundled: []string{"assets/"}},
	{name: "Eleventy", packages: []string{"@11ty/eleventy"}, folders: []string{"_site"}},
	{name: "React Router", packages: []string{"@react-router/dev", "@remix-run/dev"}, server: "build/server",
		folders: []string{"build/client"}, copied: "public", bundled: []string{"assets/"}, onePage: true},
	{name: "Create React App", packages: []string{"react-scripts"}, folders: []string{"build"}, copied: "public", onePage: true},
	{name: "Angular", packages: []string{"@angular/core"}, server: "dist/*/server",
		folders: []string{"dist/*/browser", "dist/*", "dist"}, copied: "public", bundled: []string{""}, onePage: true},
	{name: "Vue CLI", packages: []string{"@vue/cli-service"}, folders: []string{"dist"}, copied: "public", onePage: true},
	{name: "Vite", packages: []string{"vite"}, server: "dist/server",
		folders: []string{"dist"}, copied: "public", bundled: []string{"assets/"}, onePage: true},
	{name: "Hugo", files: []string{"hugo.toml", "hugo.yaml", "hugo.json", "config/_default/hugo.toml"}, folders: []string{"public"}, copied: "static"},
	{name: "MkDocs", files: []string{"mkdocs.yml"}, folders: []string{"site"}},
	{name: "Jekyll", files: []string{"_config.yml"}, folders: []string{"_site"}},

	{name: "Next.js", packages: []string{"next"}, beside: true, copied: "-", assets: nextAssets},
	{name: "Nuxt", packages: []string{"nuxt"}, beside: true, copied: "public",
		assets: folder(".output/public", "/", hashedIn("_nuxt/"), freshIn("_nuxt/builds/"))},
	{name: "Astro with a server", packages: []string{"astro"}, beside: true, copied: "public",
		assets: folder("dist/client", "/", hashedIn("_astro/"))},
	{name: "SvelteKit with a server", packages: []string{"@sveltejs/kit"}, beside: true, copied: "static",
		assets: folder("build/client", "/", hashedIn("_app/immutable/"))},
	{name: "React Router with a server", packages: []string{"@react-router/dev", "@remix-run/dev"}, beside: true, copied: "public",
		assets: folder("build/client", "/", bundledIn("assets/"))},
	{name: "Express", packages: []string{"express"}, beside: true, assets: folder("public", "/")},
	{name: "Django", files: []string{"manage.py"}, beside: true, assets: folder("staticfiles", "/static/")},
	{name: "Flask", python: "flask", beside: true, assets: folder("static", "/static/")},

	{name: "plain files", without: []string{"requirements.txt", "pyproject.toml", "Pipfile", "manage.py", "go.mod", "Cargo.toml"},
		folders: []string{"public", "dist", "build", "out", "_site", "site", "."}},
}

// plain reports whether a row is of no framework.
func (r row) plain() bool { return len(r.packages) == 0 && len(r.files) == 0 && r.python == "" }

// mounts are the folders of a row that are there.
func (r row) mounts(p *project) []Mount {
	if r.assets != nil {
		return r.assets(p)
	}
	for _, pattern := range r.folders {
		for _, found := range p.glob(pattern) {
			// An app of one page may name its page otherwise; its settings say so then.
			if p.isDir(found) && (p.isFile(path.Join(found, "index.html")) || p.isFile(path.Join(found, "200.html"))) {
				return []Mount{{Folder: found, Prefix: "/", hashed: r.hashed, bundled: r.bundled, fresh: r.fresh}}
			}
		}
	}
	return nil
}

type detail func(*Mount)

func hashedIn(folders ...string) detail  { return func(m *Mount) { m.hashed = folders } }
func bundledIn(folders ...string) detail { return func(m *Mount) { m.bundled = folders } }
func freshIn(folders ...string) detail   { return func(m *Mount) { m.fresh = folders } }

// folder is the mount of one folder of a server's app.
func folder(name, prefix string, details ...detail) func(*project) []Mount {
	return func(p *project) []Mount {
		if !p.isDir(name) {
			return nil
		}
		m := Mount{Folder: name, Prefix: prefix}
		for _, d := range details {
			d(&m)
		}
		return []Mount{m}
	}
}

// nextAssets are those of a Next.js server. Its middleware sees requests for the files of
// public before they are served: with one, these stay with the server.
// https://nextjs.org/docs/app/building-your-application/routing/middleware
func nextAssets(p *project) []Mount {
	if !p.isDir(".next/static") {
		return nil
	}
	var routes struct {
		BasePath string `json:"basePath"`
	}
	_ = json.Unmarshal([]byte(p.text(".next/routes-manifest.json")), &routes)
	base := path.Clean("/" + routes.BasePath)
	at := func(prefix string) string { return strings.TrimSuffix(base, "/") + prefix }
	out := []Mount{{Folder: ".next/static", Prefix: at("/_next/static/"), hashed: []string{""}}}
	var between []string
	for _, name := range []string{"middleware.ts", "middleware.js", "proxy.ts", "proxy.js"} {
		between = append(between, p.glob(name)...)
		between = append(between, p.glob("src/"+name)...)
	}
	if len(between) == 0 && p.isDir("public") {
		out = append(out, Mount{Folder: "public", Prefix: at("/")})
	}
	return out
}
