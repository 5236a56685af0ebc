// Package driver is the node's side of the platform: the Nomad task driver "leapcell".
//
//	Nomad agent ──gRPC──► plugin ──unix socket──► supervisor ─┬─► gate     one listener per instance
//	(may be killed)    (may be killed)          (one a node)  ├─► cell     sandbox, cgroup, freezer
//	                                                          ├─► image    layers, mounts, commits
//	                                                          └─► network  namespaces, NAT, egress rules
//
// Plugin and agent can go at any time without an instance noticing: the gates and the
// apps' processes belong to the supervisor, which has a session and a cgroup of its own.
package driver
