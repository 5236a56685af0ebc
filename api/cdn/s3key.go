package cdn

import (
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/leapcell/leapcell"
)

// metadataTimeout is for each question to the service that gives a machine's role its keys:
// where there is none, nobody may answer at all.
const metadataTimeout = time.Second

// credentials gives the keys: those of the file, else the first that the tools of AWS would find.
func (s *S3) credentials() (*credentials.Credentials, error) {
	if s.cfg.CredentialsFile != "" {
		f := &keyFile{path: s.cfg.CredentialsFile}
		keys := credentials.New(f)
		_, err := keys.GetWithContext(nil)
		return keys, err
	}
	return credentials.New(&found{at: s.at, Chain: credentials.Chain{Providers: []credentials.Provider{
		&credentials.EnvAWS{},
		&credentials.FileAWSCredentials{},
		&credentials.IAM{Client: &http.Client{Timeout: metadataTimeout, Transport: &http.Transport{}}}, // never through a proxy
	}}}), nil
}

func (s *S3) keySource() string {
	if s.cfg.CredentialsFile != "" {
		return "--static-credentials-file"
	}
	return "the credentials of AWS in its environment, or set --static-credentials-file"
}

// found is a chain that says when it found nothing: requests without a signature would only be
// refused.
type found struct {
	credentials.Chain
	at string
}

// RetrieveWithCredContext looks for keys.
func (f *found) RetrieveWithCredContext(c *credentials.CredContext) (credentials.Value, error) {
	v, err := f.Chain.RetrieveWithCredContext(c)
	if err == nil && (v.AccessKeyID == "" || v.SecretAccessKey == "") {
		err = leapcell.Errorf(leapcell.CodeUnavailable, "leapcelld has no credentials for %s: set --static-credentials-file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its environment, or give the machine a role", f.at)
	}
	return v, err
}

// keyFile reads keys from the profile "default" of a file in the form of ~/.aws/credentials,
// again when the file has changed. Unlike the client's own reader it starts no programs, and
// says what is wrong.
type keyFile struct {
	path string
	seen os.FileInfo
}

// Retrieve reads the file.
func (k *keyFile) Retrieve() (credentials.Value, error) {
	return k.RetrieveWithCredContext(nil)
}

// RetrieveWithCredContext reads the file.
func (k *keyFile) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	info, err := os.Stat(k.path)
	if err != nil {
		return credentials.Value{}, k.wrong("cannot be read", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return credentials.Value{}, k.wrong("can be read by others: chmod 600 it", nil)
	}
	b, err := os.ReadFile(k.path)
	if err != nil {
		return credentials.Value{}, k.wrong("cannot be read", err)
	}
	v := parseKeys(string(b))
	if v.AccessKeyID == "" || v.SecretAccessKey == "" {
		return v, k.wrong("needs the lines [default], aws_access_key_id = … and aws_secret_access_key = …", nil)
	}
	k.seen = info
	return v, nil
}

// IsExpired reports whether the file has changed. While it is gone, what was in it holds.
func (k *keyFile) IsExpired() bool {
	info, err := os.Stat(k.path)
	return err == nil && (k.seen == nil || !os.SameFile(info, k.seen) || !info.ModTime().Equal(k.seen.ModTime()) || info.Size() != k.seen.Size())
}

func (k *keyFile) wrong(what string, err error) error {
	return leapcell.Wrap(leapcell.CodeUnavailable, err, "--static-credentials-file "+k.path+" "+what)
}

func parseKeys(text string) credentials.Value {
	v := credentials.Value{SignerType: credentials.SignatureV4}
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.TrimSpace(strings.Trim(line, "[]"))
			continue
		}
		name, value, _ := strings.Cut(line, "=")
		if section != "default" {
			continue
		}
		switch value = strings.TrimSpace(value); strings.TrimSpace(name) {
		case "aws_access_key_id":
			v.AccessKeyID = value
		case "aws_secret_access_key":
			v.SecretAccessKey = value
		case "aws_session_token":
			v.SessionToken = value
		}
	}
	return v
}
