package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/client"
	"github.com/leapcell/leapcell/internal/ports"
)

func noEnv(string) string { return "" }

func freeAddress(t *testing.T) string {
	t.Helper()
	port, err := ports.Free(1, ports.ForPrograms)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// start runs leapcelld on dir, with a Nomad and a Vault that are not there, and gives a
// client of it and what stops it.
func start(t *testing.T, dir string, more ...string) (c *client.Client, stop func()) {
	t.Helper()
	away := "http://" + freeAddress(t)
	args := []string{"--data-dir", dir, "--listen", "127.0.0.1:0", "--registry-listen", freeAddress(t), "--nomad-addr", away, "--vault-addr", away}
	args = append(args, more...)
	out, in := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, args, noEnv, in)
		_ = in.Close()
		ended <- err
	}()
	up := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var line struct{ Msg, API string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "leapcelld is up" {
				up <- line.API
			}
		}
		close(up)
	}()
	address, ok := <-up
	if !ok {
		t.Fatalf("leapcelld ended at its start: %v", <-ended)
	}
	token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	return client.New(address, strings.TrimSpace(string(token))), func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("leapcelld ended with %v", err)
		}
	}
}

// TestUpWithoutNomadAndVault: it starts, says what is missing, keeps what it is given, and
// has it after a restart.
func TestUpWithoutNomadAndVault(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "control")
	c, stop := start(t, dir)
	ctx := t.Context()
	h, err := c.Health(ctx)
	if err != nil || h.OK() || h["store"] != "ok" || h["registry"] != "ok" ||
		!strings.Contains(h["nomad"], "does not answer") || !strings.Contains(h["vault"], "does not answer") {
		t.Errorf("health is %v, %v", h, err)
	}
	svc, err := c.CreateService(ctx, "python", leapcell.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetEnv(ctx, "python", map[string]string{"A": "v"}, nil); leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
		t.Errorf("setting a variable without Vault: %v", err)
	}
	if err := run(ctx, []string{"--data-dir", dir}, noEnv, io.Discard); err == nil || !strings.Contains(err.Error(), "another leapcelld") {
		t.Errorf("a second one in the same folder: %v", err)
	}
	for _, file := range []string{"admin.token", "edge.token", "registry.json", "leapcell.db"} {
		info, err := os.Stat(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if file != "leapcell.db" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", file, info.Mode())
		}
	}
	stop()
	before, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	c, stop = start(t, dir)
	defer stop()
	if got, err := c.Service(ctx, "python"); err != nil || got.ID != svc.ID {
		t.Errorf("after a restart: %+v, %v", got, err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "admin.token")); string(after) != string(before) {
		t.Error("the admin token changed")
	}
}

func TestEdgeTokenFromOutside(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "edge.token"), []byte("given-by-the-operator\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, stop := start(t, dir)
	defer stop()
	edge := client.New(c.Address(), "given-by-the-operator")
	if err := edge.Report(t.Context(), leapcell.EdgeReport{Edge: "e1"}); err != nil {
		t.Error(err)
	}
	if _, err := edge.Services(t.Context()); leapcell.ErrorCode(err) != leapcell.CodeForbidden {
		t.Errorf("an edge lists services: %v", err)
	}
}

func TestReadConfig(t *testing.T) {
	env := map[string]string{"LEAPCELL_NOMAD_ADDR": "http://env:1", "LEAPCELL_UPLOAD_LIMIT": "2KB", "LEAPCELL_LOG_LEVEL": "debug"}
	c, err := readConfig([]string{"--nomad-addr", "http://flag:1", "--registry-listen", "127.0.0.1:9"}, func(k string) string { return env[k] }, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.NomadAddr != "http://flag:1" || c.UploadLimit != 2048 || c.LogLevel.String() != "DEBUG" || c.RegistryAddress != "127.0.0.1:9" || c.EdgeTokenFile != c.path("edge.token") {
		t.Errorf("read %+v", c)
	}
	for want, args := range map[string][]string{
		"unexpected argument": {"up"},
		"--listen":            {"--listen", "8400"},
		"--nomad-namespace":   {"--nomad-namespace", ""},
		"not a size":          {"--upload-limit", "lots"},
		"--builds":            {"--builds", "0"},
		"--build-timeout":     {"--build-timeout", "1ms"},
		"known ones are":      {"--plan", "gold"},
		"flag provided but":   {"--no-such-flag"},
		"log-level":           {"--log-level", "loud"},
	} {
		if _, err := readConfig(args, noEnv, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	if _, err := readConfig(nil, func(k string) string { return map[string]string{"LEAPCELL_BUILDS": "x"}[k] }, io.Discard); err == nil || !strings.Contains(err.Error(), "LEAPCELL_BUILDS") {
		t.Errorf("a bad variable: %v", err)
	}
	if _, err := readConfig([]string{"-h"}, noEnv, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help: %v", err)
	}
}

// The plan is the default of the flags for single limits, wherever it stands.
func TestPlanFlags(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		env  map[string]string
	}{
		"flag":     {[]string{"--builds", "7", "--plan", "pro"}, nil},
		"equals":   {[]string{"-builds=7", "-plan=pro"}, nil},
		"variable": {[]string{"--builds=7"}, map[string]string{"LEAPCELL_PLAN": "pro"}},
		"both":     {nil, map[string]string{"LEAPCELL_PLAN": "pro", "LEAPCELL_BUILDS": "7"}},
		"over it":  {[]string{"--builds=7", "--plan=pro"}, map[string]string{"LEAPCELL_PLAN": "hobby"}},
	} {
		c, err := readConfig(test.args, func(k string) string { return test.env[k] }, io.Discard)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, _ := leapcell.PlanOf("pro")
		want.Builds = 7
		if c.Plan != want {
			t.Errorf("%s: %+v", name, c.Plan)
		}
	}
	c, err := readConfig(nil, noEnv, io.Discard)
	if hobby, _ := leapcell.PlanOf("hobby"); err != nil || c.Plan != hobby {
		t.Errorf("by default: %+v, %v", c.Plan, err)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{"100MB": 100 << 20, "1 gb": 1 << 30, "2KB": 2048, "17": 17} {
		var s size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%q is %d, %v", text, s, err)
		}
		var again size
		if err := again.Set(s.String()); err != nil || again != s {
			t.Errorf("%q is written as %s", text, s.String())
		}
	}
}

func FuzzSize(f *testing.F) {
	f.Add("100MB")
	f.Fuzz(func(t *testing.T, text string) {
		var s size
		if s.Set(text) == nil && s < 1 {
			t.Errorf("%q is %d", text, s)
		}
	})
}

func TestMetricsOfTheControlPlane(t *testing.T) {
	admin := freeAddress(t)
	c, stop := start(t, filepath.Join(t.TempDir(), "control"), "--admin-listen", admin)
	defer stop()
	if _, err := c.Services(t.Context()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the scrape got %s, %v", resp.Status, err)
	}
	for _, line := range []string{`leapcelld_api_requests_total{code="2xx",route="/v1/services"} 1`, "leapcelld_scaler_leading 0", "leapcelld_scaler_edges 0"} {
		if !strings.Contains(string(body), "\n"+line+"\n") {
			t.Errorf("the scrape has no line %s:\n%s", line, body)
		}
	}
}
