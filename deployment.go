package leapcell

import (
	"slices"
	"strings"
	"time"
)

// State is where a deployment stands.
//
//	queued ─► fetching ─► building ─► packaging ─► publishing ─► starting ─► live ─► superseded
//	   │          │           │           │             │            │        ▲          │
//	   └──────────┴───────────┴───────────┴─────────────┴────────────┘        └─rollback─┘
//	                          │
//	                          ▼
//	                 failed, cancelled
//
// A deployment goes live only after an instance of it answered its probe [LC3]; until
// then the former one serves.
type State string

// The states of a deployment.
const (
	Queued     State = "queued"     // stored, nothing done yet
	Fetching   State = "fetching"   // the source is being read
	Building   State = "building"   // the build command runs
	Packaging  State = "packaging"  // its result becomes an image
	Publishing State = "publishing" // the image goes to the registry
	Starting   State = "starting"   // the first instance starts
	Live       State = "live"       // visitors get this one
	Superseded State = "superseded" // a newer one is live; this one can be rolled back to
	Failed     State = "failed"     // Error says why
	Cancelled  State = "cancelled"  // somebody stopped it
)

var progress = []State{Queued, Fetching, Building, Packaging, Publishing, Starting, Live}

// States are all there are, in the order in which a deployment has them.
func States() []State { return append(slices.Clone(progress), Superseded, Failed, Cancelled) }

// Done reports whether the deployment moves no further by itself.
func (s State) Done() bool {
	return s == Live || s == Superseded || s == Failed || s == Cancelled
}

// CanBecome reports whether a deployment in state s may move to state to.
func (s State) CanBecome(to State) bool {
	switch {
	case s == Live:
		return to == Superseded
	case s == Superseded:
		return to == Live || to == Starting
	case s.Done():
		return false
	case to == Failed || to == Cancelled:
		return true
	case to == Superseded:
		return true // a newer deployment overtook it
	}
	return slices.Index(progress, to) > slices.Index(progress, s)
}

