package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell"
)

func unpackInto(t testing.TB, files ...file) (string, error) {
	t.Helper()
	needRoot(t)
	target := filepath.Join(t.TempDir(), "layer")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Unpack(t.Context(), "sha256:1234", bytes.NewReader(archive(t, files...)), target, DefaultLimits)
	return target, err
}

func TestUnpack(t *testing.T) {
	target, err := unpackInto(t,
		dir("./"), dir("bin"), file{name: "bin/app", text: "hello", mode: 0o4755, uid: 7},
		file{name: "bin/again", kind: tar.TypeLink, link: "bin/app"}, file{name: "sh", kind: tar.TypeSymlink, link: "/bin/app"},
		file{name: "deep/er/file", text: "x"}, file{name: "old", text: "1"}, file{name: "old", text: "2"},
		file{name: "dev/null", kind: tar.TypeChar}, file{name: "capable", text: "x", pax: map[string]string{
			"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.trusted.overlay.opaque": "y",
		}},
	)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(target, "bin/app"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 7 || st.Mode&0o7777 != 0o4755 || st.Nlink != 2 {
		t.Errorf("bin/app: uid %d, mode %o, %d links; want 7, 4755, 2", st.Uid, st.Mode, st.Nlink)
	}
	for name, want := range map[string]string{"deep/er/file": "x", "old": "2"} {
		if b, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q (%v), want %q", name, b, err, want)
		}
	}
	if link, err := os.Readlink(filepath.Join(target, "sh")); err != nil || link != "/bin/app" {
		t.Errorf("sh leads to %q (%v)", link, err)
	}
	if _, err := os.Lstat(filepath.Join(target, "dev/null")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a device was made: %v", err)
	}
	buf := make([]byte, 16)
	if n, err := unix.Lgetxattr(filepath.Join(target, "capable"), "user.note", buf); err != nil || string(buf[:n]) != "kept" {
		t.Errorf("user.note is %q (%v)", buf[:max(n, 0)], err)
	}
	if _, err := unix.Lgetxattr(filepath.Join(target, "capable"), opaqueXattr, buf); err == nil {
		t.Error("an attribute of overlay was taken from the layer")
	}
}

