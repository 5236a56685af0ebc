// Package static serves the files of front ends at the edge, before any instance is woken.
//
//	request ─► route has a front end? ─► its list (memory) ─► file (disk) ─► answer
//	                                          │                   │
//	                                          └── not here: fetched once from the platform's origin
//
// What is here once is served whether or not the control plane is up. Lists and files are named
// by their SHA-256, so that nothing here is ever out of date; what was not used for longest goes
// when the room is used up.
//
// Start reading at [Server.Serve]. answer.go speaks HTTP, cache.go keeps the files, origin.go
// fetches them, ready.go says when the edge has what its routes need.
package static
