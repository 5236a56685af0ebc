package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leapcell/leapcell/test/harness"
)

const dockerApp = `package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	panic(http.ListenAndServe(":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q as %d:%d of %s", os.Args[1:], os.Getuid(), os.Getgid(), os.Getenv("MADE"))
	})))
}
`

const dockerfile = `FROM debian AS system
RUN test "$HOME" = /root
USER nobody
RUN test "$HOME" = /nonexistent && touch /tmp/home

FROM scratch AS files
ARG WHO=nobody
COPY app /app

FROM scratch
COPY --from=system /tmp/home /home
COPY --from=files /app /app
ENV MADE=by-a-Dockerfile
USER 4242
EXPOSE 80
HEALTHCHECK CMD ["/app"]
ENTRYPOINT ["/app", "one word"]
`

// An image without a shell that listens on a port below 1024, as somebody else.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	p.ServeHub(t, map[string]string{"library/debian": "base/run"})
	dir, source := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(source, "main.go"), dockerApp)
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "app"), filepath.Join(source, "main.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	write(filepath.Join(dir, "Dockerfile"), dockerfile)
	name := harness.Name(t)
	p.Must(t, "deploy", dir, "--name", name)
	s := named(t, name)
	if got, want := visit(t, s).Body, `["one word"] as 4242:1000 of by-a-Dockerfile`; got != want {
		t.Errorf("it answers %q, want %q", got, want)
	}
	log := s.BuildLog(t, s.Live)
	for _, want := range []string{"runtime: docker", "port: 80, as the image says", "HEALTHCHECK is ignored", "COPY --from=files /app /app"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q:\n%s", want, log)
		}
	}

	write(filepath.Join(dir, "Dockerfile"), dockerfile+"COPY missing /missing\n")
	r := p.CLI(t, "deploy", dir, "--name", name)
	if want := "Dockerfile line 18: COPY missing /missing"; r.Code == 0 || !strings.Contains(r.Output, want) {
		t.Errorf("exit code %d without %q:\n%s", r.Code, want, r.Output)
	}
}
