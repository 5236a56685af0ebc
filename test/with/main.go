// With runs a command beside a platform that lives as long as the command does:
//
//	go run ./test/with go test -count=1 -p 1 ./test/contract ./test/e2e
//	go run ./test/with -bases go test …      makes the base images meanwhile that none is kept of
//
// The command finds the platform by LEAPCELL_TEST_STATE. The exit code is the command's, or
// 1 when the platform did not come up or left something behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/leapcell/leapcell/test/harness"
)

func main() {
	bases := flag.Bool("bases", false, "make base images beside the command")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, *bases, flag.Args())
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		fmt.Fprintln(os.Stderr, "with:", err)
		os.Exit(max(1, exit.ExitCode()))
	case err != nil:
		fmt.Fprintln(os.Stderr, "with:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bases bool, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: with [-bases] command [argument…]")
	}
	p, release, err := harness.Acquire(ctx)
	if err != nil {
		return err
	}
	stop := func() {}
	if bases {
		stop = p.MakeBases(ctx)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "LEAPCELL_TEST_STATE="+p.Config.StateDir)
	err = cmd.Run()
	stop()
	return errors.Join(err, release())
}
