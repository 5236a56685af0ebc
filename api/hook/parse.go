package hook

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/leapcell/leapcell"
)

// MaxBody bounds what a host may send. GitHub names at most 2,048 commits in an event, most
// hosts fewer.
const MaxBody = 5 << 20

// request is an event as it came.
type request struct {
	header http.Header
	body   []byte
}

// provider tells by the headers who speaks. Gitea also sends those of GitHub.
func (r request) provider() leapcell.Provider {
	for _, p := range []struct {
		name   leapcell.Provider
		header string
	}{
		{leapcell.Gitea, "X-Gitea-Event"}, {leapcell.Gitea, "X-Forgejo-Event"},
		{leapcell.GitLab, "X-Gitlab-Event"}, {leapcell.GitHub, "X-Github-Event"},
	} {
		if r.header.Get(p.header) != "" {
			return p.name
		}
	}
	return ""
}

// signed reports whether who sent it knows the secret. The time that takes says nothing of
// the secret.
//
// https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
// https://docs.gitlab.com/user/project/integrations/webhooks/
// https://docs.gitea.com/usage/webhooks
func (r request) signed(p leapcell.Provider, secret string) bool {
	switch p {
	case leapcell.GitHub:
		sum, ok := strings.CutPrefix(r.header.Get("X-Hub-Signature-256"), "sha256=")
		return ok && r.hasSum(sum, secret)
	case leapcell.Gitea:
		return r.hasSum(r.header.Get("X-Gitea-Signature"), secret)
	case leapcell.GitLab:
		have, want := sha256.Sum256([]byte(r.header.Get("X-Gitlab-Token"))), sha256.Sum256([]byte(secret))
		return subtle.ConstantTimeCompare(have[:], want[:]) == 1
	}
	return false
}

func (r request) hasSum(text, secret string) bool {
	have, err := hex.DecodeString(text)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(r.body)
	return hmac.Equal(have, mac.Sum(nil)) && err == nil
}

// deliveries are the names by which the same delivery is known again. That in the header is
// not signed, so who repeats a delivery could give it another one: the content counts as
// well. A GitLab says nothing of the time in it, and two pushes may look alike, but who knows
// its token can say anything in the first place.
func (r request) deliveries(p leapcell.Provider) []string {
	sum := sha256.Sum256(append([]byte(r.kind(p)+"\n"), r.body...))
	content := "content:" + hex.EncodeToString(sum[:])
	id := ""
	switch p {
	case leapcell.GitHub:
		id = r.header.Get("X-Github-Delivery")
	case leapcell.Gitea:
		id = first(r.header.Get("X-Gitea-Delivery"), r.header.Get("X-Forgejo-Delivery"))
	case leapcell.GitLab:
		if id = first(r.header.Get("Idempotency-Key"), r.header.Get("X-Gitlab-Event-Uuid")); id != "" {
			content = ""
		}
	}
	var out []string
	if id != "" {
		sum := sha256.Sum256([]byte(id)) // of bounded length
		out = append(out, "id:"+hex.EncodeToString(sum[:]))
	}
	if content != "" {
		out = append(out, content)
	}
	return out
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func (r request) kind(p leapcell.Provider) string {
	switch p {
	case leapcell.GitHub:
		return r.header.Get("X-Github-Event")
	case leapcell.GitLab:
		return r.header.Get("X-Gitlab-Event")
	}
	return first(r.header.Get("X-Gitea-Event"), r.header.Get("X-Forgejo-Event"))
}

// errMalformed is all that is said of a body that cannot be understood: none of it.
var errMalformed = leapcell.Errorf(leapcell.CodeInvalid, "the event cannot be read")

// parse reads an event. why says why there is nothing to do, "" when there is.
func (r request) parse(p leapcell.Provider) (e leapcell.GitEvent, why string, err error) {
	kind := r.kind(p)
	if len(r.body) == 0 || r.body[0] != '{' {
		return e, "", leapcell.Errorf(leapcell.CodeInvalid, "the event is not JSON: set the webhook's content type to application/json")
	}
	if p == leapcell.GitLab {
		e, why, err = parseGitLab(kind, r.body)
	} else {
		e, why, err = parseGitHub(kind, r.body) // Gitea's events have the same fields
	}
	if err != nil || why != "" {
		return leapcell.GitEvent{}, why, err
	}
	return e, "", check(&e)
}

// check lets nothing into the platform that is no branch, commit or name.
func check(e *leapcell.GitEvent) error {
	needsCommit := e.Kind == leapcell.GitPush || e.Kind == leapcell.GitChange
	if !isBranch(e.Branch) || needsCommit && !isCommit(e.Commit) || e.Change < 0 {
		return errMalformed
	}
	if !needsCommit {
		e.Commit = ""
	}
	e.By = plain(e.By)
	return nil
}

const maxName = 255

// isBranch follows git-check-ref-format(1) where it matters to who shows the name or hands
// it on.
func isBranch(s string) bool {
	if s == "" || len(s) > maxName || s[0] == '-' || s[0] == '/' || strings.HasSuffix(s, "/") || strings.HasSuffix(s, ".lock") ||
		strings.Contains(s, "..") || strings.Contains(s, "//") || strings.Contains(s, "@{") || strings.ToValidUTF8(s, "") != s {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("~^:?*[\\", r) })
}

