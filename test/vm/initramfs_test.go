package main

import (
	"bufio"
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// The format by its own reader, where the machine has one; its layout everywhere.
func TestCpio(t *testing.T) {
	var b bytes.Buffer
	c := &cpio{w: bufio.NewWriter(&b)}
	c.add("dir", 0o40755, nil)
	c.add("dir/file", 0o100644, []byte("12345"))
	c.add("TRAILER!!!", 0, nil)
	if c.err != nil {
		t.Fatal(c.err)
	}
	if err := c.w.Flush(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 {
		t.Errorf("%d bytes are no multiple of four", b.Len())
	}
	text := b.String()
	if i := strings.Index(text, "dir/file\x00"); i < 0 || i%4 != 110%4 || text[i+10:i+15] != "12345" || text[i+18:i+24] != "070701" {
		t.Errorf("the entry of the file is not where the format has it: %q", text)
	}
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("this machine has no cpio to read it")
	}
	list := exec.Command("cpio", "-t", "--quiet")
	list.Stdin = &b
	if out, err := list.Output(); err != nil || string(out) != "dir\ndir/file\n" {
		t.Errorf("cpio reads %q (%v)", out, err)
	}
}
