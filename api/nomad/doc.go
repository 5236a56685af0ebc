// Package nomad is the control plane's thin wrapper of Nomad's API: jobs, variables,
// allocations and logs in one namespace. Every call that is not a stream has a timeout, and
// an agent that does not answer gives an error that says what to do.
package nomad
