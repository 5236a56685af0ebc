// Package network gives each cell a network namespace of its own.
//
// Making a namespace with its link takes milliseconds and deleting one takes tens, so a
// [Pool] keeps some ready and recycles the used ones: on the way of a cold start it costs
// nothing. A namespace is joined to the host by a veth pair with two addresses of its own;
// one nftables table per platform does address translation and the egress policy [ID4].
// All is done by netlink, nothing is executed.
//
// The way of a request does not touch any of it: [Namespace.Dial] opens its connection
// from inside the namespace, so apps that listen on loopback only are reached as well.
package network
