package e2e

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/test/githost"
	"github.com/leapcell/leapcell/test/harness"
)

// hostile is a service whose build command means harm.
func hostile(command string) harness.Spec {
	return harness.Spec{
		Files:    map[string]string{"a": "1"},
		Settings: leapcell.Settings{Runtime: "go", BuildCommand: command, StartCommand: "./app"},
	}
}

// Builds that want more than their share end with a reason, and meanwhile neither the API nor another
// service notices.
func TestGreedyBuilds(t *testing.T) {
	for name, c := range map[string]struct {
		command string
		log     string // said in the log
		why     string // said by the deployment
	}{
		"forks without end": {`mkfifo /tmp/wait; exec 9<>/tmp/wait; b() { b | b & }; b; read -t 8 <&9; exit 3`, "Resource temporarily unavailable", "exited with code"},
		// Room that is only reserved costs the machine's disk nothing.
		"fills its disk":   {`n=0; while fallocate -l 1G room$n; do n=$((n+1)); done; head -c 2G /dev/zero > rest`, "No space left on device", "it has filled its disk of"},
		"fills its memory": {`head -c 20G /dev/zero | tail`, "", "out of memory: the build was killed at"},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "fills its disk" {
				harness.Quick(t)
			}
			p := harness.Get(t)
			neighbour := p.Probe(t, harness.Spec{})
			s := p.Create(t, hostile(c.command))
			load := neighbour.Visitors(t, 2, "/")
			worst := responsive(t)
			d := s.TryDeploy(t)
			log := s.BuildLog(t, d.ID)
			if d.State != leapcell.Failed || d.Error == nil || !strings.Contains(d.Error.Message, c.why) || !strings.Contains(log, c.log) {
				t.Errorf("it ended %s: %+v, want %q, and %q in the log:\n%.3000s", d.State, d.Error, c.why, c.log, log)
			}
			load.Check(t)
			api, n := worst()
			t.Logf("%s; meanwhile the slowest of %d answers of the API took %s", d.Error.Message, n, api)
			nothingRuns(t, s.Name)
		})
	}
}

// responsive asks the API until the function that it gives is called, which tells how long the slowest
// answer took, and of how many.
func responsive(t *testing.T) func() (worst time.Duration, n int) {
	p := harness.Get(t)
	end := make(chan struct{})
	var wg sync.WaitGroup
	var worst time.Duration
	var n int
	wg.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
			}
			begin := time.Now()
			if err := p.API.Call(t.Context(), http.MethodGet, "/v1/services", nil, nil); err != nil {
				t.Errorf("the API meanwhile: %v", err)
				return
			}
			worst, n = max(worst, time.Since(begin)), n+1
		}
	})
	stop := sync.OnceFunc(func() { close(end); wg.Wait() })
	t.Cleanup(stop)
	return func() (time.Duration, int) { stop(); return worst, n }
}

// curious is a build command that looks for what is not its own, and says what it found. Words are put
// together, so that the command itself does not contain them.
const curious = `
m=cache-of-an; m=$m-other
grep -rlsI $m / --exclude-dir=proc --exclude-dir=sys --exclude-dir=app 2>/dev/null | sed 's/^/FOUND /'
find / -xdev \( -name '*.token' -o -name 'init.json' -o -name 'supervisor.*' -o -name 'nomad*' -o -name 'vault*' -o -type s -o -type b \) -not -path '/proc/*' 2>/dev/null | sed 's/^/FOUND /'
env | grep -iE '^(nomad|vault|leapcell)_' | sed 's/=.*//; s/^/FOUND the variable /'
cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | grep -iE '^(nomad|vault)_' | sed 's/=.*//; s/^/FOUND of another process /'
for ip in %s; do for port in %s; do
  timeout 2 bash -c "exec 3<>/dev/tcp/$ip/$port" 2>/dev/null && echo "REACHED $ip:$port"
done; done
for ip in 169.254.169.254 169.254.170.2 100.100.100.200; do timeout 2 bash -c "exec 3<>/dev/tcp/$ip/80" 2>/dev/null && echo "REACHED $ip"; done
mkdir x 2>/dev/null && mount -t tmpfs x x 2>/dev/null && echo "MOUNTED"
mknod sda b 8 0 2>/dev/null && head -c1 sda >/dev/null 2>&1 && echo "READ a disk"
echo "looked everywhere"; exit 7`

// A build finds neither what another service left in its cache, nor anything of the platform.
func TestCuriousBuild(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	other := p.Create(t, harness.Spec{Settings: leapcell.Settings{
		Runtime: "go", BuildCommand: "chmod 755 probe; mkdir -p $(go env GOCACHE); echo cache-of-an-other > $(go env GOCACHE)/secret",
	}})
	other.Deploy(t)
	c := p.Config.Ports
	ports := strings.Trim(fmt.Sprint([]int{c.API, c.Registry, c.Nomad, c.NomadRPC, c.NomadSerf, c.Vault, c.VaultCluster, 22, 2375}), "[]")
	// The node by each of its addresses: a build meets it as its gateway, too.
	ips := strings.Join(append(addresses(t), `$(awk '$2=="00000000" {print "0x" substr($3,7,2), "0x" substr($3,5,2), "0x" substr($3,3,2), "0x" substr($3,1,2)}' /proc/net/route | xargs printf '%d.%d.%d.%d')`), " ")
	s := p.Create(t, hostile(fmt.Sprintf(curious, ips, ports)))
	d := s.TryDeploy(t)
	log := s.BuildLog(t, d.ID)
	if !strings.Contains(log, "looked everywhere") || d.State != leapcell.Failed || d.Error.ExitCode == nil || *d.Error.ExitCode != 7 {
		t.Errorf("it ended %s: %+v\n%s", d.State, d.Error, log)
	}
	for line := range strings.Lines(log) {
		for _, bad := range []string{"FOUND ", "REACHED ", "MOUNTED", "READ "} {
			if strings.HasPrefix(line, bad) {
				t.Errorf("the build says: %s", line)
			}
		}
	}
	for _, file := range []string{p.Config.AdminTokenFile(), p.Config.NomadTokenFile()} {
		token, err := os.ReadFile(file)
		must(t, err)
		if strings.Contains(log, strings.TrimSpace(string(token))) {
			t.Errorf("the content of %s is in the log", filepath.Base(file))
		}
	}
}

