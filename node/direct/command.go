package direct

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/spans"
	"github.com/ringmod/ringmod/internal/target"
)

const (
	maxOutput = 16 << 20 // bytes of what a command prints; the longest list of versions has 400 KiB
	maxErrors = 64 << 10 // bytes of what it complains about

	// afterKill is how long the pipes of a killed command may stay open.
	afterKill = 2 * time.Second
)

// handedOn are the variables of our own environment that the go command needs to
// reach the world as its operator has set it up (Environ).
var handedOn = []string{ //nolint:gochecknoglobals // never written
	"PATH", "TMPDIR", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
	"GOVCS", "GOINSECURE", "SSH_AUTH_SOCK", "GIT_SSH", "GIT_SSH_COMMAND",
}

// Environ returns what of our own environment Config.Env should have: how to reach
// the network, keys of an ssh agent, GOVCS and GOINSECURE.
func Environ() []string {
	var env []string
	for _, name := range handedOn {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// prepare makes the sandbox.
func (d *Direct) prepare() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.made {
		return nil
	}
	// Without this file the go command leaves a child behind that counts
	// (golang.org/x/telemetry).
	telemetry := filepath.Join(d.home(), ".config", "go", "telemetry")
	if err := os.RemoveAll(d.visits()); err != nil { // of a process that was killed
		return err
	}
	for _, dir := range []string{telemetry, d.modCache(), d.work()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Mkdir(d.visits(), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(telemetry, "mode"), []byte("off\n"), 0o600); err != nil {
		return err
	}
	if err := d.linkNetrc(); err != nil {
		return err
	}
	d.made = true
	return nil
}

// linkNetrc shows git the netrc file, which it looks for in HOME alone.
func (d *Direct) linkNetrc() error {
	link := filepath.Join(d.home(), ".netrc")
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if d.cfg.Netrc == "" {
		return nil
	}
	return os.Symlink(d.cfg.Netrc, link)
}

func (d *Direct) home() string { return filepath.Join(d.cfg.Dir, "home") }

// work is where commands run: a folder without a go.mod.
func (d *Direct) work() string { return filepath.Join(d.cfg.Dir, "work") }

// environ is the environment of a command; the last of a name wins.
func (d *Direct) environ(v *visit) []string {
	env := append([]string{}, d.cfg.Env...)
	if d.cfg.Agent != "" {
		env = append(env, "GIT_HTTP_USER_AGENT="+d.cfg.Agent+" git/2") // some servers look for "git/"
	}
	if d.cfg.Netrc != "" {
		env = append(env, "NETRC="+d.cfg.Netrc)
	}
	env = append(env,
		"HOME="+d.home(), "XDG_CONFIG_HOME="+filepath.Join(d.home(), ".config"), "PWD="+d.work(),
		"GOPATH="+filepath.Join(d.cfg.Dir, "gopath"), "GOMODCACHE="+d.modCache(), "GOCACHE="+filepath.Join(d.cfg.Dir, "build"),
		"GOENV=off", "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local", "GOWORK=off", "GO111MODULE=on",
		"GOPROXY=direct", "GONOPROXY=none", "GOSUMDB=off", "GOPRIVATE="+d.cfg.Private,
		"GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=", "SSH_ASKPASS=", "SSH_ASKPASS_REQUIRE=never", "GCM_INTERACTIVE=never",
		"GIT_CONFIG_NOSYSTEM=1", "HGPLAIN=1", "LC_ALL=C",
	)
	return append(env, v.env...)
}

var (
	errLimit  = errors.New("the go command took too long")
	errOutput = errors.New("the go command prints too much")
)

// run runs the go command for t and reads the one JSON document that it prints.
func (d *Direct) run(ctx context.Context, t target.Target, args ...string) (*found, error) {
	v, err := d.equip(ctx, t.Path)
	if err != nil {
		return nil, internal("preparing what the go command needs", err)
	}
	defer d.leave(ctx, v)
	out, text, err := d.execute(ctx, t, v, d.cfg.Go, args...)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, &cache.Error{Reason: cache.Broken, Source: source, Err: err, Text: "version control (direct) needs the go command, and there is none here: " +
			"install go on this node, or put a module proxy before \"direct\" in --upstream"}
	}
	if ended, ok := errors.AsType[*cache.Error](err); ok {
		return nil, ended
	}
	var f found
	if decoded := json.Unmarshal(out, &f); err == nil && decoded != nil {
		return nil, internal("reading what the go command says", decoded)
	}
	if err == nil && f.Error == "" {
		d.origins.learn(t.Path, f.Origin)
		return &f, nil
	}
	if _, failed := errors.AsType[*exec.ExitError](err); !failed && err != nil {
		return nil, internal("running the go command", err)
	}
	if f.Error != "" { // of go mod download
		text = f.Error
	}
	if strings.Contains(text, noProtocol) {
		text += "\n" + d.whyNot(ctx, t, v)
	}
	return nil, d.classify(ctx, t, v, text)
}

// execute runs a program in the sandbox, with what v gives it, and returns what it prints
// and the beginning of its complaints. The error is a *cache.Error where ctx ended it,
// with all its children, or it printed too much.
func (d *Direct) execute(ctx context.Context, t target.Target, v *visit, program string, args ...string) (out []byte, complaints string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = d.work(), d.environ(v), afterKill
	killTogether(cmd)
	printed := &bounded{limit: maxOutput, exceeded: func() { cancel(errOutput) }}
	complained := &bounded{limit: maxErrors, exceeded: func() {}}
	cmd.Stdout, cmd.Stderr = printed, complained
	_, span := spans.Start(ctx, trace.SpanKindInternal, filepath.Base(program), spans.Key.String(t.String()))
	start := time.Now()
	err = cmd.Run()
	spans.End(span, err)
	d.log.DebugContext(ctx, "command", "key", t.String(), "program", program, "duration_ms", time.Since(start).Milliseconds(), "err", err)
	if ctx.Err() != nil && !errors.Is(err, exec.ErrNotFound) {
		err = d.ended(ctx)
	}
	return printed.buf.Bytes(), complained.buf.String(), err
}

// whyNot asks git what stands in the way where the go command has tried one protocol
// after the other, and says of each attempt nothing.
func (d *Direct) whyNot(ctx context.Context, t target.Target, v *visit) string {
	root, _, ok := strings.Cut(t.Path+"/", ".git/")
	if !ok {
		return ""
	}
	_, complaints, err := d.execute(ctx, t, v, "git", "ls-remote", "-q", "https://"+root+".git", "HEAD")
	if err == nil {
		return ""
	}
	return complaints
}

// ended is the error of a command that ctx has ended.
func (d *Direct) ended(ctx context.Context) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errOutput):
		return &cache.Error{Reason: cache.Broken, Source: source, Text: "the go command printed more than can be an answer", Err: cause}
	case errors.Is(cause, errLimit):
		return &cache.Error{Reason: cache.Slow, Source: source, Text: "version control did not answer in time", Err: context.DeadlineExceeded}
	default:
		return &cache.Error{Reason: cache.Slow, Source: source, Text: "the request was given up before the answer came", Err: ctx.Err()}
	}
}

// bounded keeps the first limit bytes that are written to it. The buffer is no
// embedded one: its ReadFrom would take everything.
type bounded struct {
	buf      bytes.Buffer
	limit    int
	exceeded func()
}

// Write never fails, so that the command is not held up.
func (b *bounded) Write(p []byte) (int, error) {
	room := b.limit - b.buf.Len()
	if len(p) > room {
		b.exceeded()
	}
	b.buf.Write(p[:min(len(p), room)])
	return len(p), nil
}

func internal(doing string, err error) error {
	return &cache.Error{Reason: cache.Internal, Source: source, Text: "fetching from version control failed here", Err: errors.Join(errors.New(doing), err)}
}

func asError(err error) error {
	if e, ok := errors.AsType[*cache.Error](err); ok {
		return e
	}
	return internal("reading what the go command has made", err)
}
