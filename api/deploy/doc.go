// Package deploy drives deployments: the control plane's main work.
//
//	Submit ─► queued ─► fetching ─► building ─► packaging ─► publishing ─► starting ─► live
//	          (slot)    source      Nomad batch job, watched               Nomad    route
//	                    image                                              service  variable
//	                                                                       job      written
//
// The state is in the store, everything else is named after the deployment: the source
// image, the build job, the image, the service job. So each step can be repeated, and
// after a kill -9 [Deployer.Resume] goes on from the stored state.
//
// There is one goroutine per unfinished deployment (machine.go); the steps are in
// fetch.go, build.go, start.go and live.go.
package deploy
