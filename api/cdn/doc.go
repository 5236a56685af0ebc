// Package cdn is the platform's origin of static files: what edges fetch, once, to serve it
// from their own disks.
//
//	node ─ artifact ─► registry ─ Publish ─► Store: files, then the manifest ─► edges
//
// A store is a folder of this machine, which edges read through us, or a bucket, for which they
// get an address of each content.
//
// A service has a folder of its own. In it, each content is named by its SHA-256, the lists of
// files (front.Manifest) like the files. So everything can be put again without harm, and what
// is there is never changed. A deployment's route names its manifest; it is written after
// everything else is there.
package cdn
