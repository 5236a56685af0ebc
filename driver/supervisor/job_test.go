package supervisor

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"time"

	"github.com/leapcell/leapcell"
)

func TestVariablesOfTheJob(t *testing.T) {
	n := newNode(t, serves(hello))
	n.options.Envs = fakeEnvs{values: map[string]string{"SEALED": "wins"}}
	n.restart()
	req := n.request(leapcell.TaskServerless)
	req.Env = map[string]string{"OF_THE_JOB": "only in memory", "SEALED": "loses", "PORT": "1", "HOME": "/data"}
	req.Config.Service = "My Shop/é"
	n.start(req)
	get(t, req.Address)
	c := n.cells.last()
	for _, want := range []string{"OF_THE_JOB=only in memory", "SEALED=wins", "HOME=/data"} {
		if !slices.Contains(c.cfg.Env, want) {
			t.Errorf("%s is not in %q", want, c.cfg.Env)
		}
	}
	if c.env("PORT") == "1" || c.cfg.Hostname != "My-Shop" {
		t.Errorf("PORT is %s, the host name %q", c.env("PORT"), c.cfg.Hostname)
	}
	b, err := os.ReadFile(n.records.file(req.cellID()))
	if err != nil || strings.Contains(string(b), "only in memory") {
		t.Errorf("the record is %s, %v", b, err)
	}
	if err := n.Stop(req.ID, 20*time.Second, unix.SIGTERM); err != nil {
		t.Error(err)
	}
}
