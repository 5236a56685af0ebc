// Package edge is the process that visitors reach: Traefik with the wake middleware
// compiled in, the tables of routes and instances, and the reports to the control plane.
//
//	entry point ─► one catch-all router ─► wake ─► gate of an instance
//	                                        ▲ │
//	               tables from Nomad ───────┘ └─ load ─► reports to the API
//
// Traefik scans its routers one after the other, so it gets one for everything, and the
// lookup by host is a map of ours. [Edge.Run] is the diagram; traefik.go is what replaces
// Traefik's own main.
package edge
