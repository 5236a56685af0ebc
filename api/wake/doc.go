// Package wake is the scaler: it sizes the live deployments by what the edges report.
//
// It owns 1 → N, N → 1 and → 0. From zero to one is the edge's, straight to Nomad: nothing
// here is on the path of a visit, and all services go on when this stands still.
//
// [Decide] is the rule, a pure function; [Scaler] feeds it.
package wake