// patched is an archive of one entry whose header was changed by hand, as no writer would.
func patched(t testing.TB, f file, change func(header []byte)) []byte {
	t.Helper()
	b := archive(t, f)
	change(b)
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func negative(field []byte) {
	for i := range field {
		field[i] = 0xff
	}
}

// sparse is a file of a gigabyte that is one hole, in an archive of one kilobyte.
func sparse(t testing.TB) []byte {
	return patched(t, file{name: "hole"}, func(h []byte) {
		h[156] = tar.TypeGNUSparse
		copy(h[257:265], "ustar  \x00")
		copy(h[386:], "10000000000\x0000000000000\x00") // a piece at the end, of no bytes
		copy(h[483:], "10000000000\x00")
	})
}

// Every layer that does not come from a build of good will is refused, with the layer and the entry in the error.
func TestUnpackHostile(t *testing.T) {
	long := strings.Repeat("x", 256)
	out := file{name: "out", kind: tar.TypeSymlink, link: ".."}
	tests := map[string]struct {
		files []file
		want  string
	}{
		"parent":                 {[]file{{name: "../evil", text: "x"}}, `entry "../evil": its name leads out`},
		"parent within":          {[]file{{name: "a/../../evil", text: "x"}}, `entry "a/../../evil": its name leads out`},
		"parent itself":          {[]file{{name: "..", kind: tar.TypeDir}}, `entry "..": its name leads out`},
		"absolute":               {[]file{{name: "/etc/passwd", text: "x"}}, `entry "/etc/passwd": its name is absolute`},
		"absolute folder":        {[]file{dir("/")}, `entry "/": its name is absolute`},
		"root is a file":         {[]file{{name: "./", kind: tar.TypeSymlink, link: "x"}}, `entry "./": it is the layer's root, but no folder`},
		"whiteout of parent":     {[]file{{name: "a/.wh..."}}, `entry "a/.wh...": the whiteout names nothing`},
		"whiteout of itself":     {[]file{{name: "a/.wh.."}}, `the whiteout names nothing`},
		"empty whiteout":         {[]file{{name: ".wh."}}, `the whiteout names nothing`},
		"within a whiteout":      {[]file{{name: ".wh.a/b", text: "x"}}, `entry ".wh.a/b": it lies in a whiteout`},
		"deep in a whiteout":     {[]file{{name: "c/.wh.a/d/b", text: "x"}}, `it lies in a whiteout`},
		"hard link as whiteout":  {[]file{{name: "a", text: "x"}, {name: ".wh.b", kind: tar.TypeLink, link: "a"}}, `it is a whiteout, but a hard link`},
		"hard link to whiteout":  {[]file{{name: ".wh.a"}, {name: "b", kind: tar.TypeLink, link: "a"}}, `a folder or a whiteout`},
		"through relative link":  {[]file{out, {name: "out/evil", text: "x"}}, `entry "out/evil"`},
		"through absolute link":  {[]file{{name: "out", kind: tar.TypeSymlink, link: "/"}, {name: "out/evil", text: "x"}}, `entry "out/evil"`},
		"through two links":      {[]file{out, {name: "in", kind: tar.TypeSymlink, link: "out"}, {name: "in/evil", text: "x"}}, `entry "in/evil"`},
		"whiteout through link":  {[]file{out, {name: "out/.wh.evil"}}, `entry "out/.wh.evil"`},
		"opaque through link":    {[]file{out, {name: "out/.wh..wh..opq"}}, `entry "out/.wh..wh..opq"`},
		"folder through link":    {[]file{out, dir("out/evil")}, `entry "out/evil"`},
		"pipe through link":      {[]file{out, {name: "out/evil", kind: tar.TypeFifo}}, `entry "out/evil"`},
		"link through link":      {[]file{out, {name: "out/evil", kind: tar.TypeSymlink, link: "x"}}, `entry "out/evil"`},
		"hard link out":          {[]file{{name: "evil", kind: tar.TypeLink, link: "../secret"}}, `entry "evil": hard link to "../secret": its name leads out`},
		"hard link by a link":    {[]file{out, {name: "evil", kind: tar.TypeLink, link: "out/secret"}}, `entry "evil": hard link to "out/secret"`},
		"hard link to the host":  {[]file{{name: "evil", kind: tar.TypeLink, link: "/etc/passwd"}}, `entry "evil": hard link to "/etc/passwd"`},
		"hard link to a folder":  {[]file{dir("a"), {name: "b", kind: tar.TypeLink, link: "a"}}, `which is a folder`},
		"hard link to itself":    {[]file{{name: "a", text: "x"}, {name: "a", kind: tar.TypeLink, link: "a"}}, `to itself`},
		"block device":           {[]file{{name: "disk", kind: tar.TypeBlock}}, `entry "disk": it is a device`},
		"whiteout device":        {[]file{{name: "x", kind: tar.TypeChar}}, `entry "x": it is a device`},
		"device like dev":        {[]file{{name: "device/sda", kind: tar.TypeBlock}}, `entry "device/sda": it is a device`},
		"dev as a device":        {[]file{{name: "dev", kind: tar.TypeBlock}}, `entry "dev": it is a device`},
		"unknown kind":           {[]file{{name: "x", kind: 'Z'}}, `entry "x": it is of the unknown kind 'Z'`},
		"long part":              {[]file{{name: "a/" + long, text: "x"}}, `a part of its name is longer than 255 bytes`},
		"long name":              {[]file{{name: strings.Repeat("x/", 2049) + "y", text: "x"}}, `its name is longer than 4096 bytes`},
		"long link":              {[]file{{name: "a", kind: tar.TypeSymlink, link: strings.Repeat("x", 5000)}}, `entry "a"`},
		"large attribute":        {[]file{{name: "a", text: "x", pax: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 65<<10)}}}, `its attribute "user.a" has more than 64 KB`},
		"attributes over room":   {[]file{{name: "a", text: "x", pax: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 60<<10), "SCHILY.xattr.user.b": strings.Repeat("x", 60<<10)}}}, ``},
		"owner that is none":     {[]file{{name: "a", text: "x", uid: 1<<32 - 1}}, `entry "a": its owner is 4294967295:4294967295`},
		"name to be misread":     {[]file{{name: "../\x1b[2J\n", text: "x"}}, `entry "../\x1b[2J\n"`},
		"long name in the error": {[]file{{name: "../" + strings.Repeat("y", 250), text: "x"}}, `yyy"…: its name leads out`},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			target, err := unpackInto(t, tt.files...)
			if tt.want == "" && err == nil {
				return // depends on the file system
			}
			checkRefused(t, target, err, tt.want)
		})
	}
}

