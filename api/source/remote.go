package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	gitfile "github.com/go-git/go-git/v5/plumbing/transport/file"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"

	"github.com/leapcell/leapcell"
)

// dial opens a session with the repository at u. Only origin's own host hears of the
// credentials.
func (c *checkout) dial(ctx context.Context, u *url.URL) (transport.UploadPackSession, error) {
	switch u.Scheme {
	case "ssh":
		return c.dialSSH(ctx, u)
	case "file":
		end, err := transport.NewEndpoint(u.String())
		if err != nil {
			return nil, err
		}
		return gitfile.DefaultClient.NewUploadPackSession(end, nil)
	}
	end, err := transport.NewEndpoint(u.String())
	if err != nil {
		return nil, err
	}
	var auth transport.AuthMethod
	if c.access.Token != "" && sameOrigin(u, c.origin) {
		auth = &githttp.BasicAuth{Username: c.user(), Password: c.access.Token}
	}
	return githttp.NewClient(c.store.web).NewUploadPackSession(end, auth)
}

// user is who a token is of. Hosts look at the token alone, but want a name.
func (c *checkout) user() string {
	if c.access.User == "" {
		return "git"
	}
	return c.access.User
}

func sameOrigin(a, b *url.URL) bool { return a.Scheme == b.Scheme && a.Host == b.Host }

// download brings what src names into repo and gives its hash, that of a commit or a tag.
func (c *checkout) download(ctx context.Context, r transport.UploadPackSession, repo *git.Repository, src leapcell.Source, dir string) (plumbing.Hash, error) {
	refs, err := r.AdvertisedReferencesContext(ctx)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	want, got, whole, err := choose(refs, src)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	req := packp.NewUploadPackRequestFromCapabilities(refs.Capabilities)
	req.Wants = []plumbing.Hash{want}
	if !whole && refs.Capabilities.Supports(capability.Shallow) {
		req.Depth = packp.DepthCommits(1)
		if err := req.Capabilities.Set(capability.Shallow); err != nil {
			return plumbing.ZeroHash, err
		}
	}
	resp, err := r.UploadPack(ctx, req)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	defer resp.Close()
	pack, err := os.CreateTemp(dir, "pack-")
	if err != nil {
		return plumbing.ZeroHash, err
	}
	defer pack.Close()
	if err := c.save(ctx, req.Capabilities, resp, pack); err != nil {
		return plumbing.ZeroHash, err
	}
	if _, err := pack.Seek(0, io.SeekStart); err != nil {
		return plumbing.ZeroHash, err
	}
	if err := packfile.UpdateObjectStorage(repo.Storer, contextReader{ctx, pack}); err != nil {
		return plumbing.ZeroHash, err
	}
	if got == plumbing.ZeroHash {
		got = want
	}
	return got, nil
}

// choose finds in refs what src asks for. want is what to ask the host for; got is what is
// meant, if that is something else; whole asks for all of the history, since got is
// somewhere in it.
func choose(refs *packp.AdvRefs, src leapcell.Source) (want, got plumbing.Hash, whole bool, err error) {
	tip, known := plumbing.ZeroHash, false
	switch {
	case src.Tag != "":
		tip, known = refs.References[plumbing.NewTagReferenceName(src.Tag).String()]
	case src.Branch != "":
		tip, known = refs.References[plumbing.NewBranchReferenceName(src.Branch).String()]
	case refs.Head != nil:
		tip, known = *refs.Head, true
	}
	if src.Commit == "" {
		if !known {
			return tip, got, false, plumbing.ErrReferenceNotFound
		}
		return tip, got, false, nil
	}
	commit := plumbing.NewHash(src.Commit)
	if refs.Head != nil && *refs.Head == commit || slices.Contains(slices.Collect(maps.Values(refs.References)), commit) ||
		refs.Capabilities.Supports(capability.AllowReachableSHA1InWant) {
		return commit, got, false, nil
	}
	if refs.Capabilities.Supports(capability.AllowTipSHA1InWant) && !known {
		return commit, got, false, nil
	}
	if !known {
		return tip, got, false, errNoCommit
	}
	return tip, commit, true, nil
}

var errNoCommit = errors.New("no such commit")