// addresses are those of this machine where the platform could listen.
func addresses(t *testing.T) []string {
	t.Helper()
	out := []string{"127.0.0.1"}
	for _, line := range strings.Split(harness.Process{PID: os.Getpid()}.File("net/fib_trie"), "\n") {
		if ip, ok := strings.CutPrefix(strings.TrimSpace(line), "|-- "); ok && !slices.Contains(out, ip) && !strings.HasSuffix(ip, ".0") && !strings.HasSuffix(ip, ".255") && len(out) < 8 {
			out = append(out, ip)
		}
	}
	return out
}

// Archives that mean harm are refused with a reason that names what is wrong with them, and nothing
// of them stays.
func TestHostileArchives(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	zeros := func(n int64) io.Reader { return io.LimitReader(zero{}, n) }
	for name, c := range map[string]struct {
		header  tar.Header
		content io.Reader
		why     string
	}{
		"climbs":        {tar.Header{Name: "../../etc/cron.d/x", Size: 1}, zeros(1), "climbs"},
		"absolute":      {tar.Header{Name: "/etc/cron.d/x", Size: 1}, zeros(1), "absolute"},
		"absolute link": {tar.Header{Name: "x", Linkname: "/etc/shadow", Typeflag: tar.TypeSymlink}, nil, "link to /etc/shadow"},
		"link out":      {tar.Header{Name: "a/x", Linkname: "../../x", Typeflag: tar.TypeSymlink}, nil, "outside of the root directory"},
		"hard link out": {tar.Header{Name: "x", Linkname: "../../etc/shadow", Typeflag: tar.TypeLink}, nil, "refused"},
		"device":        {tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8}, nil, "device"},
		"gigabytes":     {tar.Header{Name: "big", Size: 2 << 30}, zeros(2 << 30), "over the limit of"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "gigabytes" {
				harness.Quick(t)
			}
			s := p.Create(t, hostile("true"))
			archive, out := io.Pipe()
			go func() {
				z, _ := gzip.NewWriterLevel(out, gzip.BestSpeed)
				w := tar.NewWriter(z)
				c.header.Mode, c.header.Format = 0o644, tar.FormatPAX
				err := w.WriteHeader(&c.header)
				if err == nil && c.content != nil {
					_, err = io.Copy(w, c.content)
				}
				_ = out.CloseWithError(errors.Join(err, w.Close(), z.Close())) // never fails
			}()
			var d leapcell.Deployment
			err := p.API.Upload(t.Context(), "/v1/services/"+s.Name+"/deployments", archive, &d)
			if err == nil {
				if d = p.Await(t, d.ID); d.State != leapcell.Failed {
					t.Fatalf("the deployment is %s", d.State)
				}
				err = errors.New(d.Error.Message)
			}
			if !strings.Contains(err.Error(), c.why) {
				t.Errorf("it says %q, want %q", err, c.why)
			}
			t.Logf("%v", err)
			nothingRuns(t, s.Name)
		})
	}
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A repository with hooks, settings of git and a filter of its own: they are files like others, or
// nothing, and none of it runs.
func TestRepositoryThatWantsToRun(t *testing.T) {
	t.Parallel()
	p := harness.Get(t)
	trace := filepath.Join(t.TempDir(), "it-ran")
	script := "#!/bin/sh\ntouch " + trace + "\n"
	repo := githost.New(t).Repository("wants-to-run", map[string]string{
		"hooks/post-checkout*": script, ".husky/post-checkout*": script, "filter*": script,
		".gitattributes": "* filter=evil diff=evil\n",
		".gitconfig":     "[core]\n\thooksPath = hooks\n\tfsmonitor = ./filter\n[filter \"evil\"]\n\tsmudge = ./filter\n\trequired = true\n",
		".lfsconfig":     "[lfs]\n\turl = http://169.254.169.254/\n",
		"leapcell.yaml":  yaml("runtime: go", `buildCommand: "ls -a; test -x hooks/post-checkout; exit 9"`, "startCommand: ./app"),
	})
	name := harness.Name(t)
	r := p.CLI(t, "deploy", "--git", repo.URL, "--branch", "main", "--name", name)
	if r.Code == 0 || !strings.Contains(r.Output, "exited with code 9") || !strings.Contains(r.Output, ".husky") || strings.Contains(r.Output, "169.254") {
		t.Errorf("%d\n%s", r.Code, r.Output)
	}
	if _, err := os.Stat(trace); err == nil {
		t.Error("a program of the repository was run by the control plane")
	}
	nothingRuns(t, name)
}
