package leapcell

import (
	"slices"
	"strings"
	"time"
)

// Plan is what a workspace may use. All of it is the operator's to set; of numbers a day, 0
// means that there is no limit.
type Plan struct {
	Name string `json:"name"`

	BuildCPUs     int      `json:"buildCPUs"` // whole cores of one build
	BuildMemoryMB int      `json:"buildMemoryMB"`
	BuildDiskMB   int      `json:"buildDiskMB"` // what a build may write
	BuildTimeout  Duration `json:"buildTimeout"`
	Builds        int      `json:"builds"`  // at the same time
	CacheMB       int      `json:"cacheMB"` // of dependencies, for each service on a node

	DeploymentsPerDay int `json:"deploymentsPerDay"` // that somebody asked for
	AutomaticPerDay   int `json:"automaticPerDay"`   // that a push made

	ImageMB    int `json:"imageMB"`    // of one image, with its base
	ImagesKept int `json:"imagesKept"` // for rollback
}

// Plans are the contract's.
func Plans() []Plan {
	return []Plan{
		{
			Name: "hobby", BuildCPUs: 2, BuildMemoryMB: 4096, BuildDiskMB: 20 << 10, BuildTimeout: Duration(10 * time.Minute), Builds: 1, CacheMB: 5 << 10,
			DeploymentsPerDay: 100, AutomaticPerDay: 10, ImageMB: 10 << 10, ImagesKept: 3,
		},
		{
			Name: "pro", BuildCPUs: 4, BuildMemoryMB: 10 << 10, BuildDiskMB: 40 << 10, BuildTimeout: Duration(30 * time.Minute), Builds: 3, CacheMB: 20 << 10,
			DeploymentsPerDay: 0, AutomaticPerDay: 600, ImageMB: 10 << 10, ImagesKept: 20,
		},
	}
}

// PlanOf gives the plan of that name; the error lists the known.
func PlanOf(name string) (Plan, error) {
	all := Plans()
	i := slices.IndexFunc(all, func(p Plan) bool { return p.Name == name })
	if i < 0 {
		names := make([]string, len(all))
		for i, p := range all {
			names[i] = p.Name
		}
		return Plan{}, Errorf(CodeInvalid, "the plan %q is not known; the known ones are %s", name, strings.Join(names, ", "))
	}
	return all[i], nil
}

// Validate says what cannot be.
func (p Plan) Validate() error {
	for _, least := range []struct {
		name     string
		is, must int
	}{
		{"build-cpus", p.BuildCPUs, 1}, {"build-memory", p.BuildMemoryMB, 128}, {"build-disk", p.BuildDiskMB, 64}, {"builds", p.Builds, 1},
		{"cache-limit", p.CacheMB, 64}, {"deployments-per-day", p.DeploymentsPerDay, 0}, {"automatic-per-day", p.AutomaticPerDay, 0},
		{"image-limit", p.ImageMB, 1}, {"images-kept", p.ImagesKept, 1},
	} {
		if least.is < least.must {
			return Errorf(CodeInvalid, "%s is %d: it must be at least %d", least.name, least.is, least.must)
		}
	}
	if time.Duration(p.BuildTimeout) < time.Second {
		return Errorf(CodeInvalid, "build-timeout is %s: it must be at least 1s", p.BuildTimeout)
	}
	return nil
}

// Automatic reports whether nobody asked for the deployment: a push did.
func (o Origin) Automatic() bool { return o.Trigger == Push || o.Trigger == Change }

// PerDay is how many deployments of the kind of o the plan allows in 24 hours; 0 is no limit.
func (p Plan) PerDay(o Origin) int {
	if o.Automatic() {
		return p.AutomaticPerDay
	}
	return p.DeploymentsPerDay
}
