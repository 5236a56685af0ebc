// Package static packs the files of a front end, as they are after the build: each file once,
// named by its content, beside it what is smaller compressed, and the list of all of them. The
// result travels through the registry and is the same for the same files.
//
// The tree is a stranger's. Nothing is read but regular files within it, and there are limits
// to their number and size.
package static
