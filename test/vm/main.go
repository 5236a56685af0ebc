// Vm runs the tests of the driver and the runtime contract in a virtual machine whose control
// groups are those of version 2 alone, as on nearly every machine today:
//
//	go run ./test/vm                     # the tests of driver/... and the clauses that depend on the kernel
//	go run ./test/vm -run .              # the driver's and all clauses
//	go run ./test/vm -jobs contract -run TestMust_CP4 -v
//	go run ./test/vm -jobs supervisor -tests TestHandover -count 20
//
// Debian's cloud kernel, fetched as a package and taken apart, starts on a disk made of the
// checkout, the programs in bin/ and those of this machine that tests call. Nothing is
// installed, no image is downloaded, and the machine has no network. It needs the Debian
// package qemu-system-x86 and no root. Where /dev/kvm does not work, the processor is
// emulated: everything takes some twenty times as long.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// config is what can be set.
type config struct {
	root     string // of the checkout
	cache    string // for what stays: the kernel
	run      string // the clauses
	tests    string // of the driver
	count    int    // runs of each
	jobs     string // whose names contain it
	json     string // a file for the results
	verbose  bool
	cpus     int
	memoryMB int
	limit    time.Duration // for all of it
	keep     bool          // the disk and what it was made of
}

// kernelClauses are the clauses that another kernel or version of control groups could break,
// and no more than an emulated processor manages in minutes.
const kernelClauses = `^TestMust_(CP|ID[12]|ID6_(Fork|Memory|OutOfMemory)|FS[345]|LI3|LC5)`

func main() {
	c := config{}
	flag.StringVar(&c.run, "run", kernelClauses, "the tests of the contract `whose names match`")
	flag.StringVar(&c.jobs, "jobs", "driver/,contract", "the jobs whose names contain one of these `words`, by commas: cell, gate, contract, e2e (the driver below Nomad alone) …")
	flag.StringVar(&c.tests, "tests", "", "the tests of the driver `whose names match`; all but long ones if not set")
	flag.IntVar(&c.count, "count", 1, "how often each test is run")
	flag.StringVar(&c.json, "json", "", "write the results to `file` as go test -json does, for test/clauses")
	flag.BoolVar(&c.verbose, "v", false, "show the output of all tests, not only that of failed ones")
	flag.IntVar(&c.cpus, "cpus", 2, "processors of the virtual machine")
	flag.IntVar(&c.memoryMB, "memory", 6144, "its memory in `MB`")
	flag.DurationVar(&c.limit, "limit", time.Hour, "when to give up, from the machine's start: what runs then says what it does, and is ended")
	flag.BoolVar(&c.keep, "keep", false, "leave the disk and the folder it was made of")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

// run is the whole: kernel, disk, machine, verdict.
func run(ctx context.Context, c config) error {
	begin := time.Now()
	if _, err := exec.LookPath(qemu); err != nil {
		return fmt.Errorf("%s is not on PATH: apt-get install --no-install-recommends qemu-system-x86", qemu)
	}
	var err error
	if c.root, err = checkout(ctx); err != nil {
		return err
	}
	c.cache = filepath.Join(c.root, ".cache", "vm")
	if err := os.MkdirAll(c.cache, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(c.cache, "run-")
	if err != nil {
		return err
	}
	if !c.keep {
		defer os.RemoveAll(work)
	}
	k, err := findKernel(ctx, c.cache)
	if err != nil {
		return err
	}
	m := machine{kernel: k, cpus: c.cpus, memoryMB: c.memoryMB, log: filepath.Join(c.cache, "console.log")}
	guest, err := buildGuest(ctx, c.root, work)
	if err != nil {
		return err
	}
	if m.initramfs, err = writeInitramfs(work, guest, k); err != nil {
		return err
	}
	accelerated := make(chan bool, 1)
	go func() { accelerated <- kvmWorks(ctx, m) }()
	jobs, err := makeDisk(ctx, c, work, guest)
	m.kvm = <-accelerated // also on failure: it uses the folder that is removed
	if err != nil {
		return err
	}
	m.disk = filepath.Join(work, "disk.img")
	fmt.Printf("vm: %s, %s, %d jobs, prepared in %s\n", k.version, m.processor(), len(jobs), time.Since(begin).Round(time.Second))
	out, err := os.Create(filepath.Join(c.cache, "output.log"))
	if err != nil {
		return err
	}
	defer out.Close()
	r := &report{verbose: c.verbose, log: out, expected: len(jobs)}
	said := &bytes.Buffer{}
	if c.json != "" {
		r.results = said
	}
	// The machine ends its jobs itself in time; one that does not is stuck.
	limited, cancel := context.WithTimeout(ctx, c.limit+time.Minute)
	defer cancel()
	err = errors.Join(m.boot(limited, r), r.verdict())
	if c.json != "" {
		err = errors.Join(err, writeResults(ctx, c.json, said))
	}
	fmt.Printf("vm: %s in all; the output is in %s, the console's in %s\n", time.Since(begin).Round(time.Second), out.Name(), m.log)
	return err
}

// writeResults writes what tests said as events.
func writeResults(ctx context.Context, name string, said io.Reader) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = said, f, os.Stderr
	return errors.Join(cmd.Run(), f.Close())
}

// checkout is the folder of the module that this is run in.
func checkout(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// goStatic runs the Go command in dir for programs that need nothing of the machine they run on.
func goStatic(ctx context.Context, dir string, args ...string) error {
	return goRun(ctx, dir, []string{"CGO_ENABLED=0"}, args...)
}

// goRun runs the Go command in dir with more environment.
func goRun(ctx context.Context, dir string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func buildGuest(ctx context.Context, root, work string) (string, error) {
	guest := filepath.Join(work, "guest")
	return guest, goStatic(ctx, root, "build", "-ldflags", "-s -w", "-o", guest, "./test/vm/guest")
}
