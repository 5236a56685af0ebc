// Package platform brings the whole platform up on one machine, looks after it and takes it
// down again: Vault, Nomad with the leapcell driver, the control plane and the edge, each a
// process of its own that outlives the command which started it.
//
// [Platform.Up] reads as the list of what happens, in order; every step may be repeated at
// any time. Everything lives in one folder, [Config.StateDir], and every port is a setting,
// so several platforms can run side by side:
//
//	config.json       settings of this platform; its presence marks the folder
//	logs/*.log        one file a process
//	run/*.json        which process runs: id, start time, what it was started with
//	vault/            storage and, in init.json, the unseal key and root token (0600)
//	nomad/            agent configuration, data, plugins and tokens (0600)
//	node/             what the driver keeps: images, instances, its supervisor's socket
//	control/          database and registry of the control plane, and admin.token (0600)
//	edge/             what the edge keeps
//	host/             package-manager settings of this machine, as builds see them
package platform
