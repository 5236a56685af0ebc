package leapcell

// TaskMode says what the driver makes of a task.
type TaskMode string

// The modes of a task.
const (
	TaskServerless TaskMode = "serverless"
	TaskPersistent TaskMode = "persistent"
	TaskBuild      TaskMode = "build"
	// TaskPrefetch brings the image to the node and ends.
	TaskPrefetch TaskMode = "prefetch"
	// TaskForget removes what the node keeps between builds of the service, and ends.
	TaskForget TaskMode = "forget"
)

// TaskConfig is the config block of a task for the leapcell driver: jobs writes it, the
// driver reads it. The codec tags are the names in HCL.
type TaskConfig struct {
	Mode    TaskMode `codec:"mode"`
	Image   string   `codec:"image"`   // registry/repository@sha256:…
	Command string   `codec:"command"` // run by bash -c [LC1]
	Port    int      `codec:"port"`    // where the app listens [LC2]

	Service    string `codec:"service"`    // name, for LEAPCELL_SERVICE
	ServiceID  string `codec:"service_id"` // key of env, caches and meters
	Deployment string `codec:"deployment"` // for LEAPCELL_DEPLOYMENT
	EnvPath    string `codec:"env_path"`   // Nomad variable with the sealed environment; "" for none

	Concurrency    int    `codec:"concurrency"`     // requests in flight in the app; more wait at the gate
	StartTimeout   string `codec:"start_timeout"`   // "10s" [LC5]
	RequestTimeout string `codec:"request_timeout"` // "15m" [RQ1]

	// Build mode only.
	Output       string   `codec:"output"`        // registry/repository:tag to push the result to
	StartCommand string   `codec:"start_command"` // becomes the image's command
	Caches       []string `codec:"caches"`        // folders kept between builds of this service on this node
	Cache        string   `codec:"cache"`         // name under which they are kept; "" is the service's ID
	CacheMB      int      `codec:"cache_mb"`      // of all of them together; 0 is the node's disk_mb
	Timeout      string   `codec:"timeout"`       // "10m"
	CPUs         int      `codec:"cpus"`          // whole cores
	DiskMB       int      `codec:"disk_mb"`       // what the build may write; 0 is the node's disk_mb
	ImageMB      int      `codec:"image_mb"`      // the largest result, with its base; 0 is no limit
	// RunImage is a smaller image that the result stands on, if the build changed nothing
	// outside of the working directory; "" is none.
	RunImage string `codec:"run_image"`
	// Dockerfile is built instead of running Command: a path within the source. KeepMB of what it
	// leaves in its cache stay for the next build.
	Dockerfile string   `codec:"dockerfile"`
	BuildArgs  []string `codec:"build_args"` // NAME=value
	KeepMB     int      `codec:"keep_mb"`
	// BuildEnv are the names of variables of EnvPath that the command sees.
	BuildEnv []string `codec:"build_env"`
	// Modified is the time of all files of the result, in seconds since 1970, so that the same
	// input gives the same image; 0 leaves them as they are.
	Modified int `codec:"modified"`
	// StaticOutput is the registry/repository:tag that a front end is pushed to; "" looks for none.
	StaticOutput   string `codec:"static_output"`
	Static         string `codec:"static"`          // see [Settings]
	StaticFallback string `codec:"static_fallback"` // see [Settings]
}

// DockerState is where the builder of Dockerfiles keeps its cache in the sandbox of a build.
const DockerState = "/.leapcell/state"

// ChangesCache follows a service's ID in the name of the cache that builds of proposed changes
// have: whoever may propose one must not reach what the service itself is built with.
const ChangesCache = "-changes"

// Phases of a build, as the driver reports them in task events: the event's annotation
// [PhaseAnnotation] holds one of [Building], [Packaging], [Publishing].
const PhaseAnnotation = "leapcell.phase"

// ReadyAnnotation marks the task event that says that the app listens. [LC3]
const ReadyAnnotation = "leapcell.ready"

// How the message of a task begins that could not be started: for good, for want of something
// that may come back, or because the port that Nomad chose is in use, so that only another
// allocation helps.
const (
	StartFailedPrefix      = "start failed: "
	StartUnavailablePrefix = "cannot start yet: "
	TextPortTaken          = "the port that Nomad chose is in use on this node"
)

// NomadCalls is how many calls a part of the platform makes to its agent of Nomad at the same time,
// where many tasks or requests need one each. An agent takes 100 connections of one address
// (http_max_conns_per_client, Nomad's documentation of the agent's limits) and closes the next one;
// the parts share the address. More would not be faster: the calls end in one log.
const NomadCalls = 16
