package supervisor

import (
	"errors"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
)

const viteApp = `{"devDependencies":{"vite":"8"}}`

func TestBuildWithFrontEnd(t *testing.T) {
	for name, c := range map[string]struct {
		tree     map[string]string
		config   func(*leapcell.TaskConfig)
		push     error
		code     int
		message  string
		said     string
		layers   int  // of the artifact
		commits  int  // of the image
		noBuild  bool // no command is run
		unwanted string
	}{
		"a whole site": {
			tree:   map[string]string{"app/package.json": viteApp, "app/dist/index.html": "<p>", "app/dist/evil": "-> /etc/passwd"},
			config: func(c *leapcell.TaskConfig) { c.StartCommand = "npm start" }, message: "front end ", layers: 2,
			said: "front end: Vite, dist at /: 1 files, 0.0 MB\nfront end: left out: 1 symbolic links, such as \"evil\"\n" +
				"front end: the edge serves them all, and no instance is needed; other paths get /index.html\n" +
				"front end: to have it otherwise, set static in leapcell.yaml to a folder or to none, and staticFallback to a file or to none\n",
		},
		"files that need no build": {
			tree:   map[string]string{"app/index.html": "<p>"},
			config: func(c *leapcell.TaskConfig) { c.Command, c.StartCommand = "", "" }, message: "front end ", layers: 2, noBuild: true,
			said: "front end: plain files, all files at /: 1 files",
		},
		"beside a server": {
			tree: map[string]string{"app/package.json": `{"dependencies":{"express":"5"}}`, "app/public/a.css": "a{}"}, message: "image sha256:abc", layers: 2, commits: 1,
			said: "front end: the edge serves them; all other paths are the app's\n",
		},
		"none": {tree: map[string]string{"app/go.mod": ""}, message: "image sha256:abc", commits: 1, unwanted: "front end"},
		"not wanted": {
			tree:   map[string]string{"app/package.json": viteApp, "app/dist/index.html": "<p>"},
			config: func(c *leapcell.TaskConfig) { c.Static = "none" }, message: "image sha256:abc", commits: 1, unwanted: "front end",
		},
		"nothing to start": {
			tree:   map[string]string{"app/requirements.txt": ""},
			config: func(c *leapcell.TaskConfig) { c.StartCommand = "" }, code: 1, message: "there is no start command, and the build left no front end",
		},
		"a setting that does not fit": {
			tree:   map[string]string{"app/index.html": ""},
			config: func(c *leapcell.TaskConfig) { c.Static = "dist" }, code: 1, message: `static is "dist", but there is no such folder`,
		},
		"a folder that leaves the image": {
			tree:   map[string]string{"app": "-> ../../../../../../../etc"},
			config: func(c *leapcell.TaskConfig) { c.StartCommand = "" }, code: 1, message: "the folder /app is not there",
		},
		"a registry that is away": {
			tree: map[string]string{"app/index.html": "<p>"}, config: func(c *leapcell.TaskConfig) { c.StartCommand = "" },
			push: errors.New("connection refused"), code: 1, message: "the front end could not be published: connection refused", layers: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, func(c *fakeCell) { c.end(cell.Exit{}) })
			n.images.tree, n.images.push = c.tree, c.push
			req := n.request(leapcell.TaskBuild)
			req.Config.StaticOutput = "registry/shop/static:1"
			if c.config != nil {
				c.config(&req.Config)
			}
			n.start(req)
			if exit := n.wait(req); exit.Code != c.code || !strings.HasPrefix(exit.Message, c.message) {
				t.Errorf("exit %+v", exit)
			}
			log := n.logged(req, "stdout")
			if !strings.Contains(log, c.said) || c.unwanted != "" && strings.Contains(log, c.unwanted) {
				t.Errorf("log %q", log)
			}
			layers := 0
			if n.images.artifact != nil {
				all, err := n.images.artifact.Layers()
				if err != nil {
					t.Fatal(err)
				}
				layers = len(all)
			}
			if layers != c.layers || len(n.images.committed) != c.commits || n.images.artifact != nil && n.images.artifactOutput != "registry/shop/static:1" {
				t.Errorf("%d layers pushed to %q, %d images", layers, n.images.artifactOutput, len(n.images.committed))
			}
			if (len(n.cells.cells) == 0) != c.noBuild {
				t.Errorf("%d commands were run", len(n.cells.cells))
			}
			n.clean(req)
		})
	}
}
