package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell/internal/platform"
)

// Platform is a running platform as a test sees it.
type Platform struct {
	Config platform.Config
	API    *API
	Nomad  *nomad.Client
	// HTTP is a visitor's client: every name leads to the edge, nothing is followed,
	// nothing is decompressed.
	HTTP *http.Client
	Root string // of the checkout

	compiling sync.Mutex
	probe     []byte // the probe app, compiled
}

// Acquire gives the platform that LEAPCELL_TEST_STATE names, else a new one, which release
// takes down again. release also says what was left behind. args go to `leapcell up`.
func Acquire(ctx context.Context, args ...string) (p *Platform, release func() error, err error) {
	if os.Getuid() != 0 {
		return nil, nil, errors.New("a platform needs root; run the tests as root or with -short")
	}
	if dir := os.Getenv("LEAPCELL_TEST_STATE"); dir != "" {
		p, err = Open(dir)
		return p, func() error { return nil }, err
	}
	before := Snap("")
	dir, err := os.MkdirTemp("", "leapcell-test-")
	if err != nil {
		return nil, nil, err
	}
	kept := keptBases()
	without("lent", kept.lend(dir))
	if err := UpNew(ctx, dir, args...); err != nil {
		return nil, nil, errors.Join(err, takeDown(dir, before, true))
	}
	if p, err = Open(dir); err != nil {
		return nil, nil, errors.Join(err, takeDown(dir, before, true))
	}
	return p, func() error {
		without("kept", kept.keep(dir))
		return takeDown(dir, before, os.Getenv("LEAPCELL_TEST_KEEP") != "")
	}, nil
}

// UpNew brings up a platform in a new folder, on ports of its own and without a sample.
func UpNew(ctx context.Context, dir string, args ...string) error {
	mirrors, err := hubSetting()
	if err != nil {
		return err
	}
	return command(ctx, append([]string{"up", "--state-dir", dir, "--free-ports", "--no-sample", "--runtime", os.Getenv("LEAPCELL_TEST_LAUNCHER"), "--set", mirrors,
		// Tests wait for most of their time: several deploy at once.
		"--set", "leapcelld.builds=4", "--set", "leapcelld.deployments-per-day=0", "--set", "leapcelld.automatic-per-day=0",
		"--set", "leapcelld.source-networks=127.0.0.0/8"}, args...)...)
}

// takeDown ends the platform in dir and compares the machine with what it was before.
func takeDown(dir string, before Snapshot, keep bool) error {
	// The tests' own context may be over: this must happen anyway.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	name := ""
	if cfg, found, err := platform.LoadConfig(dir); err == nil && found {
		name = cfg.Name
	}
	err := command(ctx, "down", "--state-dir", dir)
	if left := Left(before, dir, name); len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left on the machine after down:\n  %s", strings.Join(left, "\n  ")))
	}
	if keep || err != nil {
		fmt.Fprintln(os.Stderr, "harness: logs are kept in", filepath.Join(dir, "logs"))
		return err
	}
	return os.RemoveAll(dir)
}

// command runs bin/leapcell with its output on ours.
func command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(checkout(), "bin", "leapcell"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("leapcell %s: %w", args[0], err)
	}
	return nil
}

// checkout is the folder that this file was compiled in.
func checkout() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Open gives the platform that is up in dir.
func Open(dir string) (*Platform, error) {
	cfg, found, err := platform.LoadConfig(dir)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("no platform is in %s", dir)
	}
	p := &Platform{Config: cfg, Root: checkout()}
	token, err := os.ReadFile(cfg.AdminTokenFile())
	if err != nil {
		return nil, err
	}
	p.API = &API{Base: cfg.APIAddress(), Token: strings.TrimSpace(string(token))}
	if token, err = os.ReadFile(cfg.NomadTokenFile()); err != nil {
		return nil, err
	}
	p.Nomad, err = nomad.NewClient(&nomad.Config{
		Address: cfg.NomadAddress(), SecretID: strings.TrimSpace(string(token)), Namespace: platform.Namespace,
	})
	p.HTTP = p.Visitor()
	return p, err
}

// Visitor is a new visitor's client, with connections of its own.
func (p *Platform) Visitor() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", p.Config.EdgeAddress())
			},
			DisableCompression:  true,
			MaxIdleConnsPerHost: 256,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Up runs `leapcell up` again: what died is started, what runs is left alone.
func (p *Platform) Up(t testing.TB) {
	t.Helper()
	r := p.CLI(t, "up", "--no-sample")
	if r.Code != 0 {
		t.Fatalf("leapcell up: exit code %d\n%s", r.Code, r.Output)
	}
}

// Set changes settings of single parts, such as "leapcelld.builds=1", until the test ends: the parts
// whose settings they are begin anew, twice. No other test may run meanwhile.
func (p *Platform) Set(t testing.TB, settings ...string) {
	t.Helper()
	file := filepath.Join(p.Config.StateDir, "config.json")
	former, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context is over by now.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if err := errors.Join(os.WriteFile(file, former, 0o644), command(ctx, "up", "--state-dir", p.Config.StateDir, "--no-sample")); err != nil {
			t.Errorf("the settings are not what they were: %v", err)
		}
	})
	args := []string{"up", "--no-sample"}
	for _, one := range settings {
		args = append(args, "--set", one)
	}
	p.Must(t, args...)
}

// Result is what a command left.
type Result struct {
	Code   int
	Stdout string
	Output string // stdout and stderr, in order
}

// CLI runs bin/leapcell against this platform.
func (p *Platform) CLI(t testing.TB, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(p.Root, "bin", "leapcell"), append(args, "--state-dir", p.Config.StateDir)...)
	var stdout, all Following
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&stdout, &all), &all
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("leapcell %s: %v", strings.Join(args, " "), err)
	}
	return Result{cmd.ProcessState.ExitCode(), stdout.Output(), all.Output()}
}

// Following collects what a command prints, also while it goes on.
type Following struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write is called by several at a time: stdout and stderr.
func (f *Following) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.Write(b)
}

// Output is what the command printed so far.
func (f *Following) Output() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.String()
}

// Follow starts the CLI and does not wait for it. Ctrl-C ends it with the test.
func (p *Platform) Follow(t testing.TB, args ...string) *Following {
	t.Helper()
	f := &Following{}
	cmd := exec.Command(filepath.Join(p.Root, "bin", "leapcell"), append(args, "--state-dir", p.Config.StateDir)...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		_ = cmd.Wait()                       // by the signal
	})
	return f
}

// Must runs the CLI and fails the test unless it succeeds.
func (p *Platform) Must(t testing.TB, args ...string) string {
	t.Helper()
	r := p.CLI(t, args...)
	if r.Code != 0 {
		t.Fatalf("leapcell %s: exit code %d\n%s", strings.Join(args, " "), r.Code, r.Output)
	}
	return r.Stdout
}

// JSON runs the CLI with -o json and reads what it prints.
func (p *Platform) JSON(t testing.TB, out any, args ...string) {
	t.Helper()
	text := p.Must(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(text), out); err != nil {
		t.Fatalf("leapcell %s -o json printed no JSON: %v\n%s", strings.Join(args, " "), err, text)
	}
}
