package supply

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/registry"
	"github.com/leapcell/leapcell/internal/signature"
)

// localSigner signs as Vault does, with a key that can be replaced.
type localSigner struct {
	key  *ecdsa.PrivateKey
	name string
	down error
	n    int
}

func newLocalSigner(t *testing.T, name string) *localSigner {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &localSigner{key: key, name: name}
}

func (s *localSigner) Sign(_ context.Context, message []byte) ([]byte, string, error) {
	if s.down != nil {
		return nil, "", s.down
	}
	s.n++
	sum := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	return sig, s.name, err
}

func (s *localSigner) keys(t *testing.T) signature.Keys {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&s.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := signature.ParseKeys(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

type entry struct {
	name, text string
	mode       int64
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.mode == 0 {
			e.mode = 0o644
		}
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.text)), Typeflag: tar.TypeReg})); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layerOf(t testing.TB, entries ...entry) v1.Layer {
	t.Helper()
	return static.NewLayer(archive(t, entries...), types.OCIUncompressedLayer)
}

func imageOf(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	if err != nil {
		t.Fatal(err)
	}
	return mutate.Annotations(img, map[string]string{leapcell.BaseDigestAnnotation: "sha256:" + strings.Repeat("ba", 32)}).(v1.Image)
}

// newChain gives a chain over a real registry.
func newChain(t *testing.T, signer Signer) (*Chain, *registry.Client) {
	t.Helper()
	cred := registry.Credentials{Username: "node", Password: "secret", Insecure: true}
	r, err := registry.New(t.Context(), registry.Config{Dir: filepath.Join(t.TempDir(), "registry"), Credentials: cred, MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(r)
	t.Cleanup(ts.Close)
	cred.Address = ts.Listener.Addr().String()
	client := registry.NewClient(cred)
	c, err := New(Config{Dir: filepath.Join(t.TempDir(), "layers"), Registry: client, Signer: signer, Builder: "https://platform.example/leapcelld", Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	return c, client
}

// sample is a system with a Go program and a package that the next layer removes, an app on it.
func sample(t testing.TB) v1.Image {
	t.Helper()
	exe, err := os.Executable() // a Go program with modules
	if err != nil {
		t.Fatal(err)
	}
	goProgram, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	base := layerOf(t,
		entry{name: "usr/lib/os-release", text: "ID=debian\nVERSION_ID=\"13\"\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n"},
		entry{name: "var/lib/dpkg/status", text: "Package: bash\nStatus: install ok installed\nVersion: 5.2.37-2+b5\nArchitecture: amd64\nDescription: shell\n of GNU\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n"},
		entry{name: "usr/local/bin/tool", text: string(goProgram), mode: 0o755},
		entry{name: "usr/bin/script", text: "#!/bin/sh\n", mode: 0o755},
		entry{name: "old/Old-1.dist-info/METADATA", text: "Name: Old\nVersion: 1\n\n"},
		entry{name: "dir/node_modules/hidden/package.json", text: `{"name":"hidden","version":"1.0.0"}`},
	)
	app := layerOf(t,
		entry{name: "old/.wh.Old-1.dist-info"},
		entry{name: "dir/.wh..wh..opq"},
		entry{name: "app/Flask_Cors-4.0.dist-info/METADATA", text: "Metadata-Version: 2.1\nName: Flask_Cors\nVersion: 4.0\nLicense-Expression: MIT\n\nName: not this\n"},
		entry{name: "app/node_modules/@scope/pkg/package.json", text: `{"name":"@scope/pkg","version":"2.0.0-rc.1+x","license":"ISC"}`},
		entry{name: "app/node_modules/@scope/pkg/lib/package.json", text: `{"type":"module"}`},
		entry{name: "app/Cargo.lock", text: "[[package]]\nname = \"mine\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.2\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n"},
		entry{name: "../../etc/shadow", text: "no"},
	)
	return imageOf(t, base, app)
}

func deployed(t *testing.T, client *registry.Client, img v1.Image) leapcell.Deployment {
	t.Helper()
	if _, err := client.Push(t.Context(), "shop-x/source", "3", img); err != nil {
		t.Fatal(err)
	}
	ref, err := client.Push(t.Context(), "shop-x/app", "3", img)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return leapcell.Deployment{
		ID: "shop-3", ServiceID: "shop-x", Service: "shop", Number: 3, Image: ref,
		Source:   leapcell.Source{GitURL: "https://git.example/shop.git", Branch: "main", Commit: strings.Repeat("c0", 20)},
		Settings: leapcell.Settings{Runtime: "python", BuildCommand: "pip install .", StartCommand: "./app", BuildArgs: map[string]string{"TOKEN": "hunter2"}},
		State:    leapcell.Starting, CreatedAt: at, UpdatedAt: at.Add(time.Minute),
	}
}

func urls(t *testing.T, bill []byte) []string {
	t.Helper()
	var b struct {
		SpecVersion string
		Components  []struct {
			PURL string `json:"purl"`
		}
	}
	if err := json.Unmarshal(bill, &b); err != nil || b.SpecVersion != "1.6" {
		t.Fatalf("%v, version %q", err, b.SpecVersion)
	}
	var out []string
	for _, c := range b.Components {
		out = append(out, c.PURL)
	}
	return out
}

func TestBillOfMaterials(t *testing.T) {
	c, client := newChain(t, newLocalSigner(t, "k:v1"))
	dep := deployed(t, client, sample(t))
	if _, err := c.Bill(t.Context(), dep); leapcell.ErrorCode(err) != leapcell.CodeNotFound {
		t.Fatalf("before it is written: %v", err)
	}
	if err := c.Describe(t.Context(), dep); err != nil {
		t.Fatal(err)
	}
	bill, err := c.Bill(t.Context(), dep)
	if err != nil {
		t.Fatal(err)
	}
	got := urls(t, bill)
	for _, want := range []string{
		"pkg:deb/debian/bash@5.2.37-2%2Bb5?arch=amd64&distro=debian-13", "pkg:pypi/flask-cors@4.0", "pkg:npm/%40scope/pkg@2.0.0-rc.1%2Bx", "pkg:cargo/serde@1.0.2",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not in it", want)
		}
	}
	all := strings.Join(got, "\n")
	for _, no := range []string{"gone", "old@", "hidden", "mine"} {
		if strings.Contains(strings.ToLower(all), no) {
			t.Errorf("%s is in it:\n%s", no, all)
		}
	}
	if !strings.Contains(all, "pkg:golang/stdlib@") {
		t.Errorf("nothing is known of the Go program:\n%s", all)
	}
	// Of what is on the disk half may be missing after a crash.
	kept, err := filepath.Glob(filepath.Join(c.cfg.Dir, "*.json"))
	if err != nil || len(kept) != 2 {
		t.Fatalf("%v, %v", kept, err)
	}
	for _, file := range kept {
		if err := os.Truncate(file, 10); err != nil {
			t.Fatal(err)
		}
	}
	img, err := client.At(t.Context(), dep.Image)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.layers.packages(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := billOf(dep, again); err != nil || !bytes.Equal(same, bill) {
		t.Errorf("the same image gives another bill: %v", err)
	}
}

func TestProvenance(t *testing.T) {
	signer := newLocalSigner(t, "k:v1")
	c, client := newChain(t, signer)
	dep := deployed(t, client, sample(t))
	for range 2 { // it may be killed before anybody notes that it was done
		if err := c.Describe(t.Context(), dep); err != nil {
			t.Fatal(err)
		}
	}
	text, err := c.Provenance(t.Context(), dep)
	if err != nil {
		t.Fatal(err)
	}
	var s statement
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	_, digest, _ := strings.Cut(dep.Image, "@sha256:")
	def, run := s.Predicate.BuildDefinition, s.Predicate.RunDetails
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != "https://slsa.dev/provenance/v1" || len(s.Subject) != 1 || s.Subject[0].Digest["sha256"] != digest {
		t.Errorf("%+v", s)
	}
	if d := def.ResolvedDependencies; len(d) != 4 || d[0].URI != "git+https://git.example/shop.git" || d[0].Digest["gitCommit"] != dep.Source.Commit ||
		d[3].Digest["sha256"] != strings.Repeat("ba", 32) {
		t.Errorf("dependencies %+v", d)
	}
	if run.Builder.ID != "https://platform.example/leapcelld" || !run.Metadata.StartedOn.Equal(dep.CreatedAt) || !run.Metadata.FinishedOn.Equal(dep.UpdatedAt) {
		t.Errorf("%+v", run)
	}
	bill, err := c.Bill(t.Context(), dep)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(bill)
	if got := run.Byproducts[0].Digest["sha256"]; got != hex.EncodeToString(sum[:]) {
		t.Errorf("the bill is said to be %s", got)
	}
	if strings.Contains(string(text), "hunter2") {
		t.Error("the value of a build argument is in it")
	}
	sealed, err := c.Envelope(t.Context(), dep)
	if err != nil {
		t.Fatal(err)
	}
	var e envelope
	if err := json.Unmarshal(sealed, &e); err != nil || len(e.Signatures) != 1 {
		t.Fatalf("%v %+v", err, e)
	}
	if _, ok := signer.keys(t).Verify(preAuth(e.PayloadType, e.Payload), e.Signatures[0].Sig); !ok {
		t.Error("the envelope's signature does not fit")
	}
}

func TestSign(t *testing.T) {
	first := newLocalSigner(t, "k:v1")
	c, client := newChain(t, first)
	dep := deployed(t, client, sample(t))
	for range 2 {
		if err := c.Sign(t.Context(), dep.Image); err != nil {
			t.Fatal(err)
		}
	}
	if by, err := client.SignedBy(t.Context(), dep.Image); err != nil || !slices.Equal(by, []string{"k:v1"}) {
		t.Errorf("signed by %v, %v", by, err)
	}
	// Another key signs beside the former one.
	next := newLocalSigner(t, "k:v2")
	c.cfg.Signer, c.key = next, ""
	if err := c.Sign(t.Context(), dep.Image); err != nil {
		t.Fatal(err)
	}
	if by, err := client.SignedBy(t.Context(), dep.Image); err != nil || !slices.Equal(by, []string{"k:v2", "k:v1"}) {
		t.Errorf("signed by %v, %v", by, err)
	}
	sealed := leapcell.Errorf(leapcell.CodeUnavailable, "Vault is sealed")
	other, err := client.Push(t.Context(), "shop-x/app", "4", imageOf(t, layerOf(t, entry{name: "x", text: "1"})))
	if err != nil {
		t.Fatal(err)
	}
	next.down = sealed
	if err := c.Sign(t.Context(), other); leapcell.ErrorCode(err) != leapcell.CodeUnavailable {
		t.Errorf("while Vault is sealed: %v", err)
	}
	if by, err := client.SignedBy(t.Context(), other); err != nil || len(by) != 0 {
		t.Errorf("signed by %v, %v", by, err)
	}
}

func FuzzReadLayer(f *testing.F) {
	f.Add(archive(f, entry{name: "var/lib/dpkg/status", text: "Package: a\nVersion: 1\n"}, entry{name: "x/.wh..wh..opq"}))
	f.Add(archive(f, entry{name: "a/node_modules/b/package.json", text: `{"name":"b","version":"1"}`}))
	f.Add(archive(f, entry{name: "bin/x", text: "\x7fELF\x02\x01\x01", mode: 0o755}))
	f.Add(archive(f, entry{name: "Cargo.lock", text: "[[package]]\nname=\"a\"\nversion=\"1\"\nsource=\"x\""}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := readLayer(bytes.NewReader(b), dir)
		if err != nil {
			return
		}
		files := map[string]found{}
		l.over(files)
		all, err := gather(files)
		if err != nil {
			t.Fatal(err)
		}
		bill, err := billOf(leapcell.Deployment{Image: "r/a@sha256:" + strings.Repeat("0", 64)}, all)
		if err != nil || !json.Valid(bill) {
			t.Errorf("%v\n%s", err, bill)
		}
	})
}
