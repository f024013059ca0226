package audit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/audit"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/upstream"
)

// world is a disk and an upstream, which tells of versions by a proxy or by version
// control.
type world struct {
	t *testing.T

	mu       sync.Mutex
	held     map[string]string // .info by name
	stored   time.Time
	audited  map[string]time.Time
	findings map[string]store.Finding
	upstream map[string]string // .info by name; not there: 404
	broken   error             // of upstream
	vcs      bool
	tags     map[string]string // commits by ref
	vcsErr   error
	asked    []string // of upstream, and repositories
	foreign  bool     // nothing is ours to look at
	log      strings.Builder
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t, held: map[string]string{}, stored: time.Now(), audited: map[string]time.Time{}, findings: map[string]store.Finding{},
		upstream: map[string]string{}, tags: map[string]string{},
	}
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// Write collects the log.
func (w *world) Write(p []byte) (int, error) { return w.log.Write(p) }

func name(version string) string { return "example.com/m/@v/" + version + ".info" }

func info(version, commit string) string {
	return fmt.Sprintf(`{"Version":%q,"Time":"2024-01-02T03:04:05Z","Origin":{"VCS":"git","URL":"https://example.com/m","Ref":"refs/tags/%[1]s","Hash":%q}}`, version, commit)
}

// hold stores a version, which is upstream, too.
func (w *world) hold(version, commit string) {
	text := info(version, commit)
	w.held[name(version)], w.upstream[name(version)], w.tags["refs/tags/"+version] = text, text, commit
}

// auditor starts an auditor of this world.
func (w *world) auditor() *audit.Auditor {
	a := audit.New(audit.Config{
		Disk: w, Upstream: w, Mine: func(target.Target) bool { return !w.foreign },
		Metrics: prometheus.NewRegistry(), Logger: slog.New(slog.NewTextHandler(w, nil)),
	})
	return a
}

// now has everything audited.
func (w *world) now(a *audit.Auditor, modules ...string) audit.Progress {
	w.t.Helper()
	time.Sleep(time.Second)
	var last audit.Progress
	if err := a.AuditNow(w.t.Context(), modules, func(p audit.Progress) error { last = p; return nil }); err != nil {
		w.t.Fatal(err)
	}
	return last
}

// finds wants these findings, in words.
func (w *world) finds(a *audit.Auditor, when string, want ...string) {
	w.t.Helper()
	var got []string
	for _, f := range a.List(w.t.Context(), nil) {
		text := fmt.Sprintf("%s %s>%s", strings.TrimSuffix(strings.TrimPrefix(f.Name, "example.com/m/@v/"), ".info"), f.Old, f.New)
		if !f.IsOpen() {
			text += " closed"
		}
		got = append(got, text)
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("%s: found %q, want %q", when, got, want)
	}
}

func (w *world) Open(_ context.Context, name string) (*store.Object, error) {
	text, ok := w.held[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &store.Object{Entry: store.Entry{Name: name}, File: file{strings.NewReader(text)}}, nil
}

type file struct{ *strings.Reader }

func (file) Close() error { return nil }

func (w *world) Unaudited(_ context.Context, before time.Time, most int, wanted func(string) bool) (b store.Backlog, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(w.held)) {
		at := w.stored
		if w.audited[name].After(at) {
			at = w.audited[name]
		}
		if at.Before(before) && wanted(name) && len(b.Oldest) < most {
			b.Oldest = append(b.Oldest, store.Stale{Entry: store.Entry{Name: name}, Checked: at})
		}
	}
	return b, nil
}

func (w *world) Audited(at time.Time, names ...string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range names {
		w.audited[name] = at
	}
	return nil
}

func (w *world) Finding(name string) (store.Finding, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, ok := w.findings[name]
	if !ok {
		return f, fs.ErrNotExist
	}
	return f, nil
}

func (w *world) Findings(from string, most int) (all []store.Finding, next string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(w.findings)) {
		if name < from {
			continue
		}
		if len(all) == most {
			return all, name, nil
		}
		all = append(all, w.findings[name])
	}
	return all, "", nil
}

func (w *world) PutFinding(f store.Finding) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.findings[f.Name] = f
	return nil
}

func (w *world) DropFinding(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.findings, name)
	return nil
}

func (w *world) ReadOnly() error { return nil }
func (w *world) Offline() bool   { return false }

