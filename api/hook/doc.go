// Package hook joins services with repositories: it keeps what a repository is read with,
// takes in what its host tells, has that deployed, and tells the host what came of it.
//
//	POST /v1/hooks/{connection} ─► signature ─► parser ─► git_events (answer 202)
//	git_events ─► worker ─► deployment, or the end of a preview ─► git_reports
//	git_reports ─► reporter ─► state of the commit at the host
//
// Both lists are in the store, and what is on them is done at least once: a kill -9 between
// any two steps loses nothing.
package hook
