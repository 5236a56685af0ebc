// Package gate is the door of one instance: the listener on the port that Nomad allotted.
//
// Every request of an instance passes here, whichever edge it came through. So this is the
// place that holds requests until the app listens [LC3, LC7], limits them [RQ1-RQ4, RQ8],
// suspends the app while none is in flight [CP4] and thaws it for the next [CP5], drains it
// [LI3] and meters it [BI1].
//
// In the flow of a visit it stands between the edge and the app: edge → gate → app. It binds
// before the app's sandbox is made, so that the edge can connect at once and nobody waits
// for Nomad to say "running". The supervisor makes one gate for each runtime task and tells
// it what happened: [Gate.Launched], [Gate.Fail], [Gate.Exited], [Gate.Drain], [Gate.Close].
package gate
