// Package metrics shows the control plane to Prometheus: its API, the scaler, and what nodes
// metered. It is served on a listener of its own, as with the edge, so that a scraper needs
// no token that can do more than look.
package metrics
