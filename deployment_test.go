package leapcell_test

import (
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
)

var states = []leapcell.State{
	leapcell.Queued, leapcell.Fetching, leapcell.Building, leapcell.Packaging, leapcell.Publishing,
	leapcell.Starting, leapcell.Live, leapcell.Superseded, leapcell.Failed, leapcell.Cancelled,
}

func FuzzParseRequestKey(f *testing.F) {
	for _, text := range []string{"", "k-1", `"k-1"`, `"`, `""`, "a b", "a\x00", "\u00e4"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := leapcell.ParseRequestKey(text)
		if err != nil {
			return
		}
		if again, err := leapcell.ParseRequestKey(`"` + key + `"`); key != "" && (err != nil || again != key) || len(key) > 128 || strings.ContainsAny(key, " \"\\\n") || (key == "") != (text == "") {
			t.Errorf("%q is %q; in quotes %q, %v", text, key, again, err)
		}
	})
}

func TestStateDone(t *testing.T) {
	done := map[leapcell.State]bool{leapcell.Live: true, leapcell.Superseded: true, leapcell.Failed: true, leapcell.Cancelled: true}
	for _, s := range states {
		if s.Done() != done[s] {
			t.Errorf("%s: done is %v", s, s.Done())
		}
	}
}

// The whole table, one row a state, one column a state it may become, in the order of
// states. A cell changes only together with the picture beside State.
func TestStateCanBecome(t *testing.T) {
	table := map[leapcell.State]string{
		leapcell.Queued:     ".xxxxxxxxx",
		leapcell.Fetching:   "..xxxxxxxx",
		leapcell.Building:   "...xxxxxxx",
		leapcell.Packaging:  "....xxxxxx",
		leapcell.Publishing: ".....xxxxx",
		leapcell.Starting:   "......xxxx",
		leapcell.Live:       ".......x..",
		leapcell.Superseded: ".....xx...",
		leapcell.Failed:     "..........",
		leapcell.Cancelled:  "..........",
	}
	for _, from := range states {
		for i, to := range states {
			want := table[from][i] == 'x'
			if got := from.CanBecome(to); got != want {
				t.Errorf("%s to %s: %v, want %v", from, to, got, want)
			}
		}
	}
}
