// Package supply vouches for images: it signs them, and writes down what is in them and how they came
// about. Deployments go through it between the moment in which their image is in the registry and that
// in which they go live.
//
// Three things belong to an image in the end: its signature (internal/signature), a bill of materials
// (CycloneDX, made of the image's layers) and its provenance (an in-toto statement of the kind that
// SLSA defines, in a signed envelope).
package supply
