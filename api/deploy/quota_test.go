package deploy

import (
	"strings"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
)

func TestQuota(t *testing.T) {
	w := newWorld(t)
	d := w.deployer(w.view(0, false), func(c *Config) {
		c.Plan = leapcell.Plans()[0]
		c.Plan.DeploymentsPerDay, c.Plan.AutomaticPerDay = 2, 1
	})
	submit := func(trigger leapcell.Trigger) error {
		_, err := d.Submit(t.Context(), w.svc["shop-x"], leapcell.Source{GitURL: "https://git.test/x"}, leapcell.Origin{Trigger: trigger}, nil)
		return err
	}
	for _, trigger := range []leapcell.Trigger{leapcell.Push, leapcell.Manual, leapcell.Redeploy} {
		if err := submit(trigger); err != nil {
			t.Fatalf("%s: %v", trigger, err)
		}
	}
	for trigger, kind := range map[leapcell.Trigger]string{leapcell.Manual: "2 deployments", leapcell.Change: "1 automatic deployments"} {
		err := submit(trigger)
		if leapcell.ErrorCode(err) != leapcell.CodeRateLimited || !strings.Contains(leapcell.ErrorMessage(err), kind+" in 24 hours, all that the plan hobby allows") {
			t.Errorf("%s: %v", trigger, err)
		}
	}
	d.done.Wait()
	// A day later there is room again.
	w.mu.Lock()
	for id, dep := range w.deps {
		dep.CreatedAt = dep.CreatedAt.Add(-day - time.Second)
		w.deps[id] = dep
	}
	w.mu.Unlock()
	for _, trigger := range []leapcell.Trigger{leapcell.Push, leapcell.Manual} {
		if err := submit(trigger); err != nil {
			t.Errorf("%s: %v", trigger, err)
		}
	}
	d.done.Wait()
}
