package leapcell

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Mode says how a service lives.
type Mode string

// The two modes; a service can be switched either way at any time.
const (
	Serverless Mode = "serverless" // suspended while idle, zero instances when dormant
	Persistent Mode = "persistent" // always on
)

// Service is an app with a name and an address. Its ID is readable and unique for ever:
// "{name}-{workspace}-{8 characters}"; it is also the first label of its host name, the name
// of its task in Nomad and of its key in Vault.
type Service struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Workspace string   `json:"workspace"`
	Host      string   `json:"host"`
	URL       string   `json:"url"` // with scheme and port as the operator's edge is reached
	Settings  Settings `json:"settings"`
	Live      string   `json:"live,omitempty"` // the deployment that serves, by ID
	// Static is the front end of that deployment. Answers of the API have it, the store does not.
	Static    *Static   `json:"static,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// Settings is what a user may set on a service. The zero value of a field means "not set":
// then leapcell.yaml of the source decides, then the default of the runtime or contract.
type Settings struct {
	Runtime      string `json:"runtime,omitempty"`
	BuildCommand string `json:"buildCommand,omitempty"`
	StartCommand string `json:"startCommand,omitempty"`
	Port         int    `json:"port,omitempty"`
	MemoryMB     int    `json:"memoryMB,omitempty"`
	Mode         Mode   `json:"mode,omitempty"`

	MinInstances int `json:"minInstances,omitempty"` // persistent: how many run; default 1
	MaxInstances int `json:"maxInstances,omitempty"` // default 10
	Concurrency  int `json:"concurrency,omitempty"`  // in flight per instance

	StartTimeout   Duration `json:"startTimeout,omitempty"`
	RequestTimeout Duration `json:"requestTimeout,omitempty"` // at most the contract's 15 minutes
	DormantAfter   Duration `json:"dormantAfter,omitempty"`
	ScaleInDelay   Duration `json:"scaleInDelay,omitempty"`

	// Requests that the edge answers with 204, and that neither wake the service nor keep it
	// awake: paths, exact or with * at the end, and parts of a User-Agent.
	IgnorePaths  []string `json:"ignorePaths,omitempty"`
	IgnoreAgents []string `json:"ignoreAgents,omitempty"`

	// BuildEnv are the names of the service's variables that builds see; others they do not.
	// It is never read from the source: who may change that must not choose what it sees.
	BuildEnv []string `json:"buildEnv,omitempty"`

	// BuildArgs are the values of ARG in a Dockerfile. They are no secrets: images tell them.
	BuildArgs map[string]string `json:"buildArgs,omitempty"`
	// Dockerfile is its path within the root directory; it is used when Runtime is
	// [RuntimeDocker].
	Dockerfile string `json:"dockerfile,omitempty"`
	// Static is the folder with the files of a front end after the build, within the root
	// directory; "none" means that there is none, "" that it is recognised.
	Static string `json:"static,omitempty"`
	// StaticFallback is the file that paths get which are none of the files, such as
	// index.html for an app of one page; "none" means 404.
	StaticFallback string `json:"staticFallback,omitempty"`
}

// Runtimes that are not rows of the operator's table.
const (
	RuntimeDocker = "docker" // the tree's Dockerfile says all
	RuntimeImage  = "image"  // a ready image
	RuntimeStatic = "static" // files only: no instance
)

// IsZero reports whether nothing is set.
func (s Settings) IsZero() bool { return reflect.ValueOf(s).IsZero() }

// Over gives s with the fields it leaves unset taken from base.
func (s Settings) Over(base Settings) Settings {
	out := base
	pick(&out.Runtime, s.Runtime)
	pick(&out.BuildCommand, s.BuildCommand)
	pick(&out.StartCommand, s.StartCommand)
	pick(&out.Port, s.Port)
	pick(&out.MemoryMB, s.MemoryMB)
	pick(&out.Mode, s.Mode)
	pick(&out.MinInstances, s.MinInstances)
	pick(&out.MaxInstances, s.MaxInstances)
	pick(&out.Concurrency, s.Concurrency)
	pick(&out.StartTimeout, s.StartTimeout)
	pick(&out.RequestTimeout, s.RequestTimeout)
	pick(&out.DormantAfter, s.DormantAfter)
	pick(&out.ScaleInDelay, s.ScaleInDelay)
	pick(&out.Dockerfile, s.Dockerfile)
	pick(&out.Static, s.Static)
	pick(&out.StaticFallback, s.StaticFallback)
	if s.BuildEnv != nil {
		out.BuildEnv = s.BuildEnv
	}
	if s.BuildArgs != nil {
		out.BuildArgs = s.BuildArgs
	}
	if s.IgnorePaths != nil {
		out.IgnorePaths = s.IgnorePaths
	}
	if s.IgnoreAgents != nil {
		out.IgnoreAgents = s.IgnoreAgents
	}
	return out
}

func pick[T comparable](dst *T, v T) {
	var zero T
	if v != zero {
		*dst = v
	}
}

// DefaultSettings are the contract's values for everything a user left unset, except the
// runtime and its commands, which have no default.
func DefaultSettings() Settings {
	return Settings{
		Port: DefaultPort, MemoryMB: DefaultMemoryMB, Mode: Serverless,
		MinInstances: 1, MaxInstances: 10, Concurrency: DefaultConcurrency,
		StartTimeout: Duration(StartTimeout), RequestTimeout: Duration(RequestTimeout),
		DormantAfter: Duration(DormantAfter), ScaleInDelay: Duration(ScaleInDelay),
	}
}

// Validate checks the fields that are set. The error is an [Error] with [CodeInvalid]
// that names the field, the value and what is allowed.
func (s Settings) Validate() error {
	between := func(field string, v, lo, hi int) error {
		if v != 0 && (v < lo || v > hi) {
			return Errorf(CodeInvalid, "%s is %d: it must be from %d to %d", field, v, lo, hi)
		}
		return nil
	}
	within := func(field string, v Duration, lo, hi time.Duration) error {
		if d := time.Duration(v); v != 0 && (d < lo || d > hi) {
			return Errorf(CodeInvalid, "%s is %s: it must be from %s to %s", field, d, lo, hi)
		}
		return nil
	}
	if s.Mode != "" && s.Mode != Serverless && s.Mode != Persistent {
		return Errorf(CodeInvalid, "mode is %q: it must be serverless or persistent", s.Mode)
	}
	for _, err := range []error{
		between("port", s.Port, 1, 65535),
		between("memory", s.MemoryMB, MinMemoryMB, MaxMemoryMB),
		between("minInstances", s.MinInstances, 1, 1000),
		between("maxInstances", s.MaxInstances, 1, 1000),
		between("concurrency", s.Concurrency, 1, MaxConcurrency),
		within("startTimeout", s.StartTimeout, 100*time.Millisecond, MaxStartTimeout),
		within("requestTimeout", s.RequestTimeout, 100*time.Millisecond, RequestTimeout),
		within("dormantAfter", s.DormantAfter, time.Second, 365*24*time.Hour),
		within("scaleInDelay", s.ScaleInDelay, 100*time.Millisecond, time.Hour),
	} {
		if err != nil {
			return err
		}
	}
	for _, name := range s.BuildEnv {
		if !envName.MatchString(name) {
			return Errorf(CodeInvalid, "buildEnv has %q: names of variables have letters, digits and _, and no digit first", name)
		}
	}
	for name, value := range s.BuildArgs {
		if !envName.MatchString(name) || strings.ContainsRune(value, 0) || len(value) > MaxEnvBytes {
			return Errorf(CodeInvalid, "buildArgs has %q: names of ARG have letters, digits and _, values at most %d bytes", name, MaxEnvBytes)
		}
	}
	if err := s.validateIgnored(); err != nil {
		return err
	}
	if err := inside("static", s.Static); err != nil {
		return err
	}
	if err := inside("staticFallback", s.StaticFallback); err != nil {
		return err
	}
	if s.MinInstances != 0 && s.MaxInstances != 0 && s.MinInstances > s.MaxInstances {
		return Errorf(CodeInvalid, "minInstances is %d: it must not be over maxInstances, which is %d", s.MinInstances, s.MaxInstances)
	}
	return nil
}

// maxInside is longer than honest paths of folders within a source.
const maxInside = 255

// inside checks a path within the source.
func inside(field, path string) error {
	bad := len(path) > maxInside || slices.Contains(strings.Split(path, "/"), "..") || strings.ContainsFunc(path, unicode.IsControl)
	if bad {
		return Errorf(CodeInvalid, "%s is %q: it must be a path within the root directory, without .., or none", field, path)
	}
	return nil
}

// maxIgnored bounds either list: the edge goes through it for each request.
const maxIgnored = 20

func (s Settings) validateIgnored() error {
	if len(s.IgnorePaths) > maxIgnored || len(s.IgnoreAgents) > maxIgnored {
		return Errorf(CodeInvalid, "ignorePaths has %d entries and ignoreAgents %d: at most %d are allowed in each", len(s.IgnorePaths), len(s.IgnoreAgents), maxIgnored)
	}
	for _, p := range s.IgnorePaths {
		if !strings.HasPrefix(p, "/") || p == "/*" || strings.Contains(strings.TrimSuffix(p, "*"), "*") {
			return Errorf(CodeInvalid, "ignorePaths has %q: a path begins with /, may have one * at its end, and cannot be all of them", p)
		}
	}
	for _, agent := range s.IgnoreAgents {
		if len(agent) < 3 {
			return Errorf(CodeInvalid, "ignoreAgents has %q: at least three characters are needed", agent)
		}
	}
	return nil
}

var (
	serviceName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$`)
	envName     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// ValidateName checks the name of a service or workspace: it becomes part of a host name.
