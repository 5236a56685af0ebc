package jobs

import (
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/leapcell/leapcell"
)

// Driver is the name of the task driver that runs every job made here.
const Driver = "leapcell"

// IdentityName and IdentityAudience are of the workload identity by which an instance logs
// in to Vault to open its environment.
const (
	IdentityName     = "vault_leapcell"
	IdentityAudience = "leapcell"
)

// Keys of the meta block of every job.
const (
	MetaService    = "leapcell_service"
	MetaServiceID  = "leapcell_service_id"
	MetaDeployment = "leapcell_deployment"
	MetaMode       = "leapcell_mode"
)

const (
	// cpuMHz is what the scheduler reckons with. It is small on purpose: the driver caps
	// the CPU by the memory size [CP1], and suspended instances use none.
	cpuMHz = 50
	// diskMB is reserved for the log files of an allocation.
	diskMB = 50
	// drainGrace is added to the request timeout, so that Nomad does not kill an instance
	// which still answers: it covers SIGTERM to SIGKILL [LI3] and some slack.
	drainGrace  = leapcell.StopGrace + 10*time.Second
	identityTTL = time.Hour
	// logFiles of logFileMB each are what the driver keeps of stdout and of stderr.
	logFiles, logFileMB = 2, 10
)

// ServiceSpec is what [Service] needs to know.
type ServiceSpec struct {
	Namespace  string
	Service    leapcell.Service
	Deployment leapcell.Deployment // with its Image
	Count      int
}

// Service is the job that runs a deployment. It is registered once and then only scaled:
// a change of any task field would make Nomad replace the allocations.
func Service(s ServiceSpec) *api.Job {
	set := s.Deployment.Settings
	config := leapcell.TaskConfig{
		Mode:           leapcell.TaskMode(set.Mode),
		Image:          s.Deployment.Image,
		Command:        set.StartCommand,
		Port:           set.Port,
		Service:        s.Service.Name,
		ServiceID:      s.Service.ID,
		Deployment:     s.Deployment.ID,
		EnvPath:        leapcell.EnvPrefix + s.Service.ID,
		Concurrency:    set.Concurrency,
		StartTimeout:   set.StartTimeout.String(),
		RequestTimeout: set.RequestTimeout.String(),
	}
	task := newTask(s.Service.ID, config, set.MemoryMB)
	task.KillTimeout = new(time.Duration(set.RequestTimeout) + drainGrace)
	task.Identities = []*api.WorkloadIdentity{identity()}

	job := newJob(api.JobTypeService, s.Deployment.ID, s.Namespace, s.Service, s.Deployment, task)
	job.UI = &api.JobUIConfig{
		Description: "Leapcell service " + s.Service.Name + ", deployment " + s.Deployment.ID,
		Links:       []*api.JobUILink{{Label: "Open " + s.Service.Name, URL: s.Service.URL}},
	}
	job.Update = noUpdates(*task.KillTimeout)
	group := job.TaskGroups[0]
	group.Count = new(s.Count)
	group.Update = noUpdates(*task.KillTimeout)
	group.Networks = []*api.NetworkResource{{DynamicPorts: []api.Port{{Label: leapcell.PortLabel}}}}
	group.RestartPolicy = &api.RestartPolicy{
		Attempts: new(3), Interval: new(time.Minute), Delay: new(500 * time.Millisecond),
		Mode: new(api.RestartPolicyModeFail),
	}
	group.ReschedulePolicy = &api.ReschedulePolicy{
		Attempts: new(0), Interval: new(time.Duration(0)), Unlimited: new(true),
		Delay: new(5 * time.Second), DelayFunction: new("exponential"), MaxDelay: new(2 * time.Minute),
	}
	return job
}

// identity is that by which the task opens the service's variables.
func identity() *api.WorkloadIdentity {
	return &api.WorkloadIdentity{Name: IdentityName, Audience: []string{IdentityAudience}, File: true, TTL: identityTTL}
}

// noUpdates switches Nomad's own deployments off: each would block scaling. Nomad still wants
// their deadline to be longer than the kill timeout.
func noUpdates(killTimeout time.Duration) *api.UpdateStrategy {
	return &api.UpdateStrategy{
		MaxParallel: new(0), ProgressDeadline: new(max(10*time.Minute, killTimeout+time.Minute)),
	}
}

// list writes variables as NAME=value, sorted.
func list(variables map[string]string) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		out = append(out, name+"="+variables[name])
	}
	return out
}

