package image

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// manyFiles are those of a layer as interpreters and their packages have: 2000 of 4 kB.
func manyFiles() (files []file) {
	text := noise(2000) + strings.Repeat("import os\n", 200)
	for d := range 20 {
		files = append(files, dir(fmt.Sprintf("usr/lib/p%d", d)))
		for f := range 100 {
			files = append(files, file{name: fmt.Sprintf("usr/lib/p%d/f%d", d, f), text: text})
		}
	}
	return files
}

// largeFile is a layer as a compiler leaves it.
func largeFile() []file {
	return []file{{name: "app", text: strings.Repeat(noise(4000)+strings.Repeat("a", 4000), 4000)}}
}

func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	layer := archive(b, manyFiles()...)
	b.SetBytes(int64(len(layer)))
	for b.Loop() {
		if _, err := Unpack(b.Context(), "sha256:1234", bytes.NewReader(layer), b.TempDir(), DefaultLimits); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPull is an image that is not here, from a registry on this machine; bytes are those that are unpacked.
func BenchmarkPull(b *testing.B) {
	needRoot(b)
	for what, files := range map[string][]file{"files": manyFiles(), "large": largeFile()} {
		size := int64(len(archive(b, files...)))
		for how, layer := range map[string]v1.Layer{
			"plain": static.NewLayer(archive(b, files...), types.OCIUncompressedLayer), "gzip": gzipped(b, files...), "zstd": packed(b, compression.ZStd, files...),
		} {
			b.Run(what+"/"+how, func(b *testing.B) {
				r := newRegistry(b)
				ref := r.push(b, layer)
				b.SetBytes(size)
				for b.Loop() {
					b.StopTimer()
					s := newStore(b)
					b.StartTimer()
					pull(b, s, ref)
				}
			})
		}
	}
}

// BenchmarkPullHere is what a start pays for an image that is here.
func BenchmarkPullHere(b *testing.B) {
	r, s := newRegistry(b), newStore(b)
	ref := r.push(b, gzipped(b, file{name: "a", text: "1"}), gzipped(b, file{name: "b", text: "1"}), gzipped(b, file{name: "c", text: "1"}))
	pull(b, s, ref)
	b.ReportAllocs()
	for b.Loop() {
		pull(b, s, ref)
	}
}

func BenchmarkMount(b *testing.B) {
	r, s := newRegistry(b), newStore(b)
	img := pull(b, s, r.push(b, gzipped(b, file{name: "a", text: "1"}), gzipped(b, file{name: "b", text: "1"}), gzipped(b, file{name: "c", text: "1"})))
	root := filepath.Join(b.TempDir(), "root")
	for what, mount := range map[string]func() error{
		"read-only": func() error { return s.Mount(img, root) },
		"writable":  func() error { return s.MountWritable(img, root, b.TempDir()) },
	} {
		b.Run(what, func(b *testing.B) {
			for b.Loop() {
				if err := mount(); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := s.Unmount(root); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
