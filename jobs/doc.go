// Package jobs translates the platform's nouns into what Nomad and the edge get: a
// [leapcell.Deployment] into a service job and a build job, and into the route that sends
// visitors to it. All functions are pure; testdata shows what Nomad really gets.
//
// In the main flow it stands between api/deploy, which registers these jobs, and driver,
// which runs them.
package jobs
