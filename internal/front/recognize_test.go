package front

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
)

// tree makes one of "name" or "name=content".
func tree(files ...string) fs.FS {
	out := fstest.MapFS{}
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		out[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
	}
	return out
}

func pkg(scripts string, packages ...string) string {
	var deps []string
	for _, name := range packages {
		deps = append(deps, `"`+name+`":"1.0.0"`)
	}
	return `package.json={"scripts":{` + scripts + `},"dependencies":{},"devDependencies":{` + strings.Join(deps, ",") + `}}`
}

func TestRecognize(t *testing.T) {
	const npm = "npm start"
	for _, c := range []struct {
		name    string
		files   []string
		options Options
		// of the site; framework "" is none
		framework, mounts, fallback string
		whole                       bool
	}{
		{"Vite", []string{pkg(`"dev":"vite"`, "vite"), "index.html", "dist/index.html", "dist/assets/index-DiwrgTda.js"}, Options{StartCommand: npm},
			"Vite", "dist=/", "/index.html", true},
		{"Vite, to be previewed", []string{pkg(`"start":"vite preview --port 8080"`, "vite"), "dist/index.html"}, Options{StartCommand: npm},
			"Vite", "dist=/", "/index.html", true},
		{"Vite with a server of its own", []string{pkg(`"start":"node server.js"`, "vite"), "dist/index.html"}, Options{StartCommand: npm}, "", "", "", false},
		{"Vite with a server that npm finds", []string{pkg("", "vite"), "server.js", "dist/index.html"}, Options{StartCommand: npm}, "", "", "", false},
		{"Vite, built before a server starts", []string{pkg("", "vite"), "dist/index.html"}, Options{StartCommand: "vite build && node api.js"}, "", "", "", false},
		{"Vite that was not built", []string{pkg("", "vite"), "index.html"}, Options{StartCommand: npm}, "", "", "", false},
		{"Next.js export", []string{pkg(`"start":"next start"`, "next"), "next.config.ts=const c = { output: 'export' }", "out/index.html", "out/404.html", ".next/static/a.js"},
			Options{StartCommand: npm}, "Next.js export", "out=/", "/404.html", true},
		{"Next.js", []string{pkg(`"start":"next start"`, "next"), "next.config.ts=const c = {}", "out/index.html", ".next/static/a.js", "public/next.svg"},
			Options{StartCommand: npm}, "Next.js", ".next/static=/_next/static/ public=/", "", false},
		{"Next.js below a path", []string{pkg(`"start":"next start"`, "next"), `.next/routes-manifest.json={"basePath":"/docs"}`, ".next/static/a.js", "public/a.svg"},
			Options{StartCommand: "npx next start -p 8080"}, "Next.js", ".next/static=/docs/_next/static/ public=/docs/", "", false},
		{"Next.js with middleware", []string{pkg("", "next"), "src/middleware.ts", ".next/static/a.js", "public/secret.pdf"},
			Options{StartCommand: "node server.js"}, "Next.js", ".next/static=/_next/static/", "", false},
		{"Nuxt generate", []string{pkg("", "nuxt"), ".output/public/index.html", ".output/public/200.html", ".output/public/404.html"}, Options{StartCommand: npm},
			"Nuxt generate", ".output/public=/", "/404.html", true},
		{"Nuxt", []string{pkg("", "nuxt"), ".output/public/_nuxt/a.js", ".output/server/index.mjs"}, Options{StartCommand: "node .output/server/index.mjs"},
			"Nuxt", ".output/public=/", "", false},
		{"Astro", []string{pkg(`"start":"astro dev"`, "astro", "vite"), "dist/index.html", "dist/about/index.html"}, Options{StartCommand: npm}, "Astro", "dist=/", "", true},
		{"Astro of one page", []string{pkg("", "astro"), "dist/index.html"}, Options{StartCommand: npm}, "Astro", "dist=/", "/index.html", true},
		{"SvelteKit", []string{pkg("", "@sveltejs/kit", "vite"), "build/200.html", "build/_app/version.json"}, Options{StartCommand: npm}, "SvelteKit", "build=/", "/200.html", true},
		{"Create React App", []string{pkg(`"start":"react-scripts start"`, "react-scripts"), "build/index.html", "public/index.html"}, Options{StartCommand: npm},
			"Create React App", "build=/", "/index.html", true},
		{"Angular", []string{pkg(`"start":"ng serve"`, "@angular/core"), "dist/shop/browser/index.html", "dist/shop/3rdpartylicenses.txt"}, Options{StartCommand: npm},
			"Angular", "dist/shop/browser=/", "/index.html", true},
		{"Docusaurus", []string{pkg(`"start":"docusaurus start"`, "@docusaurus/core"), "build/index.html", "build/404.html"}, Options{StartCommand: npm},
			"Docusaurus", "build=/", "/404.html", true},
		{"Hugo", []string{"hugo.toml", "public/index.html", "public/404.html"}, Options{}, "Hugo", "public=/", "/404.html", true},
		{"a plain folder", []string{"public/index.html", "README.md"}, Options{}, "plain files", "public=/", "/index.html", true},
		{"a plain folder of more pages", []string{"public/index.html", "public/about.html"}, Options{}, "plain files", "public=/", "", true},
		{"sources of a framework", []string{pkg("", "react-scripts"), "public/index.html"}, Options{StartCommand: npm}, "", "", "", false},
		{"a page", []string{"index.html", "a/b.txt"}, Options{}, "plain files", ".=/", "/index.html", true},
		{"sources of an app", []string{"requirements.txt", "public/index.html"}, Options{}, "", "", "", false},
		{"no page", []string{"a/b.txt"}, Options{}, "", "", "", false},
		{"Express", []string{pkg(`"start":"node index.js"`, "express"), "index.js", "public/style.css"}, Options{StartCommand: npm}, "Express", "public=/", "", false},
		{"Flask", []string{"requirements.txt=gunicorn\nFlask==3.0\n", "static/style.css"}, Options{StartCommand: "gunicorn app:app"}, "Flask", "static=/static/", "", false},
		{"no Flask", []string{"requirements.txt=notflask\n# flask\n", "static/style.css"}, Options{StartCommand: "gunicorn app:app"}, "", "", "", false},
		{"Django", []string{"requirements.txt=django", "manage.py", "staticfiles/admin/a.css"}, Options{StartCommand: "gunicorn x.wsgi"}, "Django", "staticfiles=/static/", "", false},
		{"a server", []string{"go.mod", "main.go", "index.html"}, Options{StartCommand: "./app"}, "", "", "", false},

		{"named", []string{pkg("", "vite"), "dist/index.html", "web/index.html"}, Options{Folder: "/web/", StartCommand: npm}, "Vite", "web=/", "/index.html", true},
		{"named beside a server", []string{"go.mod", "web/index.html"}, Options{Folder: "web", StartCommand: "./app"}, "(none)", "web=/", "", false},
		{"none", []string{pkg("", "vite"), "dist/index.html"}, Options{Folder: None, StartCommand: npm}, "", "", "", false},
		{"another fallback", []string{pkg("", "vite"), "dist/index.html", "dist/app.html"}, Options{Fallback: "app.html", StartCommand: npm}, "Vite", "dist=/", "/app.html", true},
		{"no fallback", []string{pkg("", "vite"), "dist/index.html"}, Options{Fallback: None, StartCommand: npm}, "Vite", "dist=/", "", true},
		{"a package.json that is none", []string{"package.json={{{", "dist/index.html"}, Options{StartCommand: "node a.js"}, "", "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			site, err := Recognize(tree(c.files...), c.options)
			if err != nil {
				t.Fatal(err)
			}
			if (site == nil) != (c.framework == "") {
				t.Fatalf("got %+v, want %q", site, c.framework)
			}
			if site == nil {
				return
			}
			var mounts []string
			for _, m := range site.Mounts {
				mounts = append(mounts, m.Folder+"="+m.Prefix)
			}
			framework := site.Framework
			if framework == "" {
				framework = "(none)"
			}
			if got := strings.Join(mounts, " "); framework != c.framework || got != c.mounts || site.Fallback != c.fallback || site.Whole != c.whole {
				t.Errorf("got %s at %s, fallback %q, whole %v", framework, got, site.Fallback, site.Whole)
			}
		})
	}
}

