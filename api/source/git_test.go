package source

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/api/outbound"
	"github.com/leapcell/leapcell/test/githost"
)

var loopback = outbound.Networks{netip.MustParsePrefix("127.0.0.0/8")}

// gitStore may reach this machine, and has the access of one connection, "c".
func gitStore(t *testing.T, access Access, change func(*Config)) *Store {
	t.Helper()
	return newStore(t, func(c *Config) {
		c.AllowFileURLs, c.Networks = false, loopback
		c.Access = func(_ context.Context, id string) (Access, error) {
			if id != "c" {
				return Access{}, leapcell.Errorf(leapcell.CodeNotFound, "there is no connection %q", id)
			}
			return access, nil
		}
		if change != nil {
			change(c)
		}
	})
}

func wantLayer(t *testing.T, tree Tree, err error, want ...string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, tree.Layer); !slices.Equal(got, want) {
		t.Errorf("layer:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestGitOverHTTP(t *testing.T) {
	host := githost.New(t)
	repo := host.Repository("shop", map[string]string{"web/app.py": "one", "web/run.sh*": "#!/bin/sh"})
	first := repo.Head()
	repo.Git("tag", "-a", "v1", "-m", "the first")
	second := repo.Commit("second: \x1b[31mred\u202e\n\nmore", map[string]string{"web/app.py": "two"})
	third := repo.Commit("third", map[string]string{"web/app.py": "three"})
	s := gitStore(t, Access{}, nil)

	app := func(content string) []string {
		return []string{"drwxr-xr-x app/", "-rw-r--r-- app/app.py " + content, "-rwxr-xr-x app/run.sh #!/bin/sh"}
	}
	for name, test := range map[string]struct {
		src     leapcell.Source
		content string
		commit  string
	}{
		"default":       {leapcell.Source{}, "three", third},
		"branch":        {leapcell.Source{Branch: "main"}, "three", third},
		"tag":           {leapcell.Source{Tag: "v1"}, "one", first},
		"old commit":    {leapcell.Source{Branch: "main", Commit: second}, "two", second},
		"commit of tip": {leapcell.Source{Commit: third}, "three", third},
	} {
		t.Run(name, func(t *testing.T) {
			test.src.GitURL, test.src.RootDir = repo.URL, "web"
			tree, err := fetch(t, s, test.src)
			wantLayer(t, tree, err, app(test.content)...)
			if tree.Commit != test.commit || tree.Author != "Ada" {
				t.Errorf("commit %s of %q, want %s of Ada", tree.Commit, tree.Author, test.commit)
			}
			if test.commit == second && tree.Subject != "second:  [31mred" {
				t.Errorf("subject %q", tree.Subject)
			}
		})
	}
	// A host that gives single commits makes the way short; the content is the same.
	githost.Git(t, repo.Bare, "config", "uploadpack.allowReachableSHA1InWant", "true")
	tree, err := fetch(t, s, leapcell.Source{GitURL: repo.URL, RootDir: "web", Commit: second})
	wantLayer(t, tree, err, app("two")...)

	for name, test := range map[string]struct {
		src  leapcell.Source
		want string
	}{
		"no branch":     {leapcell.Source{GitURL: repo.URL, Branch: "nope"}, `has no branch "nope"`},
		"no tag":        {leapcell.Source{GitURL: repo.URL, Tag: "v2"}, `has no tag "v2"`},
		"no commit":     {leapcell.Source{GitURL: repo.URL, Branch: "main", Commit: strings.Repeat("a", 40)}, "has no commit aaaaaaaaaaaa"},
		"half a commit": {leapcell.Source{GitURL: repo.URL, Commit: "abc"}, "40 digits"},
		"both":          {leapcell.Source{GitURL: repo.URL, Branch: "main", Tag: "v1"}, "only one of them"},
		"no repository": {leapcell.Source{GitURL: host.URL + "/none.git"}, "there is no repository"},
		"password":      {leapcell.Source{GitURL: "https://user:secret@example.com/x.git"}, "https://user:xxxxx@example.com/x.git has a password"},
		"file":          {leapcell.Source{GitURL: "file://" + repo.Bare}, "switched off"},
		"ssh":           {leapcell.Source{GitURL: "ssh://git@example.com/x.git"}, "connect the service"},
		"quote":         {leapcell.Source{GitURL: "https://example.com/a'b"}, "no repository's path has"},
		"option":        {leapcell.Source{GitURL: "ssh://git@example.com/--upload-pack=x", Connection: "c"}, "no repository's path has"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := fetch(t, s, test.src)
			wantError(t, err, test.want)
		})
	}
	t.Run("private network", func(t *testing.T) {
		_, err := fetch(t, newStore(t, nil), leapcell.Source{GitURL: repo.URL})
		wantError(t, err, "is not public")
	})
	if left, _ := filepath.Glob(filepath.Join(s.workDir(), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The token goes to the repository's host alone.
func TestGitToken(t *testing.T) {
	host, stranger := githost.New(t), githost.New(t)
	var asked []string
	stranger.Mux.HandleFunc("/spy.git/", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header.Get("Authorization"))
		http.NotFound(w, r)
	})
	repo := host.Repository("shop", map[string]string{
		"app.py": "1", ".gitmodules": "[submodule \"x\"]\n\tpath = lib\n\turl = " + stranger.URL + "/spy.git\n"})
	host.Token = "t0ken"
	s := gitStore(t, Access{Token: "t0ken"}, nil)
	tree, err := fetch(t, s, leapcell.Source{GitURL: repo.URL, Connection: "c"})
	if err != nil || tree.Files != 2 {
		t.Fatalf("%+v, %v", tree, err)
	}
	_, err = fetch(t, s, leapcell.Source{GitURL: repo.URL})
	wantError(t, err, "is private")
	_, err = fetch(t, gitStore(t, Access{Token: "other"}, nil), leapcell.Source{GitURL: repo.URL, Connection: "c"})
	wantError(t, err, "is private")

	repo.Git("update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("b", 40)+",lib")
	repo.Git("commit", "-q", "-m", "a submodule elsewhere")
	repo.Push()
	_, err = fetch(t, s, leapcell.Source{GitURL: repo.URL, Connection: "c"})
	wantError(t, err, `the submodule "lib"`)
	if len(asked) == 0 || slices.ContainsFunc(asked, func(a string) bool { return a != "" }) {
		t.Errorf("the other host was shown %q", asked)
	}
}

func TestGitOverSSH(t *testing.T) {
	host := githost.New(t)
	server := host.SSH()
	repo := host.Repository("shop", map[string]string{"app.py": "one"})
	repo.Commit("second", map[string]string{"app.py": "two"})
	key, public := deployKey(t)
	server.Allow(t, public)
	src := leapcell.Source{GitURL: server.URL("shop"), Branch: "main", Connection: "c"}

	s := gitStore(t, Access{}, nil)
	pinned, err := s.HostKey(t.Context(), src.GitURL)
	if err != nil || pinned != server.Key {
		t.Fatalf("the host's key is %q, found %q: %v", server.Key, pinned, err)
	}
	s = gitStore(t, Access{Key: key, HostKey: pinned}, nil)
	tree, err := fetch(t, s, src)
	wantLayer(t, tree, err, "drwxr-xr-x app/", "-rw-r--r-- app/app.py two")

	src.GitURL = server.URL("none")
	_, err = fetch(t, s, src)
	wantError(t, err, "there is no repository")
	src.GitURL = server.URL("shop")

	otherKey, otherPublic := deployKey(t)
	_, err = fetch(t, gitStore(t, Access{Key: otherKey, HostKey: pinned}, nil), src)
	wantError(t, err, "does not take the deploy key")
	_, err = fetch(t, gitStore(t, Access{Key: key, HostKey: otherPublic}, nil), src)
	wantError(t, err, "is not the one that was pinned")
	_, err = newStore(t, nil).HostKey(t.Context(), src.GitURL)
	wantError(t, err, "is not public")
}

func deployKey(t *testing.T) (private []byte, public string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func TestSubmodules(t *testing.T) {
	host := githost.New(t)
	deep := host.Repository("deep", map[string]string{"d.txt": "deep"})
	lib := host.Repository("lib", map[string]string{"lib.py": "old"})
	lib.Git("submodule", "add", "-q", deep.URL, "inner/deep")
	pinned := lib.Commit("with deep", nil)
	lib.Commit("newer", map[string]string{"lib.py": "new"})
	repo := host.Repository("shop", map[string]string{"web/app.py": "1", "docs/x": "2"})
	repo.Git("submodule", "add", "-q", "../lib.git", "web/lib")
	githost.Git(t, filepath.Join(repo.Dir, "web/lib"), "checkout", "-q", pinned)
	repo.Commit("with lib", nil)
	s := gitStore(t, Access{}, nil)

	tree, err := fetch(t, s, leapcell.Source{GitURL: repo.URL, RootDir: "web"})
	if err != nil {
		t.Fatal(err)
	}
	got := list(t, tree.Layer)
	for _, want := range []string{"-rw-r--r-- app/app.py 1", "-rw-r--r-- app/lib/lib.py old", "-rw-r--r-- app/lib/inner/deep/d.txt deep"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	// The root directory may lie in a submodule, and those outside of it are not asked for.
	tree, err = fetch(t, s, leapcell.Source{GitURL: repo.URL, RootDir: "web/lib/inner/deep"})
	wantLayer(t, tree, err, "drwxr-xr-x app/", "-rw-r--r-- app/d.txt deep")
	if err := os.RemoveAll(lib.Bare); err != nil {
		t.Fatal(err)
	}
	tree, err = fetch(t, s, leapcell.Source{GitURL: repo.URL, RootDir: "docs"})
	wantLayer(t, tree, err, "drwxr-xr-x app/", "-rw-r--r-- app/x 2")

	for url, want := range map[string]string{
		"file:///etc":               "switched off",
		"ssh://git@example.com/x":   "there is no key for",
		"ext::sh -c id":             "cannot be used",
		"http://169.254.169.254/x":  "is not public",
		"https://a:b@example.com/x": "has a password",
	} {
		bad := host.Repository("bad"+hex.EncodeToString([]byte(url))[:12], map[string]string{
			".gitmodules": "[submodule \"x\"]\n\tpath = x\n\turl = " + url + "\n"})
		bad.Git("update-index", "--add", "--cacheinfo", "160000,"+pinned+",x")
		bad.Git("commit", "-q", "-m", "x")
		bad.Push()
		_, err := fetch(t, s, leapcell.Source{GitURL: bad.URL})
		wantError(t, err, want)
		wantError(t, err, `the submodule "x"`)
	}
}

func TestLFS(t *testing.T) {
	host := githost.New(t)
	content := strings.Repeat("large", 100_000)
	sum := sha256.Sum256([]byte(content))
	oid := hex.EncodeToString(sum[:])
	served, size := content, len(content)
	host.Token = "t0ken"
	host.Mux.HandleFunc("POST /shop.git/info/lfs/objects/batch", func(w http.ResponseWriter, r *http.Request) {
		if _, token, _ := r.BasicAuth(); token != "t0ken" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		var in struct {
			Operation string
			Objects   []pointer
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Operation != "download" || r.Header.Get("Accept") != lfsType {
			t.Errorf("asked for %+v, %v", in, err)
		}
		fmt.Fprintf(w, `{"transfer":"basic","objects":[{"oid":%q,"size":%d,"actions":{"download":{"href":%q,"header":{"X-Pass":"yes"}}}}]}`,
			in.Objects[0].OID, size, host.URL+"/large/"+in.Objects[0].OID)
	})
	host.Mux.HandleFunc("GET /large/"+oid, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Pass") != "yes" || r.Header.Get("Authorization") != "" {
			t.Errorf("headers %v", r.Header)
		}
		_, _ = io.WriteString(w, served)
	})
	stands := fmt.Sprintf("%soid sha256:%s\nsize %d\n", lfsFirstLine, oid, len(content))
	repo := host.Repository("shop", map[string]string{"a.bin": stands, "b.bin": stands, "app.py": "1"})
	s := gitStore(t, Access{Token: "t0ken"}, nil)
	src := leapcell.Source{GitURL: repo.URL, Connection: "c"}
	tree, err := fetch(t, s, src)
	if err != nil || tree.Bytes > 1000 {
		t.Fatalf("without attributes a pointer is a file like others: %d bytes, %v", tree.Bytes, err)
	}
	repo.Commit("large", map[string]string{".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"})
	tree, err = fetch(t, s, src)
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, tree.Layer); !slices.Contains(got, "-rw-r--r-- app/a.bin "+content) || !slices.Contains(got, "-rw-r--r-- app/b.bin "+content) {
		t.Error("the large files are not in the layer")
	}
	served = strings.Replace(content, "l", "L", 1)
	_, err = fetch(t, s, src)
	wantError(t, err, "is not the file that the repository means")
	served, size = content, 5
	_, err = fetch(t, s, src)
	wantError(t, err, "with another size")
	_, err = fetch(t, gitStore(t, Access{Token: "t0ken"}, func(c *Config) { c.MaxFile = 1000 }), src)
	wantError(t, err, "in Git LFS, over the limit")
	if left, _ := filepath.Glob(filepath.Join(s.workDir(), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// What a repository may hold to do harm is refused by name.
func TestHostileRepositories(t *testing.T) {
	host := githost.New(t)
	s := gitStore(t, Access{}, nil)
	for name, test := range map[string]struct {
		tree func(*githost.Copy) string // gives the hash of a tree
		want string
	}{
		"climbs":       {func(c *githost.Copy) string { return c.Tree("100644", "..", "x") }, `invalid path`},
		"git folder":   {func(c *githost.Copy) string { return c.Tree("100644", ".git", "x") }, `invalid path component: ".git"`},
		"slash":        {func(c *githost.Copy) string { return c.Tree("100644", "a/../../b", "x") }, `invalid path "a/../../b"`},
		"absolute":     {func(c *githost.Copy) string { return c.Tree("100644", "/etc/passwd", "x") }, `refused`},
		"link out":     {func(c *githost.Copy) string { return c.Tree("120000", "l", "../../etc/passwd") }, `"l" in the source is refused: it is a link to ../../etc/passwd`},
		"link to root": {func(c *githost.Copy) string { return c.Tree("120000", "l", "/") }, `refused: it is a link to /`},
	} {
		t.Run(name, func(t *testing.T) {
			repo := host.Repository("hostile-"+strings.ReplaceAll(name, " ", "-"), map[string]string{"a": "1"})
			commit := repo.Git("commit-tree", "-m", "x", test.tree(repo))
			repo.Git("push", "-q", "--force", "origin", commit+":refs/heads/main")
			_, err := fetch(t, s, leapcell.Source{GitURL: repo.URL})
			wantError(t, err, test.want)
		})
	}
}

// A gigabyte of zeros is a megabyte on the way. It is refused before it is in memory.
func TestGigabyteFileIsRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("writes a gigabyte")
	}
	host := githost.New(t)
	repo := host.Repository("big", map[string]string{"a": "1"})
	f, err := os.Create(filepath.Join(repo.Dir, "zeros"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	f.Close()
	repo.Commit("big", nil)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = fetch(t, gitStore(t, Access{}, nil), leapcell.Source{GitURL: repo.URL})
	runtime.ReadMemStats(&after)
	wantError(t, err, "over the limit of 256 MB for one file")
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<20 {
		t.Errorf("%d MB of memory for it", grown>>20)
	}
}

// pack makes a pack of objects: type, what they say of their size, and content.
func pack(objects ...packed) []byte {
	var out bytes.Buffer
	out.WriteString("PACK")
	_ = binary.Write(&out, binary.BigEndian, []uint32{2, uint32(len(objects))})
	for _, o := range objects {
		size := o.size
		if size == 0 {
			size = uint64(len(o.content))
		}
		b := byte(o.kind<<4) | byte(size&15)
		for size >>= 4; size > 0; size >>= 7 {
			out.WriteByte(b | 0x80)
			b = byte(size & 0x7f)
		}
		out.WriteByte(b)
		out.Write(o.base)
		z := zlib.NewWriter(&out)
		_, _ = z.Write(o.content)
		z.Close()
	}
	sum := sha1.Sum(out.Bytes())
	return append(out.Bytes(), sum[:]...)
}

type packed struct {
	kind    int
	size    uint64
	base    []byte
	content []byte
}

func TestPacksAreCheckedFirst(t *testing.T) {
	cfg := Config{MaxFiles: 10, MaxFile: 1000, MaxUnpacked: 2000}
	base := make([]byte, 20)
	ref := func(content ...byte) packed { return packed{kind: 7, base: base, content: content} }
	many := make([]packed, 101)
	for i := range many {
		many[i] = packed{kind: 3, content: []byte("x")}
	}
	sum := slices.Repeat([]packed{{kind: 3, content: make([]byte, 900)}}, 9)
	for name, test := range map[string]struct {
		pack []byte
		want string
	}{
		"good":            {pack(packed{kind: 3, content: []byte("hello")}, ref(5, 6, 1, 'x')), ""},
		"large":           {pack(packed{kind: 3, content: make([]byte, 1001)}), "for one file"},
		"says to be huge": {pack(packed{kind: 3, size: 1 << 50, content: []byte("x")}), "for one file"},
		"delta to huge":   {pack(ref(5, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 1, 'x')), "for one file"},
		"damaged delta":   {pack(ref(0x80, 0x80)), "is damaged"},
		"many":            {pack(many...), "objects"},
		"together":        {pack(sum...), "when unpacked"},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkPack(t.Context(), bytes.NewReader(test.pack), cfg)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func FuzzPack(f *testing.F) {
	f.Add(pack(packed{kind: 3, content: []byte("hello")}, packed{kind: 7, base: make([]byte, 20), content: []byte{5, 6, 1, 'x'}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = checkPack(context.Background(), bytes.NewReader(b), Config{MaxFiles: 100, MaxFile: 1 << 20, MaxUnpacked: 1 << 20})
	})
}

func FuzzPointer(f *testing.F) {
	f.Add([]byte(lfsFirstLine + "oid sha256:" + strings.Repeat("a", 64) + "\nsize 5\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parsePointer(b); ok && (p.Size < 0 || len(p.OID) != 64) {
			t.Errorf("%+v of %q", p, b)
		}
		_, _ = parseBatch(b)
	})
}

func FuzzModules(f *testing.F) {
	f.Add([]byte("[submodule \"x\"]\n\tpath = lib\n\turl = ../x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := parseModules(b)
		if err != nil {
			return
		}
		c := &checkout{store: &Store{}}
		parent := mustParse("https://example.com/a/b.git")
		for _, raw := range found {
			if u, err := c.moduleURL(parent, raw); err == nil && u.Scheme != "https" && u.Scheme != "ssh" {
				t.Errorf("%q leads to %s", raw, u)
			}
		}
	})
}

func mustParse(raw string) *url.URL {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	return u
}

func TestCleanURL(t *testing.T) {
	for raw, want := range map[string]string{
		"git@example.com:team/shop.git": "ssh://git@example.com/team/shop.git",
		"example.com:shop":              "ssh://git@example.com/shop",
		" https://example.com/a/b/ ":    "https://example.com/a/b",
		"ssh://git@h:22/x":              "ssh://git@h:22/x",
	} {
		if got := CleanURL(raw); got != want {
			t.Errorf("%q is %q, want %q", raw, got, want)
		}
	}
}
