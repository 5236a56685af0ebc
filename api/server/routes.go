package server

import (
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/leapcell/leapcell/api/store"
)

// Access is the role that a route needs; "" means none. An admin may do everything but what Secrets may.
type Access string

// Who may call a route.
const (
	Open  Access = ""
	Edge  Access = store.RoleEdge
	Node  Access = store.RoleNode
	Admin Access = store.RoleAdmin
	// Signed routes ask for no token: the body carries a signature, which the handler checks.
	Signed Access = "signed"
	// Secrets is kept from admins, too.
	Secrets Access = store.RoleSecrets
)

// Route is one row of the API. Summary, Request and Answer are for docs/api.md, which is
// made from this table.
type Route struct {
	Method, Path string
	Access       Access
	Summary      string
	Request      string // query and body
	Answer       string

	handle func(*Server, *gin.Context) error
}

// Routes is the table of the whole API.
func Routes() []Route { return (*Server)(nil).routes() }

func (*Server) routes() []Route {
	return []Route{
		{http.MethodGet, "/v1/health", Open, "Says whether the platform works, part by part.",
			"", "200 `{status, nomad, vault, registry, store}`; 503 when a part does not work", (*Server).getHealth},
		{http.MethodGet, "/v1/version", Open, "Says which version answers.",
			"", "200 `{version}`", (*Server).getVersion},

		{http.MethodPost, "/v1/services", Admin, "Makes a service. It has an address from now on, and answers there once it is deployed.",
			"`{name, settings}`", "201 service", (*Server).createService},
		{http.MethodGet, "/v1/services", Admin, "Lists all services.",
			"", "200 `[service]`", (*Server).listServices},
		{http.MethodGet, "/v1/services/:service", Admin, "Gives one service, by name or ID.",
			"", "200 service", (*Server).getService},
		{http.MethodPatch, "/v1/services/:service", Admin, "Changes settings; the next deployment has them. `null` takes a setting back.",
			"`{settings}`: only what is to change", "200 service", (*Server).updateService},
		{http.MethodDelete, "/v1/services/:service", Admin, "Deletes a service with all that belongs to it.",
			"", "204", (*Server).deleteService},

		{http.MethodPost, "/v1/services/:service/deployments", Admin, "Starts a deployment, from git or from an uploaded tree. Sent again with the same `Idempotency-Key`, it gives the one that it started; so do redeploy and rollback.",
			"`{source: {gitURL, branch, tag, commit, rootDir}}` (without `gitURL`: that of the connected repository), `{source: {image}}` for a ready image, `{source: {upload, rootDir}}` for an upload that is complete, or a body of type `application/gzip` (a tar.gz of the tree) with `?rootDir=`", "202 deployment", (*Server).createDeployment},
		{http.MethodPost, "/v1/uploads", Admin, "Begins the upload of a source archive in pieces, or finds it as far as it has come. One that nobody goes on with for a day is removed.",
			"`{sha256, size}` of the tar.gz", "201 `{sha256, size, offset, expiresAt}`; it is complete when `offset` is `size`", (*Server).beginUpload},
		{http.MethodHead, "/v1/uploads/:sum", Admin, "Says how far an upload has come.",
			"", "200 with `Upload-Offset`, `Upload-Length`, `Upload-Complete: ?0` or `?1`; 404 when there is none", (*Server).headUpload},
		{http.MethodPatch, "/v1/uploads/:sum", Admin, "Adds a piece to an upload. What came before a connection broke is kept. When all is there, the SHA-256 is compared.",
			"`Upload-Offset:`, and the bytes from there as `application/partial-upload`", "200 upload; 409 at another offset, with `Upload-Offset` where it goes on; 400 when the archive is damaged", (*Server).appendUpload},
		{http.MethodDelete, "/v1/uploads/:sum", Admin, "Gives up an upload that is on its way.",
			"", "204", (*Server).discardUpload},
		{http.MethodGet, "/v1/services/:service/deployments", Admin, "Lists the deployments of a service, newest first.",
			"`?limit=` (default 50), `?state=live,failed`, `?branch=`, `?before=`: those with smaller numbers", "200 `[deployment]`", (*Server).listDeployments},
		{http.MethodPost, "/v1/services/:service/rollback", Admin, "Makes a former deployment live again.",
			"`{deployment}`; empty: the last superseded one", "202 deployment; 409 when its image is no longer kept", (*Server).rollback},
		{http.MethodPost, "/v1/services/:service/redeploy", Admin, "Deploys the source of a deployment again, the same commit or upload with the same settings, in a fresh build.",
			"`{deployment}`; empty: the newest one", "202 deployment; 409 when its upload is no longer kept", (*Server).redeploy},
		{http.MethodGet, "/v1/services/:service/traffic", Admin, "Says which part of the requests a former deployment gets.",
			"", "200 `{split: {deployment, host, percent}}`; `null` for none", (*Server).getTraffic},
		{http.MethodPut, "/v1/services/:service/traffic", Admin, "Sends a part of the requests to a former deployment, until the next one goes live. Each former deployment also answers by itself at `{number}--{host}`.",
			"`{deployment, percent}`: 1 to 99, 0 ends it", "200 `{split}`", (*Server).putTraffic},
		{http.MethodGet, "/v1/deployments/:deployment", Admin, "Gives one deployment.",
			"", "200 deployment", (*Server).getDeployment},
		{http.MethodGet, "/v1/deployments/:deployment/log", Admin, "Streams the log of a deployment. When it follows, the stream ends with the deployment.",
			"`?follow=true&timestamps=true&offset=`: the bytes that were read before, with the same `timestamps`", "200 text, line by line", (*Server).deploymentLog},
		{http.MethodGet, "/v1/deployments/:deployment/sbom", Admin, "Gives the bill of materials of a deployment's image: the packages in it, with those of its base.",
			"", "200 a CycloneDX 1.6 document", (*Server).getBill},
		{http.MethodGet, "/v1/deployments/:deployment/provenance", Admin, "Says how a deployment's image came about.",
			"`?envelope=true`: signed, as it is in the registry (DSSE)", "200 an in-toto statement with SLSA provenance v1", (*Server).getProvenance},
		{http.MethodGet, "/v1/deployments/:deployment/wait", Admin, "Waits until the deployment is done, and gives it as it is then or at the timeout.",
			"`?timeout=60s` (at most 5m)", "200 deployment", (*Server).waitDeployment},
		{http.MethodPost, "/v1/deployments/:deployment/cancel", Admin, "Stops a deployment that is not done.",
			"", "202 deployment", (*Server).cancelDeployment},

		{http.MethodPut, "/v1/services/:service/connection", Admin, "Connects a service with a repository. A push to its branch deploys from then on; said again it changes what is said, and makes a new secret and deploy key only when asked to.",
			"`{gitURL, branch, rootDir, previews, provider, apiURL, user, token, hostKey, rotate}`; `provider` is `github`, `gitlab` or `gitea`",
			"200 connection with `hookPath`, and `secret` when it is a new one: it is shown only here", (*Server).connect},
		{http.MethodGet, "/v1/services/:service/connection", Admin, "Gives the connection of a service. Secrets cannot be read back.",
			"", "200 connection", (*Server).getConnection},
		{http.MethodDelete, "/v1/services/:service/connection", Admin, "Ends the connection of a service, with its previews and secrets.",
			"", "204", (*Server).disconnect},
		{http.MethodPost, "/v1/hooks/:connection", Signed, "Takes in an event of a GitHub, GitLab, Gitea or Forgejo that is signed with the connection's secret.",
			"the host's event, as `application/json`, at most 5 MB", "202 `{accepted}`; 200 `{ignored}` with the reason; 401 for a wrong signature", (*Server).receiveHook},

		{http.MethodDelete, "/v1/services/:service/cache", Admin, "Removes what nodes keep between builds of the service: the next one fetches its dependencies anew.",
			"", "204", (*Server).clearCache},
		{http.MethodGet, "/v1/runtimes", Admin, "Lists the runtimes, with the systems that builds and instances stand on.",
			"", "200 `[{name, version, versions, packages, image, buildCommand, startCommand, caches, systems: [{name, image, madeAt, making, error}]}]`", (*Server).listRuntimes},
		{http.MethodPost, "/v1/runtimes/:runtime/update", Admin, "Makes the systems of a runtime anew and streams how it goes; it goes on when the stream is left. The list says how it ended.",
			"", "200 text, line by line", (*Server).updateRuntime},

		{http.MethodGet, "/v1/services/:service/env", Admin, "Lists the names of the environment variables.",
			"", "200 `{version, names}`", (*Server).getEnv},
		{http.MethodGet, "/v1/services/:service/env/:name", Secrets, "Reads the value of one variable back. Each try is written to the log, with the name of the token.",
			"", "200 `{name, value}`", (*Server).openEnv},
		{http.MethodPatch, "/v1/services/:service/env", Admin, "Sets and removes environment variables. Running instances are replaced without a failed request.",
			"`{set: {NAME: value}, unset: [NAME]}`", "200 `{version, names}`", (*Server).updateEnv},
		{http.MethodGet, "/v1/services/:service/logs", Admin, "Streams what the instances of a service write.",
			"`?follow=true&tail=100`", "200 text, line by line", (*Server).serviceLogs},
		{http.MethodGet, "/v1/services/:service/instances", Admin, "Lists the running instances of a service.",
			"", "200 `[instance]`", (*Server).listInstances},
		{http.MethodGet, "/v1/services/:service/usage", Admin, "Says what a service used, hour by hour. A deleted one is found by its ID.",
			"`?from=2006-01-02T15:04:05Z&to=` (default the last 24 hours, at most 366 days)",
			"200 `{serviceID, from, to, hours: [{hour, requests, computeMS, gbSeconds, egressBytes, buildSeconds, coldStarts, runningMS}], total}`", (*Server).getUsage},

		{http.MethodPost, "/v1/edges/:edge/report", Edge, "Takes in what an edge sees, for the scaler.",
			"`{edge, services: [{serviceID, deployment, inFlight, queued, requests}]}`", "204", (*Server).edgeReport},
		{http.MethodPost, "/v1/edges/:edge/meters", Edge, "Counts the requests that an edge answered with files. Readings are cumulative: one that comes twice or late changes nothing.",
			"`{meters: [{id, serviceID, at, ended, requests, egressBytes}]}`, at most 1000", "204 when they are on the disk", (*Server).reportEdgeMeters},
		{http.MethodGet, "/v1/static/:service/:sum", Edge, "Gives a static file, or a list of them, by its SHA-256.",
			"", "200 the content; 307 to where it is", (*Server).staticContent},
		{http.MethodPost, "/v1/nodes/:node/meters", Node, "Counts what a node metered. Readings are cumulative: one that comes twice or late changes nothing.",
			"`{node, meters: [{id, allocID, task, serviceID, deployment, mode, memoryMB, at, ended, requests, computeMS, egressBytes, coldStarts, runningMS, buildMS}]}`, at most 1000",
			"204 when they are on the disk", (*Server).reportMeters},
	}
}
