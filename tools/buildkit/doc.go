// Leapcell-build builds a Dockerfile with BuildKit, inside the sandbox of a build: the node's
// supervisor starts it there in place of a build command. It is a module of its own, since
// BuildKit's dependencies do not fit those of the platform.
//
// It begins as the sandbox's first process, makes a user namespace in which root is nobody on the
// host, and starts itself in it:
//
//	leapcell-build            the first process: namespace, exit code
//	└─ leapcell-build inside  BuildKit: solver, cache, Dockerfile front end, export
//	   └─ leapcell-build step one RUN: its own mounts and processes; becomes the command
//
// A RUN has the system call filter and the capabilities of every other build, the latter in the
// user namespace only: it has fewer rights than a build command. What may mount is BuildKit.
//
// What to build comes over a socket from the supervisor, as do the images of FROM: the build has
// no credentials of any registry. The result is a folder in OCI image layout, which the supervisor
// checks and pushes.
package main