func TestUnpackMalformed(t *testing.T) {
	needRoot(t)
	deep := make([]file, 20)
	for i := range deep {
		deep[i] = file{name: fmt.Sprintf("%d/%s", i, strings.Repeat("d/", 100)), kind: tar.TypeDir, mode: 0o755}
	}
	zeros := archive(t, file{name: "zeros", text: strings.Repeat("\x00", 1<<20)})
	var dense bytes.Buffer
	z := gzip.NewWriter(&dense)
	z.Write(zeros)
	z.Close()
	frame, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	roomy := Limits{Bytes: 1 << 32, Entries: 1000, Ratio: 20, Slack: 1 << 16}
	tests := map[string]struct {
		layer  []byte
		limits Limits
		want   string
	}{
		"negative size":   {patched(t, file{name: "a"}, func(h []byte) { negative(h[124:136]) }), DefaultLimits, "invalid tar header"},
		"negative owner":  {patched(t, file{name: "a"}, func(h []byte) { negative(h[108:116]) }), DefaultLimits, `entry "a": its owner is -1:0`},
		"no checksum":     {bytes.Repeat([]byte{1}, 1024), DefaultLimits, "invalid tar header"},
		"half an archive": {zeros[:5000], DefaultLimits, `entry "zeros": unexpected EOF`},
		"half a gzip":     {dense.Bytes()[:dense.Len()/2], DefaultLimits, "unexpected EOF"},
		"gzip in name":    {[]byte{0x1f, 0x8b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, DefaultLimits, "it is not compressed as it says"},
		"bytes":           {zeros, Limits{Bytes: 1 << 19, Entries: 10}, `entry "zeros": its files have more than 0 MB`},
		"entries":         {archive(t, file{name: "a"}, file{name: "b"}), Limits{Bytes: 1 << 20, Entries: 1}, "it has more than 1 entries"},
		"folders unnamed": {archive(t, deep...), Limits{Bytes: 1 << 20, Entries: 200}, "it has more than 200 entries"},
		"gzip bomb":       {dense.Bytes(), roomy, "it unpacks to more than 20 times its size"},
		"zstd bomb":       {frame.EncodeAll(zeros, nil), roomy, "it unpacks to more than 20 times its size"},
		"hole":            {sparse(t), roomy, `entry "hole": it unpacks to more than 20 times its size`},
		"endless padding": {append(archive(t, file{name: "a"}), make([]byte, 1<<20)...), Limits{Bytes: 1 << 10, Entries: 10}, "it is larger than 0 MB"},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "layer")
			if err := os.Mkdir(target, 0o755); err != nil {
				t.Fatal(err)
			}
			_, err := Unpack(t.Context(), "sha256:1234", bytes.NewReader(tt.layer), target, tt.limits)
			checkRefused(t, target, err, tt.want)
		})
	}
}

func checkRefused(t *testing.T, target string, err error, want string) {
	t.Helper()
	text := leapcell.ErrorMessage(err)
	if leapcell.ErrorCode(err) != leapcell.CodeUnprocessable || !strings.HasPrefix(text, "layer sha256:1234 of the image is refused: ") || !strings.Contains(text, want) {
		t.Errorf("error is %v (%s), want one that names the layer and %q", err, leapcell.ErrorCode(err), want)
	}
	around, err := os.ReadDir(filepath.Dir(target))
	if err != nil || len(around) != 1 {
		t.Errorf("something was written beside the layer: %v (%v)", around, err)
	}
}

