package platform

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/leapcell/leapcell"
)

// tool is Nomad or Vault: found on this machine when it is recent enough, else built from
// the versions that its module pins.
type tool struct {
	name         string
	major, minor int    // the oldest that will do
	module       string // main package, in tools/{name}
	tags         string
}

var (
	nomadTool = tool{name: "nomad", major: 1, minor: 10, module: "github.com/hashicorp/nomad", tags: "ui"}
	vaultTool = tool{name: "vault", major: 1, minor: 18, module: "github.com/hashicorp/vault", tags: "minimal"}
)

var versionNumber = regexp.MustCompile(`v(\d+)\.(\d+)\.(\d+)`)

// provide gives the path of the tool. One that was built stays in the folder of our binaries.
func (p *Platform) provide(ctx context.Context, t tool, note func(string, ...any)) (string, error) {
	built := filepath.Join(p.cfg.BinDir, t.name)
	candidates := []string{built}
	if onPath, err := exec.LookPath(t.name); err == nil {
		if abs, err := filepath.Abs(onPath); err == nil {
			candidates = []string{abs, built}
		}
	}
	for _, path := range candidates {
		if version, ok := t.recent(ctx, path); ok {
			note("%s: %s", path, version)
			return path, nil
		}
	}
	return built, t.build(ctx, filepath.Join(p.cfg.ToolsDir, t.name), built, note)
}

func (t tool) recent(ctx context.Context, path string) (string, bool) {
	out, err := exec.CommandContext(ctx, path, "version").Output()
	if err != nil {
		return "", false
	}
	m := versionNumber.FindStringSubmatch(string(out))
	if m == nil {
		return "", false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return m[0], major > t.major || major == t.major && minor >= t.minor
}

// build compiles the tool from its pinned module and says how far it is.
func (t tool) build(ctx context.Context, module, output string, note func(string, ...any)) error {
	if _, err := os.Stat(filepath.Join(module, "go.mod")); err != nil {
		return leapcell.Errorf(leapcell.CodeUnprocessable,
			"there is no %s of version %d.%d or later on PATH, and %s to build it from is not there: install it, or run from a checkout",
			t.name, t.major, t.minor, module)
	}
	note("none of version %d.%d or later on PATH: building it, which takes several minutes", t.major, t.minor)
	env := append(os.Environ(), "GOWORK=off")
	total := t.packages(ctx, module, env)
	cmd := exec.CommandContext(ctx, "go", "build", "-v", "-trimpath", "-tags", t.tags, "-ldflags", "-s -w", "-o", output, t.module)
	cmd.Dir, cmd.Env = module, env
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("building %s needs Go (see go.dev): %w", t.name, err)
	}
	last := reportBuild(bufio.NewScanner(stderr), total, note)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", t.name, err, lastLines(strings.Join(last, "\n"), 15))
	}
	if _, ok := t.recent(ctx, output); !ok {
		return fmt.Errorf("the %s that was built does not run: see %s", t.name, output)
	}
	return nil
}

// packages is how many the build compiles at most; 0 when it cannot be said.
func (t tool) packages(ctx context.Context, module string, env []string) int {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-tags", t.tags, t.module)
	cmd.Dir, cmd.Env = module, env
	out, err := cmd.Output()
	if err != nil {
		return 0
	}
	return strings.Count(string(out), "\n")
}

// reportBuild follows `go build -v`, which names each package that it compiles and each
// module it fetches, and notes each half minute where it stands.
func reportBuild(lines *bufio.Scanner, total int, note func(string, ...any)) (last []string) {
	began, reported, compiled := time.Now(), time.Now(), 0
	for lines.Scan() {
		line := lines.Text()
		if !strings.Contains(line, " ") {
			compiled++
		}
		last = append(last[max(0, len(last)-19):], line)
		if time.Since(reported) >= 30*time.Second {
			reported = time.Now()
			note("%s: %d of at most %d packages", time.Since(began).Round(time.Second), compiled, total)
		}
	}
	return last
}
