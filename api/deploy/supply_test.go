package deploy

import (
	"bufio"
	"errors"
	"strings"
	"testing"

	"github.com/leapcell/leapcell"
)

func (w *world) supply(unsigned, untold error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unsigned, w.untold = unsigned, untold
}

// Nothing starts before it is signed, however long that takes.
func TestStartWaitsForTheSignature(t *testing.T) {
	w := newWorld(t)
	w.supply(leapcell.Errorf(leapcell.CodeUnavailable, "Vault is sealed"), nil)
	d := w.deployer(w.view(0, false), nil)
	dep := w.submit(d)
	log, err := d.Log(t.Context(), dep.ID, leapcell.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for lines := bufio.NewScanner(log); !strings.Contains(lines.Text(), "waiting: Vault is sealed"); {
		if !lines.Scan() {
			t.Fatal("it never said what it waits for")
		}
	}
	w.supply(nil, nil)
	if dep = w.finish(d, dep.ID); dep.State != leapcell.Live {
		t.Errorf("%s, %+v", dep.State, dep.Error)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.signed[dep.Image] || !w.described[dep.ID] {
		t.Errorf("signed %v, described %v", w.signed, w.described)
	}
}

func TestUnsignedDeploymentFails(t *testing.T) {
	w := newWorld(t)
	w.supply(errors.New("no"), nil)
	d := w.deployer(w.view(0, false), nil)
	if dep := w.finish(d, w.submit(d).ID); dep.State != leapcell.Failed {
		t.Errorf("%s", dep.State)
	}
	if got := w.registered(); len(got) != 0 {
		t.Errorf("jobs: %v", got)
	}
}

// A deployment does without its documents, and says so.
func TestDeploymentWithoutDocuments(t *testing.T) {
	w := newWorld(t)
	w.supply(nil, leapcell.Errorf(leapcell.CodeUnprocessable, "the layer is no archive"))
	d := w.deployer(w.view(0, false), nil)
	dep := w.finish(d, w.submit(d).ID)
	if log := readLog(t, d, dep.ID); dep.State != leapcell.Live || !strings.Contains(log, "could not be written down: the layer is no archive") {
		t.Errorf("%s\n%s", dep.State, log)
	}
}

// What was deployed before there was a key, or with a former one, is signed when the control plane starts.
func TestSignsWhatIsKept(t *testing.T) {
	w := newWorld(t)
	first := w.deployer(w.view(0, false), nil)
	var images []string
	for range 2 {
		images = append(images, w.finish(first, w.submit(first).ID).Image)
	}
	first.Close()
	w.mu.Lock()
	clear(w.signed)
	w.mu.Unlock()
	w.supply(leapcell.Errorf(leapcell.CodeUnavailable, "Vault is sealed"), nil)
	again := w.deployer(w.view(0, false), nil)
	if err := again.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.supply(nil, nil)
	again.done.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, image := range images {
		if !w.signed[image] {
			t.Errorf("%s is not signed: %v", image, w.signed)
		}
	}
}
