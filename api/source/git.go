package source

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/leapcell/leapcell"
)

// Access is what a repository asks of those who read it. It is kept in Vault and is in
// memory only while it is used.
type Access struct {
	User    string // for https; any will do at most hosts
	Token   string // for https
	Key     []byte // for ssh: the private half of the deploy key, PEM
	HostKey string // for ssh: the pinned key of the host, "ssh-ed25519 AAAA…"
}

// scpLike is the short form of an ssh address: git@host:owner/repository.git
var scpLike = regexp.MustCompile(`^(?:([A-Za-z0-9_.-]+)@)?([A-Za-z0-9.-]+):([^/\\:].*)$`)

// CleanURL gives the one form of a repository's address that is stored: ssh addresses in
// full, nothing that only browsers need.
func CleanURL(raw string) string {
	raw = strings.TrimSpace(raw)
	if m := scpLike.FindStringSubmatch(raw); m != nil && !strings.Contains(raw, "://") {
		user := m[1]
		if user == "" {
			user = "git"
		}
		return "ssh://" + user + "@" + m[2] + "/" + m[3]
	}
	return strings.TrimRight(raw, "/")
}

// CheckGit tells early, at the API, whether src can be a git source at all.
func (s *Store) CheckGit(src leapcell.Source) error {
	if err := s.checkURL(src.GitURL); err != nil {
		return err
	}
	if strings.HasPrefix(src.GitURL, "ssh://") && src.Connection == "" {
		return leapcell.Errorf(leapcell.CodeInvalid, "ssh needs a deploy key and the key of the host: connect the service with the repository first (leapcell git connect)")
	}
	if ref := plumbing.NewBranchReferenceName(src.Branch); src.Branch != "" && ref.Validate() != nil {
		return leapcell.Errorf(leapcell.CodeInvalid, "%q cannot be the name of a branch", src.Branch)
	}
	if ref := plumbing.NewTagReferenceName(src.Tag); src.Tag != "" && ref.Validate() != nil {
		return leapcell.Errorf(leapcell.CodeInvalid, "%q cannot be the name of a tag", src.Tag)
	}
	if src.Branch != "" && src.Tag != "" {
		return leapcell.Errorf(leapcell.CodeInvalid, "a branch and a tag are named: only one of them can be meant")
	}
	if src.Commit != "" && !isCommit(src.Commit) {
		return leapcell.Errorf(leapcell.CodeInvalid, "%q is no commit: its full name has 40 digits", src.Commit)
	}
	return nil
}

func isCommit(s string) bool {
	return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == ""
}

func (s *Store) checkURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return leapcell.Errorf(leapcell.CodeInvalid, "the git URL cannot be read: it must look like https://host/owner/repository")
	}
	if _, ok := u.User.Password(); ok {
		return leapcell.Errorf(leapcell.CodeInvalid, "the git URL %s has a password in it: connect the service with the repository (leapcell git connect), then it is kept in Vault", u.Redacted())
	}
	switch {
	case u.Scheme == "file" && s.cfg.AllowFileURLs && u.Path != "":
	case u.Scheme == "file":
		return leapcell.Errorf(leapcell.CodeInvalid, "git repositories on the platform's own disk (file://) are switched off")
	case (u.Scheme == "http" || u.Scheme == "https" || u.Scheme == "ssh") && u.Hostname() != "" && strings.Trim(u.Path, "/") != "":
	default:
		return leapcell.Errorf(leapcell.CodeInvalid, "the git URL %q cannot be used: it must start with https://, ssh:// or http://", u.Redacted())
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return leapcell.Errorf(leapcell.CodeInvalid, "the git URL %q names no port that there is", u.Redacted())
		}
	}
	// A path goes to the shell of an ssh host.
	if strings.ContainsAny(u.Path, "\x00\n\r'") || strings.HasPrefix(strings.TrimLeft(u.Path, "/"), "-") {
		return leapcell.Errorf(leapcell.CodeInvalid, "the git URL %q has characters that no repository's path has", u.Redacted())
	}
	return nil
}

// checkout is one fetch of a repository with all that it leads to.
type checkout struct {
	store    *Store
	dir      string // for work in progress
	root     string // only what is below it is needed; "" is all
	origin   *url.URL
	access   Access // for origin's host only
	t        *tree
	progress func(string)
	modules  int // submodules so far
}

