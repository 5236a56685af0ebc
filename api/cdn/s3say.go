package cdn

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/leapcell/leapcell"
)

// say gives an error of the bucket words; what completes "refused to …". All but one are
// [leapcell.CodeUnavailable]: deployments wait while an operator mends it.
func (s *S3) say(err error, what string) error {
	var known *leapcell.Error
	if err == nil || errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	if isGone(err) {
		return leapcell.Wrap(leapcell.CodeNotFound, err, "the service has no such content")
	}
	var r minio.ErrorResponse
	if !errors.As(err, &r) || r.StatusCode == 0 && r.Code == "" {
		return leapcell.Wrap(leapcell.CodeUnavailable, err, s.at+" does not answer: "+cause(err)+"; is it up, and --static-endpoint right?")
	}
	return leapcell.Wrap(leapcell.CodeUnavailable, err, s.at+" "+s.refusal(r, what))
}

// refusal says what the answer of the bucket means, and what to do.
func (s *S3) refusal(r minio.ErrorResponse, what string) string {
	switch r.Code {
	case "NoSuchBucket":
		return "does not exist: make it, or mend --static-bucket"
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "NotSignedUp", "XAdminUserNotFound":
		return "does not know the key, or not with this secret: check " + s.keySource()
	case "AccessDenied", "AllAccessDisabled", "AccountProblem", "MethodNotAllowed":
		return "refused to " + what + ": allow the key of leapcelld s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there"
	case "AuthorizationHeaderMalformed", "InvalidRegion", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect", "Redirect":
		if r.Region != "" {
			return "is in the region " + r.Region + ": set --static-region"
		}
		return "is in another region: set --static-region"
	case "RequestTimeTooSkewed", "RequestExpired", "RequestNotReadyYet":
		return "has another time than leapcelld: set the clocks"
	case "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody", "InvalidDigest":
		return "refused a content that was damaged on its way"
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity":
		return "has no room left"
	}
	switch {
	case r.StatusCode == http.StatusInsufficientStorage:
		return "has no room left"
	case r.StatusCode == http.StatusUnauthorized, r.StatusCode == http.StatusForbidden:
		return "refused to " + what + " with " + r.Code + ": check " + s.keySource()
	case r.StatusCode >= 500, r.StatusCode == http.StatusTooManyRequests:
		return "could not " + what + " at the moment"
	}
	return "refused to " + what + " with " + r.Code + ": is --static-endpoint that of an S3 service?"
}

// isGone reports whether a content is not there; that the bucket is not there is something else.
func isGone(err error) bool {
	var r minio.ErrorResponse
	return errors.As(err, &r) && (r.Code == minio.NoSuchKey || r.Code == minio.NoSuchVersion)
}

// cause is the innermost text of err, without the address that the client puts into it.
func cause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "it takes too long"
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		err = inner
	}
	if strings.HasPrefix(err.Error(), "Connection closed by foreign host") {
		return "it closed the connection"
	}
	return err.Error()
}
