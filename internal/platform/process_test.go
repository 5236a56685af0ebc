package platform

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sh is a daemon that runs a script.
func sh(t *testing.T, script string) daemon {
	t.Helper()
	path, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no shell")
	}
	d := daemon{name: "test", path: path, args: []string{"-c", script}, env: []string{"PATH=" + os.Getenv("PATH")}, dir: t.TempDir()}
	t.Cleanup(func() {
		if r, alive := readRecord(d.recordFile()); alive {
			if err := r.stop(context.Background(), 0); err != nil {
				t.Error(err)
			}
		}
	})
	return d
}

func ensure(t *testing.T, d daemon, want bool) record {
	t.Helper()
	started, err := d.ensure(t.Context())
	if err != nil || started != want {
		t.Fatalf("started %v, %v; want %v", started, err, want)
	}
	r, alive := readRecord(d.recordFile())
	if !alive {
		t.Fatal("it does not run")
	}
	return r
}

func TestDaemonIsStartedOnceAndReplacedWhenChanged(t *testing.T) {
	d := sh(t, "exec sleep 1000")
	first := ensure(t, d, true)
	if again := ensure(t, d, false); again.PID != first.PID {
		t.Errorf("process %d became %d", first.PID, again.PID)
	}
	d.config = []byte("other")
	if other := ensure(t, d, true); other.PID == first.PID {
		t.Error("a new configuration did not restart it")
	}
	if first.alive() {
		t.Error("the former process still runs")
	}
}

func TestRecordOfAnotherProcessIsNotAlive(t *testing.T) {
	started, _, err := procStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	r := record{PID: os.Getpid(), Started: started, Boot: bootID()}
	if !r.alive() {
		t.Fatal("we are not alive")
	}
	// A recycled id: another start time, or another boot. Stopping it must leave us alone.
	for _, other := range []record{{PID: r.PID, Started: started + 1, Boot: r.Boot}, {PID: r.PID, Started: started, Boot: "other"}} {
		if other.alive() {
			t.Errorf("%+v counts as alive", other)
		}
		if err := other.stop(t.Context(), time.Second); err != nil {
			t.Error(err)
		}
	}
}

func TestStopKillsWhatIgnoresTheSignal(t *testing.T) {
	d := sh(t, "trap '' TERM; echo ready; while :; do sleep 0.01; done")
	r := ensure(t, d, true)
	await(t, d, "ready")
	if err := r.stop(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if r.alive() {
		t.Error("it still runs")
	}
	if err := r.stop(t.Context(), time.Second); err != nil {
		t.Errorf("stopping it again: %v", err)
	}
}

// await waits for text in the daemon's log.
func await(t *testing.T, d daemon, text string) {
	t.Helper()
	err := d.await(t.Context(), 10*time.Second, func(context.Context) error {
		if b, _ := os.ReadFile(d.logFile()); !strings.Contains(string(b), text) {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAwaitSaysTheLastWordsOfADeadDaemon(t *testing.T) {
	d := sh(t, "echo first; echo the port is taken >&2; exit 3")
	if _, err := d.ensure(t.Context()); err != nil && !strings.Contains(err.Error(), "ended at once") {
		t.Fatal(err)
	}
	err := d.await(t.Context(), time.Minute, func(context.Context) error { return errors.New("refused") })
	if err == nil || !strings.Contains(err.Error(), "the port is taken") || !strings.Contains(err.Error(), d.logFile()) {
		t.Errorf("it says %v", err)
	}
}

func TestAwaitSaysWhyItGaveUp(t *testing.T) {
	d := sh(t, "echo starting; exec sleep 1000")
	ensure(t, d, true)
	await(t, d, "starting")
	err := d.await(t.Context(), 20*time.Millisecond, func(context.Context) error { return errors.New("connection refused") })
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "starting") {
		t.Errorf("it says %v", err)
	}
}

func TestMissingProgram(t *testing.T) {
	d := sh(t, "")
	d.path = filepath.Join(t.TempDir(), "leapcelld")
	if _, err := d.ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("it says %v", err)
	}
}

func TestMarkedFindsProcessesWithoutRecord(t *testing.T) {
	d := sh(t, "exec sleep 1000")
	r := ensure(t, d, true)
	if err := os.Remove(d.recordFile()); err != nil {
		t.Fatal(err)
	}
	found := marked(d.dir)
	if len(found) != 1 || found[0].PID != r.PID {
		t.Fatalf("found %+v, want process %d", found, r.PID)
	}
	if others := marked(d.dir + "x"); len(others) != 0 {
		t.Errorf("found %+v of another platform", others)
	}
	if err := found[0].stop(t.Context(), time.Second); err != nil || r.alive() {
		t.Errorf("stopping it: %v", err)
	}
}

func TestLogIsKeptOnceWhenLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "x.log")
	f, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(maxLogBytes+1), f.Close()); err != nil {
		t.Fatal(err)
	}
	if f, err = openLog(path); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("the new log has %d bytes, %v", info.Size(), err)
	}
	if _, err := os.Stat(path + ".1"); err != nil {
		t.Error(err)
	}
}
