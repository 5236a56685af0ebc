package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// The real thing, with packages from the network: half a minute.
func TestAssemblePython(t *testing.T) {
	if testing.Short() {
		t.Skip("assembles a system from the network")
	}
	if _, err := exec.LookPath(assembler); err != nil || os.Getuid() != 0 {
		t.Skip("needs mmdebstrap and root")
	}
	b := newBuilder(t, func(c *Config) { c.AptConfigDir = os.Getenv("LEAPCELL_APT_CONFIG_DIR") })
	r, err := b.Runtime("python")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(b.cfg.Dir, "python.tar")
	if err := b.assemble(t.Context(), r.Name, r.Base, file, func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	// A guard against a package that drags in a desktop: the compiler alone is half of it.
	if limit := int64(500 << 20); info.Size() > limit {
		t.Errorf("the base image has %d MB, more than %d MB", info.Size()>>20, limit>>20)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := names(t, f)
	for _, want := range []string{"usr/bin/python", "usr/bin/python3", "usr/local/bin/pip", "usr/bin/gcc", "usr/bin/git", "usr/bin/bash", "etc/ssl/certs/ca-certificates.crt", "app/"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing", want)
		}
	}
	for _, bad := range []string{"usr/lib/python3.13/EXTERNALLY-MANAGED", "etc/apt/apt.conf.d/99mmdebstrap", "dev/null"} {
		if slices.Contains(got, bad) {
			t.Errorf("%s must not be there", bad)
		}
	}
	t.Logf("%d MB", info.Size()>>20)
	if keep := os.Getenv("LEAPCELL_KEEP_BASE"); keep != "" {
		if err := exec.Command("cp", file, keep).Run(); err != nil {
			t.Error(err)
		}
	}
}