// Deployment is one version of a service: a source, the settings it was built and is run
// with, and the image that came of it. All but State, Image, Error and the times are fixed
// when it is made.
type Deployment struct {
	ID        string    `json:"id"` // "{service name}-{number}", which is also its Nomad job
	ServiceID string    `json:"serviceID"`
	Service   string    `json:"service"` // the service's name
	Number    int       `json:"number"`  // 1, 2, 3 within the service
	State     State     `json:"state"`
	Source    Source    `json:"source"`
	Settings  Settings  `json:"settings"` // as resolved: API over leapcell.yaml over defaults
	Image     string    `json:"image,omitempty"`
	Error     *Problem  `json:"error,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
	LiveAt    time.Time `json:"liveAt,omitzero"`
	// Place is that in the queue for builds, 1 for the next. It is not stored.
	Place int `json:"place,omitempty"`

	Origin
	Outcome
}

// LogOptions say how the log of a deployment is read.
type LogOptions struct {
	Follow     bool  // until the deployment is done
	Timestamps bool  // each line begins with its time
	Offset     int64 // bytes that the reader has already, read with the same Timestamps
}

// DeploymentQuery says which deployments of a service are meant. Zero fields mean all.
type DeploymentQuery struct {
	States []State
	Branch string
	Before int // those with smaller numbers, to go on after a limit
	Limit  int // the newest
}

// Made is what plans count of a deployment.
type Made struct {
	Origin
	CreatedAt time.Time
}

// Trigger is what made a deployment.
type Trigger string

// What makes deployments.
const (
	Manual   Trigger = "manual"   // somebody asked for it
	Push     Trigger = "push"     // a commit reached a branch
	Change   Trigger = "change"   // a pull or merge request was opened, or got another commit
	Redeploy Trigger = "redeploy" // a former deployment's source once more
)

// Origin is where a deployment came from. It is fixed when the deployment is made.
type Origin struct {
	Trigger   Trigger `json:"trigger,omitempty"`
	StartedBy string  `json:"startedBy,omitempty"` // the token's name, or who pushed
	// Request is what the caller named his request by, see [ParseRequestKey].
	Request string `json:"request,omitempty"`
	// Of is the deployment that a [Redeploy] repeats.
	Of string `json:"of,omitempty"`
	// Preview is the label of a deployment that is seen under a name of its own and never
	// serves the service's names: one for each branch or change.
	Preview string `json:"preview,omitempty"`
	// ChangeNumber is that of the pull or merge request.
	ChangeNumber int `json:"changeNumber,omitempty"`
}

// HeaderIdempotencyKey names a request, so that its effect comes once however often it arrives: who
// lost the answer sends it again.
// Source: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
const HeaderIdempotencyKey = "Idempotency-Key"

// maxRequestKey bounds it, in bytes.
const maxRequestKey = 128

// ParseRequestKey reads an [HeaderIdempotencyKey], in quotes or without; "" is none.
func ParseRequestKey(text string) (string, error) {
	key := text
	if n := len(key); n >= 2 && key[0] == '"' && key[n-1] == '"' {
		key = key[1 : n-1]
	}
	odd := func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\\' }
	if len(key) > maxRequestKey || strings.ContainsFunc(key, odd) || key == "" && text != "" {
		return "", Errorf(CodeInvalid, "%s is %.150q: it must be up to %d letters, digits and signs", HeaderIdempotencyKey, text, maxRequestKey)
	}
	return key, nil
}

// Outcome is what is learnt of a deployment on its way.
type Outcome struct {
	Author     string    `json:"author,omitempty"`  // of the commit
	Subject    string    `json:"subject,omitempty"` // first line of its message
	ImageBytes int64     `json:"imageBytes,omitempty"`
	BuildBegan time.Time `json:"buildBegan,omitzero"`
	BuildEnded time.Time `json:"buildEnded,omitzero"`
	Static     *Static   `json:"static,omitempty"`
	// PreviewURL is where a preview is seen, until PreviewEnded.
	PreviewURL   string    `json:"previewURL,omitempty"`
	PreviewEnded time.Time `json:"previewEnded,omitzero"`
	// EndedAt is when it was done for the first time: live, failed, cancelled or overtaken.
	EndedAt time.Time `json:"endedAt,omitzero"`
	// ImageGone is when the image was given up. Rolling back needs it; redeploying does not.
	ImageGone time.Time `json:"imageGone,omitzero"`
	// RestoredBy is who rolled back to the deployment last, and RestoredFrom what was live before.
	RestoredBy   string `json:"restoredBy,omitempty"`
	RestoredFrom string `json:"restoredFrom,omitempty"`
	// RestoredRequest is what the request to roll back was named by.
	RestoredRequest string `json:"restoredRequest,omitempty"`
}

// Static is the front end of a deployment: files that edges serve without an instance.
type Static struct {
	Manifest  string `json:"manifest"`            // SHA-256 of the list of files
	Framework string `json:"framework,omitempty"` // by which it was recognised
	Folder    string `json:"folder"`              // within the source
	Fallback  string `json:"fallback,omitempty"`  // the file for paths that are none
	Files     int    `json:"files"`
	Bytes     int64  `json:"bytes"`
	Whole     bool   `json:"whole,omitempty"` // there is nothing else: no instance is needed
}

// Kept reports whether the deployment was live once and can be again: it has a preview, and
// can be rolled back to for as long as its image is there.
func (d Deployment) Kept() bool {
	return d.WasLive() && d.HasImage()
}

// WasLive reports whether the deployment was live once and no longer is.
func (d Deployment) WasLive() bool { return d.State == Superseded && !d.LiveAt.IsZero() }

// HasImage reports whether the deployment's image, or the files of its site, are still there.
func (d Deployment) HasImage() bool { return d.Image != "" && d.ImageGone.IsZero() }

// Took is how long the deployment took from when it was asked for until it was done; 0 while it
// is not, and where it is not known.
func (d Deployment) Took() time.Duration {
	if d.EndedAt.IsZero() {
		return 0
	}
	return d.EndedAt.Sub(d.CreatedAt)
}

// Whole reports whether the deployment is files only: edges serve it without any instance.
func (d Deployment) Whole() bool { return d.Static != nil && d.Static.Whole }

// Source says where a deployment comes from: an upload, a git reference, or a ready image.
type Source struct {
	Upload  string `json:"upload,omitempty"` // sha256 of the uploaded archive
	GitURL  string `json:"gitURL,omitempty"`
	Branch  string `json:"branch,omitempty"`
	Tag     string `json:"tag,omitempty"`     // of git; not together with Branch
	RootDir string `json:"rootDir,omitempty"` // within the tree; "" is its top
	Commit  string `json:"commit,omitempty"`  // asked for, or filled in when fetched
	Image   string `json:"image,omitempty"`   // a ready image's reference: nothing is built
	// Connection is the [Connection] whose credentials read GitURL. Only the platform sets it.
	Connection string `json:"connection,omitempty"`
}

// Problem is why a deployment failed, for its owner.
type Problem struct {
	Code     Code     `json:"code"`
	Message  string   `json:"message"`
	ExitCode *int     `json:"exitCode,omitempty"`
	LogTail  []string `json:"logTail,omitempty"` // the last lines the command wrote
}

// Instance is one running copy of a deployment: a Nomad allocation.
type Instance struct {
	ID         string `json:"id"` // the allocation's ID
	Deployment string `json:"deployment"`
	Address    string `json:"address"` // host:port of its gate
	Status     string `json:"status"`  // as Nomad says it
}

// GateStatus is the body of a gate's answer to [HeaderProbe].
type GateStatus struct {
	Ready    bool   `json:"ready"`
	Code     Code   `json:"code,omitempty"`
	Message  string `json:"message,omitempty"`
	ExitCode *int   `json:"exitCode,omitempty"`
}
