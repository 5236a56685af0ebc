package platform

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/leapcell/leapcell"
)

// systemPackages are the Debian packages that the platform calls, each with what shows that
// it is there.
var systemPackages = []struct{ name, shows string }{
	{"runc", "runc"},
	{"mmdebstrap", "mmdebstrap"},
	{"git", "git"},
	{"iproute2", "ip"},
	{"ca-certificates", caBundle},
	// mmdebstrap checks signatures with it; machines that are not Debian lack Debian's keys
	{"gpgv", "gpgv"},
	{"debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"},
}

// checkSystem refuses early what cannot work.
func (p *Platform) checkSystem(context.Context, func(string, ...any)) error {
	if runtime.GOOS != "linux" {
		return leapcell.Errorf(leapcell.CodeUnprocessable, "instances run on Linux, this is %s: use a Linux machine or virtual machine", runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		return leapcell.Errorf(leapcell.CodeForbidden, "making sandboxes and networks needs root: repeat it with sudo")
	}
	if err := p.checkPorts(); err != nil {
		return err
	}
	return p.cfg.save() // from here on the settings are those of this platform
}

// checkPorts finds ports that somebody else has, before a process of ours fails on them.
func (p *Platform) checkPorts() error {
	c := p.cfg
	var taken []string
	for _, port := range c.Ports.list() {
		if _, alive := readRecord(c.path("run", port.process+".json")); alive {
			continue // by us, presumably; if not, its log will say so
		}
		host := "127.0.0.1"
		if port.process == edgeName || port.name == "API" {
			host = c.Bind
		}
		l, err := net.Listen("tcp", address(host, port.number))
		if err != nil {
			taken = append(taken, fmt.Sprintf("%d (%s, --%s)", port.number, port.name, port.flag))
			continue
		}
		l.Close()
	}
	if len(taken) == 0 {
		return nil
	}
	return leapcell.Errorf(leapcell.CodeConflict, "these ports cannot be listened on, as another program, perhaps another platform, has them: %s; "+
		"choose others, or let --free-ports choose", strings.Join(taken, ", "))
}

// installPackages installs what is missing, and asks nothing when nothing is.
func (p *Platform) installPackages(ctx context.Context, note func(string, ...any)) error {
	var missing []string
	for _, pkg := range systemPackages {
		if !present(pkg.shows) {
			missing = append(missing, pkg.name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	list := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return leapcell.Errorf(leapcell.CodeUnprocessable, "this machine lacks %s and has no apt-get: install them with its own package manager, then repeat", list)
	}
	note("installing %s", list)
	for _, args := range [][]string{
		{"update", "-q"},
		append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, lastLines(string(out), 8))
		}
	}
	for _, pkg := range systemPackages {
		if !present(pkg.shows) {
			return errors.New("apt-get was content, but " + pkg.shows + " is still missing")
		}
	}
	return nil
}

func present(shows string) bool {
	if strings.HasPrefix(shows, "/") {
		_, err := os.Stat(shows)
		return err == nil
	}
	if _, err := exec.LookPath(shows); err == nil {
		return true
	}
	_, err := os.Stat("/usr/sbin/" + shows) // not on everybody's PATH
	return err == nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-n):], "\n  ")
}
