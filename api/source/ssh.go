package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"golang.org/x/crypto/ssh"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/outbound"
)

const (
	sshTimeout = 20 * time.Second // for connecting and logging in
	// maxRefs bounds what a host may say of its branches and tags.
	maxRefs = 64 << 20
)

// hostKeyAlgorithms are tried in this order when a host's key is not known yet.
var hostKeyAlgorithms = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}

// dialSSH logs in to u's host, whose key must be the pinned one.
func (c *checkout) dialSSH(ctx context.Context, u *url.URL) (transport.UploadPackSession, error) {
	client, err := c.login(ctx, u)
	if err != nil {
		return nil, err
	}
	s := &sshSession{client: client, path: strings.TrimPrefix(u.Path, "/~")}
	if s.session, err = client.NewSession(); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return s, nil
}

func (c *checkout) login(ctx context.Context, u *url.URL) (*ssh.Client, error) {
	if u.Host != c.origin.Host || c.access.HostKey == "" || len(c.access.Key) == 0 {
		return nil, leapcell.Errorf(leapcell.CodeUnprocessable, "there is no key for the repository %s: only the one that the service is connected with can be read by ssh", shownURL(u.String()))
	}
	pinned, _, _, _, err := ssh.ParseAuthorizedKey([]byte(c.access.HostKey))
	if err != nil {
		return nil, fmt.Errorf("pinned host key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(c.access.Key)
	if err != nil {
		return nil, fmt.Errorf("deploy key: %w", err)
	}
	config := &ssh.ClientConfig{
		User: sshUser(u), Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyAlgorithms: algorithmsOf(pinned),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if !bytes.Equal(key.Marshal(), pinned.Marshal()) {
				return errOtherKey
			}
			return nil
		},
	}
	return handshake(ctx, c.store.cfg.Networks, u, config)
}

var errOtherKey = errors.New("another host key")

func algorithmsOf(key ssh.PublicKey) []string {
	if key.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{key.Type()}
}

func sshUser(u *url.URL) string {
	if name := u.User.Username(); name != "" {
		return name
	}
	return "git"
}

func sshAddress(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "22"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// handshake connects and logs in. The connection ends with ctx.
func handshake(ctx context.Context, networks outbound.Networks, u *url.URL, config *ssh.ClientConfig) (*ssh.Client, error) {
	address := sshAddress(u)
	conn, err := networks.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(sshTimeout)) // a connection that cannot have one ends with ctx
	secure, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if err != nil {
		stop()
		conn.Close()
		return nil, sshError(err, u)
	}
	_ = conn.SetDeadline(time.Time{})
	return ssh.NewClient(secure, channels, requests), nil
}

func sshError(err error, u *url.URL) error {
	var none *ssh.AlgorithmNegotiationError
	switch {
	case errors.Is(err, errOtherKey), strings.Contains(err.Error(), errOtherKey.Error()), errors.As(err, &none):
		return leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("the host key of %s is not the one that was pinned when the service was connected: "+
			"if the host says that it has a new one, connect again", u.Host))
	case strings.Contains(err.Error(), "unable to authenticate"):
		return leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("%s does not take the deploy key: add the public half, which `leapcell git show` prints, to the repository there", u.Host))
	}
	return err
}

// HostKey asks the ssh host of a repository for its key, to be pinned: "ssh-ed25519 AAAA…".
func (s *Store) HostKey(ctx context.Context, gitURL string) (string, error) {
	u, err := url.Parse(gitURL)
	if err != nil || u.Scheme != "ssh" {
		return "", leapcell.Errorf(leapcell.CodeInvalid, "the git URL must start with ssh://")
	}
	var found ssh.PublicKey
	_, err = handshake(ctx, s.cfg.Networks, u, &ssh.ClientConfig{
		User: sshUser(u), HostKeyAlgorithms: hostKeyAlgorithms,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			found = key
			return errors.New("only the key was wanted")
		},
	})
	if found == nil {
		if known := asKnown(err); known != nil {
			return "", known
		}
		return "", leapcell.Wrap(leapcell.CodeUnprocessable, err, fmt.Sprintf("the ssh host %s did not show its key: %v", u.Host, err))
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(found))), nil
}

// sshSession reads one repository.
type sshSession struct {
	client  *ssh.Client
	session *ssh.Session
	path    string
	refs    *packp.AdvRefs
	in      io.WriteCloser
	out     io.Reader
	errs    tail
}

// quote makes one word of a path for the shell of the host; checkURL lets no quote in.
func quote(path string) string { return "'" + path + "'" }

func (s *sshSession) AdvertisedReferences() (*packp.AdvRefs, error) {
	return s.AdvertisedReferencesContext(context.Background())
}

func (s *sshSession) AdvertisedReferencesContext(ctx context.Context) (*packp.AdvRefs, error) {
	if s.refs != nil {
		return s.refs, nil
	}
	var err error
	if s.in, err = s.session.StdinPipe(); err != nil {
		return nil, err
	}
	if s.out, err = s.session.StdoutPipe(); err != nil {
		return nil, err
	}
	s.session.Stderr = &s.errs
	if err := s.session.Start("git-upload-pack " + quote(s.path)); err != nil {
		return nil, err
	}
	refs := packp.NewAdvRefs()
	err = refs.Decode(io.LimitReader(contextReader{ctx, s.out}, maxRefs))
	switch {
	case errors.Is(err, packp.ErrEmptyInput), errors.Is(err, packp.ErrEmptyAdvRefs) && !refs.IsEmpty():
		_ = s.session.Wait() // so that all it said is there
		return nil, errors.Join(transport.ErrRepositoryNotFound, errors.New(oneLine(s.errs.String(), 200)))
	case errors.Is(err, packp.ErrEmptyAdvRefs), err == nil && refs.IsEmpty():
		return nil, transport.ErrEmptyRemoteRepository
	case err != nil:
		return nil, err
	}
	transport.FilterUnsupportedCapabilities(refs.Capabilities)
	s.refs = refs
	return refs, nil
}

func (s *sshSession) UploadPack(ctx context.Context, req *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	if err := req.UploadRequest.Encode(s.in); err != nil {
		return nil, err
	}
	if err := pktline.NewEncoder(s.in).Encodef("done\n"); err != nil {
		return nil, err
	}
	resp := packp.NewUploadPackResponse(req)
	if err := resp.Decode(io.NopCloser(contextReader{ctx, s.out})); err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *sshSession) Close() error {
	_ = s.session.Close() // the connection goes with it
	return s.client.Close()
}

// tail keeps the beginning of what a host complains of.
type tail struct{ bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	t.Buffer.Write(p[:min(len(p), max(0, 4096-t.Len()))])
	return len(p), nil
}

// lfsLogin asks an ssh host where its large files are. It is no error when the host does not
// know of any.
func (c *checkout) lfsLogin(ctx context.Context, u *url.URL) (lfsServer, error) {
	client, err := c.login(ctx, u)
	if err != nil {
		return lfsServer{}, err
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return lfsServer{}, err
	}
	out, err := session.Output("git-lfs-authenticate " + quote(strings.TrimPrefix(u.Path, "/~")) + " download")
	if err != nil || len(out) > maxLFSAnswer {
		return lfsServer{}, fmt.Errorf("git-lfs-authenticate: %w", err)
	}
	var found lfsServer
	if err := json.Unmarshal(out, &found); err != nil || found.Href == "" {
		return lfsServer{}, fmt.Errorf("git-lfs-authenticate: %w", err)
	}
	return found, nil
}
