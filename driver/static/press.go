package static

import (
	"bytes"
	"io"
	"slices"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/leapcell/leapcell/internal/front"
)

const (
	// maxInMemory is the largest file that is compressed: it is in memory meanwhile.
	maxInMemory = 16 << 20
	// minSqueezed is below what compression saves nothing that a packet would notice.
	minSqueezed = 512
)

// press compresses. How well depends on nothing but what came before it, so that the same
// files give the same result.
type press struct{ done int64 }

// level is one way to compress with each encoding.
type level struct {
	upTo         int64 // of all bytes of a front end
	brotli, gzip int
	zstd         zstd.EncoderLevel
}

// levels are taken in turn: most front ends are small and get the best, which takes two seconds
// for a megabyte; a large one keeps the node busy for some twenty seconds at most. What is
// beyond the last one is not compressed.
var levels = []level{
	{upTo: 1 << 20, brotli: brotli.BestCompression, gzip: gzip.BestCompression, zstd: zstd.SpeedBestCompression},
	{upTo: 8 << 20, brotli: 9, gzip: gzip.BestCompression, zstd: zstd.SpeedBestCompression},
	{upTo: 256 << 20, brotli: 4, gzip: 5, zstd: zstd.SpeedDefault},
}

// squeeze stores b in each encoding that makes it smaller.
func (p *packer) squeeze(b []byte) ([]front.Encoded, error) {
	out := []front.Encoded{} // not nil: it was tried
	if len(b) < minSqueezed {
		return out, nil
	}
	p.press.done += int64(len(b))
	i := slices.IndexFunc(levels, func(l level) bool { return p.press.done <= l.upTo })
	if i < 0 {
		return out, nil
	}
	for _, name := range front.Encodings {
		if err := p.ctx.Err(); err != nil {
			return nil, err
		}
		less, err := levels[i].encode(name, b)
		if err != nil {
			return nil, err
		}
		if len(less) >= len(b) {
			continue
		}
		content, err := p.small(bytes.NewReader(less), false)
		if err != nil {
			return nil, err
		}
		out = append(out, front.Encoded{Encoding: name, Content: content})
	}
	return out, nil
}

// encode gives b in an encoding.
func (l level) encode(encoding string, b []byte) ([]byte, error) {
	var out bytes.Buffer
	var to io.WriteCloser
	var err error
	switch encoding {
	case "br":
		to = brotli.NewWriterLevel(&out, l.brotli)
	case "gzip":
		to, err = gzip.NewWriterLevel(&out, l.gzip)
	case "zstd":
		to, err = zstd.NewWriter(&out, zstd.WithEncoderLevel(l.zstd), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	}
	if err != nil {
		return nil, err
	}
	if _, err := to.Write(b); err != nil {
		return nil, err
	}
	err = to.Close()
	return out.Bytes(), err
}