func (w *world) FetchListed(_ context.Context, t target.Target) (*upstream.Response, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.vcs {
		return nil, true, w.broken
	}
	w.asked = append(w.asked, t.String())
	if w.broken != nil {
		return nil, false, w.broken
	}
	text, ok := w.upstream[t.String()]
	if !ok {
		return nil, false, &cache.Error{Reason: cache.NotFound, Source: "proxy.test", Text: "not found"}
	}
	return &upstream.Response{Body: io.NopCloser(strings.NewReader(text)), Source: "proxy.test"}, false, nil
}

func (w *world) Refs(_ context.Context, path, url string) (map[string]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, path+" "+url)
	return maps.Clone(w.tags), w.vcsErr
}

var errAway = &cache.Error{Reason: cache.Broken, Source: "proxy.test", Text: "connection refused"}

// TestMovedAndVanished goes through what can become of versions, by a proxy and by version
// control.
func TestMovedAndVanished(t *testing.T) {
	t.Parallel()
	for _, vcs := range []bool{false, true} {
		t.Run(fmt.Sprintf("vcs %v", vcs), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.vcs = vcs
				w.hold("v1.0.0", "c1")
				w.hold("v1.1.0", "c2")
				w.hold("v1.2.0", "c3")
				a := w.auditor()
				if p := w.now(a); p.Looked != 3 || p.Total != 3 || p.Troubled != 0 {
					t.Errorf("progress %+v, want 3 of 3", p)
				}
				w.finds(a, "without a change")

				w.upstream[name("v1.0.0")], w.tags["refs/tags/v1.0.0"] = strings.ReplaceAll(w.held[name("v1.0.0")], "c1", "c9"), "c9"
				delete(w.upstream, name("v1.1.0"))
				delete(w.tags, "refs/tags/v1.1.0")
				w.now(a)
				w.finds(a, "changed", "v1.0.0 c1>c9", "v1.1.0 c2>")
				time.Sleep(time.Hour)
				first := w.findings[name("v1.0.0")].First
				w.now(a)
				if f := w.findings[name("v1.0.0")]; !f.First.Equal(first) || !f.Looked.After(first) {
					t.Errorf("first seen %v, looked %v, want %v and later", f.First, f.Looked, first)
				}
				if got := strings.Count(w.log.String(), "version has changed upstream"); got != 2 {
					t.Errorf("%d events, want 2:\n%s", got, w.log.String())
				}

				w.broken, w.vcsErr = errAway, errAway
				if p := w.now(a); p.Troubled != 3 || !strings.Contains(p.Trouble, "connection refused") {
					t.Errorf("with upstream away: %+v", p)
				}
				w.finds(a, "with upstream away", "v1.0.0 c1>c9", "v1.1.0 c2>")
				w.broken, w.vcsErr = nil, nil

				w.hold("v1.1.0", "c2")
				w.upstream[name("v1.0.0")], w.tags["refs/tags/v1.0.0"] = strings.ReplaceAll(w.held[name("v1.0.0")], "c1", "c8"), "c8"
				w.now(a)
				w.finds(a, "restored, and moved again", "v1.0.0 c1>c8", "v1.1.0 c2> closed")
				if !strings.Contains(w.log.String(), "version is upstream again as it is held") {
					t.Errorf("no event:\n%s", w.log.String())
				}
				if got := strings.Count(w.log.String(), "version has changed upstream"); got != 3 {
					t.Errorf("%d events, want 3", got)
				}
			})
		})
	}
}

// TestRepositoryIsAskedOnce has 60 tags of one repository.
func TestRepositoryIsAskedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.vcs = true
		for i := range 60 {
			w.hold(fmt.Sprintf("v1.%d.0", i), "c")
		}
		w.held["example.com/m/@v/v0.0.0-20240102030405-0123456789ab.info"] = `{"Origin":{"VCS":"git","URL":"https://example.com/m","Hash":"0123456789ab"}}`
		w.held["example.com/m/@v/v1.0.0.mod"] = "module example.com/m\n"
		a := w.auditor()
		if p := w.now(a); p.Looked != 61 || len(w.asked) != 1 {
			t.Errorf("%+v, asked %q, want 61 looks and one request", p, w.asked)
		}
		w.finds(a, "without a change")
		w.vcsErr = &cache.Error{Reason: cache.NotFound, Source: "direct", Text: "repository not found"}
		w.now(w.auditor())
		if got := len(w.findings); got != 60 {
			t.Errorf("%d versions of a repository that is gone have vanished, want 60", got)
		}
	})
}

