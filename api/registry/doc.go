// Package registry is the embedded OCI registry: the CNCF distribution library on a folder,
// behind basic authentication. leapcelld pushes base and source images into it, nodes pull
// from it and push what they built.
//
// The credentials are in one JSON file that nodes read too; it is made when it is missing.
// A registry without room says so at once, before a layer is sent, and in words.
package registry
