package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"strings"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"github.com/leapcell/leapcell"
)

// CheckGit tells early, at the API, whether src can be a git source at all.
func (s *Store) CheckGit(src leapcell.Source) error {
	u, err := url.Parse(src.GitURL)
	if err != nil {
		return leapcell.Errorf(leapcell.CodeInvalid, "the git URL cannot be read: it must look like https://host/owner/repository")
	}
	switch {
	case u.Scheme == "file" && s.cfg.AllowFileURLs && u.Path != "":
	case u.Scheme == "file":
		return leapcell.Errorf(leapcell.CodeInvalid, "git repositories on the platform's own disk (file://) are switched off")
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
	default:
		return leapcell.Errorf(leapcell.CodeInvalid, "the git URL %q cannot be used: it must start with https:// or http://", u.Redacted())
	}
	if ref := plumbing.NewBranchReferenceName(src.Branch); src.Branch != "" && ref.Validate() != nil {
		return leapcell.Errorf(leapcell.CodeInvalid, "%q cannot be the name of a branch", src.Branch)
	}
	return nil
}

func (s *Store) fetchGit(ctx context.Context, src leapcell.Source, dst string, progress func(string)) (Tree, error) {
	if err := s.CheckGit(src); err != nil {
		return Tree{}, err
	}
	dir, err := os.MkdirTemp(s.workDir(), "git-")
	if err != nil {
		return Tree{}, diskError(err, "the repository could not be cloned")
	}
	defer os.RemoveAll(dir)

	limited, cancel := context.WithTimeout(ctx, s.cfg.GitTimeout)
	defer cancel()
	repo, err := clone(limited, dir, src)
	if err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			err = leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("the repository could not be read within %s", s.cfg.GitTimeout))
		}
		return Tree{}, err
	}
	commit, err := headCommit(repo)
	if err != nil {
		return Tree{}, err
	}
	progress("commit " + commit.Hash.String()[:12] + " " + firstLine(commit.Message))
	t, err := s.readCommit(limited, commit, progress)
	if err != nil {
		return Tree{}, err
	}
	out, err := s.finish(ctx, t, src.RootDir, dst)
	out.Commit = commit.Hash.String()
	return out, err
}

func clone(ctx context.Context, dir string, src leapcell.Source) (*git.Repository, error) {
	options := &git.CloneOptions{
		URL: src.GitURL, SingleBranch: true, Depth: 1, NoCheckout: true, Tags: git.NoTags,
	}
	if src.Branch != "" {
		options.ReferenceName = plumbing.NewBranchReferenceName(src.Branch)
	}
	repo, err := git.PlainCloneContext(ctx, dir, true, options)
	if err != nil {
		return nil, cloneError(err, src)
	}
	return repo, nil
}

// cloneError says in the user's words what git said in its own. The URL is shown without
// its password.
func cloneError(err error, src leapcell.Source) error {
	shown := src.GitURL
	if u, bad := url.Parse(src.GitURL); bad == nil {
		shown = u.Redacted()
	}
	var noMatch git.NoMatchingRefSpecError
	say := func(format string, args ...any) error {
		return leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf(format, args...))
	}
	switch {
	case errors.As(err, &noMatch), errors.Is(err, plumbing.ErrReferenceNotFound):
		if src.Branch == "" {
			return say("the repository %s has no default branch: name one", shown)
		}
		return say("the repository %s has no branch %q", shown, src.Branch)
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return say("there is no repository at %s, or it is private", shown)
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		return say("the repository %s is private, or does not exist", shown)
	case errors.Is(err, transport.ErrEmptyRemoteRepository):
		return say("the repository %s is empty", shown)
	case isDisk(err):
		return diskError(err, "the repository could not be cloned")
	}
	return say("the repository %s could not be read: %s", shown, strings.ReplaceAll(err.Error(), src.GitURL, shown))
}

// headCommit is the commit that was cloned.
func headCommit(repo *git.Repository) (*object.Commit, error) {
	head, err := repo.Head()
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, "the branch has no commit")
	}
	commit, err := repo.CommitObject(head.Hash())
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, "the branch does not lead to a commit")
	}
	return commit, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	if len(line) > 72 {
		line = strings.ToValidUTF8(line[:72], "") + "…"
	}
	return line
}

// readCommit lists the tracked files of a commit.
func (s *Store) readCommit(ctx context.Context, commit *object.Commit, progress func(string)) (*tree, error) {
	top, err := commit.Tree()
	if err != nil {
		return nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, "the commit's tree could not be read")
	}
	t := newTree(s.cfg)
	walker := object.NewTreeWalker(top, true, nil)
	defer walker.Close()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		raw, item, err := walker.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil {
			return nil, leapcell.Wrap(leapcell.CodeUnprocessable, err, "the commit's tree could not be read")
		}
		if item.Mode == filemode.Submodule {
			progress("submodule " + path.Clean(raw) + " is left out: submodules are not fetched")
			continue
		}
		name, err := cleanName(raw)
		if err != nil {
			return nil, err
		}
		if name == "" || item.Mode == filemode.Dir {
			continue
		}
		e, err := fromGit(commit, name, raw)
		if err != nil {
			return nil, err
		}
		if err := t.add(e); err != nil {
			return nil, err
		}
	}
}

func fromGit(commit *object.Commit, name, raw string) (entry, error) {
	file, err := commit.File(raw)
	if err != nil {
		return entry{}, leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("%q could not be read from the repository", name))
	}
	e := entry{name: name, kind: regular, size: file.Size, open: file.Reader}
	switch file.Mode {
	case filemode.Executable:
		e.kind = executable
	case filemode.Symlink:
		target, err := file.Contents()
		if err != nil {
			return entry{}, leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("%q could not be read from the repository", name))
		}
		e.kind, e.link, e.size, e.open = symlink, target, 0, nil
	}
	return e, nil
}
