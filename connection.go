package leapcell

import "time"

// Connection joins a service with a repository: a push to its branch deploys, and other
// branches get previews if that is switched on. A service has at most one. Its secrets (the
// webhook's, the token, the private half of the deploy key) are sealed by Vault.
type Connection struct {
	ID        string   `json:"id"`
	ServiceID string   `json:"serviceID"`
	GitURL    string   `json:"gitURL"`
	Branch    string   `json:"branch"`
	RootDir   string   `json:"rootDir,omitempty"`
	Previews  bool     `json:"previews"`
	Provider  Provider `json:"provider"`
	// APIURL is the base of the host's API, to which commits' states are reported.
	APIURL    string    `json:"apiURL,omitempty"`
	User      string    `json:"user,omitempty"`      // who the token is of
	HasToken  bool      `json:"hasToken"`            // without one nothing is reported
	PublicKey string    `json:"publicKey,omitempty"` // for ssh: to be added at the host
	HostKey   string    `json:"hostKey,omitempty"`   // for ssh: of the host, as it was when connected
	HookPath  string    `json:"hookPath"`            // where the host posts its events, within the API
	CreatedAt time.Time `json:"createdAt"`
}

// Provider is the kind of a git host: it says how events are signed and where commits'
// states go.
type Provider string

// The kinds of git hosts. Forgejo is a Gitea here.
const (
	GitHub Provider = "github"
	GitLab Provider = "gitlab"
	Gitea  Provider = "gitea"
)

// GitEvent is what a host tells of a repository.
type GitEvent struct {
	Kind   GitEventKind `json:"kind"`
	Branch string       `json:"branch"`           // of a change: the one it comes from
	Commit string       `json:"commit,omitempty"` // the new one
	Change int          `json:"change,omitempty"` // number of the pull or merge request
	By     string       `json:"by,omitempty"`     // who did it, by the host's name
}

// GitEventKind says what happened.
type GitEventKind string

// What happens in repositories. Anything else is of no interest.
const (
	GitPush        GitEventKind = "push"         // a branch has another commit
	GitBranchGone  GitEventKind = "branch-gone"  // a branch was deleted
	GitChange      GitEventKind = "change"       // a pull or merge request was opened, or has another commit
	GitChangeEnded GitEventKind = "change-ended" // it was closed or merged
)
