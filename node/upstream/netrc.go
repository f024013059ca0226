package upstream

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
)

// netrc is a parsed netrc file. Where several lines name a machine the first wins.
type netrc []netrcMachine

type netrcMachine struct{ name, login, password string }

func readNetrc(path string) (netrc, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading netrc: %w", err)
	}
	return parseNetrc(string(data)), nil
}

// parseNetrc follows cmd/go/internal/auth/netrc.go: tokens come in pairs on
// a line, a machine counts once it has login and password, macros end with an
// empty line, unknown tokens are skipped with their value. As there, what
// "default" says is not used: a login for everybody is not meant for a module proxy.
func parseNetrc(data string) netrc {
	var machines netrc
	var m netrcMachine
	inMacro := false
	for line := range strings.SplitSeq(data, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if inMacro {
			inMacro = line != ""
			continue
		}
		fields := strings.Fields(line)
		for len(fields) > 0 && fields[0] != "default" && !strings.HasPrefix(fields[0], "#") {
			if len(fields) == 1 {
				break
			}
			switch fields[0] {
			case "machine":
				m = netrcMachine{name: fields[1]}
			case "login":
				m.login = fields[1]
			case "password":
				m.password = fields[1]
			case "macdef":
				inMacro = true
			}
			if m.name != "" && m.login != "" && m.password != "" {
				machines = append(machines, m)
				m = netrcMachine{}
			}
			fields = fields[2:]
		}
		if len(fields) > 0 && fields[0] == "default" {
			break // it must be the last
		}
	}
	return machines
}

// credentials returns login and password for u: those of its host and port,
// else those of its host.
func (n netrc) credentials(u *url.URL) (login, password string, ok bool) {
	for _, name := range []string{u.Host, u.Hostname()} {
		for _, m := range n {
			if strings.EqualFold(m.name, name) {
				return m.login, m.password, true
			}
		}
	}
	return "", "", false
}
