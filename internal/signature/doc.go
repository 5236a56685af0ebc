// Package signature is what an image's signature looks like, for the control plane, which makes
// it, and for nodes, which look at it before they start an instance.
//
// The form is cosign's: a small JSON document ("simple signing") that names the image's digest is
// the layer of an image of its own, which has the tag sha256-<hex>.sig in the repository of the
// signed one. The signature is an annotation of that layer. There may be several.
package signature
