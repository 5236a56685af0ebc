package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// kernelPackage is Debian's name for its newest kernel for virtual machines.
const kernelPackage = "linux-image-cloud-amd64"

// kernel is one taken out of its package.
type kernel struct {
	version string
	image   string
	modules map[string]string // name -> file
}

// findKernel gives the kernel in the cache, or fetches the package: once, later runs need no
// network. It is not installed.
func findKernel(ctx context.Context, cache string) (kernel, error) {
	if runtime.GOARCH != "amd64" {
		return kernel{}, fmt.Errorf("the virtual machine is made for amd64, this is %s", runtime.GOARCH)
	}
	dir := filepath.Join(cache, "kernel")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := fetchKernel(ctx, cache, dir); err != nil {
			return kernel{}, fmt.Errorf("fetch Debian's kernel: %w", err)
		}
	}
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(images) != 1 {
		return kernel{}, fmt.Errorf("%s has %d kernels, want 1: remove the folder, it is made again", dir, len(images))
	}
	k := kernel{version: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"), image: images[0], modules: map[string]string{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok && err == nil && !d.IsDir() {
			k.modules[moduleName(name)] = path
		}
		return err
	})
	return k, err
}

// moduleName is how the kernel writes it: files have - and _ as they please.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

func fetchKernel(ctx context.Context, cache, dir string) error {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", kernelPackage).Output()
	if err != nil {
		return fmt.Errorf("apt does not know %s (apt-get update may help; a machine that is no Debian has other kernels): %w", kernelPackage, err)
	}
	var name string
	for line := range strings.Lines(string(out)) {
		if dependency, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(dependency, "linux-image-") {
			name = dependency
		}
	}
	if name == "" {
		return fmt.Errorf("%s names no kernel:\n%s", kernelPackage, out)
	}
	scratch, err := os.MkdirTemp(cache, "kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	// apt's own sandbox user could not write to our folder.
	fetch := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=", "download", name)
	fetch.Dir = scratch
	if out, err := fetch.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download %s: %w\n%s", name, err, out)
	}
	packages, _ := filepath.Glob(filepath.Join(scratch, "*.deb"))
	if len(packages) != 1 {
		return fmt.Errorf("apt-get download %s left %d packages", name, len(packages))
	}
	tree := filepath.Join(scratch, "tree")
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", packages[0], tree).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg-deb: %w\n%s", err, out)
	}
	return os.Rename(tree, dir) // in one step: a run that is interrupted leaves no half
}

// wanted are the modules for the disk, the channel, and what driver and tests use.
var wanted = []string{
	"virtio_pci", "virtio_blk", "virtio_console", "overlay", "veth", "dummy", "bridge", "fuse", "loop",
	"nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nf_nat",
	"nft_ct", "nft_chain_nat", "nft_masq", "nft_nat", "nft_redir", "nft_reject", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6",
	"nft_limit", "nft_hash", "nft_numgen", "nft_objref", "nft_quota", "nft_connlimit", "nft_log", "nft_fib", "nft_fib_inet", "nft_socket",
}

// closure is what has to be loaded for names, in that order. What a kernel does not have as a
// module it has built in, or the tests will say so.
func (k kernel) closure(names []string) ([]string, error) {
	var order []string
	var add func(name string) error
	add = func(name string) error {
		path, ok := k.modules[name]
		if !ok || slices.Contains(order, name) {
			return nil
		}
		content, err := readModule(path)
		if err != nil {
			return err
		}
		needs, err := dependencies(content)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		order = append(order, name)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// readModule gives a module as the kernel wants it: newer packages have them compressed.
func readModule(path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	out, err := exec.Command("xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", path, err)
	}
	return out, nil
}

// dependencies are the modules that one says it needs.
func dependencies(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no .modinfo: this is no kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok && list != "" {
			return strings.Split(moduleName(list), ","), nil
		}
	}
	return nil, nil
}
