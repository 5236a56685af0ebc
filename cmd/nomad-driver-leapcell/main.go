// Command nomad-driver-leapcell is the Nomad task driver: without arguments the plugin that
// the Nomad agent starts, with "supervisor" the process that runs a node's instances, with
// "destroy" what removes everything of a platform from a machine.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nomad-driver-leapcell:", err)
		os.Exit(1)
	}
}
