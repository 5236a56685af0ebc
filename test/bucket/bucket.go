// Package bucket starts a real S3 service for tests: versitygw, over a folder of the test. It
// is built from tools/s3 by `make s3`.
package bucket

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell/internal/ports"
)

// Name is the bucket that is there.
const Name = "sites"

// The keys of its owner. They are random enough to be found where they must not be.
const (
	AccessKey = "AKIALEAPCELLTESTKEY1"
	Secret    = "t3st/Wq8ZpXc5VbNm2KjHgFdSa9LoIuYtReWq1xY"
)

// Server is an S3 service on a port of its own.
type Server struct {
	Endpoint string
	Dir      string // of what is in the bucket: a file for each object
	Keys     string // file with the keys, in the form of ~/.aws/credentials

	t       testing.TB
	bin     string
	address string
	log     bytes.Buffer
	cmd     *exec.Cmd
	ended   chan struct{}
}

// Start starts a service with an empty bucket, and ends it with the test. Without the program
// the test is skipped, unless VERSITYGW_BIN says that it must be there.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := os.Getenv("VERSITYGW_BIN")
	if bin == "" {
		var err error
		if bin, err = exec.LookPath("versitygw"); err != nil {
			t.Skip("no versitygw on PATH and VERSITYGW_BIN is not set: this test needs a real S3 service (make s3)")
		}
	}
	port, err := ports.Free(1, ports.ForPrograms)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	root := t.TempDir()
	s := &Server{
		Endpoint: "http://" + address, Dir: filepath.Join(root, "data", Name), Keys: filepath.Join(root, "keys"),
		t: t, bin: bin, address: address,
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	WriteKeys(t, s.Keys, AccessKey, Secret)
	s.Up()
	t.Cleanup(s.Kill)
	return s
}

// WriteKeys writes a file with keys.
func WriteKeys(t testing.TB, path, key, secret string) {
	t.Helper()
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", key, secret)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Up starts the service, with more flags if need be, and returns when it answers.
func (s *Server) Up(flags ...string) {
	s.t.Helper()
	args := append([]string{"--port", s.address, "--keep-alive", "--quiet"}, flags...)
	s.cmd = exec.Command(s.bin, append(args, "posix", filepath.Dir(s.Dir))...)
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+AccessKey, "ROOT_SECRET_ACCESS_KEY="+Secret)
	s.log.Reset()
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.ended = make(chan struct{})
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	for {
		c, err := net.Dial("tcp", s.address)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-s.ended:
			s.t.Fatalf("versitygw ended: %s", s.log.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Kill ends the service as a power cut does.
func (s *Server) Kill() {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Error(err)
	}
	<-s.ended
}

// Killer is a reader that has the service killed when so much of it was read.
type Killer struct {
	*bytes.Reader

	Server *Server
	After  int64
	once   sync.Once
}

// Read reads.
func (k *Killer) Read(b []byte) (int, error) {
	if k.Size()-int64(k.Len()) >= k.After {
		k.once.Do(k.Server.Kill)
	}
	return k.Reader.Read(b)
}
