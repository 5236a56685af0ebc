package supervisor

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
)

// accountsLimit bounds what is read of an image's /etc/passwd and /etc/group.
const accountsLimit = 1 << 20

// userOf finds who the image's USER is: "name", "number", each with ":group". Root is nobody here:
// the zero value, which is the contract's user. [ID1]
func userOf(said, rootfs string) (cell.User, error) {
	name, group, _ := strings.Cut(said, ":")
	if name == "" || name == "root" {
		name = "0"
	}
	var u cell.User
	uid, err := strconv.Atoi(name)
	known := err == nil
	if !known || group == "" && uid != 0 {
		account, ok := lookUp(rootfs, "etc/passwd", func(f []string) bool {
			return len(f) > 3 && (f[0] == name || known && f[2] == name)
		})
		if !ok && !known {
			return u, leapcell.Errorf(leapcell.CodeStartFailed, "the image runs as user %q, whom its /etc/passwd does not have", name)
		}
		if ok {
			uid, _ = strconv.Atoi(account[2])
			u.GID, _ = strconv.Atoi(account[3])
		}
	}
	u.UID = uid
	if group == "" {
		return u, nil
	}
	if u.GID, err = strconv.Atoi(group); err != nil {
		found, ok := lookUp(rootfs, "etc/group", func(f []string) bool { return len(f) > 2 && f[0] == group })
		if !ok {
			return u, leapcell.Errorf(leapcell.CodeStartFailed, "the image runs as group %q, which its /etc/group does not have", group)
		}
		u.GID, _ = strconv.Atoi(found[2])
	}
	return u, nil
}

// lookUp finds a line of a file of accounts. No link of the image leads out of it.
func lookUp(rootfs, file string, is func(fields []string) bool) ([]string, bool) {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return nil, false
	}
	defer root.Close()
	info, err := root.Stat(file)
	if err != nil || !info.Mode().IsRegular() {
		return nil, false
	}
	f, err := root.Open(file)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, accountsLimit))
	for lines.Scan() {
		if fields := strings.Split(lines.Text(), ":"); is(fields) {
			return fields, true
		}
	}
	return nil, false
}
