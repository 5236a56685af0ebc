// Probe is the app that the contract tests deploy: it reports what an instance sees and
// does what a test asks it to.
//
// Its start is steered by the environment:
//
//	LISTEN_ADDR   host to listen on: 0.0.0.0 (default), 127.0.0.1 or [::]
//	LISTEN_DELAY  a duration to wait before it listens
//	EARLY_CLOSE   a duration in which it accepts connections and closes them unanswered
//	NO_LISTEN     if set, it never listens
//	EXIT_CODE     if set, it writes EXIT_STDERR to stderr and exits at once
//	PROBE_STATUS  the status it answers /kaithhealth with; 404 by default
//	PROBE_HTTP    versions of HTTP that it speaks: 1 (default), 2 or both
//	TERM_IGNORE   if set, SIGTERM is logged but not obeyed
//
// With the argument "child" it only waits for SIGTERM and logs it.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// life is what the app remembers of its own start and of the connections it got.
type life struct {
	mu         sync.Mutex
	StartedAt  int64   `json:"startedAt"`  // unix nanoseconds
	ListenedAt int64   `json:"listenedAt"` // when the socket was bound
	ServedAt   int64   `json:"servedAt"`   // when it began to answer
	Early      []int64 `json:"early"`      // connections closed before that
	Probes     []probe `json:"probes"`
	FirstAt    int64   `json:"firstAt"` // the first request that was not a probe
}

type probe struct {
	At     int64  `json:"at"`
	Remote string `json:"remote"`
	Host   string `json:"host"`
	Method string `json:"method"`
}

var (
	me       = &life{StartedAt: time.Now().UnixNano()}
	inFlight atomic.Int64
	ticks    atomic.Int64 // of the background thread, one each millisecond at most
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		child()
		return
	}
	if code := os.Getenv("EXIT_CODE"); code != "" {
		fmt.Fprintln(os.Stderr, os.Getenv("EXIT_STDERR"))
		n, _ := strconv.Atoi(code)
		os.Exit(n)
	}
	if os.Getenv("NO_LISTEN") != "" {
		fmt.Println("probe: never going to listen")
		waitForTerm()
		return
	}
	time.Sleep(duration("LISTEN_DELAY"))
	ln := listen()
	closeEarly(ln)
	serve(ln)
}

func child() {
	fmt.Println("probe: child waits")
	waitForTerm()
	fmt.Println("probe: child term")
}

func waitForTerm() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	<-c
}

func duration(env string) time.Duration {
	d, _ := time.ParseDuration(os.Getenv(env))
	return d
}

func listen() *net.TCPListener {
	host := os.Getenv("LISTEN_ADDR")
	if host == "" {
		host = "0.0.0.0"
	}
	network := "tcp4" // "tcp" would take 0.0.0.0 for all of IPv6 as well
	if strings.HasPrefix(host, "[") {
		network = "tcp"
	}
	ln, err := net.Listen(network, net.JoinHostPort(strings.Trim(host, "[]"), os.Getenv("PORT")))
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
	me.ListenedAt = time.Now().UnixNano()
	return ln.(*net.TCPListener)
}

// closeEarly plays an app whose port is open before it can speak HTTP.
func closeEarly(ln *net.TCPListener) {
	d := duration("EARLY_CLOSE")
	if d == 0 {
		return
	}
	_ = ln.SetDeadline(time.Now().Add(d))
	for {
		conn, err := ln.Accept()
		if err != nil {
			break
		}
		me.Early = append(me.Early, time.Now().UnixNano())
		_ = conn.Close()
	}
	_ = ln.SetDeadline(time.Time{})
}

func serve(ln net.Listener) {
	server := &http.Server{Handler: handler(), MaxHeaderBytes: 1 << 20}
	speak(server)
	done := make(chan struct{})
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		defer close(done)
		for range term {
			fmt.Printf("probe: term inflight=%d at=%d\n", inFlight.Load(), time.Now().UnixNano())
			if os.Getenv("TERM_IGNORE") == "" {
				_ = server.Shutdown(context.Background())
				return
			}
		}
	}()
	go func() {
		for {
			time.Sleep(time.Millisecond)
			ticks.Add(1)
		}
	}()
	me.ServedAt = time.Now().UnixNano()
	fmt.Printf("probe: listening on %s pid=%d\n", ln.Addr(), os.Getpid())
	if err := server.Serve(ln); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
	<-done
}
