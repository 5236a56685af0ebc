//go:build e2e

package driver_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell/driver/supervisor"
)

// TestPlainJob runs the example of the manual, with an image of its own by tag, as someone does who
// has a Nomad cluster and this driver and nothing else.
func TestPlainJob(t *testing.T) {
	r := newRig(t)
	r.image("hello") // also as hello:1
	text, err := os.ReadFile("../examples/plain.nomad.hcl")
	if err != nil {
		t.Fatal(err)
	}
	const published = `image = "docker.io/hashicorp/http-echo:1.0"`
	if strings.Count(string(text), published) != 1 {
		t.Fatalf("the example is not as it was: %s", text)
	}
	hcl := strings.Replace(string(text), published, `image = "`+r.registry+`/hello:1"`, 1)
	hcl = strings.Replace(hcl, `driver = "leapcell"`, "driver = \"leapcell\"\n env { GREETING = \"from the job\" }", 1)
	alloc := r.runHCL(hcl)
	at := address(alloc)

	status, body, header := r.visit(at, "/")
	if status != 200 || body != "hello from 1" {
		t.Fatalf("%d %q %v", status, body, header)
	}
	_, body, _ = r.visit(at, "/env")
	env := strings.Split(body, "\n")
	for _, want := range []string{"GREETING=from the job", "PORT=5678", "LEAPCELL_SERVICE=hello", "LEAPCELL_MEMORY_MB=300", "LEAPCELL_MODE=serverless"} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is not in %q", want, env)
		}
	}
	if strings.Contains(body, "NOMAD_") {
		t.Errorf("the app sees the cluster: %q", body)
	}
	t.Run("suspends and resumes", func(t *testing.T) {
		r.untilSuspended(t, alloc)
		if status, _, _ := r.visit(at, "/"); status != 200 {
			t.Errorf("%d", status)
		}
	})
	t.Run("alloc exec", func(t *testing.T) { r.allocExec(t, alloc) })
	t.Run("alloc logs", func(t *testing.T) {
		if out := r.nomad(t, nil, "alloc", "logs", alloc.ID); out != "listening on 5678\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("stats", func(t *testing.T) {
		var got *api.AllocResourceUsage
		var err error
		r.until("figures", func() bool {
			got, err = r.client.Allocations().Stats(alloc, nil)
			return err != nil || got.ResourceUsage != nil && got.ResourceUsage.MemoryStats != nil && got.ResourceUsage.MemoryStats.Usage > 0
		})
		if err != nil || got.ResourceUsage.MemoryStats.MaxUsage < got.ResourceUsage.MemoryStats.Usage {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("stop", func(t *testing.T) {
		r.nomad(t, nil, "job", "stop", "-detach", "hello")
		r.until("end", func() bool {
			a, _, err := r.client.Allocations().Info(alloc.ID, nil)
			return err == nil && a.ClientStatus == "complete"
		})
		events := r.events(alloc.ID)
		for _, want := range []string{"image pulled in ", " MB: " + r.registry + "/hello@sha256:", "started in ", "suspended: no request for 20ms", "resumed by a request", "stopped"} {
			if !strings.Contains(events, want) {
				t.Errorf("%q is not among the events:\n%s", want, events)
			}
		}
	})
	t.Run("mistakes", func(t *testing.T) {
		for config, want := range map[string]string{
			"image = \"x:1\"\nimagee = 2":              `No argument or block type is named "imagee"`,
			"mode = \"slow\"\nimage = \"x:1\"":         `task config: mode is "slow": it must be serverless`,
			"image = \"x:1\"\nstart_timeout = \"ten\"": `task config: start_timeout is "ten": it must be a duration`,
		} {
			alloc := r.runHCL(strings.Replace(strings.Replace(hcl, `image = "`+r.registry+`/hello:1"`, "\n"+config+"\n", 1), `job "hello"`, `job "wrong"`, 1))
			r.until("an event that says: "+want, func() bool { return strings.Contains(r.events(alloc.ID), want) })
			r.nomad(t, nil, "job", "stop", "-detach", "-purge", "wrong")
			r.until("nothing of it", func() bool {
				list, _, err := r.client.Jobs().Allocations("wrong", true, nil)
				return err == nil && (len(list) == 0 || list[0].DesiredStatus == "stop")
			})
		}
	})
}

// runHCL registers a job and gives its newest allocation.
func (r *rig) runHCL(text string) *api.Allocation {
	r.t.Helper()
	job, err := r.client.Jobs().ParseHCL(text, true)
	if err != nil {
		r.t.Fatal(err)
	}
	answer, _, err := r.client.Jobs().Register(job, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	var alloc *api.Allocation
	r.until("an allocation of "+*job.ID, func() bool {
		list, _, err := r.client.Evaluations().Allocations(answer.EvalID, nil)
		if err != nil || len(list) == 0 {
			return false
		}
		alloc, _, err = r.client.Allocations().Info(list[0].ID, nil)
		return err == nil
	})
	return alloc
}

// nomad runs Nomad's own command line.
func (r *rig) nomad(t *testing.T, stdin []byte, args ...string) string {
	t.Helper()
	out, err := r.nomadErr(stdin, args...)
	if err != nil {
		t.Fatalf("nomad %q: %v\n%s", args, err, out)
	}
	return out
}

func (r *rig) nomadErr(stdin []byte, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv("NOMAD_BIN"), args...)
	cmd.Env = append(os.Environ(), "NOMAD_ADDR="+r.client.Address())
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *rig) untilSuspended(t *testing.T, alloc *api.Allocation) {
	c := supervisor.NewClient(r.node.Socket())
	defer c.Close()
	id := r.taskID(t, c, alloc)
	r.until("suspension", func() bool { s, err := c.Inspect(context.Background(), id); return err == nil && s.Gate.Suspended })
}

func (r *rig) allocExec(t *testing.T, alloc *api.Allocation) {
	r.untilSuspended(t, alloc)
	if out := r.nomad(t, nil, "alloc", "exec", "-t=false", "-i=false", alloc.ID, "id", "-u"); out != "1000\n" {
		t.Errorf("%q", out)
	}
	if out := r.nomad(t, []byte("typed\n"), "alloc", "exec", "-t=false", alloc.ID, "cat"); out != "typed\n" {
		t.Errorf("stdin and its end: %q", out)
	}
	out, err := r.nomadErr(nil, "alloc", "exec", "-t=false", "-i=false", alloc.ID, "sh", "-c", "echo $GREETING in $PWD; echo oh >&2; exit 7")
	if code := err.(*exec.ExitError).ExitCode(); code != 7 || !strings.Contains(out, "from the job in /app\n") || !strings.Contains(out, "oh\n") {
		t.Errorf("%d %q", code, out)
	}
	out, err = r.nomadErr(nil, "alloc", "exec", "-t=false", "-i=false", alloc.ID, "no-such-program")
	if code := err.(*exec.ExitError).ExitCode(); code != 127 || !strings.Contains(out, `the image has no program "no-such-program"`) {
		t.Errorf("%d %q", code, out)
	}
	r.untilSuspended(t, alloc) // again
}
