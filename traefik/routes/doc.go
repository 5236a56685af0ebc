// Package routes keeps the edge's tables: which deployment answers for a host, and where the
// instances of a deployment are. Both are read from Nomad, which alone knows what runs.
//
//	variables leapcell/routes/*  ── blocking list, then the changed ones ──┐
//	                                                                       ├─► [Table], immutable
//	allocations ── event stream, a full list under it ─────────────────────┘   states in memory
//
// Jobs that the platform did not deploy are in the same table: their routes are made of the
// meta of the job itself (meta.go), and a [Keeper] puts them to sleep in agreement with the
// other edges.
//
// A [Table] answers without blocking. While Nomad is away it goes on with its last state.
// [Scaler] is the way back: it brings a deployment from zero instances to one.
package routes
