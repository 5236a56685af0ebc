package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins"

	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/plugin"
	"github.com/leapcell/leapcell/driver/supervisor"
)

// run chooses by the first argument.
func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return servePlugin()
	}
	switch args[1] {
	case "supervisor":
		return runSupervisor(ctx, args[2:])
	case "destroy":
		return runDestroy(ctx, args[2:])
	case "version":
		fmt.Println(supervisor.Version)
		return nil
	}
	return fmt.Errorf("there is no command %q: supervisor, destroy or version (none: the plugin, for the Nomad agent)", args[1])
}

func servePlugin() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	plugins.Serve(func(log hclog.Logger) any { return plugin.New(program, log) })
	return nil
}

func runSupervisor(ctx context.Context, args []string) error {
	if err := cell.Seal(); err != nil {
		fmt.Fprintln(os.Stderr, err) // the runtime that needs it refuses to start
	}
	flags := flag.NewFlagSet("supervisor", flag.ContinueOnError)
	file := flags.String("config", "", "settings, as the plugin writes them")
	takeOver := flags.Bool("take-over", false, "take the tasks of the running supervisor")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *file == "" {
		return fmt.Errorf("supervisor: --config is missing")
	}
	cfg, err := supervisor.ReadConfig(*file)
	if err != nil {
		return err
	}
	cfg.TakeOver = *takeOver
	return supervisor.Run(ctx, cfg)
}

func runDestroy(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("destroy", flag.ContinueOnError)
	dir := flags.String("state-dir", "", "the platform's state folder")
	name := flags.String("name", "", "the platform's name (default: derived from the folder)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return fmt.Errorf("destroy: --state-dir is missing")
	}
	abs, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	cfg, err := supervisor.Config{StateDir: abs, Name: *name}.WithDefaults()
	if err != nil {
		return err
	}
	return supervisor.Destroy(ctx, cfg)
}
