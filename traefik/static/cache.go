package static

import (
	"cmp"
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/leapcell/leapcell/internal/front"
)

// cache keeps contents in a folder, by their SHA-256.
type cache struct {
	dir string
	max int64

	mu    sync.Mutex
	size  int64
	known map[string]*list.Element // of *kept
	order list.List                // the last used first
}

// kept is a content on the disk.
type kept struct {
	sum  string
	size int64
	// checked: its content was seen to be right by this process. What an earlier one left may
	// have been cut short by a power cut.
	checked bool
}

const temporary = ".new-"

func openCache(dir string, max int64) (*cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder for static files: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("folder for static files: %w", err)
	}
	c := &cache{dir: dir, max: max, known: map[string]*list.Element{}}
	type aged struct {
		kept
		at int64
	}
	var found []aged
	for _, e := range entries {
		info, err := e.Info()
		if strings.HasPrefix(e.Name(), temporary) {
			err = os.Remove(filepath.Join(dir, e.Name()))
		}
		if err == nil && front.IsSum(e.Name()) && info.Mode().IsRegular() {
			found = append(found, aged{kept{sum: e.Name(), size: info.Size()}, info.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(found, func(a, b aged) int { return cmp.Compare(b.at, a.at) })
	for _, f := range found {
		c.known[f.sum] = c.order.PushBack(&kept{sum: f.sum, size: f.size})
		c.size += f.size
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shrink(c.max)
	return c, nil
}

func (c *cache) path(sum string) string { return filepath.Join(c.dir, sum) }

// open gives a content, nil if it is not here. It may go while it is open.
func (c *cache) open(want front.Content) (*os.File, error) {
	c.mu.Lock()
	e := c.known[want.SHA256]
	checked := false
	if e != nil {
		c.order.MoveToFront(e)
		checked = e.Value.(*kept).checked
	}
	c.mu.Unlock()
	if e == nil {
		return nil, nil
	}
	f, err := os.Open(c.path(want.SHA256))
	if err == nil && !checked {
		err = check(f, want.SHA256)
	}
	if err != nil { // somebody removed or changed it
		if f != nil {
			f.Close()
		}
		c.drop(want.SHA256)
		return nil, nil
	}
	if !checked {
		c.mu.Lock()
		e.Value.(*kept).checked = true
		c.mu.Unlock()
	}
	return f, nil
}

var errContent = errors.New("the content is not what its name says")

func check(f *os.File, sum string) error {
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return err
	}
	if hex.EncodeToString(hash.Sum(nil)) != sum {
		return errContent
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

func (c *cache) drop(sum string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.known[sum]; e != nil {
		c.remove(e)
	}
}

// put takes a content in. On a disk that is full, what is here makes room.
func (c *cache) put(want front.Content, body io.Reader) error {
	size, name, err := c.write(want, body)
	if name != "" {
		defer os.Remove(name)
	}
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			c.mu.Lock()
			c.shrink(c.size / 2) // for the next try
			c.mu.Unlock()
		}
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := os.Rename(name, c.path(want.SHA256)); err != nil {
		return err
	}
	if e := c.known[want.SHA256]; e != nil {
		c.size -= e.Value.(*kept).size
		c.order.Remove(e)
	}
	c.known[want.SHA256] = c.order.PushFront(&kept{sum: want.SHA256, size: size, checked: true})
	c.size += size
	c.shrink(c.max)
	return nil
}

func (c *cache) write(want front.Content, body io.Reader) (size int64, name string, err error) {
	f, err := os.CreateTemp(c.dir, temporary+"*")
	if err != nil {
		return 0, "", err
	}
	limit := want.Size
	if limit == sizeUnknown {
		limit = front.MaxManifestBytes
	}
	hash := sha256.New()
	size, err = io.Copy(io.MultiWriter(f, hash), io.LimitReader(body, limit+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, f.Name(), err
	}
	if hex.EncodeToString(hash.Sum(nil)) != want.SHA256 || want.Size != sizeUnknown && size != want.Size {
		return 0, f.Name(), errContent
	}
	return size, f.Name(), nil
}

// shrink removes what was not used for longest, but never the last one used. The caller holds mu.
func (c *cache) shrink(to int64) {
	for c.size > to && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(e *list.Element) {
	k := c.order.Remove(e).(*kept)
	delete(c.known, k.sum)
	c.size -= k.size
	_ = os.Remove(c.path(k.sum)) // found again by the next process otherwise
}
