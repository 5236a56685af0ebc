// Package client is the typed client of the API, for the CLI and other programs. Each
// method is one route of api/server; errors come back as the [leapcell.Error] that the
// server sent, or as one that says that the server cannot be reached and what to do.
package client
