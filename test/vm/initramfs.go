package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/leapcell/leapcell/test/vm/wire"
)

// writeInitramfs makes the file system that the kernel starts with: the guest program and
// the modules.
func writeInitramfs(work, guest string, k kernel) (string, error) {
	order, err := k.closure(wanted)
	if err != nil {
		return "", err
	}
	name := filepath.Join(work, "initramfs")
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	w := &cpio{w: bufio.NewWriter(f)}
	init, err := os.ReadFile(guest)
	if err != nil {
		return "", errors.Join(err, f.Close())
	}
	modules := strings.TrimPrefix(wire.ModuleDir, "/")
	for _, dir := range []string{"dev", "proc", "sys", modules} {
		w.add(dir, 0o40755, nil)
	}
	w.add("init", 0o100755, init)
	for _, m := range order {
		content, err := readModule(k.modules[m])
		if err != nil {
			return "", errors.Join(err, f.Close())
		}
		w.add(modules+"/"+m, 0o100644, content)
	}
	w.add(modules+"/order", 0o100644, []byte(strings.Join(order, "\n")))
	w.add("TRAILER!!!", 0, nil)
	return name, errors.Join(w.err, w.w.Flush(), f.Close())
}

// cpio writes the "newc" format, which the kernel reads. The first error stays.
type cpio struct {
	w     *bufio.Writer
	inode int
	err   error
}

func (c *cpio) add(name string, mode int, content []byte) {
	if c.err != nil {
		return
	}
	c.inode++
	links := 1
	if mode&0o40000 != 0 {
		links = 2
	}
	// magic, inode, mode, owner, group, links, time, size, four device numbers, length of the name, no sum
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	c.write(head+name+"\x00", len(head)+len(name)+1)
	if c.err == nil {
		_, c.err = c.w.Write(content)
		c.write("", len(content))
	}
}

// write writes s and fills up what is n bytes long so far to a multiple of four.
func (c *cpio) write(s string, n int) {
	if c.err == nil {
		_, c.err = io.WriteString(c.w, s+strings.Repeat("\x00", (4-n%4)%4))
	}
}
