// Package source turns what a user hands in, an uploaded archive or a git reference, into
// a source layer: one uncompressed tar with the tree under /app, which api/build puts on
// a runtime's base image.
//
// It is the first step of a deployment and the one that reads what strangers wrote, so it
// is strict: links out of the tree, devices, and paths that climb are refused by name.
// Nothing is ever unpacked to the disk of the control plane.
package source
