// Package routes keeps the edge's tables: which deployment answers for a host, and where the
// instances of a deployment are. Both are read from Nomad, which alone knows what runs.
//
//	variables leapcell/routes/*  ── blocking list, then the changed ones ──┐
//	                                                                       ├─► [Table], immutable
//	allocations ── event stream, a full list under it ─────────────────────┘   states in memory
//
// A [Table] answers without blocking. While Nomad is away it goes on with its last state.
// [Scaler] is the way back: it brings a deployment from zero instances to one.
package routes
