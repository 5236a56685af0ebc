package plugin

import (
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// The tables of the manual are those of the code: setting, type and default.
func TestManualNamesEachSetting(t *testing.T) {
	b, err := os.ReadFile("../../docs/driver.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, spec := range map[string]*hclspec.Spec{"plugin": configSpec, "task": taskSpec} {
		_, rest, ok := strings.Cut(string(b), "<!-- settings: "+name+" -->\n")
		table, _, end := strings.Cut(rest, "<!-- end -->")
		if !ok || !end {
			t.Fatalf("docs/driver.md has no table of the %s settings", name)
		}
		written := map[string]string{}
		for _, line := range strings.Split(strings.TrimSpace(table), "\n")[2:] {
			cells := strings.SplitN(strings.Trim(line, "| "), "|", 4)
			if len(cells) != 4 || strings.TrimSpace(cells[3]) == "" {
				t.Errorf("%s: a row without a meaning: %s", name, line)
				continue
			}
			setting := strings.Trim(strings.TrimSpace(cells[0]), "`")
			written[setting] = strings.TrimSpace(cells[1]) + ", " + strings.Trim(strings.TrimSpace(cells[2]), "`")
		}
		for setting, s := range spec.GetObject().Attributes {
			if got, want := written[setting], describe(s); got != want {
				t.Errorf("docs/driver.md has the %s setting %s as %q, the code as %q", name, setting, got, want)
			}
			delete(written, setting)
		}
		for setting := range written {
			t.Errorf("docs/driver.md has the %s setting %s, the code has not", name, setting)
		}
	}
}

// describe is type and default of a setting.
func describe(s *hclspec.Spec) string {
	if d := s.GetDefault(); d != nil {
		return d.Primary.GetAttr().GetType() + ", " + d.Default.GetLiteral().GetValue()
	}
	if a := s.GetAttr(); a != nil {
		if a.Required {
			return a.Type + ", required"
		}
		return a.Type + ", "
	}
	return "block, "
}

func TestManualHasTheExample(t *testing.T) {
	manual, err := os.ReadFile("../../docs/driver.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../../examples/plain.nomad.hcl")
	if err != nil {
		t.Fatal(err)
	}
	_, job, _ := strings.Cut(string(example), "\n") // the first line is a comment
	if !strings.Contains(string(manual), "```hcl\n"+job+"```") {
		t.Error("the job of the manual is not that of examples/plain.nomad.hcl")
	}
}
