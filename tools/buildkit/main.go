package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/moby/buildkit/util/bklog"
)

// Where the supervisor puts things in the sandbox.
const (
	socketPath  = "/.leapcell/socket"
	statePath   = "/.leapcell/state" // BuildKit's: kept for the next build of the service
	outPath     = "/.leapcell/out"   // the result
	contextPath = "/app"             // the source
	self        = "/proc/self/exe"
)

// Users of the build are these on the host: nobody's. firstID is root's.
const (
	firstID = 0x4C430000
	userIDs = 1 << 16
)

func main() {
	stage := ""
	if len(os.Args) > 1 {
		stage = os.Args[1]
	}
	switch stage {
	case "version":
		fmt.Println("leapcell-build " + version())
	case "":
		os.Exit(outside())
	case "inside":
		os.Exit(inside())
	case "step":
		os.Exit(step()) // returns only when it fails
	default:
		fmt.Fprintln(os.Stderr, "leapcell-build runs in the sandbox of a Dockerfile build: it takes no arguments but \"version\"")
		os.Exit(2)
	}
}

// outside makes the user namespace.
func outside() int {
	cmd := exec.Command(self, "inside")
	cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdout, os.Stderr, os.Environ()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstID, Size: userIDs}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		fmt.Printf("leapcell: this node lets no build make a user namespace, which Dockerfiles need: %v\n", err)
		return 1
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	}
	fmt.Printf("leapcell: the Dockerfile build ended: %v\n", err)
	return 1
}

// inside is the build.
func inside() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	bklog.L.Logger.SetOutput(io.Discard) // what matters to the owner comes with errors
	hub := newHub(socketPath)
	order, err := hub.order(ctx)
	if err == nil {
		err = build(ctx, hub, order)
	}
	if err == nil {
		return 0
	}
	f := failureOf(err, order)
	fmt.Print(f.text()) // the node says the message
	if err := hub.fail(context.WithoutCancel(ctx), f); err != nil {
		fmt.Println("leapcell: the node did not hear of the failure:", err)
	}
	return f.code()
}
