// Package plugin is what Nomad sees of the driver. It translates: tasks of Nomad into
// requests to the node's supervisor, and back. It holds no state, so that Nomad may kill and
// start it as it likes; it starts the supervisor when there is none.
//
// Begin with about.go: name, schema and capabilities on one page; then [Driver.StartTask].
package plugin
