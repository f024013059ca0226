package direct

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/ringmod/ringmod/node/credentials"
)

// visit is what one command is given beside the sandbox: files in a folder of its own,
// with the credentials for one module and no others, which end with the command. They
// are not in the environment nor on a command line, which others can read.
type visit struct {
	dir     string
	env     []string
	entry   *credentials.Entry // nil: there is none
	secrets []string           // that must not be told
}

// visits is where visits have their folders.
func (d *Direct) visits() string { return filepath.Join(d.cfg.Dir, "visits") }

// equip makes a visit. The caller ends it.
func (d *Direct) equip(ctx context.Context, path string) (*visit, error) {
	dir, err := os.MkdirTemp(d.visits(), "")
	if err != nil {
		return nil, err
	}
	v := &visit{dir: dir}
	configured := d.cfg.Credentials.GitConfig(ctx)
	git := v.gitDefaults(d.cfg.CAFile) + string(configured)
	if len(configured) > 0 && !strings.ContainsAny(d.work(), " \t\n;") { // which the go command could not read
		v.env = append(v.env, "GOAUTH=netrc; git "+d.work())
	}
	if e, ok := d.cfg.Credentials.For(ctx, path); ok {
		v.entry = &e
		git += v.rewrites()
		err = errors.Join(v.basic(), v.ssh())
		git += v.helper()
	}
	if err = errors.Join(err, v.write("gitconfig", git)); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	v.env = append(v.env, "GIT_CONFIG_GLOBAL="+v.file("gitconfig"))
	return v, nil
}

// leave ends a visit.
func (d *Direct) leave(ctx context.Context, v *visit) {
	if err := v.end(); err != nil {
		d.log.ErrorContext(ctx, "cannot remove the credentials of a command that has ended", "err", err)
	}
}

func (v *visit) file(name string) string { return filepath.Join(v.dir, name) }

func (v *visit) write(name, content string) error {
	return os.WriteFile(v.file(name), []byte(content), 0o600)
}

// gitDefaults is what a configuration given by the operator may overrule.
func (v *visit) gitDefaults(caFile string) string {
	text := "[core]\n\tsshCommand = ssh -o BatchMode=yes -o ControlMaster=no\n"
	if caFile != "" {
		text += "[http]\n\tsslCAInfo = " + quoteGit(caFile) + "\n"
	}
	return text
}

// rewrites leads git to the host that takes the key.
func (v *visit) rewrites() string {
	if v.entry.SSHKey == "" {
		return ""
	}
	var text strings.Builder
	fmt.Fprintf(&text, "\n[url \"ssh://%s@%s/\"]\n", v.entry.SSHUser, v.entry.SSHHost)
	for _, host := range v.entry.Hosts {
		text.WriteString("\tinsteadOf = https://" + host + "/\n")
	}
	return text.String()
}

// basic makes the files for login and password: a netrc file for the go command, and for
// git, which would send what that says by http, too, and to any port, one of its own.
// The go command's home is the folder of the visit then, where no other netrc file is.
func (v *visit) basic() error {
	e := v.entry
	if e.Password == "" {
		return nil
	}
	_, escaped, _ := strings.Cut(url.UserPassword(e.Login, e.Password).String(), ":")
	v.secrets = append(v.secrets, e.Password, escaped, url.QueryEscape(e.Password),
		base64.StdEncoding.EncodeToString([]byte(e.Login+":"+e.Password)))
	var netrc, store strings.Builder
	for _, host := range e.Hosts {
		fmt.Fprintf(&netrc, "machine %s login %s password %s\n", host, e.Login, e.Password)
		u := url.URL{Scheme: "https", Host: host, User: url.UserPassword(e.Login, e.Password)}
		store.WriteString(u.String() + "\n")
	}
	v.env = append(v.env, "HOME="+v.dir, "NETRC="+v.file("netrc"))
	return errors.Join(v.write("netrc", netrc.String()), v.write("store", store.String()))
}

// helper ends the configuration of git: the operator's credential helpers are not asked
// where there is an entry, and would keep what they are told.
func (v *visit) helper() string {
	text := "\n[credential]\n\thelper =\n\tuseHttpPath = false\n"
	if v.entry.Password != "" {
		text += "\thelper = store --file " + quoteGit(quoteShell(v.file("store"))) + "\n"
	}
	return text
}

// ssh makes the files for an SSH key, which is offered to its host only.
func (v *visit) ssh() error {
	e := v.entry
	if e.SSHKey == "" {
		return nil
	}
	host := e.SSHHost
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	config := "Host " + host + "\n\tIdentityFile " + quoteSSH(v.file("key")) + "\nHost *\n\tIdentityFile none\n" +
		"\tIdentitiesOnly yes\n\tIdentityAgent none\n\tPasswordAuthentication no\n\tBatchMode yes\n\tControlMaster no\n" +
		"\tClearAllForwardings yes\n\tStrictHostKeyChecking yes\n\tUpdateHostKeys no\n\tConnectTimeout 20\n\tServerAliveInterval 20\n"
	if e.KnownHosts != "" {
		config += "\tGlobalKnownHostsFile none\n\tUserKnownHostsFile " + quoteSSH(v.file("known_hosts")) + "\n"
	}
	v.env = append(v.env, "SSH_AUTH_SOCK=", "GIT_SSH_VARIANT=ssh", "GIT_SSH_COMMAND=ssh -F "+quoteShell(v.file("ssh_config")))
	return errors.Join(
		v.write("key", strings.TrimRight(e.SSHKey, "\n")+"\n"), v.write("known_hosts", strings.TrimRight(e.KnownHosts, "\n")+"\n"),
		v.write("ssh_config", config))
}

// end removes the files.
func (v *visit) end() error { return os.RemoveAll(v.dir) }

// scrub removes from a text what must not be told.
func (v *visit) scrub(text string) string {
	for _, secret := range v.secrets {
		text = strings.ReplaceAll(text, secret, "…")
	}
	return text
}

func quoteShell(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// quoteGit makes a value of a git configuration.
func quoteGit(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

// quoteSSH makes a value of an ssh configuration that is the name of a file.
func quoteSSH(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(text) + `"`
}
