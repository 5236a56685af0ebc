// Package api is the root of the control plane, the only part of the platform with a
// database. Nothing on the path of a visit needs it: what runs and where visitors go is in
// Nomad.
//
// The folders, in the order in which a deployment meets them:
//
//	client    the typed client that the CLI and other programs use
//	server    HTTP: routes.go is the table of paths, roles and handlers
//	problem   the one table between error codes and HTTP statuses
//	store     services, deployments, tokens, sealed environments
//	deploy    the deployer: drives a deployment through its states
//	build     runtimes, base images, source images
//	registry  the embedded OCI registry
//	vault     seals environment variables; cannot open them
//	nomad     jobs, variables, logs
//	wake      the scaler
//
// cmd/leapcelld plugs them together.
package api
