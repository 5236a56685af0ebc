package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/leapcell/leapcell/test/vm/wire"
)

// driverLimit is for one package on an emulated processor, so that one that hangs leaves time for
// the others.
const driverLimit = 15 * time.Minute

// tests compiles the tests and says how to run them: packages of the driver one by one, then
// the driver below a real Nomad, then the contract on a whole platform.
func (t *tree) tests(ctx context.Context, c config) ([]wire.Job, error) {
	list := exec.CommandContext(ctx, "go", "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}", "./driver/...")
	list.Dir = c.root
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	limit := min(c.limit, time.Duration(c.count)*driverLimit)
	var jobs []wire.Job
	for dir := range strings.FieldsSeq(string(out)) {
		rel, err := filepath.Rel(c.root, dir)
		if err != nil {
			return nil, err
		}
		if rel != "driver" {
			jobs = append(jobs, job(c, rel, dir, limit, "-test.short", "-test.run="+c.tests))
		}
	}
	e2e := job(c, "driver e2e", filepath.Join(c.root, "driver"), limit)
	e2e.Env = append(e2e.Env, "NOMAD_BIN="+filepath.Join(c.root, "bin", "nomad"))
	contract := job(c, "contract", filepath.Join(c.root, "test", "contract"), c.limit, "-test.run="+c.run)
	// Its folder stays: should tests fail, the logs in it are shown.
	contract.Env = append(contract.Env, "LEAPCELL_TEST_KEEP=1", "LEAPCELL_TEST_LAUNCHER="+os.Getenv("LEAPCELL_TEST_LAUNCHER"))
	contract.Platform, e2e.Platform = true, true
	jobs = slices.DeleteFunc(append(jobs, e2e, contract), func(j wire.Job) bool { return !c.wants(j.Name) })
	if len(jobs) == 0 {
		return nil, fmt.Errorf("there are no jobs of the name %q", c.jobs)
	}
	for _, j := range jobs {
		// As the platform's own programs are compiled, which spares a second compilation of all that they share.
		program := t.inside(j.Args[0])
		if err := goRun(ctx, j.Dir, nil, "test", "-c", "-tags", "e2e", "-ldflags", "-s -w", "-o", program, "."); err != nil {
			return nil, err
		}
		if err := t.libraries(program); err != nil {
			return nil, err
		}
	}
	return jobs, nil
}

// job runs the tests of the package in dir.
func job(c config, name, dir string, limit time.Duration, args ...string) wire.Job {
	program := wire.Dir + "/tests/" + strings.NewReplacer("/", "-", " ", "-").Replace(name)
	// The test's own limit comes first: it names the test.
	args = append([]string{program, "-test.v=test2json", fmt.Sprintf("-test.count=%d", c.count), "-test.timeout=" + (limit - 15*time.Second).String()}, args...)
	// There is more memory than processor.
	return wire.Job{Name: name, Dir: dir, Args: args, Env: []string{"GOTRACEBACK=all", "GOGC=400"}, Limit: limit}
}

func (c config) wants(job string) bool {
	return slices.ContainsFunc(strings.Split(c.jobs, ","), func(word string) bool { return strings.Contains(job, word) })
}