// BuildSpec is what [Build] needs to know.
type BuildSpec struct {
	Namespace   string
	Service     leapcell.Service
	Deployment  leapcell.Deployment
	SourceImage string        // the runtime's base with the source on it, by digest
	Output      string        // where the result is pushed, by tag
	RunImage    string        // what the result stands on where it can; "" is what the source image does
	Static      string        // where its front end is pushed, by tag
	Caches      []string      // folders kept between builds of the service
	Plan        leapcell.Plan // what the build may use
	Modified    time.Time     // of all files of the result
}

// Build is the job that runs the build command of a deployment. It is never run twice:
// what failed is told to the user, who decides.
func Build(s BuildSpec) *api.Job {
	set := s.Deployment.Settings
	config := leapcell.TaskConfig{
		Mode:         leapcell.TaskBuild,
		Image:        s.SourceImage,
		Command:      set.BuildCommand,
		Service:      s.Service.Name,
		ServiceID:    s.Service.ID,
		Deployment:   s.Deployment.ID,
		Output:       s.Output,
		StartCommand: set.StartCommand,
		Caches:       s.Caches,
		CacheMB:      s.Plan.CacheMB,
		Timeout:      s.Plan.BuildTimeout.String(),
		CPUs:         s.Plan.BuildCPUs,
		DiskMB:       s.Plan.BuildDiskMB,
		ImageMB:      s.Plan.ImageMB,
		RunImage:     s.RunImage,
		Modified:     int(s.Modified.Unix()),

		StaticOutput: s.Static, Static: set.Static, StaticFallback: set.StaticFallback,
	}
	if set.Runtime == leapcell.RuntimeDocker {
		config.Dockerfile, config.Command, config.BuildArgs = set.Dockerfile, "", list(set.BuildArgs)
		config.Caches = []string{leapcell.DockerState}
		// All that the build writes is in the cache, of which so much stays.
		config.CacheMB, config.KeepMB = s.Plan.BuildDiskMB, s.Plan.CacheMB
	}
	secrets := len(set.BuildEnv) > 0
	if s.Deployment.Trigger == leapcell.Change {
		// Whoever may propose a change to a repository must get at no secret by it, and leave
		// nothing that a build of the service itself would use.
		secrets, config.Cache = false, s.Service.ID+leapcell.ChangesCache
	}
	if secrets {
		config.EnvPath, config.BuildEnv = leapcell.EnvPrefix+s.Service.ID, set.BuildEnv
	}
	task := newTask(s.Service.ID, config, s.Plan.BuildMemoryMB)
	if secrets {
		task.Identities = []*api.WorkloadIdentity{identity()}
	}
	id := leapcell.BuildJobID(s.Service.Name, s.Deployment.Number)
	job := newJob(api.JobTypeBatch, id, s.Namespace, s.Service, s.Deployment, task)
	job.UI = &api.JobUIConfig{
		Description: "Builds deployment " + s.Deployment.ID + " of the Leapcell service " + s.Service.Name,
		Links:       []*api.JobUILink{{Label: "Open " + s.Service.Name, URL: s.Service.URL}},
	}
	group := job.TaskGroups[0]
	group.Count = new(1)
	group.RestartPolicy = &api.RestartPolicy{
		Attempts: new(0), Interval: new(time.Minute), Delay: new(time.Second),
		Mode: new(api.RestartPolicyModeFail),
	}
	group.ReschedulePolicy = &api.ReschedulePolicy{
		Attempts: new(0), Interval: new(time.Duration(0)), Unlimited: new(false),
	}
	return job
}

func newTask(name string, config leapcell.TaskConfig, memoryMB int) *api.Task {
	return &api.Task{
		Name:      name,
		Driver:    Driver,
		Config:    Config(config),
		Resources: &api.Resources{CPU: new(cpuMHz), MemoryMB: new(memoryMB)},
		// Nomad's own log process costs 26 MB and 50 ms a task; the driver writes the
		// files where Nomad looks for them.
		LogConfig: &api.LogConfig{Disabled: new(true), MaxFiles: new(logFiles), MaxFileSizeMB: new(logFileMB)},
	}
}

func newJob(kind, id, namespace string, svc leapcell.Service, dep leapcell.Deployment, task *api.Task) *api.Job {
	return &api.Job{
		ID:          new(id),
		Name:        new(id),
		Type:        new(kind),
		Namespace:   new(namespace),
		Datacenters: []string{"*"},
		Meta: map[string]string{
			MetaService:    svc.Name,
			MetaServiceID:  svc.ID,
			MetaDeployment: dep.ID,
			MetaMode:       string(dep.Settings.Mode),
		},
		TaskGroups: []*api.TaskGroup{{
			Name:          new(leapcell.Group),
			EphemeralDisk: &api.EphemeralDisk{SizeMB: new(diskMB)},
			Tasks:         []*api.Task{task},
		}},
	}
}
