package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const document = `# Contract
| clause | what holds |
|---|---|
| FS1 | read-only |
| FS2 | a folder |
| RQ1 | a time |
| RQ2 | a size |
| BI1 | money |

` + begin + `
| old | table |
| ZZ9 | which is no clause |
` + end + `
the rest
`

const source = `package contract
func TestMust_FS1_RootIsReadOnly() {}
func TestMust_FS1_AndStaysSo() {}
func TestMust_RQ1_Ends() {}
func TestMust_RQ2_IsBounded() {}
func TestMust_XX1_IsUnknown() {}
func TestOther() {}
`

const output = `not JSON at all
{"Action":"run","Test":"TestMust_FS1_RootIsReadOnly"}
{"Action":"pass","Test":"TestMust_FS1_RootIsReadOnly"}
{"Action":"skip","Test":"TestMust_FS1_AndStaysSo"}
{"Action":"run","Test":"TestMust_RQ1_Ends"}
{"Action":"pass","Test":"TestMust_RQ1_Ends/serverless"}
{"Action":"pass","Test":"TestMust_RQ1_Ends/persistent/inside"}
{"Action":"fail","Test":"TestMust_RQ1_Ends/persistent"}
{"Action":"fail","Test":"TestMust_RQ1_Ends"}
{"Action":"run","Test":"TestMust_XX1_IsUnknown"}
{"Action":"pause","Test":"TestMust_XX1_IsUnknown"}
{"Action":"cont","Test":"TestMust_XX1_IsUnknown"}
{"Action":"run","Test":"TestMust_RQ2_IsBounded"}
{"Action":"pause","Test":"TestMust_RQ2_IsBounded"}
{"Action":"fail"}
`

const want = `# Contract
| clause | what holds |
|---|---|
| FS1 | read-only |
| FS2 | a folder |
| RQ1 | a time |
| RQ2 | a size |
| BI1 | money |

` + begin + `
| clause | tests | hybrid | v2 |
|---|---|---|---|
| FS1 | RootIsReadOnly, AndStaysSo | pass, 1 skipped | pass, 1 not run |
| FS2 | **none** |  |  |
| RQ1 | Ends | serverless pass, persistent **1 of 1 failed** | not run |
| RQ2 | IsBounded | not run | not run |
| BI1 | **none** |  |  |
| XX1 | IsUnknown | **1 of 1 failed** | not run |

| run | clauses that passed | failed | not run, or in part |
|---|---|---|---|
| hybrid | 1 of 4 | 2 | 1 |
| v2 | 0 of 4 | 0 | 4 |
` + end + `
the rest
`

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTableGoesBetweenTheMarkers(t *testing.T) {
	doc := write(t, "doc.md", document)
	tests := filepath.Dir(write(t, "a_test.go", source))
	first := write(t, "1.json", output)
	second := write(t, "2.json", `{"Action":"pass","Test":"TestMust_FS1_RootIsReadOnly"}`)
	for range 2 { // the second time nothing changes
		if err := run([]string{"-doc", doc, "-tests", tests, "hybrid=" + first, "v2=" + second}, io.Discard); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(doc); err != nil || string(got) != want {
			t.Fatalf("%v, the document is\n%s", err, got)
		}
	}
}

// Who has one kind of machine at hand leaves the other's column alone, and who runs some clauses
// the other lines.
func TestWhatWasNotRunStays(t *testing.T) {
	doc := write(t, "doc.md", document)
	tests := filepath.Dir(write(t, "a_test.go", source))
	hybrid, v2 := write(t, "1.json", output), write(t, "2.json", `{"Action":"pass","Test":"TestMust_FS1_RootIsReadOnly"}`)
	some := write(t, "3.json", `{"Action":"pass","Test":"TestMust_RQ1_Ends"}`)
	last := strings.NewReplacer("persistent **1 of 1 failed** | not run |", "persistent **1 of 1 failed** | pass |", "| v2 | 0 of 4 | 0 | 4 |", "| v2 | 1 of 4 | 0 | 3 |").Replace(want)
	for _, step := range []struct{ given, want string }{
		{"v2=" + v2, "| clause | tests | v2 |"}, {"hybrid=" + hybrid, want}, {"v2=" + some, last}, {"hybrid=" + hybrid, last},
	} {
		if err := run([]string{"-doc", doc, "-tests", tests, step.given}, io.Discard); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(doc); err != nil || !strings.Contains(string(got), step.want) {
			t.Fatalf("%v, after %s the document is\n%s", err, step.given, got)
		}
	}
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	doc := write(t, "doc.md", document)
	plain := write(t, "plain.md", "# Contract\n| FS1 | x |\n")
	tests := filepath.Dir(write(t, "a_test.go", source))
	good, empty := write(t, "1.json", output), write(t, "2.json", "ok\n")
	for name, args := range map[string][]string{
		"no file":       {"-doc", doc, "-tests", tests},
		"missing file":  {"-doc", doc, "-tests", tests, good + ".not"},
		"no results":    {"-doc", doc, "-tests", tests, empty},
		"no markers":    {"-doc", plain, "-tests", tests, good},
		"no document":   {"-doc", doc + ".not", "-tests", tests, good},
		"broken source": {"-doc", doc, "-tests", filepath.Dir(write(t, "b_test.go", "func")), good},
	} {
		if err := run(args, io.Discard); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
