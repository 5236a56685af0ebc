// Package githost is a host of git repositories for tests: git's own server behind HTTP, and
// behind an SSH server with one deploy key.
package githost

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Host serves the bare repositories below a folder.
type Host struct {
	t       testing.TB
	backend string // git's program that serves HTTP
	Dir     string
	URL     string // http://127.0.0.1:port
	Mux     *http.ServeMux
	User    string // with Token, what HTTP asks for; "" for nothing
	Token   string
}

// New starts a host; it ends with the test, which is skipped where git is not installed.
func New(t testing.TB) *Host {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	h := &Host{t: t, Dir: t.TempDir(), Mux: http.NewServeMux()}
	h.backend = filepath.Join(Git(t, h.Dir, "--exec-path"), "git-http-backend")
	h.Mux.HandleFunc("/", h.serveGit)
	s := httptest.NewServer(h.Mux)
	t.Cleanup(s.Close)
	h.URL = s.URL
	return h
}

func (h *Host) serveGit(w http.ResponseWriter, r *http.Request) {
	if user, token, _ := r.BasicAuth(); h.Token != "" && (token != h.Token || h.User != "" && user != h.User) {
		w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	backend := &cgi.Handler{
		Path: h.backend, Dir: h.Dir,
		Env:    []string{"GIT_PROJECT_ROOT=" + h.Dir, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=test", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null"},
		Stderr: io.Discard,
	}
	backend.ServeHTTP(w, r)
}

// Git runs git in dir and gives what it prints.
func Git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, complaint.String())
	}
	return strings.TrimSpace(string(out))
}

// Repository makes a bare repository and gives a working copy of it, with the files on the
// branch main.
func (h *Host) Repository(name string, files map[string]string) *Copy {
	h.t.Helper()
	bare := filepath.Join(h.Dir, name+".git")
	Git(h.t, h.Dir, "init", "-q", "--bare", bare)
	Git(h.t, bare, "config", "http.receivepack", "true")
	c := &Copy{t: h.t, Dir: h.t.TempDir(), URL: h.URL + "/" + name + ".git", Bare: bare}
	Git(h.t, c.Dir, "init", "-q", "-b", "main")
	Git(h.t, c.Dir, "remote", "add", "origin", bare)
	c.Commit("first", files)
	return c
}

// Copy is a working copy.
type Copy struct {
	t    testing.TB
	Dir  string
	URL  string
	Bare string
}

// Commit writes files, commits and pushes them, and gives the commit. A file of mode 0755
// has a name that ends with a star.
func (c *Copy) Commit(message string, files map[string]string) string {
	c.t.Helper()
	for name, content := range files {
		name, script := strings.CutSuffix(name, "*")
		mode := os.FileMode(0o644)
		if script {
			mode = 0o755
		}
		full := filepath.Join(c.Dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(content), mode)); err != nil {
			c.t.Fatal(err)
		}
	}
	c.Git("add", "-A")
	c.Git("commit", "-q", "--allow-empty", "-m", message)
	c.Push()
	return c.Head()
}

// Git runs git in the copy.
func (c *Copy) Git(args ...string) string { c.t.Helper(); return Git(c.t, c.Dir, args...) }

// Push pushes the branch that is checked out, and all tags.
func (c *Copy) Push() { c.t.Helper(); c.Git("push", "-q", "--force", "--tags", "origin", "HEAD") }

// Head is the commit that is checked out.
func (c *Copy) Head() string { c.t.Helper(); return c.Git("rev-parse", "HEAD") }

// SSH is an SSH server for the host's repositories.
type SSH struct {
	Address string // host:port
	Key     string // of the host, "ssh-ed25519 AAAA…"
	mu      sync.Mutex
	allowed []byte // the one key that is let in, as on the wire
}

// URL is the address of a repository.
func (s *SSH) URL(name string) string { return "ssh://git@" + s.Address + "/" + name + ".git" }

// Allow lets in who has the private half of an authorized key.
func (s *SSH) Allow(t testing.TB, authorized string) {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(authorized))
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allowed = key.Marshal()
}

// SSH starts an SSH server; it ends with the test.
func (h *Host) SSH() *SSH {
	h.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		h.t.Fatal(err)
	}
	s := &SSH{Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !bytes.Equal(key.Marshal(), s.allowed) {
			return nil, errors.New("not this key")
		}
		return nil, nil
	}}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	s.Address = l.Addr().String()
	var open sync.WaitGroup
	open.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() { h.serveSSH(conn, config) })
		}
	})
	h.t.Cleanup(func() { l.Close(); open.Wait() })
	return s
}

func (h *Host) serveSSH(conn net.Conn, config *ssh.ServerConfig) {
	defer conn.Close()
	secure, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	defer secure.Close()
	go ssh.DiscardRequests(requests)
	for c := range channels {
		if c.ChannelType() != "session" {
			_ = c.Reject(ssh.UnknownChannelType, "sessions only")
			continue
		}
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		h.serveSession(channel, requests)
	}
}

// serveSession runs the one command that a session asks for.
func (h *Host) serveSession(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	for r := range requests {
		if r.Type != "exec" || len(r.Payload) < 4 {
			_ = r.Reply(false, nil)
			continue
		}
		_ = r.Reply(true, nil)
		line := string(r.Payload[4:])
		status := uint32(1)
		if path, ok := strings.CutPrefix(line, "git-upload-pack "); ok {
			cmd := exec.Command("git", "upload-pack", filepath.Join(h.Dir, filepath.Clean("/"+strings.Trim(path, "'"))))
			cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
			in, err := cmd.StdinPipe() // a client that does not close its side does not hold the end up
			if err == nil {
				go func() { _, _ = io.Copy(in, channel); in.Close() }()
				if cmd.Run() == nil {
					status = 0
				}
			}
		}
		_, _ = channel.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, status))
		return
	}
}

// Tree writes a tree with one entry, whatever its name is, and gives its hash.
func (c *Copy) Tree(mode, name, content string) string {
	c.t.Helper()
	cmd := func(stdin []byte, args ...string) string {
		run := exec.Command("git", args...)
		run.Dir, run.Stdin = c.Dir, bytes.NewReader(stdin)
		out, err := run.Output()
		if err != nil {
			c.t.Fatalf("git %v: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	blob, err := hex.DecodeString(cmd([]byte(content), "hash-object", "-w", "--stdin"))
	if err != nil {
		c.t.Fatal(err)
	}
	return cmd(append([]byte(mode+" "+name+"\x00"), blob...), "hash-object", "-w", "-t", "tree", "--literally", "--stdin")
}
