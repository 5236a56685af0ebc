package leapcell

import (
	"fmt"
	"time"
)

// The runtime contract: what a service may rely on. Identifiers in brackets name the
// clause in docs/runtime-contract.md that a value comes from.
const (
	// DefaultPort is where an app listens unless its service says otherwise. [LC2]
	DefaultPort = 8080
	// ProbePath is asked until any HTTP answer, of any status, comes back. [LC3]
	ProbePath = "/kaithhealth"
	// StartTimeout is how long an app may take until it listens; MaxStartTimeout is the
	// longest a service may ask for. [LC5]
	StartTimeout    = 10 * time.Second
	MaxStartTimeout = 60 * time.Second
	// HoldGrace is added to the start timeout for requests held while no instance is ready. [RQ5]
	HoldGrace = 5 * time.Second

	// InstanceUID and InstanceGID run the app; the build runs as root. [ID1]
	InstanceUID = 1000
	InstanceGID = 1000
	// PidsLimit bounds processes and threads of one instance. [ID6]
	PidsLimit = 1024
	// TmpMaxMB bounds /tmp; a smaller memory size bounds it further. [FS2]
	TmpMaxMB = 512
	// PersistentShmMB is the size of a persistent instance's /dev/shm. [FS3]
	PersistentShmMB = 64

	// MinMemoryMB and MaxMemoryMB bound the only size a service has. [CP1]
	MinMemoryMB     = 128
	MaxMemoryMB     = 7076
	DefaultMemoryMB = 256
	// MemoryPerCoreMB is the memory that comes with one whole core. [CP1]
	MemoryPerCoreMB = 1769
	// CPUPeriod is the period over which the CPU cap is enforced. [CP1]
	CPUPeriod = 20 * time.Millisecond
	// SuspendAfter is the longest an idle serverless instance keeps its CPU after the
	// last response byte. [CP4]
	SuspendAfter = 100 * time.Millisecond

	// RequestTimeout ends one request, and only that one. [RQ1]
	RequestTimeout = 15 * time.Minute
	// MaxResponseBytes bounds a serverless response body. [RQ2]
	MaxResponseBytes = 6 << 20
	// MaxRequestLineBytes, MaxHeaderBytes, MaxHeadersBytes, MaxResponseHeadersBytes and
	// MaxRequestBytes bound a request. [RQ3]
	MaxRequestLineBytes     = 16 << 10
	MaxHeaderBytes          = 16 << 10
	MaxHeadersBytes         = 64 << 10
	MaxResponseHeadersBytes = 32 << 10
	MaxRequestBytes         = 100 << 20
	// BodyIdleTimeout ends a serverless request of whose body nothing moves on the
	// visitor's side. [RQ3]
	BodyIdleTimeout = 30 * time.Second
	// QueueLimit bounds the requests held for one service. [RQ5]
	QueueLimit = 1000
	// DefaultConcurrency and MaxConcurrency are requests in flight per instance. [RQ8]
	DefaultConcurrency = 50
	MaxConcurrency     = 1000

	// ScaleInDelay and DormantAfter say when instances go. [LI2]
	ScaleInDelay = 60 * time.Second
	DormantAfter = 30 * time.Minute
	// StopGrace lies between SIGTERM and SIGKILL. [LI3]
	StopGrace = 10 * time.Second

	// MaxEnvBytes bounds all names and values of a service's variables together. [EN3]
	MaxEnvBytes = 3 << 10
)

// Texts that visitors and owners see, word for word as the contract has them.
const (
	TextRequestTimedOut  = "Request timed out after 15 minutes"                                                        // RQ1
	TextResponseTooBig   = "Response is bigger than the maximum allowed size"                                          // RQ2
	TextUpgradeForbidden = "WebSocket upgrades need persistent mode; this service is serverless"                       // RQ4
	TextStartFailed      = "The service could not be started; its owner finds the reason in the service's log"         // LC6
	TextCrashed          = "The service stopped while it was working on the request"                                   // LI5
	TextNoRoute          = "No service is deployed at this address"                                                    // routing
	TextQueueFull        = "Too many requests are waiting for this service"                                            // RQ5
	TextStartTimeout     = "The service did not become ready in time; its owner finds the reason in the service's log" // RQ5
)

// PortNotListeningText is what a visitor, the log and the deployment are told when the
// app did not listen on port in time. [LC5]
func PortNotListeningText(port int) string {
	return fmt.Sprintf("Port Some(%d) is not being listened to by the service", port)
}

// CPUQuota is the CPU time an instance of the given memory may use in each [CPUPeriod].
// Memory is the only size: m MB come with m/1769 cores. [CP1]
func CPUQuota(memoryMB int) time.Duration {
	return CPUPeriod * time.Duration(memoryMB) / MemoryPerCoreMB
}

// VisibleCores is the number of cores that an instance of the given memory sees. [CP2]
func VisibleCores(memoryMB int) int {
	return (memoryMB + MemoryPerCoreMB - 1) / MemoryPerCoreMB
}

// TmpSizeMB is the size of /tmp for the given memory. [FS2]
func TmpSizeMB(memoryMB int) int {
	return min(memoryMB, TmpMaxMB)
}

// Names of the variables that every instance sees beside its own. [ID5]
const (
	EnvService    = "LEAPCELL_SERVICE"
	EnvDeployment = "LEAPCELL_DEPLOYMENT"
	EnvInstance   = "LEAPCELL_INSTANCE"
	EnvMemoryMB   = "LEAPCELL_MEMORY_MB"
	EnvMode       = "LEAPCELL_MODE"
)

// Headers between edge, gate and control plane. The edge removes every header with
// [HeaderPrefix] from what visitors send and from what they receive. [RQ7]
const (
	HeaderPrefix = "X-Leapcell-"
	// HeaderProbe on a request asks the gate for its own state: it answers 200 when the
	// instance is ready, 502 with a [GateStatus] body when it failed, after holding the
	// question until one of the two is known. It neither thaws nor counts.
	HeaderProbe = "X-Leapcell-Probe"
	// HeaderGone on a 503 says that the instance takes no new requests and that no byte
	// of this one went to the app: it may be sent elsewhere. [RQ6]
	HeaderGone = "X-Leapcell-Gone"
	// HeaderError on an error made by the gate carries the [Code] of it.
	HeaderError = "X-Leapcell-Error"
	// HeaderTiming on the first answers of an instance carries the phases that the gate
	// saw, in milliseconds: "sandbox=12.3,app=4.5".
	HeaderTiming = "X-Leapcell-Timing"
	// HeaderInstance names the instance that answered. On a request it names the one that
	// is meant: ports are used again within milliseconds, tables lag, and a gate that is
	// another one answers with [HeaderGone].
	HeaderInstance = "X-Leapcell-Instance"
	// HeaderExpect on a request says that the visitor waits for "100 Continue" before it
	// sends the body, so the app is asked. Edges wait for it with every body on their own
	// account, to keep it until an instance takes it.
	HeaderExpect = "X-Leapcell-Expect"
)

// BaseDigestAnnotation of an image says what it stands on, by digest, as OCI defines it. Images that are
// built here have it.
const BaseDigestAnnotation = "org.opencontainers.image.base.digest"
