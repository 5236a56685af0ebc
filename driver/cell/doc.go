// Package cell runs one sandboxed instance or build: [Spec] turns a [Config] into an OCI
// runtime spec as the contract has it, a [Launcher] has an OCI runtime start it, and a
// [Cell] is the running thing: waited for by pidfd, signalled, frozen, boosted and measured
// through its cgroups, which this package makes and owns so that none of it needs the
// runtime again.
//
//	Start ─► boosted ─SetReady─► capped ◄─Freeze/Thaw─► frozen
//	            │                  │                      │
//	            └──────────────────┴── exit, Kill ────────┘─► Delete
package cell
