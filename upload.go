package leapcell

import (
	"strconv"
	"time"
)

// Upload is a source archive on its way to the platform, in as many pieces as it takes. What
// came is kept over restarts of either side.
type Upload struct {
	SHA256    string    `json:"sha256"` // of the whole archive; it names the upload
	Size      int64     `json:"size"`
	Offset    int64     `json:"offset"`             // so many bytes came: the next piece begins there
	ExpiresAt time.Time `json:"expiresAt,omitzero"` // unless another piece comes
}

// Complete reports whether all of it came, and can be deployed.
func (u Upload) Complete() bool { return u.Offset == u.Size }

// How pieces of uploads are sent, in the manner of the IETF's resumable uploads.
const (
	HeaderUploadOffset   = "Upload-Offset"
	HeaderUploadLength   = "Upload-Length"
	HeaderUploadComplete = "Upload-Complete" // "?1" or "?0"
	UploadPieceType      = "application/partial-upload"
)

// ParseUploadOffset reads an [HeaderUploadOffset]: a number without sign or space.
func ParseUploadOffset(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || strconv.FormatUint(n, 10) != text {
		return 0, Errorf(CodeInvalid, "%s is %q: it must be how many bytes came before", HeaderUploadOffset, text)
	}
	return int64(n), nil
}
