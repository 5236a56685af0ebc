// Package image is a node's store of images: it pulls by digest, unpacks every layer once
// into a folder that all images share, mounts them as overlay file systems, turns what
// a build wrote into a new layer and image, and removes what nothing needs any more.
//
//	registry ──blob──► Unpack ──► layers/<diffid>/ + images/<digest>.json ──overlay──► rootfs of a cell
//	registry ◄─push── base layers + one new layer ◄──Commit── upper folder of a build
//
// What is there is trusted; what comes from a registry is not (see [Unpack]). The images are
// kept in memory: a start of one that is here costs no file and no network.
//
// # What a kill leaves
//
// Everything is made in tmp and renamed when it is whole. An image's file is written to pending at once,
// which is enough for a process that is killed, and moves to images when its layers have reached
// the disk, which is enough for a machine that goes down. Each mount has a symbolic link in mounts, made before
// it and removed after it. [New] reads these, and removes what belongs to nothing: what is in tmp, layers
// without an image, links without a mount.
//
// # What is removed
//
//	pulled ──► used ──► idle for Grace ──► older than Age, or the disk is over High ──► gone
//	             ▲            │
//	             └── mounted, pulled again
//
// See [Collect].
package image