func (s *Store) fetchGit(ctx context.Context, src leapcell.Source, dst string, progress func(string)) (Tree, error) {
	if err := s.CheckGit(src); err != nil {
		return Tree{}, err
	}
	root, err := cleanRoot(src.RootDir)
	if err != nil {
		return Tree{}, err
	}
	if err := s.gitSlots.Acquire(ctx, 1); err != nil {
		return Tree{}, err
	}
	defer s.gitSlots.Release(1)
	dir, err := os.MkdirTemp(s.workDir(), "git-")
	if err != nil {
		return Tree{}, diskError(err, "the repository could not be cloned")
	}
	defer os.RemoveAll(dir)

	limited, cancel := context.WithTimeout(ctx, s.cfg.GitTimeout)
	defer cancel()
	c := &checkout{store: s, dir: dir, root: root, t: newTree(s.cfg), progress: progress}
	out, err := c.fetch(limited, src, dst)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("the repository could not be read within %s", s.cfg.GitTimeout))
	}
	return out, err
}

func (c *checkout) fetch(ctx context.Context, src leapcell.Source, dst string) (Tree, error) {
	var err error
	if c.origin, err = url.Parse(src.GitURL); err != nil {
		return Tree{}, leapcell.Errorf(leapcell.CodeInvalid, "the git URL cannot be read")
	}
	if src.Connection != "" && c.store.cfg.Access != nil {
		if c.access, err = c.store.cfg.Access(ctx, src.Connection); err != nil {
			return Tree{}, err
		}
	}
	repo, commit, err := c.clone(ctx, src)
	if err != nil {
		return Tree{}, err
	}
	c.progress("commit " + commit.Hash.String()[:12] + " " + Subject(commit.Message))
	if err := c.read(ctx, repo, commit, place{url: c.origin}); err != nil {
		return Tree{}, err
	}
	out, err := c.store.finish(ctx, c.t, src.RootDir, dst)
	out.Commit, out.Author, out.Subject = commit.Hash.String(), oneLine(commit.Author.Name, maxSubject), Subject(commit.Message)
	return out, err
}

// clone fetches what src names, into a bare repository of its own.
func (c *checkout) clone(ctx context.Context, src leapcell.Source) (*git.Repository, *object.Commit, error) {
	c.modules++
	dir := filepath.Join(c.dir, strconv.Itoa(c.modules))
	repo, err := git.PlainInit(dir, true)
	if err != nil {
		return nil, nil, diskError(err, "the repository could not be cloned")
	}
	u, err := url.Parse(src.GitURL)
	if err != nil {
		return nil, nil, leapcell.Errorf(leapcell.CodeInvalid, "the git URL cannot be read")
	}
	r, err := c.dial(ctx, u)
	if err != nil {
		return nil, nil, cloneError(err, src)
	}
	defer r.Close()
	hash, err := c.download(ctx, r, repo, src, dir)
	if err != nil {
		return nil, nil, cloneError(err, src)
	}
	commit, err := peel(repo, hash)
	if err != nil {
		return nil, nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("what %s says of %s does not lead to a commit", shownURL(src.GitURL), refText(src)))
	}
	return repo, commit, nil
}

// peel is the commit that hash is of, or that the tag of that hash is of.
func peel(repo *git.Repository, hash plumbing.Hash) (*object.Commit, error) {
	for range 5 { // a tag may be of a tag
		tag, err := repo.TagObject(hash)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		hash = tag.Target
	}
	return repo.CommitObject(hash)
}

// refText says what src asks for.
func refText(src leapcell.Source) string {
	switch {
	case src.Commit != "":
		return "commit " + src.Commit[:12]
	case src.Tag != "":
		return fmt.Sprintf("tag %q", src.Tag)
	case src.Branch != "":
		return fmt.Sprintf("branch %q", src.Branch)
	}
	return "its default branch"
}

// maxSubject bounds the first line of a commit's message, and the name of its author.
const maxSubject = 72

// Subject is the first line of a commit's message, fit to be shown.
func Subject(message string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(message), "\n")
	return oneLine(line, maxSubject)
}

// oneLine is text without what would change the line or the terminal that it is shown in.
func oneLine(text string, most int) string {
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "�")))
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

func shownURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "the repository"
	}
	return u.Redacted()
}
