package cdn

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/s3utils"
	"golang.org/x/sync/singleflight"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/internal/front"
)

// S3Config is what an [S3] needs to know.
type S3Config struct {
	Endpoint        string // http(s)://host[:port], which edges fetch from as well; "" is Amazon's
	Bucket          string
	Region          string // "" asks the endpoint
	Prefix          string // of all names; "" is none
	Addressing      string // where the bucket's name stands: path, host, or auto for what the provider is known to take
	CredentialsFile string // in the form of the AWS tools; "" looks where these look

	answer time.Duration // in tests, in place of s3Answer
}

const (
	// amazon is the endpoint of those who name none; the client finds the region's own.
	amazon = "https://s3.amazonaws.com"
	// s3Tries is how often the client tries a call; what goes on failing its caller tries again.
	s3Tries = 3
	// s3Answer is until the first byte of an answer, in each try.
	s3Answer = 30 * time.Second
	// s3Call is for all tries of a call; with a content, for each of its bytes a little more.
	s3Call    = 2 * time.Minute
	s3Slowest = 256 << 10 // bytes a second
	// s3Listing is for a whole list, which is a call for each thousand of contents.
	s3Listing = 10 * time.Minute
	// s3Batch is how many contents one call deletes: the most that S3 takes.
	s3Batch = 1000
	// s3Link is how long an address is good. An edge follows it at once, and what counts is when
	// its request begins: nearly all of it is for clocks that differ.
	s3Link = 5 * time.Minute
	// s3Healthy is for how long Health asks no more: anybody may ask it, and each call costs.
	s3Healthy = time.Second
)

// S3 is a store in a bucket of S3, or of what speaks like it. A content is at
// {prefix}/{service}/{sum}: without folders below that, one call lists a thousand of them.
type S3 struct {
	cfg S3Config
	at  string // what errors call the bucket
	api minio.Core
	// writable says that the last content was taken, so that Health need not try it.
	writable atomic.Bool
	healthy  atomic.Pointer[time.Time] // when Health last found nothing wrong
	trial    singleflight.Group
}

// NewS3 makes a store. It looks at the settings only; Health says whether the bucket works.
func NewS3(cfg S3Config) (*S3, error) {
	endpoint, err := parseEndpoint(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	if err := s3utils.CheckValidBucketNameStrict(cfg.Bucket); err != nil {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "--static-bucket is %q: %w", cfg.Bucket, err)
	}
	if cfg.Prefix, err = parsePrefix(cfg.Prefix); err != nil {
		return nil, err
	}
	lookup, ok := map[string]minio.BucketLookupType{
		"": minio.BucketLookupAuto, "auto": minio.BucketLookupAuto, "path": minio.BucketLookupPath, "host": minio.BucketLookupDNS,
	}[cfg.Addressing]
	if !ok {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "--static-addressing is %q: it must be auto, path or host", cfg.Addressing)
	}
	s := &S3{cfg: cfg, at: "the bucket " + cfg.Bucket + " at " + endpoint.Host}
	keys, err := s.credentials()
	if err != nil {
		return nil, err
	}
	s.api.Client, err = minio.New(endpoint.Host, &minio.Options{
		Creds: keys, Secure: endpoint.Scheme == "https", Region: cfg.Region, BucketLookup: lookup, MaxRetries: s3Tries, Transport: transport(cfg.answer),
	})
	if err != nil {
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "--static-endpoint is %q: %w", cfg.Endpoint, err)
	}
	return s, nil
}

func parseEndpoint(text string) (*url.URL, error) {
	if text == "" {
		text = amazon
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		// Without what was given: somebody may have put a key into it.
		return nil, leapcell.Errorf(leapcell.CodeInvalid, "--static-endpoint must be an address such as https://s3.example.com or http://10.0.0.5:9000, without path and password")
	}
	return u, nil
}

