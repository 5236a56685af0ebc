// Package image is a node's store of images: it pulls by digest, unpacks every layer once
// into a folder that all images share, mounts them as overlay file systems, and turns what
// a build wrote into a new layer and image.
//
//	registry ──pull──► images/<digest>.json + layers/<diffid>/ ──overlay──► rootfs of a cell
//	registry ◄─push── base layers + one new layer ◄──Commit── upper folder of a build
//
// A killed process leaves only temporary folders, which the next [New] removes.
package image
