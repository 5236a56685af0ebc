// Command leapcell-edge is what visitors reach: Traefik with the wake middleware.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// ballast is address space that is never touched, so that it takes no memory. The collector
// runs when the heap has doubled, an edge keeps a few MB, and each request leaves some KB: it
// would run every 800 requests, to look through all of Traefik's globals. With this it runs
// every 6,000, and the edge has at most 32 MB of garbage more, however large its tables are.
var ballast = make([]byte, 32<<20)

func main() {
	defer runtime.KeepAlive(ballast)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "leapcell-edge:", err)
		os.Exit(1)
	}
}
