// Package problem holds the one table between error codes and HTTP statuses, and the error
// body of the API (RFC 7807). The server writes with it, the client reads with it.
package problem
