package direct_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/credentials"
	"github.com/ringmod/ringmod/node/direct"
)

const (
	team   = "git.example.com/team/x"
	key    = "-----BEGIN OPENSSH PRIVATE KEY-----\naHVudGVyMg==\n-----END OPENSSH PRIVATE KEY-----\n"
	secret = "hunter2%/@:\"'" // all that a form may have to escape
)

// guarded has credentials for two patterns, a netrc file and a git configuration whose
// helper knows everybody.
func guarded(t *testing.T, goScript string) (*direct.Direct, string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	write("password", secret+"\n")
	write("key", key)
	c, err := credentials.Open(credentials.Config{
		Private: "git.example.com",
		File: write("c.yaml", "git.example.com/team: {login: me, password: 'file:password', host: [git.example.com, 'src.example.com:8443']}\n"+
			"git.example.com/ssh: {ssh-key: 'file:key', ssh-host: 'ssh.example.com:2222', known-hosts: 'ssh.example.com ssh-ed25519 AAAA'}\n"),
		GitConfig: write("gitconfig", "[http]\n\tsslCAInfo = /operator\n[credential]\n\thelper = \"!f() { echo username=op; echo password=operators; }; f\"\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	netrc := write("netrc", "machine git.example.com login netrc password fromnetrc\n")
	return newDirect(t, &repository{home: t.TempDir()}, func(cfg *direct.Config) {
		cfg.Private, cfg.Credentials, cfg.Netrc, cfg.CAFile = "git.example.com", c, netrc, "/machine"
		script(t, goScript)(cfg)
	})
}

// ask has a go command run that does what the script says, and returns what it printed.
func ask(t *testing.T, script, module string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	d, dir := guarded(t, "{ "+script+"\n} > "+out+" 2>&1; echo '{\"Version\":\"v1.0.0\"}'")
	mustFetch(t, d, module+"/@v/v1.0.0.info")
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "visits")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	return string(data)
}

// What git gets to know, asked as it asks itself.
func TestGitAsksForCredentials(t *testing.T) {
	t.Parallel()
	const own, operators, nothing = "username=me\npassword=" + secret + "\n", "password=operators\n", "terminal prompts disabled"
	for _, test := range []struct{ module, question, want string }{
		{team, "protocol=https\nhost=git.example.com\npath=team/x.git\n", own},
		{team, "protocol=https\nhost=src.example.com:8443\n", own},
		{team + "/sub/v2", "protocol=https\nhost=git.example.com\n", own},
		{team, "protocol=http\nhost=git.example.com\n", nothing},
		{team, "protocol=https\nhost=git.example.com:8443\n", nothing},
		{team, "protocol=https\nhost=src.example.com\n", nothing},
		{team, "protocol=https\nhost=evil.example.com\n", nothing},
		{"git.example.com/teamwork/x", "protocol=https\nhost=git.example.com\n", operators},
		{"git.example.com/ssh/x", "protocol=https\nhost=git.example.com\n", nothing},
		{"public.example.com/team/x", "protocol=https\nhost=git.example.com\n", operators},
	} {
		got := ask(t, "printf '%b\\n' '"+test.question+"' | git credential fill", test.module)
		if !strings.Contains(got, test.want) || test.want != own && strings.Contains(got, "hunter2") {
			t.Errorf("%s, asked for %q: got %q, want %q", test.module, test.question, got, test.want)
		}
	}
}

// What git and the go command read, and that none of it is in an environment or a
// command line.
func TestFilesOfACommand(t *testing.T) {
	t.Parallel()
	environment := ask(t, "env; ls -ld \"$HOME\"; ls -l \"$HOME\"; git config http.sslCAInfo; cat /proc/$$/cmdline", team)
	for _, want := range []string{"GOAUTH=netrc; git /", "drwx------", "/operator\n", "/netrc\n"} {
		if !strings.Contains(environment, want) {
			t.Errorf("%q is missing in\n%s", want, environment)
		}
	}
	if strings.Contains(environment, "hunter2") || strings.Contains(environment, "r--r--") {
		t.Errorf("a secret can be read by others:\n%s", environment)
	}
	for _, test := range []struct{ script, module, want string }{
		{"cat $NETRC", team, "machine git.example.com login me password " + secret + "\nmachine src.example.com:8443 login me password " + secret + "\n"},
		{"ls $HOME/.netrc", team, "No such file"},
		{"cat $NETRC", "git.example.com/other/x", "machine git.example.com login netrc password fromnetrc\n"},
		{"cat $HOME/.netrc", "git.example.com/other/x", "machine git.example.com login netrc password fromnetrc\n"},
		{"git ls-remote --get-url https://git.example.com/ssh/x.git", "git.example.com/ssh/x", "ssh://git@ssh.example.com:2222/ssh/x.git"},
		{"git ls-remote --get-url https://git.example.com/ssh/x.git", team, "https://git.example.com/ssh/x.git"},
		{
			"eval $GIT_SSH_COMMAND -G ssh.example.com | grep -E '^(identityfile|batchmode|identityagent)' | sort", "git.example.com/ssh/x",
			"batchmode yes\nidentityagent none\nidentityfile ",
		},
		{"eval $GIT_SSH_COMMAND -G other.example.com | grep identityfile", "git.example.com/ssh/x", "identityfile none\n"},
		{"eval $GIT_SSH_COMMAND -G other.example.com | grep stricthost", "git.example.com/ssh/x", "stricthostkeychecking true\n"},
	} {
		if got := ask(t, test.script, test.module); !strings.HasPrefix(got, test.want) && !strings.Contains(got, test.want) {
			t.Errorf("%s for %s: got %q, want %q", test.script, test.module, got, test.want)
		}
	}
}

// What a command says of credentials, and that it says none.
func TestAdvice(t *testing.T) {
	t.Parallel()
	const refused = "fatal: could not read Username for 'https://git.example.com': terminal prompts disabled"
	for _, test := range []struct{ module, said, want string }{
		{team, refused, "does not accept the credentials of git.example.com/team in the file of --credentials"},
		{"git.example.com/other/x/y", refused, "adds git.example.com/other with a token, a password or an SSH key to the file of --credentials"},
		{"public.example.com/x", refused, "if the module is private, whoever runs this node adds public.example.com/x to --private"},
		{"git.example.com/ssh/x", "reading https://git.example.com/ssh/x?go-get=1: 401 Unauthorized", "git.example.com/ssh has an SSH key"},
		{"git.example.com/ssh/x", "Host key verification failed.", "'ssh-keyscan HOST'"},
		{"git.example.com/other/x", "fatal: repository 'https://git.example.com/other/x/' not found", "asked without credentials"},
		{team, "fatal: unable to access 'https://me:$(cat $NETRC)@git.example.com': The requested URL returned error: 403", "credentials of git.example.com/team"},
	} {
		d, dir := guarded(t, "echo \"example.com: "+test.said+" $(cat $HOME/store $HOME/netrc 2>/dev/null)\" >&2; exit 1")
		_, err := fetch(t, d, test.module+"/@v/v1.0.0.info")
		e, ok := errors.AsType[*cache.Error](err)
		if !ok || !strings.Contains(e.Text, test.want) || len(e.Text) > 560 {
			t.Errorf("%s: got %v, want %q in at most 560 bytes", test.module, err, test.want)
		}
		if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), dir) {
			t.Errorf("%s: the error tells %v", test.module, err)
		}
	}
}

// What a killed process has left goes before anything else is done.
func TestLeftCredentials(t *testing.T) {
	t.Parallel()
	d, dir := guarded(t, "echo '{\"Version\":\"v1.0.0\"}'")
	left := filepath.Join(dir, "visits", "killed")
	if err := errors.Join(os.MkdirAll(left, 0o700), os.WriteFile(filepath.Join(left, "netrc"), []byte(secret), 0o600)); err != nil {
		t.Fatal(err)
	}
	mustFetch(t, d, team+"/@v/v1.0.0.info")
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}