// save writes the pack that resp brings to f, and checks it before anybody unpacks it.
func (c *checkout) save(ctx context.Context, caps *capability.List, resp io.Reader, f *os.File) error {
	in := resp
	switch {
	case caps.Supports(capability.Sideband64k):
		in = sideband.NewDemuxer(sideband.Sideband64k, resp)
	case caps.Supports(capability.Sideband):
		in = sideband.NewDemuxer(sideband.Sideband, resp)
	}
	limit := c.store.cfg.MaxUnpacked
	n, err := io.Copy(f, io.LimitReader(contextReader{ctx, in}, limit+1))
	if err != nil {
		return err
	}
	if n > limit {
		return leapcell.Errorf(leapcell.CodeTooLarge, "the repository is over the limit of %s", megabytes(limit))
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return checkPack(ctx, f, c.store.cfg)
}

// checkPack refuses a pack with more or larger objects than are allowed, by what they say
// of themselves: those who unpack it hold whole objects in memory.
func checkPack(ctx context.Context, pack io.ReadSeeker, cfg Config) error {
	scanner := packfile.NewScanner(contextSeeker{contextReader{ctx, pack}, pack})
	_, n, err := scanner.Header()
	if err != nil {
		return err
	}
	// Trees and commits come on top of the files, and there may be some history.
	if int64(n) > 10*int64(cfg.MaxFiles) {
		return leapcell.Errorf(leapcell.CodeTooLarge, "the repository has %d objects: at most %d are allowed", n, 10*cfg.MaxFiles)
	}
	var total int64
	for range n {
		h, err := scanner.NextObjectHeader()
		if err != nil {
			return err
		}
		size := h.Length
		if h.Type.IsDelta() && size <= cfg.MaxFile {
			var first firstBytes
			if _, _, err := scanner.NextObject(&first); err != nil {
				return err
			}
			if size, err = deltaResult(first.b); err != nil {
				return err
			}
		}
		if size > cfg.MaxFile || size < 0 {
			return leapcell.Errorf(leapcell.CodeTooLarge, "a file in the repository is over the limit of %s for one file: keep it elsewhere, or in Git LFS", megabytes(cfg.MaxFile))
		}
		if total += size; total > 4*cfg.MaxUnpacked {
			return leapcell.Errorf(leapcell.CodeTooLarge, "the repository is over the limit of %s when unpacked", megabytes(4*cfg.MaxUnpacked))
		}
	}
	return nil
}

// deltaResult is the size of what a delta makes: the second of the two numbers it begins
// with, each with seven bits a byte, the lowest first.
func deltaResult(b []byte) (int64, error) {
	var size int64
	for range 2 {
		size = 0
		for shift := 0; ; shift += 7 {
			if len(b) == 0 || shift > 56 {
				return 0, errors.New("a delta in the pack is damaged")
			}
			size |= int64(b[0]&0x7f) << shift
			more := b[0]&0x80 != 0
			if b = b[1:]; !more {
				break
			}
		}
	}
	return size, nil
}

// firstBytes keeps as many bytes as two numbers can have.
type firstBytes struct{ b []byte }

func (f *firstBytes) Write(p []byte) (int, error) {
	f.b = append(f.b, p[:min(len(p), 20-len(f.b))]...)
	return len(p), nil
}

type contextSeeker struct {
	contextReader
	io.Seeker
}

// cloneError says in the user's words what git said in its own. The URL is shown without
// its password.
func cloneError(err error, src leapcell.Source) error {
	if known := asKnown(err); known != nil {
		return known
	}
	shown := shownURL(src.GitURL)
	say := func(format string, args ...any) error {
		return leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf(format, args...))
	}
	switch {
	case errors.Is(err, plumbing.ErrReferenceNotFound):
		if src.Branch == "" && src.Tag == "" {
			return say("the repository %s has no default branch: name one", shown)
		}
		return say("the repository %s has no %s", shown, refText(src))
	case errors.Is(err, errNoCommit), strings.Contains(err.Error(), "not our ref"):
		return say("the repository %s has no %s: it may have been pushed away", shown, refText(src))
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return say("there is no repository at %s, or it is private", shown)
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed), isDenied(err):
		return say("the repository %s is private, or does not exist", shown)
	case errors.Is(err, transport.ErrEmptyRemoteRepository):
		return say("the repository %s is empty", shown)
	case isDisk(err):
		return diskError(err, "the repository could not be cloned")
	}
	return say("the repository %s could not be read: %s", shown, oneLine(strings.ReplaceAll(err.Error(), src.GitURL, shown), 300))
}

// isDenied reports whether a host refused us by HTTP.
func isDenied(err error) bool {
	var e *githttp.Err
	return errors.As(err, &e) && (e.StatusCode() == http.StatusUnauthorized || e.StatusCode() == http.StatusForbidden)
}
