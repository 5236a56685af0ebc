package supervisor

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/image"
)

func TestUserOfAnImage(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:4242:4343::/:/bin/sh\n")
	write("etc/group", "root:x:0:\nstaff:x:50:web\n")
	for said, want := range map[string]cell.User{
		"": {}, "root": {}, "0": {}, "0:0": {}, "web": {UID: 4242, GID: 4343}, "4242": {UID: 4242, GID: 4343}, "77": {UID: 77},
		"web:staff": {UID: 4242, GID: 50}, "77:88": {UID: 77, GID: 88}, "root:staff": {GID: 50},
	} {
		if got, err := userOf(said, root); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", said, got, err, want)
		}
	}
	for _, said := range []string{"nobody", "web:nobody", "nobody:50"} {
		if got, err := userOf(said, root); err == nil {
			t.Errorf("%q is %+v", said, got)
		}
	}
	// A link of the image does not lead out of it.
	if err := os.Remove(filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if got, err := userOf("daemon", root); err == nil {
		t.Errorf("the host's daemon is %+v", got)
	}
}

func TestProgramOfAnImage(t *testing.T) {
	root := t.TempDir()
	img := &image.Image{Cmd: []string{"/web", "a b"}}
	if got := program("", img, root); !slices.Equal(got, img.Cmd) {
		t.Errorf("the image's own: %q", got)
	}
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, shell := range []string{"sh", "bash"} {
		if err := os.Symlink("nowhere", filepath.Join(root, "bin", shell)); err != nil {
			t.Fatal(err)
		}
		if got := program("x", img, root); !slices.Equal(got, []string{shell, "-c", "x"}) {
			t.Errorf("with %s: %q", shell, got)
		}
	}
}

func TestStopSignalOfAnImage(t *testing.T) {
	for name, want := range map[string]unix.Signal{
		"": unix.SIGTERM, "SIGQUIT": unix.SIGQUIT, "quit": unix.SIGQUIT, "2": unix.SIGINT, "SIGNONSENSE": unix.SIGTERM, "-1": unix.SIGTERM, "99": unix.SIGTERM,
	} {
		task := &task{rec: record{StopSignal: name}}
		if got := task.stopSignal(); got != want {
			t.Errorf("%q is %v, want %v", name, got, want)
		}
	}
}

func TestDockerHub(t *testing.T) {
	h := &dockerHub{order: dockerOrder{Dockerfile: "Dockerfile"}, images: http.NotFoundHandler()}
	ask := func(method, path, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w
	}
	if w := ask(http.MethodGet, "/order", ""); !strings.Contains(w.Body.String(), `"dockerfile":"Dockerfile"`) {
		t.Errorf("order: %s", w.Body)
	}
	if got := h.exit(137); got.Code != 137 || !strings.Contains(got.Message, "137") {
		t.Errorf("without a word: %+v", got)
	}
	ask(http.MethodPost, "/failure", `{"message":"Dockerfile line 3:\n`+strings.Repeat("x", 9000)+`","exitCode":3}`)
	if got := h.exit(3); got.Code != 3 || !strings.HasPrefix(got.Message, "Dockerfile line 3: x") || len(got.Message) > 600 {
		t.Errorf("failure: %d %d bytes", got.Code, len(got.Message))
	}
	ask(http.MethodPost, "/failure", "not JSON")
	if w := ask(http.MethodDelete, "/v2/x/blobs/sha256:1", ""); w.Code != http.StatusNotFound {
		t.Errorf("what is none of these goes to the images: %d", w.Code)
	}
}
