// Package wire is what the machine that runs the virtual one and the program inside say to
// each other.
//
// There is one channel, from the inside to the outside: the output of the jobs, line by line,
// and between them events, each a line of its own that begins with [Mark]. What to do lies in
// the file [JobsFile] when the virtual machine starts.
package wire

import "time"

// Mark begins the line of an event; no program prints it by chance.
const Mark = '\x1e'

// Places inside.
const (
	Dir       = "/vm"
	JobsFile  = Dir + "/jobs.json"
	BuiltFile = Dir + "/built.json" // see Built
	BaseFile  = Dir + "/base.tar"   // the system that base images are made of
	GuestFile = Dir + "/guest"      // the program inside
	ModuleDir = "/modules"          // in the initramfs
	Port      = "/dev/vport0p1"     // the channel
)

// ProbeText is printed on the console by a virtual machine that has started with nothing to do.
const ProbeText = "leapcell: this machine works"

// ProbeArgument on the kernel's command line asks for that.
const ProbeArgument = "leapcell.probe"

// EmulatedArgument tells the tests that everything takes longer; they hear it by
// EmulatedVariable.
const (
	EmulatedArgument = "leapcell.emulated"
	EmulatedVariable = "LEAPCELL_TEST_EMULATED=1"
)

// Plan is what there is to do inside.
type Plan struct {
	Jobs  []Job         `json:"jobs"`
	Limit time.Duration `json:"limit"` // for all of them, counted from the machine's start
}

// Job is one command to run inside.
type Job struct {
	Name string   `json:"name"`
	Dir  string   `json:"dir"`
	Args []string `json:"args"`
	Env  []string `json:"env"`
	// Limit is when it is asked for a dump of what it does, and ended.
	Limit time.Duration `json:"limit"`
	// Platform says that it needs the platform's programs.
	Platform bool `json:"platform"`
}

// Built maps the folder of a Go program to the file that it was compiled to outside: there
// is no Go inside, and a compiler would take minutes there.
type Built map[string]string

// Event is something that happened inside.
type Event struct {
	Kind string        `json:"kind"`
	Job  string        `json:"job,omitempty"`
	Code int           `json:"code,omitempty"` // of a job that ended
	Took time.Duration `json:"took,omitempty"`
	Text string        `json:"text,omitempty"`
}

// Kinds of events.
const (
	Up    = "up"    // the machine is ready; Text says what it is
	Begin = "begin" // of a job
	End   = "end"   // of a job
	Done  = "done"  // all jobs have ended
	Fail  = "fail"  // no job can run; Text says why
)