func TestSettingsThatDoNotFit(t *testing.T) {
	files := tree(pkg("", "vite"), "dist/index.html", "file")
	for _, o := range []Options{{Folder: "nothing"}, {Folder: "file"}, {Folder: "../x"}, {Folder: ".."}, {Fallback: "no.html"}, {Fallback: "../file"}} {
		if site, err := Recognize(files, o); err == nil {
			t.Errorf("%+v: got %+v, want an error", o, site)
		}
	}
}

func TestImmutable(t *testing.T) {
	for _, c := range []struct {
		framework string // by its package
		name      string
		want      bool
	}{
		{"vite", "assets/index-DiwrgTda.js", true},
		{"vite", "assets/index-B2l3k_-X.css", true},
		{"vite", "assets/index-B2l3k_-X.js.map", true},
		{"vite", "assets/my-pictures.png", false},
		{"vite", "assets/the-Portrait.png", false},
		{"vite", "assets/copied-a1b2c3d4.png", false},
		{"vite", "index.html", false},
		{"vite", "favicon.ico", false},
		{"vite", "report-20240101.pdf", false},
		{"vite", "lib/main.3f2a9c1b.js", true},
		{"vite", "IMG-ABCD1234.png", false},
		{"react-scripts", "static/js/main.3f2a9c1b.chunk.js", true},
		{"react-scripts", "static/js/main.3f2a9c1b.js.map", true},
		{"astro", "_astro/page.DiwrgTda.css", true},
		{"astro", "_astro/page.html", false},
		{"@angular/core", "main-5INURTSO.js", true},
	} {
		dir := map[string]string{"vite": "dist", "react-scripts": "build", "astro": "dist", "@angular/core": "dist/x/browser"}[c.framework]
		files := tree(pkg("", c.framework), dir+"/index.html", dir+"/"+c.name, "public/assets/copied-a1b2c3d4.png")
		site, err := Recognize(files, Options{})
		if err != nil || site == nil {
			t.Fatalf("%s: %v %v", c.framework, site, err)
		}
		if got := site.Immutable(files, site.Mounts[0], c.name); got != c.want {
			t.Errorf("%s %s: immutable is %v", c.framework, c.name, got)
		}
	}
}
