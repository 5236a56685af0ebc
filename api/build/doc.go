// Package build knows the runtimes and makes the images that builds start from.
//
// A runtime's base image is an image reference that the operator names, or is assembled
// here from Debian packages, once, and kept in the embedded registry under a hash of its
// recipe. For each deployment [Builder.SourceImage] puts the source layer on top; a Nomad
// job then runs the build command in it (driver, build mode).
package build
