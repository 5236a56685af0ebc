// Package vault seals environment variables with Vault's transit engine. Each service has a
// key of its own, named after the service's ID; the control plane's token can make such a
// key, encrypt with it and delete it, but never decrypt. Only a running instance, by its
// workload identity, can. What the control plane itself needs again, such as the deploy key of
// a service's repository, has keys of other names, with which it may decrypt. Deleting the key makes all values sealed with it unreadable.
//
// Clear values are in this process's memory for the time of one call. They are in no log,
// no error and no type that outlives the call.
package vault
