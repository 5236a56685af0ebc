package platform

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
)

func config(t *testing.T) Config {
	t.Helper()
	cfg, err := DefaultConfig(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestConfigIsRemembered(t *testing.T) {
	cfg := config(t)
	if _, known, err := LoadConfig(cfg.StateDir); known || err != nil {
		t.Fatalf("known %v, %v before it was stored", known, err)
	}
	cfg.Ports.Edge, cfg.Domain, cfg.AllowEgress = 9999, "apps.test", []string{"10.0.0.0/8"}
	if err := cfg.save(); err != nil {
		t.Fatal(err)
	}
	got, known, err := LoadConfig(cfg.StateDir)
	if !known || err != nil || got.Ports != cfg.Ports || got.Domain != "apps.test" || got.AllowEgress[0] != "10.0.0.0/8" || got.Name != cfg.Name {
		t.Errorf("known %v, %v: %+v", known, err, got)
	}
}

func TestDamagedConfigIsNamed(t *testing.T) {
	cfg := config(t)
	path := filepath.Join(cfg.StateDir, "config.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadConfig(cfg.StateDir); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("it says %v", err)
	}
}

func TestTwoPlatformsHaveTwoNames(t *testing.T) {
	a, b := config(t), config(t)
	if a.Name == b.Name || len(a.Name) != 6 {
		t.Errorf("names %q and %q", a.Name, b.Name)
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"API and Nomad have the same port": func(c *Config) { c.Ports.API = c.Ports.Nomad },
		"Vault port is 70000":              func(c *Config) { c.Ports.Vault = 70000 },
		"must be an absolute path":         func(c *Config) { c.StateDir = "x" },
		"one to six characters":            func(c *Config) { c.Name = "too-long" },
		`"nomad.x" belongs to no part`:     func(c *Config) { c.Set = map[string]string{"nomad.x": "1"} },
		"not a range":                      func(c *Config) { c.Ports.InstancesTo = 1 },
	} {
		cfg := config(t)
		change(&cfg)
		_, err := New(cfg)
		if err == nil || !strings.Contains(err.Error(), want) || leapcell.ErrorCode(err) != leapcell.CodeInvalid {
			t.Errorf("it says %v, want %q", err, want)
		}
	}
}

func TestFreePortsDiffer(t *testing.T) {
	ports, err := FreePorts()
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(t)
	cfg.Ports = ports
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func TestFindStateDirInAFolderAbove(t *testing.T) {
	top := t.TempDir()
	deep := filepath.Join(top, "a", "b")
	state := filepath.Join(top, DefaultStateDir)
	for _, dir := range []string{deep, state} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := FindStateDir(deep); ok {
		t.Error("a folder without a configuration is none of a platform")
	}
	if err := os.WriteFile(filepath.Join(state, "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, ok := FindStateDir(deep); !ok || got != state {
		t.Errorf("found %q %v, want %q", got, ok, state)
	}
}

func TestNomadConfigurationQuotes(t *testing.T) {
	p, err := New(config(t))
	if err != nil {
		t.Fatal(err)
	}
	got := string(p.nomadConfig(BuildSettings{
		Env: map[string]string{"A": `say "hi" to ${user}`}, Files: map[string]string{"/etc/x": "/host/x"},
	}))
	for _, want := range []string{`"A" = "say \"hi\" to $${user}"`, `"/etc/x" = "/host/x"`, `"driver.allowlist"     = "leapcell"`, `http = 4646`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in\n%s", want, got)
		}
	}
}

func TestSettingsOfSingleParts(t *testing.T) {
	cfg := config(t)
	cfg.Set = map[string]string{"leapcelld.builds": "2", "leapcell-edge.access-log": "-", "driver.suspend_after": "50ms"}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if args := p.controlDaemon().args; !slices.Contains(args, "--builds=2") || slices.Contains(args, "--access-log=-") {
		t.Errorf("leapcelld gets %q", args)
	}
	if args := p.edgeDaemon().args; !slices.Contains(args, "--access-log=-") {
		t.Errorf("leapcell-edge gets %q", args)
	}
	if got := p.driverConfig(BuildSettings{}); !strings.Contains(got, `suspend_after = "50ms"`) {
		t.Errorf("the driver gets\n%s", got)
	}
}

func TestNodesRequireSignatures(t *testing.T) {
	cfg := config(t)
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.driverConfig(BuildSettings{}); !strings.Contains(got, `verify = "require"`) || !strings.Contains(got, "verify_keys_file = \""+cfg.SigningKeysFile()+`"`) {
		t.Errorf("the driver gets\n%s", got)
	}
	p.cfg.Set = map[string]string{"driver.verify": "warn"}
	if got := p.driverConfig(BuildSettings{}); !strings.Contains(got, `verify = "warn"`) || strings.Contains(got, "require") {
		t.Errorf("the driver gets\n%s", got)
	}
	p.cfg.Set, p.base = nil, true
	if got := p.driverConfig(BuildSettings{}); strings.Contains(got, "verify") {
		t.Errorf("without a control plane nobody signs, but the driver gets\n%s", got)
	}
}

func TestPublicKeysOfAllVersions(t *testing.T) {
	version := func(text string) map[string]any { return map[string]any{"public_key": text} }
	data := map[string]any{
		"min_decryption_version": json.Number("2"),
		"keys":                   map[string]any{"1": version("old"), "2": version("two\n"), "3": version("three"), "10": version("ten")},
	}
	if got, err := publicKeys(data); err != nil || string(got) != "ten\nthree\ntwo\n" {
		t.Errorf("%q, %v", got, err)
	}
	data["keys"] = map[string]any{"3": "1700000000"} // of a symmetric key
	if _, err := publicKeys(data); err == nil {
		t.Error("a key without a public half was taken")
	}
}

func TestServerEnvironmentDropsForeignSettings(t *testing.T) {
	cfg := config(t)
	cfg.Environ = []string{"PATH=/bin", "VAULT_ADDR=http://x", "NOMAD_TOKEN=x", "AWS_CA_BUNDLE=/x", "CONSUL_HTTP_ADDR=x", "LEAPCELL_API=x", "HTTPS_PROXY=p"}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(p.serverEnv(), " "), "TMPDIR="+p.cfg.path("tmp")+" PATH=/bin HTTPS_PROXY=p"; got != want {
		t.Errorf("left %q", got)
	}
}

func TestStepsSayWhereTheyStopped(t *testing.T) {
	cfg := config(t)
	var out bytes.Buffer
	cfg.Out = &out
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	never := false
	err = p.steps(t.Context(), []Step{
		{Title: "One", Run: func(_ context.Context, note func(string, ...any)) error { note("half\nway"); return nil }},
		{Title: "Two", Log: "nomad", Run: func(context.Context, func(string, ...any)) error { return errors.New("the port is taken") }},
		{Title: "Three", Run: func(context.Context, func(string, ...any)) error { never = true; return nil }},
	})
	if never {
		t.Error("it went on after a failure")
	}
	for _, want := range []string{"Two: the port is taken", "leapcell up", cfg.LogFile("nomad")} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if got := out.String(); !strings.HasPrefix(got, "[1/3] One …\n        half\n        way\n        0.") || !strings.Contains(got, "[2/3] Two … failed after") {
		t.Errorf("progress was\n%s", got)
	}
}

func TestSecondUpAtATimeIsRefused(t *testing.T) {
	p, err := New(config(t))
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := p.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.lock(); leapcell.ErrorCode(err) != leapcell.CodeConflict {
		t.Errorf("the second one got %v", err)
	}
	unlock()
	if unlock, err = p.lock(); err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestDownOfNothing(t *testing.T) {
	cfg := config(t)
	cfg.StateDir = filepath.Join(cfg.StateDir, "none")
	var out bytes.Buffer
	cfg.Out = &out
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Down(t.Context(), true); err != nil || !strings.Contains(out.String(), "nothing to do") {
		t.Errorf("%v, %q", err, out.String())
	}
}

func TestStatusOfNothingSaysWhatToDo(t *testing.T) {
	p, err := New(config(t))
	if err != nil {
		t.Fatal(err)
	}
	r := p.Status(t.Context())
	if r.Healthy || len(r.Parts) != 4 {
		t.Fatalf("%+v", r)
	}
	for _, part := range r.Parts {
		if part.Running || part.Healthy || !strings.Contains(part.Advice, "leapcell up") {
			t.Errorf("%+v", part)
		}
	}
}

func TestMountPathsAreUnescaped(t *testing.T) {
	if got := unescapeMount(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("got %q", got)
	}
}

func TestRecentVersions(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]bool{
		"Nomad v1.11.3": true, "Nomad v1.10.0-beta": true, "Nomad v1.9.7": false, "Nomad v2.0.0": true, "Nomad": false,
	} {
		path := filepath.Join(dir, "nomad")
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+text+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, got := nomadTool.recent(t.Context(), path); got != want {
			t.Errorf("%q will do: %v, want %v", text, got, want)
		}
	}
	if _, ok := nomadTool.recent(t.Context(), filepath.Join(dir, "none")); ok {
		t.Error("a program that is not there will do")
	}
}

func TestTakenPortsAreNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := config(t)
	if cfg.Ports, err = FreePorts(); err != nil {
		t.Fatal(err)
	}
	cfg.Ports.API = l.Addr().(*net.TCPAddr).Port
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = p.checkPorts()
	if want := fmt.Sprintf("%d (API, --api-port)", cfg.Ports.API); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("it says %v, want %q", err, want)
	}
}

func TestStateFolderBehindALink(t *testing.T) {
	real := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	cfg, err := DefaultConfig(filepath.Join(link, "not", "yet"))
	if want := filepath.Join(real, "not", "yet"); err != nil || cfg.StateDir != want {
		t.Errorf("%q, %v; want %q", cfg.StateDir, err, want)
	}
}
