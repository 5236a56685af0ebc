package plugin

import (
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"github.com/leapcell/leapcell/driver/supervisor"
)

// Name is what jobs write as their driver.
const Name = "leapcell"

var info = &base.PluginInfoResponse{
	Type:              base.PluginTypeDriver,
	PluginApiVersions: []string{drivers.ApiVersion010},
	PluginVersion:     supervisor.Version,
	Name:              Name,
}

// capabilities: the task's files come from its image, so that Nomad builds no chroot; its
// network is ours, so that Nomad makes none: the gate listens on the host.
var capabilities = &drivers.Capabilities{
	SendSignals:       true,
	Exec:              true,
	FSIsolation:       fsisolation.Image,
	NetIsolationModes: []drivers.NetIsolationMode{drivers.NetIsolationModeHost},
	MountConfigs:      drivers.MountConfigSupportNone,
}

// configSpec is the plugin block of the Nomad agent: plugin "nomad-driver-leapcell" { config { … } }.
var configSpec = hclspec.NewObject(map[string]*hclspec.Spec{
	// The folder for images, caches, records and the supervisor's socket.
	"state_dir": hclspec.NewAttr("state_dir", "string", true),
	// Unique on the machine; part of the names of cgroups, links, namespaces and tables.
	"name": hclspec.NewAttr("name", "string", false),
	// What makes the sandboxes: leapcell, runc or crun. Left out: leapcell, or runc where the kernel lacks something.
	"runtime": hclspec.NewAttr("runtime", "string", false),
	// Addresses of the instances, and how many network namespaces are kept ready.
	"subnet":     hclspec.NewAttr("subnet", "string", false),
	"netns_pool": hclspec.NewDefault(hclspec.NewAttr("netns_pool", "number", false), hclspec.NewLiteral("4")),
	// Private networks that instances may reach.
	"allow_egress": hclspec.NewAttr("allow_egress", "list(string)", false),
	// Networks that instances never reach: other hosts of the platform with public addresses.
	"deny_egress": hclspec.NewAttr("deny_egress", "list(string)", false),
	// How much a persistent instance may write, in MB.
	"disk_mb": hclspec.NewDefault(hclspec.NewAttr("disk_mb", "number", false), hclspec.NewLiteral("10240")),
	// Where sealed variables are read, and with which token.
	"nomad_addr":       hclspec.NewAttr("nomad_addr", "string", false),
	"nomad_token_file": hclspec.NewAttr("nomad_token_file", "string", false),
	// Where they are opened: JWT mount, role, transit mount, CA.
	"vault_addr":    hclspec.NewAttr("vault_addr", "string", false),
	"vault_auth":    hclspec.NewDefault(hclspec.NewAttr("vault_auth", "string", false), hclspec.NewLiteral(`"jwt-leapcell"`)),
	"vault_role":    hclspec.NewDefault(hclspec.NewAttr("vault_role", "string", false), hclspec.NewLiteral(`"instance"`)),
	"vault_transit": hclspec.NewDefault(hclspec.NewAttr("vault_transit", "string", false), hclspec.NewLiteral(`"leapcell"`)),
	"vault_ca_file": hclspec.NewAttr("vault_ca_file", "string", false),
	// JSON file: an object or a list of objects with address, username, password, insecure (allows plain
	// HTTP) and ca_file (PEM). Read again when it changes.
	"registry_credentials_file": hclspec.NewAttr("registry_credentials_file", "string", false),
	// Images that were not used for image_gc_age go; "0" keeps them. From image_gc_high_percent of the
	// disk (or its inodes) in use on, the least recently used go until image_gc_low_percent. What
	// runs, and what was used in the last 15 minutes, stays.
	"image_gc_age":          hclspec.NewDefault(hclspec.NewAttr("image_gc_age", "string", false), hclspec.NewLiteral(`"168h"`)),
	"image_gc_high_percent": hclspec.NewDefault(hclspec.NewAttr("image_gc_high_percent", "number", false), hclspec.NewLiteral("85")),
	"image_gc_low_percent":  hclspec.NewDefault(hclspec.NewAttr("image_gc_low_percent", "number", false), hclspec.NewLiteral("75")),
	// What is done about images without a signature by one of the public keys (PEM, several may be) in
	// verify_keys_file: off, warn (they start, and the task's events say so) or require (they do not).
	"verify":           hclspec.NewDefault(hclspec.NewAttr("verify", "string", false), hclspec.NewLiteral(`"off"`)),
	"verify_keys_file": hclspec.NewAttr("verify_keys_file", "string", false),
	// Where usage is reported to, and the file with the token for it; none: it stays here.
	"api_addr":       hclspec.NewAttr("api_addr", "string", false),
	"api_token_file": hclspec.NewAttr("api_token_file", "string", false),
	// What the operator passes into builds: variables, and files by their path inside.
	"build": hclspec.NewBlock("build", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"env":   hclspec.NewBlockAttrs("env", "string", false),
		"files": hclspec.NewBlockAttrs("files", "string", false),
	})),
	// How long an instance stays awake after its last request; at most 100ms.
	"suspend_after": hclspec.NewDefault(hclspec.NewAttr("suspend_after", "string", false), hclspec.NewLiteral(`"20ms"`)),
	"log_level":     hclspec.NewDefault(hclspec.NewAttr("log_level", "string", false), hclspec.NewLiteral(`"info"`)),
})

