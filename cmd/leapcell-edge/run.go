package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/leapcell/leapcell/traefik/edge"
)

// run reads the settings and serves until ctx ends. Each flag can also be set by the
// environment: --nomad-addr is LEAPCELL_NOMAD_ADDR. The flag wins.
func run(ctx context.Context, args []string, env func(string) string, stderr io.Writer) error {
	cfg, err := settings(args, env, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	return edge.Run(ctx, cfg)
}

func settings(args []string, env func(string) string, stderr io.Writer) (edge.Config, error) {
	hostname, _ := os.Hostname() // without one, Validate asks for --id
	var cfg edge.Config
	var nomadTokenFile, apiTokenFile, level, jobNamespaces, apis string
	flags := flag.NewFlagSet("leapcell-edge", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&cfg.Listen, "listen", "127.0.0.1:8080", "address for visitors")
	flags.StringVar(&cfg.AdminListen, "admin-listen", "", "address for /ping and /metrics, such as 127.0.0.1:8081 (default off)")
	flags.StringVar(&cfg.NomadAddr, "nomad-addr", "http://127.0.0.1:4646", "address of Nomad")
	flags.StringVar(&nomadTokenFile, "nomad-token-file", "", "file with the Nomad token")
	flags.StringVar(&cfg.NomadNamespace, "nomad-namespace", "leapcell", "Nomad namespace of the services")
	flags.StringVar(&jobNamespaces, "job-namespaces", "", "Nomad namespaces, with commas between, of jobs that the platform did not deploy and that ask for the edge in their meta (default none)")
	flags.StringVar(&apis, "api-addr", "", "address of the API that load is reported to; with commas between, those of all control planes (default nowhere)")
	flags.StringVar(&apiTokenFile, "api-token-file", "", "file with the token for the API")
	flags.StringVar(&cfg.ID, "id", hostname, "name of this edge in reports")
	flags.StringVar(&cfg.DataDir, "data-dir", "", "folder for the default certificate and for static files")
	cache := flags.Int64("static-cache", 2048, "MB of static files that are kept on disk")
	flags.StringVar(&cfg.AccessLog, "access-log", "", "file for the access log, - for standard output (default none)")
	flags.IntVar(&cfg.MetricsServices, "metrics-services", 100, "services with a label of their own in /metrics; the others share one")
	flags.DurationVar(&cfg.Drain, "drain-timeout", 30*time.Second, "how long requests may take to end when the edge stops")
	flags.StringVar(&level, "log-level", "info", "debug, info, warn or error")

	var bad error
	flags.VisitAll(func(f *flag.Flag) {
		name := "LEAPCELL_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := env(name); v != "" {
			if err := f.Value.Set(v); err != nil {
				bad = errors.Join(bad, fmt.Errorf("%s is %q: %w", name, v, err))
			}
		}
	})
	if bad != nil {
		return cfg, bad
	}
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	if flags.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q: all settings are flags", flags.Arg(0))
	}

	if *cache < 1 {
		return cfg, fmt.Errorf("--static-cache is %d: it must be at least 1 MB", *cache)
	}
	cfg.StaticBytes = *cache << 20

	var lvl slog.Level
	if err := lvl.UnmarshalText([]byte(level)); err != nil {
		return cfg, fmt.Errorf("--log-level is %q: it must be debug, info, warn or error", level)
	}
	cfg.Log = slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: lvl}))
	cfg.JobNamespaces = split(jobNamespaces)
	cfg.Traces = traces(env)
	var err error
	if cfg.APIAddrs, err = apiAddresses(apis); err != nil {
		return cfg, err
	}
	if cfg.NomadToken, err = token("--nomad-token-file", nomadTokenFile); err != nil {
		return cfg, err
	}
	cfg.APIToken, err = token("--api-token-file", apiTokenFile)
	return cfg, err
}

// traces says by which protocol spans are sent, "" for not at all: they are when the
// environment names where to, in the way of every program that uses OpenTelemetry.
// https://opentelemetry.io/docs/specs/otel/protocol/exporter/
func traces(env func(string) string) string {
	switch {
	case strings.EqualFold(env("OTEL_SDK_DISABLED"), "true"), env("OTEL_TRACES_EXPORTER") == "none":
		return ""
	case env("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "":
		return ""
	}
	return cmp.Or(env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), env("OTEL_EXPORTER_OTLP_PROTOCOL"), "http/protobuf")
}

// apiAddresses are those of the list, each once.
func apiAddresses(list string) ([]string, error) {
	all := split(list)
	for i, one := range all {
		u, err := url.Parse(one)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("--api-addr has %q: it must be like http://127.0.0.1:8400", one)
		}
		all[i] = strings.TrimRight(one, "/")
	}
	return slices.Compact(all), nil
}

// split gives what is in a list, each once.
func split(list string) []string {
	out := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
	slices.Sort(out)
	return slices.Compact(out)
}

func token(name, file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}
