// Package network gives each cell a network namespace of its own.
//
// Making a namespace with its link takes milliseconds and deleting one takes tens, so a
// [Pool] keeps some ready and removes the used ones in the background: on the way of a cold
// start it costs nothing. A namespace is joined to the host by a veth pair with two addresses
// of its own; nftables tables of the platform do address translation and the egress policy
// [ID4]. Inside there is no IPv6 but on loopback. All is done by netlink, nothing is executed.
//
// The way of a request does not touch any of it: [Namespace.Dial] opens its connection
// from inside the namespace, so apps that listen on loopback only are reached as well.
package network
