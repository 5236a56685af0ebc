// Package leapcell holds the nouns of the platform: [Service], [Deployment], [Instance],
// [Route], [TaskConfig], the constants of the runtime contract and the one [Error] type.
//
// It does no I/O and imports the standard library only, so that every part (the control
// plane in api, the job builder in jobs, the node in driver, the edge in traefik) can share
// it without dragging in the others.
//
// Start reading at [Deployment]: its states are the main line of the product.
package leapcell