// What looks odd, but is taken, and how.
func TestUnpackOdd(t *testing.T) {
	latin := "caf\xe9"
	target, err := unpackInto(t,
		file{name: latin, text: "1"}, file{name: "line\nbreak", text: "2"}, file{name: strings.Repeat("x", 255), text: "3"},
		dir("twice"), file{name: "twice/kept", text: "4"}, file{name: "twice", kind: tar.TypeDir, mode: 0o700},
		file{name: "./a//b", text: "old"}, file{name: "a/./b", text: "new"}, file{name: "a/c", kind: tar.TypeLink, link: "/a/b"},
		file{name: "was/folder", text: "x"}, file{name: "was", text: "5"},
		file{name: "lib", kind: tar.TypeSymlink, link: "usr/lib"}, dir("usr/lib"), file{name: "lib/in", text: "6"},
		file{name: "pipe", kind: tar.TypeFifo}, file{name: "su", text: "7", mode: 0o6755}, file{name: "x/../y", text: "8"},
		file{name: "noted", text: "9", pax: map[string]string{
			"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.security.selinux": "x",
		}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		latin: "1", "line\nbreak": "2", strings.Repeat("x", 255): "3", "twice/kept": "4", "a/b": "new", "a/c": "new", "was": "5", "usr/lib/in": "6", "su": "7", "y": "8",
	} {
		if b, err := os.ReadFile(filepath.Join(target, name)); err != nil || string(b) != want {
			t.Errorf("%q holds %q (%v), want %q", name, b, err, want)
		}
	}
	for name, want := range map[string]fs.FileMode{
		"twice": fs.ModeDir | 0o700, "pipe": fs.ModeNamedPipe | 0o644, "su": fs.ModeSetuid | fs.ModeSetgid | 0o755,
	} {
		if info, err := os.Lstat(filepath.Join(target, name)); err != nil || info.Mode() != want {
			t.Errorf("%s is %v (%v), want %v", name, info, err, want)
		}
	}
	attrs := make([]byte, 1024)
	n, err := unix.Llistxattr(filepath.Join(target, "noted"), attrs)
	if err != nil || strings.TrimRight(string(attrs[:n]), "\x00") != "user.note" {
		t.Errorf("attributes are %q (%v), want user.note only", attrs[:max(n, 0)], err)
	}
}

// Times before 1970 and far from now would be misread by file systems: such files are of 1970.
func TestUnpackTimes(t *testing.T) {
	needRoot(t)
	for _, field := range [][]byte{bytes.Repeat([]byte{0xff}, 12), {0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
		target := t.TempDir()
		layer := patched(t, file{name: "a", text: "x"}, func(h []byte) { copy(h[136:148], field) })
		if _, err := Unpack(t.Context(), "sha256:1234", bytes.NewReader(layer), target, DefaultLimits); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(target, "a")); err != nil || info.ModTime().Unix() != 0 {
			t.Errorf("the file is of %v (%v), want 1970", info.ModTime(), err)
		}
	}
}

// An error of the way here is not one of the layer: the way may be better later on.
func TestUnpackBrokenOff(t *testing.T) {
	needRoot(t)
	broken := errors.New("cut")
	layer := archive(t, file{name: "a", text: strings.Repeat("x", 4096)})
	r := io.MultiReader(bytes.NewReader(layer[:2000]), iotest.ErrReader(broken))
	if _, err := Unpack(t.Context(), "sha256:1234", r, t.TempDir(), DefaultLimits); !errors.Is(err, broken) || leapcell.ErrorCode(err) != leapcell.CodeInternal {
		t.Errorf("error is %v, want that of the reader", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, "sha256:1234", bytes.NewReader(layer), t.TempDir(), DefaultLimits); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want the context's", err)
	}
}

// FuzzUnpack looks for layers that reach out of their folder or bring the unpacker down.
func FuzzUnpack(f *testing.F) {
	needRoot(f)
	f.Add(archive(f, dir("a"), file{name: "a/b", text: "x"}, file{name: "a/.wh.c"}, file{name: ".wh..wh..opq"}))
	f.Add(sparse(f))
	f.Add(archive(f, file{name: "a", text: "x", pax: map[string]string{"SCHILY.xattr.user.a": "1"}}, file{name: "a/", kind: tar.TypeDir}, file{name: "p", kind: tar.TypeFifo}))
	f.Add(archive(f, file{name: "out", kind: tar.TypeSymlink, link: ".."}, file{name: "out/evil", text: "x"}, file{name: "l", kind: tar.TypeLink, link: "out"}))
	f.Fuzz(func(t *testing.T, layer []byte) {
		outer := t.TempDir()
		target := filepath.Join(outer, "layer")
		if err := os.Mkdir(target, 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := Unpack(t.Context(), "sha256:1234", bytes.NewReader(layer), target, Limits{Bytes: 1 << 20, Entries: 100, Ratio: 200, Slack: 1 << 18})
		if err != nil && leapcell.ErrorCode(err) != leapcell.CodeUnprocessable {
			t.Errorf("a fault of the layer is taken for one of ours: %v", err)
		}
		if around, err := os.ReadDir(outer); err != nil || len(around) != 1 {
			t.Errorf("something was written beside the layer: %v (%v)", around, err)
		}
	})
}