var prefixPart = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*$`)

// parsePrefix gives a prefix as names begin with it: empty, or with a slash at its end.
func parsePrefix(text string) (string, error) {
	trimmed := strings.Trim(text, "/")
	if trimmed == "" {
		return "", nil
	}
	for part := range strings.SplitSeq(trimmed, "/") {
		if !prefixPart.MatchString(part) || len(trimmed) > 256 {
			return "", leapcell.Errorf(leapcell.CodeInvalid, "--static-prefix is %q: it must be names of letters, digits, dots, dashes and underscores with slashes between, 256 characters at most", text)
		}
	}
	return trimmed + "/", nil
}

func transport(answer time.Duration) *http.Transport {
	if answer == 0 {
		answer = s3Answer
	}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: answer,
		MaxIdleConnsPerHost:   2 * putters,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true, // contents are read as they were stored
	}
}

func (s *S3) folder(service string) string { return s.cfg.Prefix + service + "/" }

func (s *S3) name(service, sum string) (string, error) {
	if !goodService(service) || !front.IsSum(sum) {
		return "", leapcell.Errorf(leapcell.CodeInvalid, "%q of %q is no content", sum, service)
	}
	return s.folder(service) + sum, nil
}

// within bounds a call that moves size bytes.
func within(ctx context.Context, size int64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s3Call+time.Duration(size/s3Slowest)*time.Second)
}

// each gives the names below a prefix with their sizes, and ends with an error if there is one.
func (s *S3) each(ctx context.Context, prefix string) iter.Seq2[minio.ObjectInfo, error] {
	return func(yield func(minio.ObjectInfo, error) bool) {
		ctx, cancel := context.WithTimeout(ctx, s3Listing)
		defer cancel()
		for o := range s.api.ListObjectsIter(ctx, s.cfg.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if !yield(o, s.say(o.Err, "list contents")) || o.Err != nil {
				return
			}
		}
		if err := ctx.Err(); err != nil { // with which the client simply ends
			yield(minio.ObjectInfo{}, s.say(err, "list contents"))
		}
	}
}

// List gives the contents of a service.
func (s *S3) List(ctx context.Context, service string) (map[string]int64, error) {
	out := map[string]int64{}
	if !goodService(service) {
		return out, nil
	}
	for o, err := range s.each(ctx, s.folder(service)) {
		if err != nil {
			return nil, err
		}
		if sum := strings.TrimPrefix(o.Key, s.folder(service)); front.IsSum(sum) {
			out[sum] = o.Size
		}
	}
	return out, nil
}

// Put stores a content. The bucket checks it against sum, which is signed with the request, and
// has it whole or not at all: it is one request, whose length is said first.
func (s *S3) Put(ctx context.Context, service, sum string, size int64, content io.ReadSeeker) error {
	name, err := s.name(service, sum)
	if err != nil {
		return err
	}
	return s.put(ctx, name, sum, size, content)
}

func (s *S3) put(ctx context.Context, name, sum string, size int64, content io.ReadSeeker) error {
	ctx, cancel := within(ctx, size)
	defer cancel()
	_, err := s.api.PutObject(ctx, s.cfg.Bucket, name, content, size, "", sum, minio.PutObjectOptions{
		ContentType: "application/octet-stream", DisableContentSha256: true, // that of the pieces: it has that of all
	})
	s.writable.Store(err == nil)
	return s.say(err, "store a content")
}

// Flush has nothing to do: what the bucket answered for is stored.
func (s *S3) Flush(context.Context) error { return nil }

// Open gives a content.
func (s *S3) Open(ctx context.Context, service, sum string) (io.ReadCloser, int64, error) {
	name, err := s.name(service, sum)
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := within(ctx, front.MaxFileBytes)
	body, info, _, err := s.api.GetObject(ctx, s.cfg.Bucket, name, minio.GetObjectOptions{})
	if err != nil {
		cancel()
		return nil, 0, s.say(err, "give a content")
	}
	return &reading{body, cancel}, info.Size, nil
}

// reading ends its call when it is closed.
type reading struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (r *reading) Close() error {
	r.cancel()
	return r.ReadCloser.Close()
}

// Delete removes contents, or all of a service.
func (s *S3) Delete(ctx context.Context, service string, sums ...string) error {
	if !goodService(service) {
		return nil
	}
	var names []string
	for _, sum := range sums {
		name, err := s.name(service, sum)
		if err != nil {
			return err
		}
		names = append(names, name)
	}
	if len(sums) == 0 {
		for o, err := range s.each(ctx, s.folder(service)) {
			if err != nil {
				return err
			}
			names = append(names, o.Key)
		}
	}
	for batch := range slices.Chunk(names, s3Batch) {
		if err := s.remove(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes up to s3Batch names with one call.
func (s *S3) remove(ctx context.Context, names []string) error {
	ctx, cancel := within(ctx, int64(len(names))*s3Slowest/10) // some providers take them one by one
	defer cancel()
	queue := make(chan minio.ObjectInfo, len(names))
	for _, name := range names {
		queue <- minio.ObjectInfo{Key: name}
	}
	close(queue)
	var first error
	failed := 0
	for e := range s.api.RemoveObjects(ctx, s.cfg.Bucket, queue, minio.RemoveObjectsOptions{}) {
		if e.Err != nil && !isGone(e.Err) {
			failed++
			if first == nil {
				first = e.Err
			}
		}
	}
	if first == nil {
		first = ctx.Err() // with which the client may simply end
	}
	return s.say(first, fmt.Sprintf("delete %d of %d contents", failed, len(names)))
}

// Link gives an address for an edge. It is made here, without a word to the bucket: what is not
// there the edge hears from the bucket.
func (s *S3) Link(ctx context.Context, service, sum string) (string, error) {
	name, err := s.name(service, sum)
	if err != nil {
		return "", err
	}
	ctx, cancel := within(ctx, 0) // without a region the first call asks for it
	defer cancel()
	u, err := s.api.PresignedGetObject(ctx, s.cfg.Bucket, name, s3Link, nil)
	if err != nil {
		return "", s.say(err, "give a content")
	}
	return u.String(), nil
}

// Health says why contents cannot be stored, listed or read, if that is so.
func (s *S3) Health(ctx context.Context) error {
	if !s.writable.Load() {
		// One for all who ask: services that keep files trip over a folder that comes and goes.
		// It goes on for the others when the first of them leaves; each of its calls has its time.
		tried := s.trial.DoChan("", func() (any, error) { return nil, s.tryAll(context.WithoutCancel(ctx)) })
		select {
		case result := <-tried:
			return result.Err
		case <-ctx.Done():
			return s.say(ctx.Err(), "answer")
		}
	}
	if last := s.healthy.Load(); last != nil && time.Since(*last) < s3Healthy {
		return nil
	}
	now := time.Now()
	next, stop := iter.Pull2(s.each(ctx, s.folder("health")))
	defer stop()
	_, err, _ := next()
	if err == nil {
		s.healthy.Store(&now)
	}
	return err
}

// tryAll does with a name that nobody else has what is done with contents. No service has this
// folder: the IDs of services are longer.
func (s *S3) tryAll(ctx context.Context) error {
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	name, text := s.folder("health")+hex.EncodeToString(id[:]), "leapcelld was here"
	sum := sha256.Sum256([]byte(text))
	if err := s.put(ctx, name, hex.EncodeToString(sum[:]), int64(len(text)), strings.NewReader(text)); err != nil {
		return err
	}
	for _, err := range s.each(ctx, name) {
		if err != nil {
			return err
		}
	}
	body, _, _, err := s.api.GetObject(ctx, s.cfg.Bucket, name, minio.GetObjectOptions{})
	if err != nil {
		return s.say(err, "give a content")
	}
	_ = body.Close()
	return s.remove(ctx, []string{name})
}
