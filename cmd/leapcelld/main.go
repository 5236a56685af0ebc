// Command leapcelld is the control plane: the API, the deployer, the scaler and the
// embedded registry. run.go plugs them together.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "leapcelld:", err)
		os.Exit(1)
	}
}
