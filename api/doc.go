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
//	hook      connections with repositories: webhooks, previews, states of commits
//	source    uploads and git: what becomes the source layer
//	outbound  connects to addresses that tenants name, and to public ones only
//	deploy    the deployer: drives a deployment through its states
//	build     runtimes, base images, source images
//	registry  the embedded OCI registry
//	vault     seals environment variables, which it cannot open, and what repositories are read with
//	nomad     jobs, variables, logs
//	wake      the scaler
//
// cmd/leapcelld plugs them together.
package api