// taskSpec is the config block of a task: leapcell.TaskConfig, where each is explained.
var taskSpec = hclspec.NewObject(map[string]*hclspec.Spec{
	"mode":            hclspec.NewDefault(hclspec.NewAttr("mode", "string", false), hclspec.NewLiteral(`"serverless"`)),
	"image":           hclspec.NewAttr("image", "string", true),
	"command":         hclspec.NewAttr("command", "string", false),
	"port":            hclspec.NewAttr("port", "number", false), // see port
	"service":         hclspec.NewAttr("service", "string", false),
	"service_id":      hclspec.NewAttr("service_id", "string", false),
	"deployment":      hclspec.NewAttr("deployment", "string", false),
	"env_path":        hclspec.NewAttr("env_path", "string", false),
	"concurrency":     hclspec.NewDefault(hclspec.NewAttr("concurrency", "number", false), hclspec.NewLiteral("50")),
	"start_timeout":   hclspec.NewDefault(hclspec.NewAttr("start_timeout", "string", false), hclspec.NewLiteral(`"10s"`)),
	"request_timeout": hclspec.NewDefault(hclspec.NewAttr("request_timeout", "string", false), hclspec.NewLiteral(`"15m"`)),
	"output":          hclspec.NewAttr("output", "string", false),
	"start_command":   hclspec.NewAttr("start_command", "string", false),
	"caches":          hclspec.NewAttr("caches", "list(string)", false),
	"cache":           hclspec.NewAttr("cache", "string", false),
	"cache_mb":        hclspec.NewAttr("cache_mb", "number", false),
	"disk_mb":         hclspec.NewAttr("disk_mb", "number", false),
	"image_mb":        hclspec.NewAttr("image_mb", "number", false),
	"run_image":       hclspec.NewAttr("run_image", "string", false),
	"build_env":       hclspec.NewAttr("build_env", "list(string)", false),
	"dockerfile":      hclspec.NewAttr("dockerfile", "string", false),
	"build_args":      hclspec.NewAttr("build_args", "list(string)", false),
	"keep_mb":         hclspec.NewAttr("keep_mb", "number", false),
	"modified":        hclspec.NewAttr("modified", "number", false),
	"timeout":         hclspec.NewDefault(hclspec.NewAttr("timeout", "string", false), hclspec.NewLiteral(`"10m"`)),
	"static_output":   hclspec.NewAttr("static_output", "string", false),
	"static":          hclspec.NewAttr("static", "string", false),
	"static_fallback": hclspec.NewAttr("static_fallback", "string", false),
	"cpus":            hclspec.NewDefault(hclspec.NewAttr("cpus", "number", false), hclspec.NewLiteral("2")),
})
