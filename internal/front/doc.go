// Package front is what build, control plane and edge must agree on about front ends: by what
// one is recognised in a built tree ([Recognize]), and the list of its files ([Manifest]) by
// which edges serve it.
//
// In the flow of a deploy: the node recognises a front end after the build command and packs
// it (driver/static), the control plane brings it to the platform's origin (api/cdn), edges
// serve it from there (traefik/static). The package itself does no I/O of its own: it looks at
// the tree that it is given.
package front
