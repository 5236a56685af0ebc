package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/leapcelld.md")

// TestSettingsReference holds docs/leapcelld.md to the flags. Run it with -update to write
// the page.
func TestSettingsReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "leapcelld.md")
	var b strings.Builder
	b.WriteString(`# leapcelld

<!-- Made from cmd/leapcelld/config.go. Change that, then: go test ./cmd/leapcelld -run TestSettingsReference -update -->

The control plane: API, deployer, scaler, embedded registry. Each setting is a flag and a variable of the environment; the
flag wins. The admin token is made at the first start, in ` + "`admin.token`" + ` in the data folder.

| flag | variable | default | |
|---|---|---|---|
`)
	c := defaults()
	c.flags(io.Discard).VisitAll(func(f *flag.Flag) {
		value := ""
		if f.DefValue != "" {
			value = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | %s | %s |\n", f.Name, envName(f.Name), value, f.Usage)
	})
	want := b.String()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Error("docs/leapcelld.md is not what config.go says: run go test ./cmd/leapcelld -run TestSettingsReference -update")
	}
}
