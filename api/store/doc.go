// Package store keeps services, deployments, sealed environments and API tokens in a
// database: a SQLite file by default. It is the deployer's memory across a kill -9, so a
// commit is on the disk before a call returns.
//
// What runs and where visitors go is not in here: that is in Nomad.
//
// There is one query layer and one set of migrations, in SQL that SQLite and PostgreSQL
// both understand, and one test suite (suite in store_test.go) for both. Times are stored
// as microseconds since 1970, documents as JSON.
package store
