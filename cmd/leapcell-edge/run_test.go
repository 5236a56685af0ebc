package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"LEAPCELL_NOMAD_ADDR": "http://n:1", "LEAPCELL_LISTEN": ":1", "LEAPCELL_DRAIN_TIMEOUT": "3s"}
	cfg, err := settings([]string{"--listen", ":2", "--nomad-token-file", file, "--api-addr", "http://b,http://a/, http://a", "--job-namespaces", "web, default,web"},
		func(name string) string { return env[name] }, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][2]string{
		"the flag wins":  {cfg.Listen, ":2"},
		"environment":    {cfg.NomadAddr, "http://n:1"},
		"token":          {cfg.NomadToken, "secret"},
		"API addresses":  {strings.Join(cfg.APIAddrs, "+"), "http://a+http://b"},
		"drain":          {cfg.Drain.String(), "3s"},
		"namespace":      {cfg.NomadNamespace, "leapcell"},
		"job namespaces": {strings.Join(cfg.JobNamespaces, "+"), "default+web"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
		}
	}
}

func TestSettingsErrors(t *testing.T) {
	none := func(string) string { return "" }
	for want, args := range map[string][]string{
		"--nomad-token-file":  {"--nomad-token-file", "/does/not/exist"},
		"unexpected argument": {"serve"},
		"--log-level":         {"--log-level", "loud"},
		"--api-addr":          {"--api-addr", "http://a,127.0.0.1:8400"},
	} {
		if _, err := settings(args, none, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", args, err, want)
		}
	}
	bad := func(name string) string { return map[string]string{"LEAPCELL_DRAIN_TIMEOUT": "soon"}[name] }
	if _, err := settings(nil, bad, io.Discard); err == nil || !strings.Contains(err.Error(), "LEAPCELL_DRAIN_TIMEOUT") {
		t.Errorf("bad environment: %v", err)
	}
}

func TestTracesAreSentWhereTheEnvironmentSays(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want string
	}{
		{nil, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http/protobuf"},
		{map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, ""},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, ""},
	} {
		if got := traces(func(name string) string { return c.env[name] }); got != c.want {
			t.Errorf("%v: %q, want %q", c.env, got, c.want)
		}
	}
}