func isCommit(s string) bool {
	return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == "" && strings.Trim(s, "0") != ""
}

// plain is a name fit for a log.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	return strings.ToValidUTF8(s[:min(len(s), 100)], "")
}

// https://docs.github.com/en/webhooks/webhook-events-and-payloads
// https://docs.gitea.com/usage/webhooks
type githubEvent struct {
	Ref     string `json:"ref"`
	RefType string `json:"ref_type"`
	After   string `json:"after"`
	Deleted bool   `json:"deleted"`
	Sender  struct {
		Login string `json:"login"`
	} `json:"sender"`

	Action      string `json:"action"`
	Number      int    `json:"number"`
	PullRequest *struct {
		Head, Base githubSide
	} `json:"pull_request"`
}

type githubSide struct {
	Ref  string `json:"ref"`
	SHA  string `json:"sha"`
	Repo *struct {
		ID int64 `json:"id"`
	} `json:"repo"`
}

func parseGitHub(kind string, body []byte) (e leapcell.GitEvent, why string, err error) {
	var in githubEvent
	switch kind {
	case "push", "delete", "pull_request", "pull_request_sync":
		if err := json.Unmarshal(body, &in); err != nil {
			return e, "", errMalformed
		}
	default:
		return e, "events of this kind change nothing here", nil
	}
	e.By = in.Sender.Login
	if in.PullRequest != nil {
		return in.change(e)
	}
	var ok bool
	switch kind {
	case "push":
		if e.Branch, ok = strings.CutPrefix(in.Ref, "refs/heads/"); !ok {
			return e, "only branches are deployed", nil
		}
		e.Kind, e.Commit = leapcell.GitPush, in.After
		if in.Deleted || strings.Trim(in.After, "0") == "" && in.After != "" {
			e.Kind = leapcell.GitBranchGone
		}
	case "delete":
		if in.RefType != "branch" {
			return e, "only branches are deployed", nil
		}
		e.Kind, e.Branch = leapcell.GitBranchGone, strings.TrimPrefix(in.Ref, "refs/heads/")
	default:
		return e, "", errMalformed
	}
	return e, "", nil
}

func (in githubEvent) change(e leapcell.GitEvent) (leapcell.GitEvent, string, error) {
	head, base := in.PullRequest.Head, in.PullRequest.Base
	switch in.Action {
	case "opened", "reopened", "synchronize", "synchronized":
		e.Kind = leapcell.GitChange
	case "closed":
		e.Kind = leapcell.GitChangeEnded
	default:
		return e, "the pull request has no other commit", nil
	}
	e.Branch, e.Commit, e.Change = head.Ref, head.SHA, in.Number
	if head.Repo == nil || base.Repo == nil || head.Repo.ID != base.Repo.ID {
		return e, whyFork, nil
	}
	return e, "", nil
}

// whyFork is said of changes from elsewhere: with a preview their authors would run what
// they like with the service's secrets.
const whyFork = "the change comes from another repository: it gets no preview, since that could read the service's variables"

// https://docs.gitlab.com/user/project/integrations/webhook_events/
type gitlabEvent struct {
	Kind     string `json:"object_kind"`
	Ref      string `json:"ref"`
	After    string `json:"after"`
	Username string `json:"user_username"`
	User     struct {
		Username string `json:"username"`
	} `json:"user"`
	Change *struct {
		Number     int    `json:"iid"`
		Action     string `json:"action"`
		Branch     string `json:"source_branch"`
		From       int64  `json:"source_project_id"`
		To         int64  `json:"target_project_id"`
		OldRev     string `json:"oldrev"`
		LastCommit struct {
			ID string `json:"id"`
		} `json:"last_commit"`
	} `json:"object_attributes"`
}

func parseGitLab(kind string, body []byte) (e leapcell.GitEvent, why string, err error) {
	if kind != "Push Hook" && kind != "Merge Request Hook" {
		return e, "events of this kind change nothing here", nil
	}
	var in gitlabEvent
	if err := json.Unmarshal(body, &in); err != nil {
		return e, "", errMalformed
	}
	e.By = first(in.Username, in.User.Username)
	if kind == "Push Hook" {
		var ok bool
		if e.Branch, ok = strings.CutPrefix(in.Ref, "refs/heads/"); !ok {
			return e, "only branches are deployed", nil
		}
		e.Kind, e.Commit = leapcell.GitPush, in.After
		if strings.Trim(in.After, "0") == "" && in.After != "" {
			e.Kind = leapcell.GitBranchGone
		}
		return e, "", nil
	}
	c := in.Change
	if c == nil {
		return e, "", errMalformed
	}
	switch {
	case c.Action == "open", c.Action == "reopen", c.Action == "update" && c.OldRev != "":
		e.Kind = leapcell.GitChange
	case c.Action == "close", c.Action == "merge":
		e.Kind = leapcell.GitChangeEnded
	default:
		return e, "the merge request has no other commit", nil
	}
	e.Branch, e.Commit, e.Change = c.Branch, c.LastCommit.ID, c.Number
	if c.From != c.To || c.From == 0 {
		return e, whyFork, nil
	}
	return e, "", nil
}

// errForged is all that is said to somebody who does not know the secret, also when there is
// no such connection.
var errForged = leapcell.Wrap(leapcell.CodeUnauthorized, errors.New("signature"), "the event is not signed with the secret of this connection")
