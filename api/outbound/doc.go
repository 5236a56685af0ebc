// Package outbound connects to addresses that tenants name: repositories, and the APIs of
// their hosts. Whoever names an address must not reach the platform's own network through
// the control plane, so loopback, link-local and private addresses are refused unless the
// operator allows them. The address that was looked up is the one that is checked and
// connected to: a name that changes between the two gains nothing.
package outbound