func ValidateName(name string) error {
	if !serviceName.MatchString(name) || strings.Contains(name, "--") {
		return Errorf(CodeInvalid, "the name %q cannot be used: 1 to 32 characters of a-z, 0-9 and single -, starting with a letter and not ending with -", name)
	}
	return nil
}

// ValidateEnv checks all variables of a service together. [EN3]
func ValidateEnv(values map[string]string) error {
	size := 0
	for name, value := range values {
		if !envName.MatchString(name) {
			return Errorf(CodeInvalid, "the variable name %q cannot be used: letters, digits and _, not starting with a digit", name)
		}
		if strings.ContainsRune(value, 0) {
			return Errorf(CodeInvalid, "the value of %s contains a zero byte", name)
		}
		size += len(name) + len(value)
	}
	if size > MaxEnvBytes {
		return EnvTooLarge(size)
	}
	return nil
}

// EnvTooLarge is the error for variables of size bytes together. [EN3]
func EnvTooLarge(size int) error {
	return Errorf(CodeUnprocessable, "names and values of all variables together are %d bytes: at most %d are allowed", size, MaxEnvBytes)
}

// Duration is a [time.Duration] that reads and writes as "90s" in JSON.
type Duration time.Duration

// MarshalText writes the Go form: "1m30s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads the Go form.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 90s or 5m", b)
	}
	*d = Duration(v)
	return nil
}

// String is the Go form.
func (d Duration) String() string { return time.Duration(d).String() }

// JobID is the Nomad job of deployment number n of a service: one job per deployment,
// never changed after it was registered.
func JobID(service string, n int) string { return fmt.Sprintf("%s-%d", service, n) }

// BuildJobID is the Nomad batch job that builds deployment number n of a service.
func BuildJobID(service string, n int) string { return fmt.Sprintf("build-%s-%d", service, n) }

// ForgetPrefix begins the names of the jobs that remove build caches from nodes.
const ForgetPrefix = "forget-"

// ForgetJobID is the Nomad job that removes the build caches of a service from every node.
func ForgetJobID(serviceID string) string { return ForgetPrefix + serviceID }

// PrefetchPrefix begins the names of the jobs that bring images to nodes.
const PrefetchPrefix = "prefetch-"

// PrefetchJobID is the Nomad job that brings the image of a deployment to every node.
func PrefetchJobID(deployment string) string { return PrefetchPrefix + deployment }
