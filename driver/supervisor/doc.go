// Package supervisor runs the tasks of one node. The plugin that Nomad starts is thin and
// may be killed at any time; the supervisor has a session and a cgroup of its own and
// outlives it, the agent and itself: what it needs to take running instances over again is
// in its state folder.
//
// Reading order: run.go plugs everything together; api.go is what the plugin may ask for;
// task.go is the life of an instance, build.go that of a build. handover.go is how a new build
// of the program takes the instances over from the running one; after a crash it is the same
// without the first half.
//
//	plugin ──HTTP on a unix socket──► server.go ──► supervisor.go ──► task.go ──► gate, cell, image, network
//	                                                                   ├─► env.go (Nomad variable, Vault)
//	                                                                   └─► log.go (the allocation's log files)
//
// Clear values of environment variables are in memory and in the app only: run folders are
// on a tmpfs, and what is written down about a task holds none.
package supervisor