// TestSourcesThatSayLess must not make findings of what they do not tell.
func TestSourcesThatSayLess(t *testing.T) {
	t.Parallel()
	for what, set := range map[string]func(*world){
		"a proxy without Origin":    func(w *world) { w.upstream[name("v1.0.0")] = `{"Version":"v1.0.0"}` },
		"held without Origin":       func(w *world) { w.held[name("v1.0.0")] = `{"Version":"v1.0.0"}` },
		"held without Origin, vcs":  func(w *world) { w.held[name("v1.0.0")], w.vcs = `{"Version":"v1.0.0"}`, true },
		"HTML":                      func(w *world) { w.upstream[name("v1.0.0")] = `<html>` },
		"denied":                    func(w *world) { w.broken = &cache.Error{Reason: cache.Denied} },
		"off":                       func(w *world) { w.broken = &cache.Error{Reason: cache.NotCached} },
		"another repository":        func(w *world) { w.vcs, w.vcsErr = true, &cache.Error{Reason: cache.Broken} },
		"absent after trouble":      func(w *world) { w.vcs, w.broken, w.tags = true, errAway, nil },
		"not ours":                  func(w *world) { w.foreign = true; delete(w.upstream, name("v1.0.0")) },
		"another module was wanted": func(w *world) {},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.hold("v1.0.0", "c1")
				set(w)
				a := w.auditor()
				if what == "another module was wanted" {
					delete(w.upstream, name("v1.0.0"))
					w.now(a, "example.com/other", "example.com/m/...x", "example.com/m2/...")
				} else {
					w.now(a)
				}
				w.finds(a, what)
			})
		})
	}
}

// TestBackground looks at everything within the period, and no more, at its rate, and
// goes on behind what cannot be asked.
func TestBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 20 {
			w.hold(fmt.Sprintf("v1.%d.0", i), "c")
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = w.auditor().Run(ctx) })
		count := func() (n int) {
			w.change(func() { n, w.asked = len(w.asked), nil })
			return n
		}
		time.Sleep(13 * 24 * time.Hour)
		if n := count(); n != 0 {
			t.Errorf("%d requests about what has just come", n)
		}
		time.Sleep(24*time.Hour + 2*time.Hour)
		if n := count(); n != 20 {
			t.Errorf("%d requests within a period, want 20", n)
		}
		w.change(func() { delete(w.upstream, name("v1.3.0")) })
		time.Sleep(14 * 24 * time.Hour)
		if n := count(); n < 20 || n > 22 {
			t.Errorf("%d requests within a period, want 20", n)
		}
		time.Sleep(3 * 24 * time.Hour)
		if n := count(); n < 2 || n > 4 {
			t.Errorf("%d requests in three days about what is open, want 3", n)
		}
		w.change(func() { w.broken = errAway; w.stored = time.Time{}; clear(w.audited) })
		time.Sleep(time.Hour)
		if n := count(); n > 6 {
			t.Errorf("%d requests in an hour to an upstream that is away", n)
		}
		time.Sleep(6 * time.Hour)
		if n := count(); n < 10 {
			t.Errorf("%d requests in six hours, want that others than the first are tried", n)
		}
		w.change(func() { w.broken = nil; delete(w.held, name("v1.3.0")) })
		time.Sleep(40 * 24 * time.Hour)
		w.change(func() {
			if len(w.findings) != 0 {
				t.Errorf("a finding about what is not held stays: %v", w.findings)
			}
		})
		stop()
		running.Wait()
	})
}

// TestAuditNowEnds ends with its caller, and only one runs.
func TestAuditNowEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 1000 {
			w.hold(fmt.Sprintf("v1.%d.0", i), "c")
		}
		a := w.auditor()
		time.Sleep(time.Second)
		left := errors.New("left")
		err := a.AuditNow(t.Context(), nil, func(p audit.Progress) error {
			if err := a.AuditNow(t.Context(), nil, func(audit.Progress) error { return nil }); !errors.Is(err, audit.ErrBusy) {
				t.Errorf("a second one: %v", err)
			}
			if p.Looked > 10 {
				return left
			}
			return nil
		})
		if !errors.Is(err, left) || len(w.asked) > 30 {
			t.Errorf("%v after %d requests, want that it ends", err, len(w.asked))
		}
	})
}
