// Package wake is the edge's middleware: it finds the service that a request is for, wakes
// it when it has no instance, holds the request meanwhile, and passes it on.
//
//	request ─► limits ─► host ─► route ─► slot of an instance ─► exchange with its gate
//	             │         │               │            ▲               │
//	          414/431     404        queue │ (no slot)  │          gone, or could not dial:
//	                                       ▼            │          back to the queue, first
//	                                   pump: scale 0→1, wait for the table, dial
//
// Start reading at [Handler.ServeHTTP]. [service] holds the slots and the queue of one
// service, its pump is the one flight that wakes it; exchange.go speaks HTTP to a gate.
//
// A job that the platform did not deploy has no gate: its requests go straight to the app, and
// its edge puts it to sleep (job.go).
//
// The package imports the standard library and the nouns only: the tables come in through
// [Table], Nomad through [Scaler].
package wake
