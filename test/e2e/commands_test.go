package e2e

import (
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/harness"
)

// aptInstall is how users of hosted platforms install what their app calls.
const aptInstall = "apt-get update && apt-get install -y jq\n"

// Commands that were written for the hosted platform work as they are, in every runtime.
// Each app answers with what the package that apt-get installed says of itself.
func TestUnmodifiedCommands(t *testing.T) {
	t.Parallel()
	for _, app := range []struct {
		runtime, build, start string
		files                 map[string]string
	}{
		{"python", aptInstall + "pip install -r requirements.txt", "uvicorn main:app --port 8080", map[string]string{
			"requirements.txt": "fastapi\nuvicorn\n",
			"main.py": `import subprocess
from fastapi import FastAPI

app = FastAPI()

@app.get("/")
def index():
    return subprocess.check_output(["jq", "--version"], text=True)
`,
		}},
		{"node", aptInstall + "npm install", "node app.js", map[string]string{
			"package.json": `{"name": "app", "dependencies": {"ms": "^2.1.3"}}`,
			"app.js": `require("ms");
const run = require("child_process").execFileSync;
require("http").createServer((req, res) => res.end(run("jq", ["--version"]))).listen(process.env.PORT);
`,
		}},
		{"go", aptInstall + "go build -o app", "./app", map[string]string{
			"go.mod": "module app\n\ngo 1.21\n",
			"main.go": `package main

import (
	"net/http"
	"os/exec"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		out, _ := exec.Command("jq", "--version").Output()
		w.Write(out)
	})
	http.ListenAndServe(":8080", nil)
}
`,
		}},
		{"rust", aptInstall + "cargo build --release", "./target/release/app", map[string]string{
			"Cargo.toml": "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
			"src/main.rs": `use std::io::{Read, Write};

fn main() {
    let listener = std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head);
        let out = std::process::Command::new("jq").arg("--version").output().unwrap().stdout;
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", out.len());
        let _ = stream.write_all(&out);
    }
}
`,
		}},
	} {
		t.Run(app.runtime, func(t *testing.T) {
			t.Parallel()
			s := harness.Get(t).Create(t, harness.Spec{
				Settings: leapcell.Settings{Runtime: app.runtime, BuildCommand: app.build, StartCommand: app.start},
				Files:    app.files,
			})
			s.Deploy(t)
			if r := visit(t, s); !strings.Contains(r.Body, "jq-") {
				t.Errorf("the app does not find what apt-get installed: %q", r.Body)
			}
		})
	}
}
