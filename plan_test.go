package leapcell

import (
	"strings"
	"testing"
	"time"
)

func TestPlans(t *testing.T) {
	for _, p := range Plans() {
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if got, err := PlanOf(p.Name); err != nil || got != p {
			t.Errorf("%s: %+v, %v", p.Name, got, err)
		}
	}
	if _, err := PlanOf("gold"); ErrorCode(err) != CodeInvalid || !strings.Contains(ErrorMessage(err), "hobby, pro") {
		t.Errorf("error is %v", err)
	}
	hobby, _ := PlanOf("hobby")
	for trigger, want := range map[Trigger]int{Manual: 100, Redeploy: 100, "": 100, Push: 10, Change: 10} {
		if got := hobby.PerDay(Origin{Trigger: trigger}); got != want {
			t.Errorf("%q: %d a day, want %d", trigger, got, want)
		}
	}
	for name, change := range map[string]func(*Plan){
		"builds": func(p *Plan) { p.Builds = 0 }, "build-memory": func(p *Plan) { p.BuildMemoryMB = 127 },
		"build-timeout": func(p *Plan) { p.BuildTimeout = Duration(time.Millisecond) }, "deployments-per-day": func(p *Plan) { p.DeploymentsPerDay = -1 },
	} {
		p := hobby
		change(&p)
		if err := p.Validate(); err == nil || !strings.HasPrefix(err.Error(), name+" is ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
