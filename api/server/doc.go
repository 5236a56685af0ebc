// Package server is the HTTP side of the control plane. routes.go is the table of all paths
// with the role each needs; each resource has one file of handlers, which read the request,
// call one method of a part behind a small interface, and write the answer. Nothing is
// decided here except who may come in.
//
// Errors leave as RFC 7807 bodies with a request id; what is not meant for the caller is in
// the log under that id. Clear values of environment variables and tokens are in no log.
package server
